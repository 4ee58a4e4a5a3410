"""A fixed-capacity memory of past samples, and the policies that decide what it keeps."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from typing_extensions import override

__all__ = ["POLICIES", "Memory", "Policy", "Reservoir"]


class Policy(Protocol):
    """Decide in which slot of a memory each offered item goes.

    A policy is made with the memory's ``(capacity, seed)`` and draws random numbers from a generator of its own. Slot
    ``k`` may be filled only after slots ``0`` to ``k - 1``: the filled part of a memory is always its front. To add a
    policy, put its class in :data:`POLICIES`.
    """

    def assign(self, columns: Mapping[str, Tensor], seen: int) -> Tensor:
        """Answer with a slot for each item of a batch.

        Args:
            columns: The items: tensors ``(N, *)``. A single tensor has the name ``"items"``, those of a list have
                their positions ``"0"``, ``"1"``, ...
            seen: Number of items offered before this batch.

        Returns:
            Slots ``(N,)``, int64 on the CPU: ``-1`` drops the item. A slot may be named twice; the later item wins.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that later answers depend on, as tensors, numbers and strings."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        ...


class Reservoir(Policy):
    r"""Keep a uniform sample of all items ever offered, without knowing how many will come.

    Algorithm R of Vitter, ACM Transactions on Mathematical Software 1985: with :math:`n` items offered before this one
    and a capacity of :math:`B`, the item takes slot :math:`n` if :math:`n < B`; else it draws :math:`r` uniformly from
    :math:`\{0, \dots, n\}`, takes slot :math:`r` if :math:`r < B`, and is dropped otherwise. After :math:`N` offers
    each of them is in the memory with probability :math:`\min(1, B / N)`.

    An item uses up one random number however the stream is cut into batches, so the cut does not change the content.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the random numbers.

    Example:
        >>> Reservoir(capacity=3, seed=0).assign({"items": torch.zeros(5)}, seen=0)[:3]
        tensor([0, 1, 2])
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.generator = Generator().manual_seed(seed)

    @override
    def assign(self, columns: Mapping[str, Tensor], seen: int) -> Tensor:
        count = len(next(iter(columns.values())))
        slots = torch.arange(seen, seen + count, device="cpu")
        late = slots[max(self.capacity - seen, 0) :]  # a view: the items that find the memory full
        # float32 would lose integers above 2 ** 24; in float64 the product stays below n + 1. The copy rounds down.
        uniform = torch.rand(late.shape, generator=self.generator, dtype=torch.float64, device="cpu")
        late.copy_(uniform * (late + 1))
        return slots.masked_fill_(slots >= self.capacity, -1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"].cpu())  # `map_location` may have moved it


POLICIES: dict[str, Callable[[int, int], Policy]] = {"reservoir": Reservoir}
"""The allowed values of ``policy``: what makes a policy from ``(capacity, seed)``, by name."""


class Memory:
    """Keep a fixed number of items, for replay.

    An item is a row of one tensor, or of several (columns) in a dict, list or tuple. The first insert allocates the
    storage, at full capacity and in the dtype and shape of its items: uint8 images stay uint8.

    Args:
        capacity: Number of items that fit, 1 or more.
        policy: What stays when more are offered, a name in :data:`POLICIES`. ``"reservoir"``: a uniform sample.
        seed: Fixes the choices of the policy.
        device: Where the items are stored. Items from another device are moved; only those that stay travel.

    Attributes:
        seen: Number of items offered so far.

    Raises:
        ValueError: If ``capacity`` is below 1 or ``policy`` is not known.

    Example:
        >>> memory = Memory(capacity=3, seed=8)
        >>> memory.insert({"x": torch.zeros(6, 3, 32, 32, dtype=torch.uint8), "y": torch.arange(6)})
        tensor([-1,  1, -1, -1,  2,  0])
        >>> memory.items["y"], len(memory), memory.seen
        (tensor([5, 1, 4]), 3, 6)
        >>> memory.draw(2, torch.Generator().manual_seed(0))["x"].shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, capacity: int, policy: str = "reservoir", seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"`capacity` must be 1 or more, got {capacity}.")
        if policy not in POLICIES:
            nearest = get_close_matches(policy, POLICIES, n=1, cutoff=0.0)
            raise ValueError(
                f"`policy` must be one of {sorted(POLICIES)}, got {policy!r}. Did you mean {nearest[0]!r}?"
            )
        self.capacity = capacity
        self.policy = policy
        self.device = torch.device(device)
        self.seen = 0
        self._policy = POLICIES[policy](capacity, seed)
        self._storage: dict[str, Tensor] = {}  # columns of `capacity` rows
        self._structure = "tensor"  # or "dict", "list", "tuple"
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def items(self) -> Any:
        """The items kept, in the order of their slots: a view of the storage, in the structure of the first insert.

        Raises:
            RuntimeError: Before the first insert, when the structure is not known.
        """
        return self._pack({name: column[: self._size] for name, column in self._storage.items()})

    def insert(self, items: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Offer a batch of items.

        Args:
            items: A tensor ``(N, *)``, or a dict, list or tuple of such tensors with one ``N``.

        Returns:
            The slot ``(N,)`` each item is now in, int64 on the CPU; ``-1`` if it was not kept.

        Raises:
            TypeError: If a column is not a tensor.
            ValueError: If columns differ in length, or in name, dtype or shape from those of the first insert.
        """
        columns = _columns(items)
        if not self._storage:
            self._structure = _structure(items)
            self._storage = self._allocate(columns)
        self._check(columns)
        slots = self._policy.assign(columns, self.seen)
        self.seen += slots.numel()
        target, rows = _last_wins(slots)
        if len(target):  # late in a long stream a whole batch is often dropped
            self._size = max(self._size, int(target[-1]) + 1)
            for name, column in columns.items():
                chosen = column.index_select(0, rows.to(column.device)).to(self.device)
                _words(self._storage[name]).index_copy_(0, target.to(self.device), _words(chosen))
        return torch.full_like(slots, -1).index_copy_(0, rows, target)

    def draw(self, count: int, generator: Generator) -> Any:
        """Draw items uniformly and without replacement, in random order.

        Args:
            count: Number of items; all of them if there are fewer.
            generator: Source of the random numbers. It is the caller's, so that drawing does not change what is kept.

        Returns:
            Copies of ``min(count, len(self))`` items on the memory's device, in the structure of the first insert.

        Raises:
            ValueError: If ``count`` is negative.
            RuntimeError: Before the first insert, when the structure is not known.
        """
        if count < 0:
            raise ValueError(f"`count` must be 0 or more, got {count}.")
        index = _sample(self._size, min(count, self._size), generator).to(self.device)
        return self._pack({name: column.index_select(0, index) for name, column in self._storage.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the items kept and of all that later choices depend on.

        Tensors, numbers and strings only, so that ``torch.load(..., weights_only=True)`` reads it. Empty slots are not
        in it.
        """
        return {
            "capacity": self.capacity,
            "policy": self.policy,
            "seen": self.seen,
            "structure": self._structure,
            "columns": {name: column[: self._size].clone() for name, column in self._storage.items()},
            "policy_state": self._policy.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on exactly where the memory of :meth:`state_dict` was. What this memory held is gone.

        Raises:
            ValueError: If the state is that of a memory with another ``capacity`` or ``policy``.
        """
        for name in ("capacity", "policy"):
            own, saved = getattr(self, name), state_dict[name]
            if own != saved:
                raise ValueError(
                    f"`{name}` is {own!r} but the saved memory has {saved!r}. "
                    f"Make this one with `{name}={saved!r}`, or start it empty without loading."
                )
        columns: dict[str, Tensor] = state_dict["columns"]
        self.seen = state_dict["seen"]
        self._structure = state_dict["structure"]
        self._size = len(next(iter(columns.values()))) if columns else 0
        self._storage = self._allocate(columns)
        for name, column in columns.items():
            self._storage[name][: self._size] = column
        self._policy.load_state_dict(state_dict["policy_state"])

    def _allocate(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode(False):  # a first insert during evaluation must not forbid later ones in training
            return {
                name: torch.empty((self.capacity, *column.shape[1:]), dtype=column.dtype, device=self.device)
                for name, column in columns.items()
            }

    def _check(self, columns: Mapping[str, Tensor]) -> None:
        if columns.keys() != self._storage.keys():
            raise ValueError(
                f"`items` must have the columns of the first insert, {list(self._storage)}, got {list(columns)}."
            )
        for name, stored in self._storage.items():
            column = columns[name]
            if column.dtype != stored.dtype or column.shape[1:] != stored.shape[1:]:
                raise ValueError(
                    f"`items`: column {name!r} must be {stored.dtype} with items of shape {tuple(stored.shape[1:])} as "
                    f"in the first insert, got {column.dtype} with {tuple(column.shape[1:])}."
                )

    def _pack(self, columns: dict[str, Tensor]) -> Any:
        if not columns:
            raise RuntimeError("Nothing was ever inserted in this memory. Check `len(memory)` first, or insert items.")
        if self._structure == "dict":
            return columns
        values = list(columns.values())
        return {"tensor": values[0], "list": values, "tuple": tuple(values)}[self._structure]


def _structure(items: object) -> str:
    """Name the container that :meth:`Memory._pack` rebuilds."""
    if isinstance(items, Tensor):
        return "tensor"
    if isinstance(items, Mapping):
        return "dict"
    return "tuple" if isinstance(items, tuple) else "list"


def _columns(items: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the tensors in ``items`` and check that they are rows of the same items."""
    if isinstance(items, Tensor):
        columns = {"items": items}
    elif isinstance(items, Mapping):
        columns = dict(items)
    elif isinstance(items, list | tuple):
        columns = {str(position): column for position, column in enumerate(items)}
    else:
        raise TypeError(f"`items` must be a tensor, or a dict, list or tuple of tensors, got {type(items).__name__}.")
    for name, column in columns.items():
        if not isinstance(column, Tensor):
            raise TypeError(f"`items`: column {name!r} must be a tensor, got {type(column).__name__}.")
    lengths = {name: len(column) if column.dim() else None for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"`items` must be tensors with one and the same first dimension, got lengths {lengths}.")
    return {name: column.detach() for name, column in columns.items()}


def _last_wins(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different slots in ascending order and, for each, the row of the last item that names it.

    Copying to an index that occurs twice would leave it to chance on a GPU which of the two stays.
    """
    rows = (slots >= 0).nonzero().squeeze(1)
    target, order = slots[rows].sort(stable=True)
    last = torch.ones_like(target, dtype=torch.bool)
    torch.ne(target[1:], target[:-1], out=last[:-1])
    index = last.nonzero().squeeze(1)
    return target[index], rows[order[index]]


def _words(rows: Tensor) -> Tensor:
    """View contiguous rows as 8-byte integers if they divide evenly.

    ``index_copy_`` copies a number at a time: 64 uint8 images of CIFAR take 15 instead of 100 microseconds.
    """
    nbytes = rows.shape[1:].numel() * rows.element_size()
    if rows.dim() == 1 or nbytes == 0 or nbytes % 8:
        return rows
    return rows.flatten(1).view(torch.int64)


def _sample(size: int, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` different numbers below ``size``, in random order, at a cost that grows with ``count`` only."""
    if size <= 100 * count:
        return torch.randperm(size, generator=generator, device=generator.device)[:count]
    # A permutation of a million for 64 items takes 4 ms, this 10 us.
    found: dict[int, None] = {}  # keeps order; the first different values of independent draws are a uniform sample
    while len(found) < count:
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
        found.update(dict.fromkeys((uniform * size).long().tolist()))
    return torch.tensor(list(found)[:count], dtype=torch.int64, device="cpu")
