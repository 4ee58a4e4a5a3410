"""Which of the samples that a stream offers stay in a memory of fixed size."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from typing_extensions import override

NO_GROUPS = NO_SLOTS = torch.empty(0, dtype=torch.int64, device="cpu")
NO_SCORES = torch.empty(0, dtype=torch.float64, device="cpu")


class Offer(NamedTuple):
    """A batch that is offered to a memory, and what the memory holds; all tensors are on the CPU.

    Attributes:
        count: Number of items :math:`N` in the batch.
        seen: Number of items offered before.
        groups: What is counted by, classes or tasks, int64 ``(N,)``, or ``None`` if it was not given.
        scores: What the policy chooses by, float64 ``(N,)``, or ``None`` if it was not given.
        held_groups: Those of the items in the memory by slot; none if they were not given.
        held_scores: Those of the items in the memory by slot; none if the policy keeps none.
        size: Number of items in the memory, in slots ``0`` to ``size - 1``.
    """

    count: int
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
        vacated: Slots that lose their item and get no other, above all in ``slots`` that were filled before.
        scores: What is kept as the score of each item, float64 ``(N,)``; ``None`` if nothing is.
    """

    slots: Tensor
    vacated: Tensor = NO_SLOTS
    scores: Tensor | None = None


class Policy(Protocol):
    """Decide in which slot of a memory each offered item goes.

    A policy is made with the memory's ``(capacity, seed)`` and draws random numbers from a generator of its own. To add
    one, put its class in :data:`POLICIES`.
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
    """

    @override
    def assign(self, offer: Offer) -> Choice:
        slots = torch.arange(offer.seen, offer.seen + offer.count, device="cpu")
        late = slots[max(self.capacity - offer.seen, 0) :]  # a view: the items that find the memory full
        late.copy_(
            self.uniform(len(late)) * (late + 1)
        )  # in float64 the product stays below n + 1; the copy rounds down
        return Choice(slots.masked_fill_(slots >= self.capacity, -1))


class BalancedReservoir(_Random):
    r"""A reservoir in which what goes is an item of the largest group.

    An item is accepted as by :class:`Reservoir`, with probability :math:`\min(1, B / (n + 1))`; once the memory is full
    it takes the place of a uniformly chosen item of the group that has most of them (of equals the smallest label).
    Common groups so lose to rare ones. This is ``balancoir`` of the Mammoth code (Buzzega et al., "Rethinking
    Experience Replay: a Bag of Tricks for Continual Learning", ICPR 2020).

    Each place depends on what came before it, so the accepted items are gone through one by one, as plain integers.
    The cut into batches does not change the content.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the random numbers.
    """

    needs = ("groups",)

    @override
    def assign(self, offer: Offer) -> Choice:
        assert offer.groups is not None
        numbers = torch.arange(offer.seen, offer.seen + offer.count, device="cpu")
        late = numbers[max(self.capacity - offer.seen, 0) :]
        early = offer.count - len(late)
        draws = self.uniform(2 * len(late)).view(-1, 2)  # one decides whether, the other in whose place
        accepted = (draws[:, 0] * (late + 1)).long() < self.capacity
        late.fill_(-1)
        if accepted.any():
            held = torch.cat([offer.held_groups, offer.groups[:early]])
            late[accepted] = _in_place_of(held, offer.groups[early:][accepted], draws[accepted, 1])
        return Choice(numbers)


def _in_place_of(held: Tensor, groups: Tensor, uniform: Tensor) -> Tensor:
    """The slot that each item takes, one after another, in a full memory of items of these groups."""
    of_slot = held.numpy()  # a copy, made by `torch.cat`
    labels, sizes = np.unique(of_slot, return_counts=True)
    counts = Counter(dict(zip(labels.tolist(), sizes.tolist(), strict=True)))
    slots = []
    for group, u in zip(groups.tolist(), uniform.tolist(), strict=True):
        largest = max(counts, key=lambda label: (counts[label], -label))
        slots.append(int(np.flatnonzero(of_slot == largest)[int(u * counts[largest])]))
        of_slot[slots[-1]] = group
        counts[largest] -= 1
        counts[group] += 1
    return torch.tensor(slots, device="cpu")


class Fifo(Policy):
    """Keep the newest items: each takes the place of the oldest.

    Args:
        capacity: Number of slots.
        seed: Nothing is random.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.next = 0

    @override
    def assign(self, offer: Offer) -> Choice:
        numbers = torch.arange(offer.count, device="cpu")
        slots = (self.next + numbers) % self.capacity
        self.next = (self.next + offer.count) % self.capacity
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
    equals, the earlier. The :math:`B` highest of a stream are those of the :math:`B` highest of its parts: what is
    kept is, as a set, the same however the stream is cut, in time or over processes, and a smaller memory keeps part
    of what a larger one does. Avalanche keeps its reservoirs in this form.

    Args:
        capacity: Number of slots :math:`B`.
        seed: Fixes the scores.
    """

    accepts_scores = True
    by_group: ClassVar[bool] = False

    def __init__(self, capacity: int, seed: int) -> None:
        super().__init__(capacity, seed)
        self.groups: list[int] = []  # in order of appearance
        self._lowest: dict[int, float] = {}  # score that a new item must exceed, of groups that have all their items

    def scores(self, offer: Offer) -> Tensor:
        """The score of each item."""
        return self.uniform(offer.count) if offer.scores is None else offer.scores

    @override
    def assign(self, offer: Offer) -> Choice:
        scores = self.scores(offer)
        values = scores.numpy()
        groups, held = np.zeros(offer.count, int), np.zeros(offer.size, int)
        if self.by_group:
            assert offer.groups is not None
            groups, held = offer.groups.numpy(), offer.held_groups.numpy()
        present = dict.fromkeys(groups.tolist())
        if new := [group for group in present if group not in self.groups]:
            self.groups += new
            present = dict.fromkeys(self.groups)  # all have fewer places now
        free, kept = [], []
        for group in present:
            candidates = np.flatnonzero((groups == group) & (values > self._lowest.get(group, -np.inf)))
            if new or len(candidates):
                rivals = np.flatnonzero(held == group)
                both = np.concatenate([offer.held_scores.numpy()[rivals], values[candidates]])
                stays = _highest(both, quota := self._quota(group))
                free.append(rivals[~stays[: len(rivals)]])
                kept.append(candidates[stays[len(rivals) :]])
                self._lowest[group] = both[stays].min() if 0 < quota <= len(both) else -np.inf
        slots = torch.full((offer.count,), -1, device="cpu")
        if not free:
            return Choice(slots, scores=scores)
        chosen = torch.from_numpy(np.concatenate(kept))
        places = torch.from_numpy(np.concatenate(free)).sort().values
        places = torch.cat(
            [places, torch.arange(offer.size, offer.size + max(len(chosen) - len(places), 0), device="cpu")]
        )
        slots[chosen] = places[: len(chosen)]
        return Choice(slots, places[len(chosen) :], scores)

    def _quota(self, group: int) -> int:
        places, rest = divmod(self.capacity, len(self.groups))
        return places + (self.groups.index(group) < rest)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "groups": list(self.groups)}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.groups, self._lowest = list(state_dict["groups"]), {}


def _highest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which are among the ``count`` highest; of equals, the earlier."""
    if count >= len(scores):
        return np.ones(len(scores), bool)
    if count == 0:
        return np.zeros(len(scores), bool)
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    stays = scores > last
    stays[np.flatnonzero(scores == last)[: count - stays.sum()]] = True
    return stays


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
    """

    accepts_scores = False

    @override
    def scores(self, offer: Offer) -> Tensor:
        return torch.arange(offer.seen, offer.seen + offer.count, dtype=torch.float64, device="cpu")


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
    """

    needs = ("scores",)
    accepts_scores = True

    @override
    def assign(self, offer: Offer) -> Choice:
        assert offer.scores is not None
        slots = torch.arange(offer.size, offer.size + offer.count, device="cpu")
        late = slots[max(self.capacity - offer.size, 0) :]
        if len(late):
            late.copy_(self._rivals(offer, len(late)))
        return Choice(slots, scores=offer.scores)

    def _rivals(self, offer: Offer, count: int) -> Tensor:
        assert offer.scores is not None
        held = torch.cat([offer.held_scores, offer.scores[: offer.count - count]])
        redundancy = (held - held.min()) / (held.max() - held.min() + 0.01) + 1e-12  # or none could be drawn of equals
        rivals = redundancy.multinomial(min(count, len(held)), generator=self.generator)
        new, old = offer.scores[offer.count - count :][: len(rivals)] + 1, held[rivals] + 1
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
