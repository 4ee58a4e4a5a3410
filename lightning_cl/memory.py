"""A fixed-capacity memory of past samples."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_cl.policies import NO_GROUPS, NO_SCORES, POLICIES, KeyedReservoir, Offer, integers, share
from lightning_cl.stores import FileStore, Store, TensorStore
from lightning_cl.utilities import permutation

__all__ = ["POLICIES", "Memory", "deal", "share"]

MARKS = {"groups": NO_GROUPS, "scores": NO_SCORES}


class Memory:
    """Keep a fixed number of items, for replay.

    An item is a row of one tensor, or of several (columns) in a dict, list or tuple. The first insert allocates the
    storage, at full capacity and in the dtype and shape of its items: uint8 images stay uint8.

    ====================== ============================================================================================
    policy                 what stays when more are offered
    ====================== ============================================================================================
    ``reservoir``          a uniform sample of all
    ``keyed_reservoir``    the same, in a form that can be merged, for some 100 bytes an item
    ``balanced_reservoir`` a reservoir in which items of the largest group go first
    ``class_quota``        of each group the items of highest score, as many of each; uniform scores if none are given
    ``ring``               of each group the newest, as many of each
    ``fifo``               the newest
    ``gss``                those whose gradients differ
    ====================== ============================================================================================

    :mod:`lightning_cl.policies` has their laws. What becomes of an item does not depend on how the stream is cut into
    batches (with ``gss`` it does, by its definition).

    Args:
        capacity: Number of items that fit, 1 or more.
        policy: What stays when more are offered: one of the above, or a name that was added to :data:`POLICIES`.
        seed: Fixes the choices of the policy.
        device: Where the items are stored. Items from another device are moved; only those that stay travel.
        file: Where they are stored if not in ``device``: a new file, memory-mapped, for more than there is RAM. A state
            of the memory then names rows of the file and holds none of the items (see
            :class:`lightning_cl.mapped.MappedRows`).

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
        self,
        capacity: int,
        policy: str = "reservoir",
        seed: int = 0,
        device: str | torch.device = "cpu",
        file: str | None = None,
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
        self.device = torch.device("cpu" if file else device)
        self.file = file
        self.seen = 0
        self._policy = POLICIES[policy](capacity, seed)
        self._store: Store | None = None
        self._structure = "tensor"  # or "dict", "list", "tuple"
        self._marks: dict[str, Tensor] = {}  # groups and scores of the items, where they are known
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def needs(self) -> tuple[str, ...]:
        """Which of ``groups`` and ``scores`` the policy needs with the items."""
        return self._policy.needs

    @property
    def items(self) -> Any:
        """The items kept, by slot, in the structure of the first insert: a view, or of a file a copy.

        Raises:
            RuntimeError: Before the first insert, when the structure is not known.
        """
        return self._pack(self._stored().front(self._size))

    @property
    def groups(self) -> Tensor | None:
        """The groups of the items kept, int64 ``(n,)``; ``None`` if they were not given."""
        return self._mark("groups")

    @property
    def scores(self) -> Tensor | None:
        """The scores of the items kept, float64 ``(n,)``; ``None`` if the policy has none."""
        return self._mark("scores")

    def insert(
        self,
        items: Tensor | Mapping[str, Tensor] | Sequence[Tensor],
        *,
        groups: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """Offer a batch of items.

        Args:
            items: A tensor ``(N, *)``, or a dict, list or tuple of such tensors with one ``N``.
            groups: What quotas and balance count by, integers ``(N,)``: labels, or tasks.
            scores: What the policy chooses by, ``(N,)``.

        Returns:
            The slot ``(N,)`` each item is now in, int64 on the CPU; ``-1`` if it was not kept.

        Raises:
            TypeError: If a column is not a tensor.
            ValueError: If columns differ in length, or in name, dtype or shape from those of the first insert, or the
                policy needs groups or scores that are not given, or has no use for them.
        """
        columns = _columns(items)
        count = len(next(iter(columns.values())))
        groups, scores = self._given("groups", groups, count), self._given("scores", scores, count)
        if self._store is None:
            self._structure = _structure(items)
            self._store = (
                FileStore.new(self.file, columns, self.capacity)
                if self.file
                else TensorStore(columns, self.capacity, self.device)
            )
        self._check("items", columns)
        held_groups, held_scores = (self._marks.get(name, none)[: self._size] for name, none in MARKS.items())
        choice = self._policy.assign(Offer(count, self.seen, groups, scores, held_groups, held_scores, self._size))
        self.seen += count
        target, rows = _last_wins(choice.slots)
        if len(target):  # late in a long stream a whole batch is often dropped
            self._store.write(target, _rows_of(columns, rows))
            for name, values in (("groups", groups), ("scores", choice.scores)):
                if values is not None:
                    mark = self._marks[name] if name in self._marks else self._make_mark(name)
                    mark.index_copy_(0, target, values.index_select(0, rows))
            self._size = max(self._size, int(target.max()) + 1)
        slots = torch.full_like(choice.slots, -1).index_copy_(0, rows, target)
        for old, new in self._close(choice.vacated).items():
            slots[slots == old] = new
        return slots

    def _given(self, name: str, values: Tensor | None, count: int) -> Tensor | None:
        """Groups or scores of a batch as they are kept."""
        if name == "groups" and self._size and (values is None) == (name in self._marks):
            did = "given" if values is None else "left out"
            raise ValueError(f"`groups` must be {did}, as with the items that were inserted before.")
        if values is None:
            if name in self._policy.needs:
                raise ValueError(f"`{name}` must be given: the policy {self.policy!r} needs them.")
            return None
        if name == "scores" and not self._policy.accepts_scores:
            raise ValueError(f"`scores` must be left out: the policy {self.policy!r} does not choose by any.")
        if values.shape != (count,):
            raise ValueError(f"`{name}` must be a number for each of {count} items, got {tuple(values.shape)}.")
        values = values.detach().to("cpu", MARKS[name].dtype)
        if name == "scores" and values.isnan().any():
            raise ValueError("`scores` must be numbers, got NaN.")
        return values

    def _close(self, vacated: Tensor) -> dict[int, int]:
        """Move items from the end to the slots that became empty. Return old and new slots."""
        if not len(vacated):
            return {}
        size = self._size - len(vacated)
        holes = vacated[vacated < size]
        last = torch.arange(size, self._size, device="cpu")
        last = last[~torch.isin(last, vacated)]
        self._stored().compact(vacated, last, holes)
        for mark in self._marks.values():
            mark[holes] = mark[last]
        self._size = size
        return dict(zip(last.tolist(), holes.tolist(), strict=True))

    def sample(self, count: int, generator: Generator, balanced: bool = False) -> Tensor:
        """Choose slots without replacement, in random order.

        Args:
            count: Number of slots; all that are filled if there are fewer.
            generator: Source of the random numbers. It is the caller's, so that drawing does not change what is kept.
            balanced: The same number of each group, to one (all of a group that has fewer); which groups have one more
                is left to chance, and so is which of its items. Else uniformly.

        Returns:
            ``min(count, len(self))`` slots, int64 on the CPU.

        Raises:
            ValueError: If ``count`` is negative, or the groups that are to be balanced were not given.
        """
        if count < 0:
            raise ValueError(f"`count` must be 0 or more, got {count}.")
        count = min(count, self._size)
        if not balanced:
            return _sample(self._size, count, generator)
        if self.groups is None:
            raise ValueError("`balanced` needs groups: give `groups` to `insert`.")
        return _sample_evenly(self.groups, count, generator)

    def take(self, slots: Tensor) -> Any:
        """Return copies of the items in ``slots``, in the structure of the first insert.

        Raises:
            IndexError: If a slot is empty, or negative.
        """
        return self._pack(self._stored().read(self._checked(slots)))

    def draw(self, count: int, generator: Generator, balanced: bool = False) -> Any:
        """Draw items without replacement, in random order; the arguments are those of :meth:`sample`.

        Returns:
            Copies of ``min(count, len(self))`` items on the memory's device, in the structure of the first insert.

        Raises:
            ValueError: As :meth:`sample`.
            RuntimeError: Before the first insert, when the structure is not known.
        """
        stored = self._stored()
        return self._pack(stored.read(self.sample(count, generator, balanced)))

    def update(self, slots: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Replace some columns of the items in ``slots``, which must differ.

        Args:
            slots: Slots ``(N,)``; negative ones (as of items that :meth:`insert` did not keep) are passed over.
            columns: Rows ``(N, *)`` by the name of the column.

        Raises:
            IndexError: If a slot is empty.
            ValueError: If a column is not one of the memory, or of another dtype or shape.
        """
        self._check("columns", columns, partial=True)
        if any(len(column) != len(slots) for column in columns.values()):
            raise ValueError(f"`columns` must have a row for each of {len(slots)} slots.")
        rows = (slots >= 0).nonzero().flatten()
        slots = self._checked(slots[rows])
        self._stored().write(slots, _rows_of(columns, rows))

    def merge(self, other: "Memory") -> None:
        """Take in a memory of another part of the stream, as if this one had been offered both parts.

        For the policies that keep the items of highest score. Exact for ``keyed_reservoir`` if ``other`` is as large as
        this one or larger, and for ``class_quota`` if besides the groups appeared in the same order, or are others. So
        a memory that is merged into an empty, smaller one is cut to its size.

        Args:
            other: The memory, which stays as it is. Where scores were drawn, it must have another ``seed``.

        Raises:
            ValueError: If the policies differ, or cannot be merged.
        """
        mine, its = self._policy, other._policy
        if self.policy != other.policy or not isinstance(mine, KeyedReservoir) or not mine.accepts_scores:
            raise ValueError(
                f"`other` must have the same policy, 'keyed_reservoir' or 'class_quota', got {other.policy!r} for "
                f"{self.policy!r}: only what keeps the items of highest score can be merged."
            )
        assert isinstance(its, KeyedReservoir)
        mine.expect(its.quotas)
        for part in _parts(torch.arange(len(other), device="cpu")):
            self.insert(other.take(part), **{name: values[part] for name, values in other._marks.items()})
        self.seen += other.seen - len(other)

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
            "stored": "file" if self.file else "tensors",
            "columns": None if self._store is None else self._store.state_dict(self._size),
            "marks": {name: column[: self._size].clone() for name, column in self._marks.items()},
            "size": self._size,
            "policy_state": self._policy.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, read_only: bool = False) -> None:
        """Go on exactly where the memory of :meth:`state_dict` was. What this memory held is gone.

        Args:
            state_dict: The state.
            read_only: Nothing will be inserted, so that another process may go on writing the file.

        Raises:
            ValueError: If the state is that of a memory with another ``capacity`` or ``policy``, or only one of the two
                is in a file.
        """
        for name in ("capacity", "policy"):
            own, saved = getattr(self, name), state_dict[name]
            if own != saved:
                raise ValueError(
                    f"`{name}` is {own!r} but the saved memory has {saved!r}. "
                    f"Make this one with `{name}={saved!r}`, or start it empty without loading."
                )
        if (state_dict["stored"] == "file") != bool(self.file):
            raise ValueError(
                f"`file` is {self.file!r} but the items of the saved memory are in "
                f"{'a file: give its path' if state_dict['stored'] == 'file' else 'the state itself: leave it out'}."
            )
        self.seen = state_dict["seen"]
        self._structure = state_dict["structure"]
        self._size = state_dict["size"]
        self._store, self._marks = None, {}
        if (columns := state_dict["columns"]) is not None:
            if self.file:
                self._store = FileStore.opened(self.file, columns, self.capacity, "r" if read_only else "r+")
            else:
                self._store = TensorStore(columns, self.capacity, self.device)
                self._store.load_state_dict(columns)
        for name, values in state_dict["marks"].items():
            self._make_mark(name)[: self._size] = values
        self._policy.load_state_dict(state_dict["policy_state"])

    def _stored(self) -> Store:
        if self._store is None:
            raise RuntimeError("Nothing was ever inserted in this memory. Check `len(memory)` first, or insert items.")
        return self._store

    def _make_mark(self, name: str) -> Tensor:
        """Make the column of ``groups`` or ``scores``."""
        with torch.inference_mode(False):
            self._marks[name] = torch.empty(self.capacity, dtype=MARKS[name].dtype, device="cpu")
        return self._marks[name]

    def _mark(self, name: str) -> Tensor | None:
        return self._marks[name][: self._size] if name in self._marks else None

    def _check(self, argument: str, columns: Mapping[str, Tensor], partial: bool = False) -> None:
        expected = self._stored().front(0)
        if not (columns.keys() <= expected.keys() if partial else columns.keys() == expected.keys()):
            raise ValueError(
                f"`{argument}` must {'be of' if partial else 'have'} the columns of the first insert, "
                f"{list(expected)}, got {list(columns)}."
            )
        for name, column in columns.items():
            stored = expected[name]
            if column.dtype != stored.dtype or column.shape[1:] != stored.shape[1:]:
                raise ValueError(
                    f"`{argument}`: column {name!r} must be {stored.dtype} with items of shape "
                    f"{tuple(stored.shape[1:])} as in the first insert, got {column.dtype} with "
                    f"{tuple(column.shape[1:])}."
                )

    def _checked(self, slots: Tensor) -> Tensor:
        """The slots, if all are filled, as they are used."""
        if len(slots) and not 0 <= slots.min() <= slots.max() < self._size:
            came = f"{int(slots.min())} to {int(slots.max())}"
            raise IndexError(f"`slots` must be filled, which 0 to {self._size - 1} are, got {came}.")
        return slots.cpu()

    def _pack(self, columns: dict[str, Tensor]) -> Any:
        if self._structure == "dict":
            return columns
        values = list(columns.values())
        return {"tensor": values[0], "list": values, "tuple": tuple(values)}[self._structure]


def deal(shards: Sequence[Memory], into: Memory, rank: int, world_size: int) -> None:
    """Fill an empty memory with the part of a rank of what several memories hold, when their number changes.

    Items are dealt out in random order, group by group, so that each rank gets as many of each as the others. Together
    the ranks hold what the shards held (but for items of groups for which a rank has fewer places, where places are
    counted by group), and each goes on as one that was offered its part of the whole stream: the union stays the
    stratified sample that it was. That is exact for reservoirs, and for scores up to a part of 1 / capacity.

    Args:
        shards: What all ranks held before, in the same order on every rank.
        into: The memory of this rank; its capacity is its :func:`share` of the whole.
        rank: This rank.
        world_size: Number of ranks there are now.
    """
    marks = {name: _joined([shard._mark(name) for shard in shards]) for name in ("groups", "scores")}
    own = _dealt(sum(len(shard) for shard in shards), marks["groups"], marks["scores"], rank, world_size)
    if not into._policy.accepts_scores:
        marks["scores"] = None
    for shard in shards:
        if isinstance(into._policy, KeyedReservoir) and isinstance(shard._policy, KeyedReservoir):
            into._policy.expect(shard._policy.quotas)
    into._structure = next((shard._structure for shard in shards if shard._store is not None), into._structure)
    for part in _parts(own):
        given = {name: values[part] for name, values in marks.items() if values is not None}
        into.insert(into._pack(_read(shards, part)), **given)
    into.seen = share(sum(shard.seen for shard in shards), rank, world_size)


def _dealt(total: int, groups: Tensor | None, scores: Tensor | None, rank: int, world_size: int) -> Tensor:
    """Which of all items a rank gets, in the order in which it is offered them."""
    order = permutation(total, seed=0)
    if groups is not None:
        order = order[groups[order].argsort(stable=True)]
    own = order[rank::world_size].contiguous()  # for the search below, which warns else
    return own if scores is None else own[scores[own].argsort(stable=True)]  # a score may be the age: oldest first


def _read(memories: Sequence[Memory], numbers: Tensor) -> dict[str, Tensor]:
    """Rows of several memories, whose items are numbered through."""
    ends = torch.tensor([len(memory) for memory in memories], device="cpu").cumsum(0)
    places = torch.searchsorted(ends, numbers, right=True)
    columns: dict[str, Tensor] = {}
    for k in torch.unique(places).tolist():
        where = places == k
        for name, rows in memories[k]._stored().read(numbers[where] - ends[k] + len(memories[k])).items():
            if name not in columns:
                columns[name] = rows.new_empty((len(numbers), *rows.shape[1:]))
            columns[name][where.to(rows.device)] = rows
    return columns


def _parts(numbers: Tensor) -> tuple[Tensor, ...]:
    """Parts whose rows fit in RAM together; none of nothing."""
    return torch.split(numbers, 4096) if len(numbers) else ()


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


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


def _rows_of(columns: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: column.detach().index_select(0, rows.to(column.device)) for name, column in columns.items()}


def _last_wins(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different slots and, for each, the row of the last item that names it.

    Copying to an index that occurs twice would leave it to chance on a GPU which of the two stays.
    """
    last = {slot: row for row, slot in enumerate(slots.tolist())}  # of plain numbers: a third of the time of tensors
    last.pop(-1, None)
    return integers(last.keys()), integers(last.values())


def _sample(size: int, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` different numbers below ``size``, in random order, at a cost that grows with ``count`` only."""
    if size <= 8 * count:
        return _shuffled(size, generator)[:count]
    # A permutation of a million for 64 items takes 4 ms, this 10 us.
    found: dict[int, None] = {}  # keeps order; the first different values of independent draws are a uniform sample
    while len(found) < count:
        drawn = torch.randint(size, (count,), generator=generator, device=generator.device)
        found.update(dict.fromkeys(drawn.tolist()))
    return torch.tensor(list(found)[:count], dtype=torch.int64, device="cpu")


def _sample_evenly(groups: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` different rows, in random order, the same number of each group."""
    order = _shuffled(len(groups), generator)
    groups, by_group = groups[order].sort(stable=True)
    sizes = torch.unique_consecutive(groups, return_counts=True)[1]
    wanted = _evenly(sizes, count, generator)
    rank = torch.arange(len(groups), device="cpu") - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    chosen = order[by_group[rank < wanted.repeat_interleave(sizes)]]
    return chosen[_shuffled(count, generator)]


def _evenly(sizes: Tensor, count: int, generator: Generator) -> Tensor:
    """Numbers of which none is larger than its size and whose sum is ``count``, as equal as can be."""
    numbers = torch.zeros_like(sizes)
    while each := (count - int(numbers.sum())) // max(int((numbers < sizes).sum()), 1):
        numbers = torch.minimum(numbers + each, sizes)
    larger = (numbers < sizes).nonzero().flatten()
    numbers[larger[_shuffled(len(larger), generator)[: count - int(numbers.sum())]]] += 1
    return numbers


def _shuffled(count: int, generator: Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device).cpu()
