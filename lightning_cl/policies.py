"""Which of the samples that a stream offers stay in a memory of fixed size."""

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from typing_extensions import override

NO_GROUPS = NO_SLOTS = torch.empty(0, dtype=torch.int64, device="cpu")
NO_SCORES = torch.empty(0, dtype=torch.float64, device="cpu")


def integers(values: Iterable[int]) -> Tensor:
    """Plain numbers as slots, int64 on the CPU."""
    return torch.tensor([*values], dtype=torch.int64, device="cpu")


def share(total: int, rank: int, count: int) -> int:
    """What one of several has of a number that is split as evenly as can be, the first getting what is left over.

    Example:
        >>> [share(10, rank, 4) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return total // count + (rank < total % count)


class Offer(NamedTuple):
    """A batch that is offered to a memory, and what the memory holds; all tensors are on the CPU.

    Attributes:
        length: Number of items :math:`N` in the batch.
        seen: Number of items offered before.
        groups: What is counted by, classes or tasks, int64 ``(N,)``, or ``None`` if it was not given.
        scores: What the policy chooses by, float64 ``(N,)``, or ``None`` if it was not given.
        held_groups: Those of the items in the memory by slot; none if they were not given.
        held_scores: Those of the items in the memory by slot; none if the policy keeps none.
        size: Number of items in the memory, in slots ``0`` to ``size - 1``.
    """

    length: int
    seen: int
    groups: Tensor | None
    scores: Tensor | None
    held_groups: Tensor
    held_scores: Tensor
    size: int


class Choice(NamedTuple):
    """Where the items of a batch go.

    Attributes:
        slots: A slot for each item, int64 ``(N,)``: ``-1`` drops it. Slot ``k`` may be filled only after slots ``0`` to
            ``k - 1``. A slot may be named twice; the later item wins.
        vacated: Slots that lose their item and get no other. The memory then moves its last items there.
        scores: What is kept as the score of each item, float64 ``(N,)``; ``None`` if nothing is.
    """

    slots: Tensor
    vacated: Tensor = NO_SLOTS
    scores: Tensor | None = None


class Policy(Protocol):
    """Decide in which slot of a memory each offered item goes.

    A policy is made with the memory's ``(capacity, seed)`` and draws random numbers from a generator of its own. It may
    remember what is in which slot: only :meth:`assign` changes that. To add one, put its class in :data:`POLICIES`.

    Example:
        >>> class First(Policy):  # the first items stay
        ...     def __init__(self, capacity, seed):
        ...         self.capacity = capacity
        ...     def assign(self, offer):
        ...         slots = torch.arange(offer.size, offer.size + offer.length)
        ...         return Choice(slots.masked_fill(slots >= self.capacity, -1))
        ...     def state_dict(self):
        ...         return {}
        ...     def load_state_dict(self, state_dict):
        ...         pass
        >>> First(2, seed=0).assign(Offer(3, 0, None, None, NO_GROUPS, NO_SCORES, 0)).slots
        tensor([ 0,  1, -1])
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Which of ``groups`` and ``scores`` must be given with the items."""
    accepts_scores: ClassVar[bool] = False
    """Whether scores may be given."""

    def assign(self, offer: Offer) -> Choice:
        """Answer with a slot for each item of a batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that later answers depend on beside groups and scores, as tensors, numbers and strings."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        ...


class _Random(Policy):
    """A policy with a generator."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.generator = Generator().manual_seed(seed)

    def uniform(self, count: int) -> Tensor:
        """Numbers in ``[0, 1)``: float32 would lose integers above 2 ** 24."""
        return torch.rand(count, generator=self.generator, dtype=torch.float64, device="cpu")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"].cpu())  # `map_location` may have moved it


class Reservoir(_Random):
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
        >>> from lightning_cl import Memory
        >>> memory = Memory(3, policy="reservoir", seed=8)
        >>> memory.insert(torch.arange(6))
        tensor([-1,  1, -1, -1,  2,  0])
    """

    @override
    def assign(self, offer: Offer) -> Choice:
        slots, late, places = self._places(offer)
        late.copy_(self.uniform(len(late)) * places)  # rounds down; in float64 the product stays below n + 1
        return Choice(slots.masked_fill_(slots >= self.capacity, -1))

    def _places(self, offer: Offer) -> tuple[Tensor, Tensor, Tensor]:
        """The next slots, the part of them (a view) that is beyond the last slot, and :math:`n + 1` for each in it."""
        slots = torch.arange(offer.size, offer.size + offer.length, device="cpu")
        late = slots[max(self.capacity - offer.size, 0) :]
        return slots, late, late + (offer.seen - offer.size + 1)


class BalancedReservoir(Reservoir):
    r"""A reservoir in which what goes is an item of the largest group.

    An item is accepted as by :class:`Reservoir`, with probability :math:`\min(1, B / (n + 1))`; once the memory is full
    it takes the place of a uniformly chosen item of the group that has most of them (of equals the smallest label).
    Common groups so lose to rare ones. This is ``balancoir`` of the Mammoth code (Buzzega et al., "Rethinking
    Experience Replay: a Bag of Tricks for Continual Learning", ICPR 2020).

    Each place depends on what came before it, so the accepted items are gone through one by one, as plain integers.
    The cut into batches does not change the content. The slots of each group are kept as a list.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the random numbers.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(4, policy="balanced_reservoir")
        >>> slots = memory.insert(torch.arange(100), groups=(torch.arange(100) < 2).int())  # two of group 1, then none
        >>> memory.groups
        tensor([1, 1, 0, 0])
    """

    needs = ("groups",)

    def __init__(self, capacity: int, seed: int) -> None:
        super().__init__(capacity, seed)
        self._slots: dict[int, list[int]] = {}  # of each group, in order, once the memory is full

    @override
    def assign(self, offer: Offer) -> Choice:
        assert offer.groups is not None
        slots, late, places = self._places(offer)
        draws = self.uniform(2 * len(late)).view(-1, 2)  # one decides whether, the other in whose place
        accepted = (draws[:, 0] * places).long() < self.capacity
        late.fill_(-1)
        if accepted.any():
            early = offer.length - len(late)
            if not self._slots:
                self._slots = _slots_of(torch.cat([offer.held_groups, offer.groups[:early]]))
            pairs = zip(offer.groups[early:][accepted].tolist(), draws[accepted, 1].tolist(), strict=True)
            late[accepted] = integers([self._replace(group, u) for group, u in pairs])
        return Choice(slots)

    def _replace(self, group: int, u: float) -> int:
        """Put an item of this group in the place of one of the largest."""
        if group not in self._slots:
            self._slots = dict(sorted([*self._slots.items(), (group, [])]))
        victims = max(self._slots.values(), key=len)  # the first of equals, as the labels are in order
        slot = victims.pop(int(u * len(victims)))
        insort(self._slots[group], slot)
        return slot

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._slots = {}


def _slots_of(groups: Tensor) -> dict[int, list[int]]:
    """The slots of each group, both in order."""
    slots: dict[int, list[int]] = {group: [] for group in torch.unique(groups).tolist()}
    for slot, group in enumerate(groups.tolist()):
        slots[group].append(slot)
    return slots


class Fifo(Policy):
    """Keep the newest items: each takes the place of the oldest.

    Args:
        capacity: Number of slots.
        seed: Nothing is random.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(2, policy="fifo")
        >>> slots = memory.insert(torch.arange(5))
        >>> memory.items
        tensor([4, 3])
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.next = 0

    @override
    def assign(self, offer: Offer) -> Choice:
        numbers = torch.arange(offer.length, device="cpu")
        slots = (self.next + numbers) % self.capacity
        self.next = (self.next + offer.length) % self.capacity
        return Choice(slots, scores=(offer.seen + numbers).double())

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.next = state_dict["next"]


class KeyedReservoir(_Random):
    r"""Keep the items with the highest scores; with uniform scores that is a reservoir which can be merged.

    Each item gets a score uniform in :math:`[0, 1)`, unless scores are given, and the :math:`B` highest stay; of
    equals, what is held already (and of what is held, that in the lower slot). The :math:`B` highest of a stream are
    those of the :math:`B` highest of its parts: what is kept is, as a set, the same however the stream is cut, in time
    or over processes, and a smaller memory keeps part of what a larger one does. Avalanche keeps its reservoirs in this
    form.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the scores. Memories that are to be merged must differ in it, or their items have the same scores.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(2, policy="keyed_reservoir")
        >>> memory.insert(torch.arange(4), scores=torch.tensor([0.1, 0.2, 0.3, 0.4]))
        tensor([-1, -1,  0,  1])
    """

    accepts_scores = True
    by_group: ClassVar[bool] = False

    def __init__(self, capacity: int, seed: int) -> None:
        super().__init__(capacity, seed)
        self.quotas: dict[int, int] = {}  # places of each group, in order of appearance
        self._applied = 0  # the number of groups when all were last cut to their places
        self._lowest: dict[int, float] = {}  # score that an item must exceed, of groups that have all their items

    def scores(self, offer: Offer) -> Tensor:
        """The score of each item."""
        return self.uniform(offer.length) if offer.scores is None else offer.scores

    def expect(self, groups: Iterable[int]) -> None:
        """Reckon with these groups from now on, in this order, whether or not there are items of them."""
        labels = list(dict.fromkeys([*self.quotas, *groups]))
        if len(labels) > len(self.quotas):
            self.quotas = {label: share(self.capacity, rank, len(labels)) for rank, label in enumerate(labels)}

    @override
    def assign(self, offer: Offer) -> Choice:
        scores = self.scores(offer)
        values, held_values = scores.numpy(), offer.held_scores.numpy()
        groups = self._groups(offer.groups, offer.length)
        held = self._groups(offer.held_groups, offer.size)
        present = dict.fromkeys(groups.tolist())
        self.expect(present)
        if cut := self._applied < len(self.quotas):  # all may have fewer places now
            present, self._applied = dict.fromkeys(self.quotas), len(self.quotas)
        free, kept = [NO_SLOTS.numpy()], [NO_SLOTS.numpy()]
        for group in present:
            new = np.flatnonzero((groups == group) & (values > self._lowest.get(group, -np.inf)))
            if len(new) or cut:
                old, places = np.flatnonzero(held == group), self.quotas[group]
                rivals = np.concatenate([held_values[old], values[new]])
                stays = _highest(rivals, places)
                free.append(old[~stays[: len(old)]])
                kept.append(new[stays[len(old) :]])
                self._lowest[group] = rivals[stays].min() if 0 < places <= len(rivals) else -np.inf
        return Choice(*_placed(np.concatenate(free), np.concatenate(kept), offer), scores)

    def _groups(self, groups: Tensor | None, size: int) -> NDArray[np.int64]:
        return groups.numpy() if self.by_group and groups is not None else np.zeros(size, np.int64)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "groups": list(self.quotas)}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.quotas, self._lowest, self._applied = {}, {}, 0
        self.expect(state_dict["groups"])


def _highest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which are among the ``count`` highest; of equals, the earlier."""
    if not 0 < count < len(scores):
        return np.full(len(scores), count > 0)
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    stays: NDArray[np.bool_] = scores > last
    stays[np.flatnonzero(scores == last)[: count - stays.sum()]] = True
    return stays


def _placed(free: NDArray[np.int64], kept: NDArray[np.int64], offer: Offer) -> tuple[Tensor, Tensor]:
    """Put the kept rows of a batch into the free slots and those that follow. Return all slots, and those left free."""
    places = np.concatenate([np.sort(free), np.arange(offer.size, offer.size + max(len(kept) - len(free), 0))])
    slots = np.full(offer.length, -1)
    slots[np.sort(kept)] = places[: len(kept)]
    return torch.from_numpy(slots), torch.from_numpy(places[len(kept) :])


class ClassQuota(KeyedReservoir):
    r"""Give each group the same number of places, and keep of each the items with the highest scores.

    With :math:`G` groups seen so far each has :math:`\lfloor B / G \rfloor` places, and the first :math:`B \bmod G` in
    order of appearance one more. When a new group appears the others give up the items of lowest score; places that a
    group does not fill are not handed on.

    Uniform scores make each group a reservoir (``ClassBalancedBuffer`` of Avalanche), and scores from a ranking
    (:mod:`lightning_cl.exemplars`) keep the first exemplars of each class, as herding does.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the scores.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(4, policy="class_quota")
        >>> slots = memory.insert(torch.arange(5), groups=torch.zeros(5), scores=torch.tensor([5, 4, 3, 2, 1]))
        >>> slots = memory.insert(torch.tensor([9]), groups=torch.ones(1), scores=torch.zeros(1))
        >>> memory.items
        tensor([0, 1, 9])
    """

    by_group = True
    needs = ("groups",)


class Ring(ClassQuota):
    """Give each group the same number of places, and keep its newest items.

    One ring per class or task, as in Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, but the
    number of groups need not be known in advance: rings become smaller when a new group appears (see
    :class:`ClassQuota`).

    Args:
        capacity: Number of slots.
        seed: Nothing is random.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(4, policy="ring")
        >>> slots = memory.insert(torch.arange(6), groups=torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> memory.items.sort().values
        tensor([1, 2, 4, 5])
    """

    accepts_scores = False

    @override
    def scores(self, offer: Offer) -> Tensor:
        return torch.arange(offer.seen, offer.seen + offer.length, dtype=torch.float64, device="cpu")


class GradientDiversity(_Random):
    r"""Keep items whose gradients differ: the admission of GSS-Greedy.

    Aljundi et al., "Gradient based sample selection for online continual learning", NeurIPS 2019, as in the authors'
    code. The score of an item is the largest cosine between its gradient and the gradients of random batches of the
    memory; the caller computes it, and offers a batch to a full memory only if the cosine of the gradient of the whole
    batch is negative (see :class:`lightning_cl.callbacks.GSS`).

    While there is room every item stays. To a full memory each item comes with a rival: slots are drawn without
    replacement with probability proportional to :math:`(s_j - \min s) / (\max s - \min s + 0.01)`, and item :math:`i`
    takes the slot :math:`j` of its rival with probability :math:`(s_j + 1) / (s_i + 1 + s_j + 1)`: what is redundant
    goes first. Items beyond the capacity have no rival and are dropped.

    Args:
        capacity: Number of slots.
        seed: Fixes rivals and outcomes.

    Example:
        >>> from lightning_cl import Memory
        >>> memory = Memory(2, policy="gss")
        >>> slots = memory.insert(torch.arange(2), scores=torch.tensor([1.0, 0.9]))
        >>> memory.insert(torch.tensor([2]), scores=torch.tensor([-1.0])) >= 0  # unlike all, it is sure to stay
        tensor([True])
    """

    needs = ("scores",)
    accepts_scores = True

    @override
    def assign(self, offer: Offer) -> Choice:
        assert offer.scores is not None
        slots = torch.arange(offer.size, offer.size + offer.length, device="cpu")
        late = slots[max(self.capacity - offer.size, 0) :]
        if len(late):
            late.copy_(self._rivals(offer, len(late)))
        return Choice(slots, scores=offer.scores)

    def _rivals(self, offer: Offer, count: int) -> Tensor:
        assert offer.scores is not None
        held = torch.cat([offer.held_scores, offer.scores[: offer.length - count]])
        redundancy = (held - held.min()) / (held.max() - held.min() + 0.01) + 1e-12  # or none could be drawn of equals
        rivals = redundancy.multinomial(min(count, len(held)), generator=self.generator)
        new, old = offer.scores[offer.length - count :][: len(rivals)] + 1, held[rivals] + 1
        wins = self.uniform(len(rivals)) * (new + old) < old
        return torch.cat([rivals.where(wins, -1), rivals.new_full((count - len(rivals),), -1)])


POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "balanced_reservoir": BalancedReservoir,
    "class_quota": ClassQuota,
    "fifo": Fifo,
    "gss": GradientDiversity,
    "keyed_reservoir": KeyedReservoir,
    "reservoir": Reservoir,
    "ring": Ring,
}
"""The allowed values of ``policy``: what makes a policy from ``(capacity, seed)``, by name."""
