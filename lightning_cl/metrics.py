"""Continual-learning metrics: pure functions on the accuracy matrix, and a metric that counts it.

``R`` is the accuracy matrix, a tensor ``(T, T)`` of fractions in [0, 1]: ``R[i, j]`` is the accuracy on experience
``j`` after learning experience ``i``, and NaN where it was not evaluated. In a run that is not over only the first rows
are filled; every function then takes the last evaluated row as the final one and leaves out the experiences after it,
so ``T`` in the formulas below is the number of experiences learned so far.

Every function returns a Python float. A value that is not defined (the forgetting of a run of one experience, forward
transfer without the upper triangle) is NaN, never an exception. Where libraries differ, the variant is the argument
``convention``; report its name beside every number.
"""
# ruff: noqa: N803, N806  (the matrix is called R in all papers of the field)

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_FORGETTING = ("chaudhry", "agem", "continuum", "avalanche", "mammoth", "pycil", "raptormai")
_BACKWARD = ("gem", "gem_code", "all_pairs")
_FORWARD = ("gem", "gem_code", "continuum", "clear")


def average_accuracy(R: Tensor, counts: Tensor | None = None) -> float:
    r"""Mean of the last row over the experiences learned so far.

    :math:`\mathrm{ACC} = \frac{1}{T} \sum_{j<T} R_{T-1,j}` (Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS
    2017). With ``counts`` it is :math:`\sum_j n_j R_{T-1,j} / \sum_j n_j`, which is what code measures that evaluates
    one union of all test sets. The two differ when the test sets differ in size.

    Args:
        R: Accuracy matrix ``(T, T)``.
        counts: Test samples of each experience ``(T,)``. ``None`` weighs experiences equally.

    Returns:
        The accuracy; NaN if an experience learned so far has no entry in the last row.

    Raises:
        ValueError: If ``R`` is not square or ``counts`` does not have its length.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.8]], dtype=torch.float64)
        >>> round(average_accuracy(R), 6), round(average_accuracy(R, torch.tensor([10, 20])), 6)
        (0.65, 0.7)
    """
    return _mean(_accuracies(R, counts)[-1:])


def average_incremental_accuracy(R: Tensor, counts: Tensor | None = None) -> float:
    r"""Mean over experiences of the average accuracy reached after each.

    :math:`\mathrm{AIA} = \frac{1}{T} \sum_{i<T} A_i`, where :math:`A_i` is :func:`average_accuracy` after experience
    ``i``; the first experience counts (Rebuffi et al., "iCaRL", CVPR 2017).

    Args:
        R: Accuracy matrix ``(T, T)``.
        counts: Test samples of each experience ``(T,)``; then :math:`A_i` is the accuracy on the union of the test
            sets seen, as in PyCIL. ``None`` weighs experiences equally.

    Returns:
        The mean; NaN if an entry on or below the diagonal is missing.

    Raises:
        ValueError: If ``R`` is not square or ``counts`` does not have its length.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.8]], dtype=torch.float64)
        >>> round(average_incremental_accuracy(R), 6)
        0.775
    """
    return _mean(_accuracies(R, counts))


def learning_accuracy(R: Tensor) -> float:
    r"""Mean accuracy on each experience right after learning it, :math:`\frac{1}{T} \sum_j R_{j,j}`.

    Args:
        R: Accuracy matrix ``(T, T)``.

    Returns:
        The mean of the diagonal.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.8]], dtype=torch.float64)
        >>> round(learning_accuracy(R), 6)
        0.85
    """
    return _mean(_learned(R).diagonal())


def forgetting(R: Tensor, convention: str = "chaudhry") -> float:
    r"""Accuracy lost since the best point of each experience, as a mean over experiences.

    All conventions average :math:`f_j = m_j - R_{T-1,j}`. They differ in the reference :math:`m_j`:

    - ``"chaudhry"``: :math:`m_j = \max_{l \le T-2} R_{l,j}`, mean over :math:`j < T-1` (Chaudhry et al., "Riemannian
      Walk", ECCV 2018). Negative where the last experience helped. ``"agem"`` is another name of the same rule.
    - ``"continuum"``: the same with :math:`j \le l \le T-2`; other than chaudhry only where an accuracy above the
      diagonal is the best.
    - ``"avalanche"``: :math:`m_j = R_{j,j}`, mean over :math:`j < T-1`; minus the backward transfer of GEM.
    - ``"mammoth"``: :math:`m_j = \max_{l \le T-1} R_{l,j}`, mean over :math:`j < T-1`; never negative.
    - ``"pycil"``: as mammoth, of percentages rounded to two decimals.
    - ``"raptormai"``: as mammoth, mean over all ``T`` experiences (the last term is 0 unless the accuracy on the last
      experience was higher before it was learned). Defined for ``T = 1``, where it is 0.

    The maximum is over the entries that were evaluated.

    Args:
        R: Accuracy matrix ``(T, T)``.
        convention: One of the names above.

    Returns:
        The mean forgetting; NaN for ``T = 1``, except with raptormai.

    Raises:
        ValueError: If ``R`` is not square or ``convention`` is unknown.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.8]], dtype=torch.float64)
        >>> round(forgetting(R), 6), round(forgetting(R, "raptormai"), 6)
        (0.4, 0.2)
    """
    _check_convention(convention, _FORGETTING)
    R = _learned(R)
    if len(R) == 0:
        return math.nan
    if convention == "avalanche":
        best = R.diagonal()
    else:
        if convention == "pycil":
            R = (100 * R).round(decimals=2) / 100
        candidates = R.clone()
        if convention == "continuum":
            candidates[_triangle(R, above=True)] = math.nan
        if convention in ("chaudhry", "agem", "continuum"):
            candidates[-1] = math.nan
        best = candidates.where(~candidates.isnan(), -math.inf).amax(dim=0)
        best = best.where(best > -math.inf, math.nan)
    drops = best - R[-1]
    return _mean(drops if convention == "raptormai" else drops[:-1])


def backward_transfer(R: Tensor, convention: str = "gem") -> float:
    r"""Change of the accuracy on earlier experiences through learning later ones; negative where they were forgotten.

    - ``"gem"``: :math:`\frac{1}{T-1} \sum_{j<T-1} (R_{T-1,j} - R_{j,j})` (Lopez-Paz & Ranzato, NeurIPS 2017).
    - ``"gem_code"``: the same sum over ``T``, as the released code averages; defined for ``T = 1``, where it is 0.
    - ``"all_pairs"``: :math:`\frac{2}{T(T-1)} \sum_{i>j} (R_{i,j} - R_{j,j})` (Díaz-Rodríguez et al., "Don't forget,
      there is more than forgetting", 2018).

    Args:
        R: Accuracy matrix ``(T, T)``.
        convention: One of the names above.

    Returns:
        The backward transfer; NaN for ``T = 1``, except with gem_code.

    Raises:
        ValueError: If ``R`` is not square or ``convention`` is unknown.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.8]], dtype=torch.float64)
        >>> round(backward_transfer(R), 6), round(backward_transfer(R, "gem_code"), 6)
        (-0.4, -0.2)
    """
    _check_convention(convention, _BACKWARD)
    R = _learned(R)
    changes = R - R.diagonal()
    if convention == "all_pairs":
        return _mean(changes[_triangle(R, above=False)])
    last = changes[-1:]  # a slice, so that an empty matrix gives NaN
    return _mean(last if convention == "gem_code" else last[:, :-1])


def positive_backward_transfer(R: Tensor) -> float:
    r"""Positive part of the all-pairs backward transfer, :math:`\max(\mathrm{BWT}, 0)` (Díaz-Rodríguez et al., 2018).

    Args:
        R: Accuracy matrix ``(T, T)``.

    Returns:
        A value of 0 or more; NaN for ``T = 1``.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> positive_backward_transfer(torch.tensor([[0.5, 0.0], [0.75, 0.8]], dtype=torch.float64))
        0.25
    """
    transfer = backward_transfer(R, "all_pairs")
    return transfer if math.isnan(transfer) else max(transfer, 0.0)


def remembering(R: Tensor) -> float:
    r"""REM, :math:`1 - |\min(\mathrm{BWT}, 0)|` with the all-pairs backward transfer (Díaz-Rodríguez et al., 2018).

    Args:
        R: Accuracy matrix ``(T, T)``.

    Returns:
        A value in [0, 1], 1 if nothing was forgotten; NaN for ``T = 1``.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> remembering(torch.tensor([[0.75, 0.0], [0.5, 0.8]], dtype=torch.float64))
        0.75
    """
    transfer = backward_transfer(R, "all_pairs")
    return transfer if math.isnan(transfer) else 1.0 + min(transfer, 0.0)


def forward_transfer(R: Tensor, initial: Tensor | None = None, convention: str = "gem") -> float:
    r"""Accuracy on experiences that are still to be learned, over that of the untrained model.

    With :math:`b_j` the accuracy on ``j`` before any training:

    - ``"gem"``: :math:`\frac{1}{T-1} \sum_{j \ge 1} (R_{j-1,j} - b_j)` (Lopez-Paz & Ranzato, NeurIPS 2017).
    - ``"gem_code"``: the same sum over ``T``, as the released code averages; defined for ``T = 1``, where it is 0.
    - ``"continuum"``: :math:`\frac{1}{T-1} \sum_{j \ge 1} R_{j-1,j}`, nothing subtracted.
    - ``"clear"``: mean of the strict upper triangle, nothing subtracted (Lin et al., "The CLEAR Benchmark", NeurIPS
      Datasets and Benchmarks 2021); RaptorMai's too.

    It means nothing in a class-incremental run whose prediction is among the classes seen: the accuracy on the next
    experience is 0 there, whatever was learned.

    Args:
        R: Accuracy matrix ``(T, T)`` with its upper triangle.
        initial: Accuracies before any training ``(T,)``; not used by continuum and clear.
        convention: One of the names above.

    Returns:
        The forward transfer; NaN for ``T = 1`` (except with gem_code) and where the upper triangle is missing.

    Raises:
        ValueError: If ``R`` is not square, ``initial`` is needed and missing or does not have its length, or
            ``convention`` is unknown.

    Example:
        >>> R = torch.tensor([[0.9, 0.25], [0.5, 0.8]], dtype=torch.float64)
        >>> forward_transfer(R, torch.tensor([0.1, 0.125]))
        0.125
    """
    _check_convention(convention, _FORWARD)
    size, R = len(R), _learned(R)
    if convention == "clear":
        return _mean(R[_triangle(R, above=True)])
    ahead = _ahead(R)
    if convention == "continuum":
        return _mean(ahead)
    if initial is None:
        raise ValueError(f"`initial` must be a tensor of shape ({size},) with convention '{convention}', got None.")
    gains = ahead - _vector("initial", initial, size)[1 : len(R)]
    return _mean(gains) if convention == "gem" else float(gains.sum() / len(R))


def intransigence(R: Tensor, reference: Tensor) -> float:
    r"""Accuracy on the experience learned last that continual learning costs, :math:`I_k = a^*_k - R_{k,k}`.

    Chaudhry et al., "Riemannian Walk", ECCV 2018. For an earlier ``k`` pass ``R[: k + 1, : k + 1]``.

    Args:
        R: Accuracy matrix ``(T, T)``.
        reference: ``(T,)``; entry ``k`` is the accuracy on experience ``k`` of a reference model trained jointly on the
            experiences 0 to ``k``.

    Returns:
        The intransigence, lower is better; negative where learning in sequence did better than the reference.

    Raises:
        ValueError: If ``R`` is not square or ``reference`` does not have its length.

    Example:
        >>> R = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
        >>> intransigence(R, torch.tensor([0.9, 0.75]))
        0.25
    """
    reference, R = _vector("reference", reference, len(R)), _learned(R)
    return _mean((reference[: len(R)] - R.diagonal())[-1:])


def clear_metrics(R: Tensor) -> dict[str, float]:
    r"""The five means of the CLEAR benchmark; all are accuracies, none is a difference.

    ``in_domain`` is the mean of the diagonal, ``next_domain`` of :math:`R_{i,i+1}`, ``accuracy`` of the lower triangle
    with the diagonal, ``backward`` of the strict lower and ``forward`` of the strict upper triangle (Lin et al., "The
    CLEAR Benchmark", NeurIPS Datasets and Benchmarks 2021).

    Args:
        R: Accuracy matrix ``(T, T)``.

    Returns:
        The five means by name; NaN where ``T = 1`` or missing entries leave one undefined.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> clear_metrics(torch.tensor([[0.75, 0.25], [0.5, 0.25]], dtype=torch.float64))
        {'in_domain': 0.5, 'next_domain': 0.25, 'accuracy': 0.5, 'backward': 0.5, 'forward': 0.25}
    """
    R = _learned(R)
    above = _triangle(R, above=True)
    return {
        "in_domain": _mean(R.diagonal()),
        "next_domain": _mean(_ahead(R)),
        "accuracy": _mean(R[~above]),
        "backward": _mean(R[_triangle(R, above=False)]),
        "forward": _mean(R[above]),
    }


def learning_curve_area(curves: Tensor) -> float:
    r"""LCA, the mean height of the learning curve over the first mini-batches of an experience.

    :math:`\mathrm{LCA}_\beta = \frac{1}{\beta+1} \sum_{b=0}^{\beta} Z_b` with :math:`Z_b` the mean over experiences of
    the accuracy on the experience after its ``b``-th mini-batch, ``b = 0`` being before the first (Chaudhry et al.,
    "Efficient Lifelong Learning with A-GEM", ICLR 2019).

    Args:
        curves: Accuracies ``(T, beta + 1)``; row ``k`` follows experience ``k`` while it is learned.

    Returns:
        The area, in [0, 1].

    Example:
        >>> learning_curve_area(torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.5, 0.5]]))
        0.5
    """
    return _mean(curves.detach().cpu().double().mean(dim=0))


def summary(R: Tensor, initial: Tensor | None = None, counts: Tensor | None = None) -> dict[str, float]:
    """Scalars worth logging; a value that is not defined (yet) is left out.

    ``average_accuracy``, ``average_incremental_accuracy``, ``learning_accuracy``, ``forgetting_chaudhry`` and
    ``backward_transfer`` (GEM's formula). ``forward_transfer`` (GEM's formula) is added if ``initial`` and the upper
    triangle are there, unless every accuracy on a next experience is exactly 0: a head over the classes seen cannot
    predict the next ones, and the number would only be minus the mean of ``initial``. With ``counts`` the two averages
    are added once more as ``average_accuracy_sample_weighted`` and ``average_incremental_accuracy_sample_weighted``.

    Args:
        R: Accuracy matrix ``(T, T)``.
        initial: Accuracies before any training ``(T,)``.
        counts: Test samples of each experience ``(T,)``.

    Returns:
        The defined values by name; empty if nothing was evaluated.

    Raises:
        ValueError: If ``R`` is not square, or ``initial`` or ``counts`` does not have its length.

    Example:
        >>> summary(torch.tensor([[0.75]]))
        {'average_accuracy': 0.75, 'average_incremental_accuracy': 0.75, 'learning_accuracy': 0.75}
    """
    values = {
        "average_accuracy": average_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
        "learning_accuracy": learning_accuracy(R),
        "forgetting_chaudhry": forgetting(R, "chaudhry"),
        "backward_transfer": backward_transfer(R, "gem"),
    }
    if initial is not None:
        transfer = forward_transfer(R, initial, "gem")
        if _ahead(_learned(R)).any():
            values["forward_transfer"] = transfer
    if counts is not None:
        values["average_accuracy_sample_weighted"] = average_accuracy(R, counts)
        values["average_incremental_accuracy_sample_weighted"] = average_incremental_accuracy(R, counts)
    return {name: value for name, value in values.items() if not math.isnan(value)}


class AccuracyMatrix(Metric):
    """Count correct predictions into an accuracy matrix.

    The state is two integer matrices that are summed over processes before they are divided: neither the size of a
    batch nor the number of processes can change a bit of the result. Leave out the samples that a distributed sampler
    repeats to make its shards equal, else they count twice.

    Args:
        num_experiences: Length ``T`` of the stream, 1 or more.
        **kwargs: Arguments of :class:`torchmetrics.Metric`, such as ``sync_on_compute=False`` for counts that are
            summed over processes elsewhere.

    Raises:
        ValueError: If ``num_experiences`` is below 1.

    Example:
        >>> metric = AccuracyMatrix(num_experiences=2)
        >>> metric.update(0, 0, predictions=torch.tensor([1, 0, 1, 1]), targets=torch.tensor([1, 0, 0, 1]))
        >>> metric.compute()
        tensor([[0.7500,    nan],
                [   nan,    nan]], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, num_experiences: int, **kwargs: Any) -> None:
        super().__init__(compute_with_cache=False, **kwargs)  # a cached result would outlive `load_state_dict`
        if num_experiences < 1:
            raise ValueError(f"`num_experiences` must be 1 or more, got {num_experiences}.")
        self.num_experiences = num_experiences
        for name in ("correct", "total"):
            zeros = torch.zeros(num_experiences, num_experiences, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum", persistent=True)

    def update(self, learned: int, tested: int, predictions: Tensor, targets: Tensor) -> None:
        """Count one batch of test samples of one experience.

        Args:
            learned: Experience learned last, in ``[0, T)``.
            tested: Experience that the samples belong to, in ``[0, T)``.
            predictions: Predicted labels ``(B,)``.
            targets: True labels ``(B,)``.

        Raises:
            ValueError: If an index is out of range or the labels are not two vectors of one length.
        """
        for name, index in (("learned", learned), ("tested", tested)):
            if not 0 <= index < self.num_experiences:
                raise ValueError(f"`{name}` must be between 0 and {self.num_experiences - 1}, got {index}.")
        if predictions.ndim != 1 or predictions.shape != targets.shape:
            shapes = f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"`predictions` and `targets` must be vectors of one length, got shapes {shapes}.")
        if (
            self.total.is_inference() and not torch.is_inference_mode_enabled()
        ):  # made by a reset or sync in a test loop
            self.correct, self.total = self.correct.clone(), self.total.clone()
        self.correct[learned, tested] += (predictions == targets).sum().to(self.correct.device)
        self.total[learned, tested] += len(targets)

    def compute(self) -> Tensor:
        """Divide the counts.

        Returns:
            ``R`` ``(T, T)`` in float64 on the CPU (not every device has float64), NaN where nothing was counted.
        """
        return self.correct.cpu().double() / self.total.cpu()

    def _wrap_compute(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        wrapped: Callable[[], Tensor] = super()._wrap_compute(compute)

        def square() -> Tensor:
            self._update_count = max(1, self._update_count)  # no warning: before any update the matrix is NaN, rightly
            return wrapped().view(self.num_experiences, -1)  # torchmetrics squeezes a matrix of one entry

        return square

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if len(self.total) != self.num_experiences:
            raise ValueError(f"`num_experiences` must be {len(self.total)} as saved, got {self.num_experiences}.")
        self.correct, self.total = self.correct.clone(), self.total.clone()  # they are the caller's own tensors


class AnytimeMetrics:
    r"""Metrics of the accuracy *while* the stream is learned, which show what a matrix per experience hides.

    Feed the accuracies on all experiences seen, on a fixed subset of their test sets, every few optimizer steps. With
    ``k`` experiences seen, :math:`A_t(i)` the accuracy on experience ``i`` at evaluation ``t`` and :math:`\Delta` the
    length of a window in evaluations:

    - ``min_acc``: mean over the ``k - 1`` earlier experiences of the lowest accuracy since each was over.
    - ``wc_acc``: worst case, :math:`\frac{1}{k} A_t(k) + (1 - \frac{1}{k})\,` ``min_acc``.
    - ``wf_<window>``, ``wp_<window>``: windowed forgetting and plasticity, the largest drop and the largest rise of an
      experience's accuracy within :math:`\Delta` successive evaluations, as a mean over the experiences seen.
    - ``aaa``: average anytime accuracy, the mean over evaluations of the mean over the experiences seen (Caccia et al.,
      2022).

    The first four are of De Lange et al., "Continual evaluation for lifelong learning: Identifying the stability gap",
    ICLR 2023. For the trace 0.5, 0.1, 0.9 its released code gives a plasticity of 0.4; the definition, and this class,
    0.8. The cost of an update is constant per experience and window, on average. A minimum of noisy values is biased
    low, and one taken at every tenth step misses dips: report the size of the subset and the period.

    Args:
        windows: Lengths of the windows, 1 or more each.

    Raises:
        ValueError: If a window is shorter than 1.

    Example:
        >>> anytime = AnytimeMetrics(windows=[2])
        >>> for accuracies in ([0.5], [0.75], [0.25, 0.5], [0.5, 1.0]):
        ...     anytime.update(torch.tensor(accuracies))
        >>> anytime.compute()
        {'aaa': 0.59375, 'wc_acc': 0.625, 'min_acc': 0.25, 'wf_2': 0.25, 'wp_2': 0.375}
    """

    def __init__(self, windows: Sequence[int] = (10, 100)) -> None:
        if min(windows, default=1) < 1:
            raise ValueError(f"`windows` must be 1 or more each, got {list(windows)}.")
        self.kinds = {f"{name}_{w}": (w, sign) for w in windows for name, sign in (("wf", 1.0), ("wp", -1.0))}
        self.count, self.total = 0, 0.0
        self.latest: list[float] = []
        self.lowest: list[float] = []  # of each experience that is over
        self.largest: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        self.queues: dict[str, list[deque[tuple[int, float]]]] = {kind: [] for kind in self.kinds}

    def update(self, accuracies: Tensor) -> None:
        """Take in one evaluation, made after an optimizer step.

        Args:
            accuracies: One entry for each experience seen ``(k,)``, the one being learned last. A longer vector than
                the time before means that a new experience has begun.

        Raises:
            ValueError: If ``accuracies`` is empty, shorter than the time before, not a vector, or has a NaN.
        """
        if accuracies.ndim != 1 or len(accuracies) < max(1, len(self.latest)) or accuracies.isnan().any():
            least = max(1, len(self.latest))
            raise ValueError(f"`accuracies` must be a vector of {least} or more numbers, got {accuracies.tolist()}.")
        self.latest = accuracies.tolist()
        self.lowest += [math.inf] * (len(self.latest) - 1 - len(self.lowest))
        self.lowest = [min(pair) for pair in zip(self.lowest, self.latest[:-1], strict=True)]
        for kind, (window, sign) in self.kinds.items():
            largest, queues = self.largest[kind], self.queues[kind]
            for j, value in enumerate(self.latest):
                if j == len(queues):
                    queues.append(deque())
                    largest.append(0.0)
                largest[j] = max(largest[j], _drop(queues[j], self.count, sign * value, window))
        self.count += 1
        self.total += sum(self.latest) / len(self.latest)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name: ``min_acc`` from the second experience on, none before the first update."""
        if self.count == 0:
            return {}
        seen = len(self.latest)
        values = {"aaa": self.total / self.count, "wc_acc": (self.latest[-1] + sum(self.lowest)) / seen}
        if self.lowest:
            values["min_acc"] = sum(self.lowest) / len(self.lowest)
        return values | {kind: sum(largest) / seen for kind, largest in self.largest.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`update` changes, in lists and numbers; with it a run goes on exactly."""
        queues = {kind: [list(queue) for queue in of_each] for kind, of_each in self.queues.items()}
        largest = {kind: list(of_each) for kind, of_each in self.largest.items()}
        state = {"count": self.count, "total": self.total, "latest": list(self.latest), "lowest": list(self.lowest)}
        return state | {"largest": largest, "queues": queues}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If the state was made with other windows.
        """
        if state_dict["largest"].keys() != self.kinds.keys():
            raise ValueError(f"`windows` must give {list(state_dict['largest'])} as saved, got {list(self.kinds)}.")
        self.count, self.total = state_dict["count"], state_dict["total"]
        self.latest, self.lowest = list(state_dict["latest"]), list(state_dict["lowest"])
        self.largest = {kind: list(of_each) for kind, of_each in state_dict["largest"].items()}
        self.queues = {kind: [deque(map(tuple, queue)) for queue in q] for kind, q in state_dict["queues"].items()}


def _learned(R: Tensor) -> Tensor:
    """Cut the matrix to the experiences up to the last evaluated row, in float64 on the CPU."""
    if R.ndim != 2 or R.shape[0] != R.shape[1]:
        raise ValueError(f"`R` must be a square matrix, got shape {tuple(R.shape)}.")
    R = R.detach().cpu().double()
    rows = (~R.isnan()).any(dim=1).nonzero()
    size = int(rows[-1]) + 1 if len(rows) else 0
    return R[:size, :size]


def _accuracies(R: Tensor, counts: Tensor | None) -> Tensor:
    """Average accuracy ``A_i`` after each experience learned so far."""
    weights = torch.ones(len(R)) if counts is None else _vector("counts", counts, len(R))
    R = _learned(R)
    weights = torch.ones_like(R).tril() * weights[: len(R)]
    return (weights * R.where(weights > 0, 0.0)).sum(dim=1) / weights.sum(dim=1)


def _ahead(R: Tensor) -> Tensor:
    """Accuracies ``R[j - 1, j]`` on each experience just before it is learned."""
    return R[:-1, 1:].diagonal()


def _triangle(R: Tensor, above: bool) -> Tensor:
    """Mask of the entries strictly above or strictly below the diagonal."""
    return torch.ones_like(R, dtype=torch.bool).triu(1) if above else torch.ones_like(R, dtype=torch.bool).tril(-1)


def _vector(name: str, value: Tensor, size: int) -> Tensor:
    if value.shape != (size,):
        raise ValueError(f"`{name}` must have shape ({size},) like a row of `R`, got {tuple(value.shape)}.")
    return value.detach().cpu().double()


def _mean(values: Tensor) -> float:
    return float(values.mean())  # NaN if there are none


def _check_convention(convention: str, allowed: tuple[str, ...]) -> None:
    if convention not in allowed:
        raise ValueError(f"`convention` must be one of {', '.join(allowed)}, got {convention!r}.")


def _drop(queue: deque[tuple[int, float]], time: int, value: float, window: int) -> float:
    """Largest of the ``window - 1`` values before minus this one (0 if there is none), in a queue of falling values."""
    while queue and queue[0][0] <= time - window:
        queue.popleft()
    drop = queue[0][1] - value if queue else 0.0
    while queue and queue[-1][1] <= value:
        queue.pop()
    queue.append((time, value))
    return drop
