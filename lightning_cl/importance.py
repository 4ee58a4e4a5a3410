r"""Importance of parameters: how strongly each moves the log-likelihood of the data, or the output itself.

:func:`squared_scores` squares the gradient of *each sample*, and :func:`output_sensitivity` takes its absolute value,
yet both cost little more than an ordinary forward and backward pass. What a sample adds to the gradient of a layer is a
product of the layer's input and of the gradient of its output, and hooks see both for the whole batch; ``_RULES`` says
how to sum the squares or absolute values, layer type by layer type.
The autograd graph tells which parameters are used in another way: without a rule, tied, more than once, or directly.
These go through :func:`torch.func.vmap`, or sample by sample if that cannot trace the model.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cl.utilities import evaluating

Estimator: TypeAlias = Literal["exact", "sampled", "empirical", "predicted", "batch_mean", "batch_scaled"]
OutputNorm: TypeAlias = Literal["squared", "plain", "outputs"]
Targets: TypeAlias = Callable[[Tensor, Any], Sequence[Tensor]]
"""From what is differentiated, ``(B, C)``, and the labels: its cotangents, one ``(B, C)`` for each backward pass."""


def squared_scores(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    estimator: Estimator = "empirical",
    *,
    parameters: Collection[str] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> tuple[dict[str, Tensor], int]:
    r"""Sum the squared scores of a classifier over a data set, for a diagonal Fisher estimate.

    Let :math:`g_n(c) = \nabla_\theta \log p(c \mid x_n)` be the score of class :math:`c` on sample :math:`n \le N`,
    :math:`y_n` its label, and :math:`\bar g_k` the mean of :math:`g_n(y_n)` over batch :math:`k \le K` of
    size :math:`B_k`.

    ================  ==============================================================  ===========
    estimator         sum                                                             count
    ================  ==============================================================  ===========
    ``exact``         :math:`\sum_n \sum_c p(c \mid x_n) g_n(c)^2`                    :math:`N`
    ``sampled``       :math:`\sum_n g_n(c_n)^2`, :math:`c_n \sim p(\cdot \mid x_n)`   :math:`N`
    ``empirical``     :math:`\sum_n g_n(y_n)^2`                                       :math:`N`
    ``predicted``     :math:`\sum_n g_n(\arg\max_c p(c \mid x_n))^2`                  :math:`N`
    ``batch_mean``    :math:`\sum_k \bar g_k^2`                                       :math:`K`
    ``batch_scaled``  :math:`\sum_k B_k \bar g_k^2`                                   :math:`K`
    ================  ==============================================================  ===========

    The importance is the sum over the count; processes first add up their sums and their counts and divide once.
    ``exact`` is the diagonal of the Fisher matrix, at ``C`` backward passes; ``sampled`` estimates it without bias;
    ``empirical`` vanishes where the model fits its labels. The last two square the gradient of a batch mean, as several
    code bases do; that is not the Fisher matrix and depends on the batch size.

    Each sample is scored alone, in eval mode, in at least float32 and without autocast. Modes, parameters, buffers,
    gradients and torch's random state are left as found, also when an exception is raised.

    Args:
        model: Maps inputs ``(B, *)`` to logits ``(B, C)``.
        batches: Inputs ``(B, *)`` on the model's device and integer labels ``(B,)`` in ``[0, C)``, which ``exact``,
            ``sampled`` and ``predicted`` do not read. Further elements of a batch are ignored.
        estimator: See the table.
        parameters: Names of the parameters to score; ``None`` is every trainable one.
        logits: Maps what the model returns to logits ``(B, C)``; for instance, picks the classes seen so far.
        generator: Draws the labels of ``sampled``; ``None`` starts from torch's global random state.
        chunk_size: How many gradients are held at a time where samples go through ``vmap``; ``None`` is 64 MiB of them.

    Returns:
        Sums keyed and shaped like ``named_parameters()``, float32 (float64 for float64 parameters), exactly 0 for a
        parameter that the logits do not depend on; and the count.

    Raises:
        ValueError: If ``batches`` is empty, the logits are not ``(B, C)``, a label is not in ``[0, C)``, ``estimator``
            or one of ``parameters`` is unknown, or the model uses parameters out of sight (inside reentrant
            checkpoints, or from a list of its own).

    Warns:
        UserWarning: Once a call, if the samples are taken one by one because ``vmap`` cannot trace the model.

    Sources:
        Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (the Fisher diagonal);
        Schwarz et al., "Progress & Compress: A scalable framework for continual learning", ICML 2018 (its running sum).

    Example:
        >>> sums, count = squared_scores(nn.Linear(2, 3), [(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))])
        >>> count, sums["weight"].shape
        (4, torch.Size([3, 2]))
        >>> importance = {name: value / count for name, value in sums.items()}
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` must be one of {', '.join(get_args(Estimator))}, got {estimator!r}.")
    by_batch = estimator in ("batch_mean", "batch_scaled")

    def targets(log_probs: Tensor, y: Any) -> list[Tensor]:
        if by_batch:
            return [target / len(log_probs) for target in _targets(log_probs, y, "empirical", None)]
        return _targets(log_probs, y, estimator, generator)

    weigh = estimator == "batch_scaled"
    sums, samples, passes = _summed(
        model, batches, _SCORE, targets, by_batch, weigh, parameters=parameters, logits=logits, chunk_size=chunk_size
    )
    return sums, passes if by_batch else samples


def output_sensitivity(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    norm: OutputNorm = "squared",
    *,
    by_batch: bool = False,
    parameters: Collection[str] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    chunk_size: int | None = None,
) -> tuple[dict[str, Tensor], int]:
    r"""Sum over a data set how strongly the output of each sample moves with each parameter, without labels.

    Let :math:`f(x_n)` be the output of sample :math:`n \le N`.

    ===========  ============================================================
    norm         sum
    ===========  ============================================================
    ``squared``  :math:`\sum_n |\nabla_\theta \lVert f(x_n) \rVert_2^2|`
    ``plain``    :math:`\sum_n |\nabla_\theta \lVert f(x_n) \rVert_2|`
    ``outputs``  :math:`\sum_n \sum_c |\nabla_\theta f_c(x_n)|`
    ===========  ============================================================

    The importance is the sum over the count; processes first add up their sums and their counts and divide once.
    ``squared`` is that of the authors' code, ``plain`` is not squared (0 where the output is), and ``outputs`` costs
    ``C`` backward passes. Outputs of minus infinity, as of classes that do not compete, have no part.

    With ``by_batch`` the gradients of the samples of a batch are added before the absolute value is taken,
    :math:`\sum_k |\sum_{n \in k} \nabla_\theta \lVert f(x_n) \rVert_2^2|` over batches :math:`k`, as in the authors'
    code. What has different signs then cancels: it is at most the above, and depends on the batch size.

    In all else it is like :func:`squared_scores`.

    Args:
        model: Maps inputs ``(B, *)`` to outputs ``(B, C)``.
        batches: Inputs ``(B, *)`` on the model's device as first elements. Further elements of a batch are ignored.
        norm: See the table.
        by_batch: Add the gradients of a batch first.
        parameters: Names of the parameters to score; ``None`` is every trainable one.
        logits: Maps what the model returns to outputs ``(B, C)``; for instance, picks the classes seen so far.
        chunk_size: How many gradients are held at a time where samples go through ``vmap``; ``None`` is 64 MiB of them.

    Returns:
        Sums keyed and shaped like ``named_parameters()``, float32 (float64 for float64 parameters), exactly 0 for a
        parameter that the output does not depend on; and the number of samples :math:`N`.

    Raises:
        ValueError: If ``batches`` is empty, the outputs are not ``(B, C)``, ``norm`` or one of ``parameters`` is
            unknown, or the model uses parameters out of sight.

    Warns:
        UserWarning: Once a call, if the samples are taken one by one because ``vmap`` cannot trace the model.

    Sources:
        Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018 (``squared``);
        Aljundi, Kelchtermans & Tuytelaars, "Task-Free Continual Learning", CVPR 2019 (``plain``).

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> sums, count = output_sensitivity(model, [(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]),)])
        >>> count, sums["weight"]
        (2, tensor([[ 8., 12.]]))
    """
    if norm not in get_args(OutputNorm):
        raise ValueError(f"`norm` must be one of {', '.join(get_args(OutputNorm))}, got {norm!r}.")
    inputs = ((x, x) for x, *_ in batches)  # in the place of the labels, which are not read
    sums, samples, _ = _summed(
        model,
        inputs,
        _OUTPUT,
        lambda outputs, _: _directions(outputs, norm),
        by_batch,
        parameters=parameters,
        logits=logits,
        chunk_size=chunk_size,
    )
    return sums, samples


class _Objective(NamedTuple):
    """What is differentiated, and what of its gradients is summed."""

    of_logits: Callable[[Tensor], Tensor]  # (B, C) to (B, C)
    finite: Callable[[Tensor], Tensor]  # what it returns, in a form in which two can be compared
    power: int  # 1: absolute values, 2: squares


_SCORE = _Objective(partial(F.log_softmax, dim=1), torch.exp, 2)
_OUTPUT = _Objective(lambda logits: logits.masked_fill(logits == -torch.inf, 0.0), lambda outputs: outputs, 1)


def _summed(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    objective: _Objective,
    targets: Targets,
    by_batch: bool,
    weigh: bool = False,
    *,
    parameters: Collection[str] | None,
    logits: Callable[[Any], Tensor] | None,
    chunk_size: int | None,
) -> tuple[dict[str, Tensor], int, int]:
    """Sum powers of gradients, of samples or of whole batches; tell also how many samples and passes there were."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if unknown := sorted(set(parameters or ()).difference(trainable)):
        raise ValueError(f"`parameters` must name trainable parameters of the model, got {', '.join(unknown)}.")
    names = [name for name in trainable if parameters is None or name in parameters]
    samples = passes = 0
    with undisturbed(model):
        scores = _Scores(model, names, objective, logits, chunk_size)
        sums = {name: torch.zeros_like(scores.values[name], requires_grad=False) for name in names}
        for x, y in ((x, y) for x, y, *_ in batches) if by_batch else _in_parts(batches):
            x = x.clone() if x.is_inference() else x.detach()  # autograd refuses inference tensors
            found = (scores.of_batch if by_batch else scores.of_samples)(x, y, targets)
            for name, value in found.items():
                sums[name].add_(value, alpha=len(x) if weigh else 1)
            samples, passes = samples + len(x), passes + 1
    if samples == 0:
        raise ValueError("`batches` must hold at least one sample, got none; a used-up iterator has to be made anew.")
    return sums, samples, passes


@dataclass
class _Call:
    """One call of a layer that has a rule."""

    layer: nn.Module
    x: Tensor
    output: GradientEdge  # rather than the tensor: `ReLU(inplace=True)` may overwrite that
    names: dict[str, str]  # the parameters to score: name in the layer -> name in the model


class _Scores:
    """Sums of a model at fixed parameters, in dicts that leave out parameters without influence."""

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        objective: _Objective,
        logits: Callable[[Any], Tensor] | None,
        chunk_size: int | None,
    ) -> None:
        self.model, self.names, self.objective = model, names, objective
        self.logits, self.chunk_size = logits, chunk_size
        # A tied parameter goes by its first name.
        self.known: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        # Leaves of our own that share the storage: the model's keep their `grad`, `requires_grad` and hooks.
        self.values = {name: _widen(p.detach()).requires_grad_(name in names) for p, name in self.known.items()}
        self.buffers = {name: _widen(b).clone() for name, b in model.named_buffers()}
        self.layers: dict[nn.Module, dict[str, str]] = {}
        for layer in filter(_has_rule, model.modules()):
            own = {key: self.known[p] for key in ("weight", "bias") if (p := layer._parameters.get(key)) is not None}
            self.layers[layer] = {key: name for key, name in own.items() if name in names}
        self.trusted: set[str] | None = None  # parameters whose rule was seen to hold
        self.traceable = True  # by `vmap`, until the contrary is known

    def of_batch(self, x: Tensor, y: Any, targets: Targets) -> dict[str, Tensor]:
        """Take the power of the gradient of the sum over the batch."""
        outputs = self._outputs(self.values, x)
        self._graph(outputs.grad_fn)
        total: dict[str, Tensor] = {}
        cotangents = targets(outputs.detach(), y)
        for i, target in enumerate(cotangents, start=1):
            for name, score in self._gradients(self.names, outputs, target, last=i == len(cotangents)).items():
                value = _power(score, self.objective.power)
                total[name] = value + total[name] if name in total else value
        return total

    def of_samples(self, x: Tensor, y: Any, targets: Targets) -> dict[str, Tensor]:
        """Sum the powers of the gradients of the samples."""
        if self.trusted is None and len(x) > 1:
            self.trusted = self._verified(x[:2])
        outputs, calls, reached = self._watched(x)
        cotangents = targets(outputs.detach(), y)
        total: dict[str, Tensor] = {}
        for i, target in enumerate(cotangents, start=1):
            powers = self._by_rule(outputs, target, calls, reached, last=i == len(cotangents))
            if rest := reached - powers.keys():
                powers |= self._by_sample(rest, x, target)
            total = {name: value + total[name] if total else value for name, value in powers.items()}
        return total

    def _outputs(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        output = functional_call(self.model, (values, self.buffers), (_widen(x),))
        logits = output if self.logits is None else self.logits(output)
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(came, tuple) or len(came) != 2 or came[0] != len(x):
            raise ValueError(
                f"`model` must return logits of shape ({len(x)}, C) for {len(x)} inputs, got {came};"
                " pass `logits` to make them from what it returns."
            )
        return self.objective.of_logits(logits)

    def _gradients(
        self, names: Collection[str], outputs: Tensor, target: Tensor, last: bool = True
    ) -> dict[str, Tensor]:
        if not names or not outputs.requires_grad:
            return {}
        values = [self.values[name] for name in names]
        found = torch.autograd.grad(outputs, values, target, retain_graph=not last, allow_unused=True)
        return {name: score for name, score in zip(names, found, strict=True) if score is not None}

    def _watched(self, x: Tensor) -> tuple[Tensor, list[_Call], set[str]]:
        """Run the model; tell also which calls obey their rule, and which parameters have influence."""
        calls: list[_Call] = []
        times: Counter[nn.Module] = Counter()

        @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch 2.4 would trace it in a compiled model
        def note(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            times[layer] += 1
            axes = 4 if isinstance(layer, nn.Conv2d) else 1 + len(getattr(layer, "normalized_shape", "1"))
            batched = len(args) == 1 and output.ndim >= axes and len(args[0]) == len(output) == len(x)
            if batched and output.requires_grad:
                calls.append(_Call(layer, args[0], get_gradient_edge(output), {}))

        with ExitStack() as stack:
            for layer in self.layers:  # prepended: a hook of the user may replace the output
                stack.callback(layer.register_forward_hook(note, prepend=True).remove)
            outputs = self._outputs(self.values, x)
        nodes, uses = self._graph(outputs.grad_fn)
        # If the layer was called once, in reach of the output, and the parameter is used once, then it is used there.
        once = {n for n, p in self.values.items() if uses[p] == 1 and (self.trusted is None or n in self.trusted)}
        for call in calls:
            if times[call.layer] == 1 and call.output.node in nodes:
                call.names = {key: name for key, name in self.layers[call.layer].items() if name in once}
        return outputs, [call for call in calls if call.names], {n for n, p in self.values.items() if uses[p]}

    def _graph(self, root: Node | None) -> tuple[set[Node], Counter[Tensor]]:
        """Walk the autograd graph; return its inner nodes and how often each leaf enters it."""
        nodes: set[Node] = set() if root is None else {root}
        uses: Counter[Tensor] = Counter()
        stack = list(nodes)
        while stack:
            for node, _ in stack.pop().next_functions:
                if node is None or node in nodes:
                    continue
                if node.name() == "torch::autograd::AccumulateGrad":
                    uses[node.variable] += 1  # type: ignore[attr-defined]
                elif node.name() == "CheckpointFunctionBackward":
                    raise ValueError("`model` must not hide its graph; checkpoint it with `use_reentrant=False`.")
                else:
                    nodes.add(node)
                    stack.append(node)
        if kept := sorted({self.known[p] for p in uses if p in self.known}.intersection(self.names)):
            raise ValueError(f"`model` must read {kept[0]} from the submodule that owns it, got it from elsewhere.")
        return nodes, uses

    def _by_rule(
        self, outputs: Tensor, target: Tensor, calls: list[_Call], reached: set[str], last: bool = True
    ) -> dict[str, Tensor]:
        powers: dict[str, Tensor] = {}

        def use(deltas: Any, call: _Call) -> None:
            if (delta := deltas[call.output.output_nr]) is None:
                return
            with torch.no_grad():
                weight, bias = _RULES[type(call.layer)](call.layer, call.x, delta, self.objective.power)
            powers.update({name: weight if key == "weight" else bias for key, name in call.names.items()})
            if last:
                del call.x  # memory for the rest of the pass

        # A gradient is used where it passes by, and the pass goes on to the first layers and to the parameters without
        # a rule: every other layer lies on the way to one of these.
        first = [call for call in calls if not call.x.requires_grad]
        ends = [get_gradient_edge(self.values[n]) for n in reached.difference(*(call.names.values() for call in calls))]
        ends = [call.output for call in first] + ends
        with ExitStack() as stack:
            for call in calls:
                if call.x.requires_grad:
                    stack.callback(call.output.node.register_prehook(partial(use, call=call)).remove)
            deltas = (
                torch.autograd.grad(outputs, ends, target, retain_graph=not last, allow_unused=True) if calls else ()
            )
        for call, delta in zip(first, deltas, strict=False):
            use({call.output.output_nr: delta}, call)
        return powers

    def _by_sample(self, names: Collection[str], x: Tensor, target: Tensor) -> dict[str, Tensor]:
        values = {name: value.detach() for name, value in self.values.items()}
        chosen = {name: values[name] for name in names}

        def objective(chosen: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
            return (self._outputs(values | chosen, x[None]) * target).sum()

        size = self.chunk_size or max(1, 2**24 // sum(value.numel() for value in chosen.values()))
        total = {name: torch.zeros_like(value) for name, value in chosen.items()}
        try:
            for i in range(0, len(x) if self.traceable else 0, size):
                with sdpa_kernel(SDPBackend.MATH):  # `vmap` has no rule for the fused attention kernels
                    scores = vmap(grad(objective), (None, 0, 0))(chosen, x[i : i + size], target[i : i + size])
                for name, value in scores.items():
                    _add_powers(total[name], value, self.objective.power)
        except (RuntimeError, TypeError, ValueError) as error:
            self.traceable = False
            reason = str(error).split("\n")[0]
            warnings.warn(f"Samples are scored one by one, as `vmap` cannot trace the model: {reason}", stacklevel=5)
        return total if self.traceable else self._one_by_one(names, x, target)

    def _one_by_one(self, names: Collection[str], x: Tensor, target: Tensor) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(self.values[name], requires_grad=False) for name in names}
        for i in range(len(x)):
            outputs = self._outputs(self.values, x[i : i + 1])
            for name, score in self._gradients(names, outputs, target[i : i + 1]).items():
                _add_powers(total[name], score[None], self.objective.power)
        return total

    def _verified(self, x: Tensor) -> set[str]:
        """Name the parameters in whose layers row ``n`` is sample ``n`` and does not depend on the others.

        It is not where the first axis is time, or where a model mixes the samples of a batch. What is compared is
        continuous or zero: gradients themselves may differ between batch sizes, where rounding moves an input of a ReLU
        across zero.
        """
        finite = self.objective.finite
        outputs, calls, _ = self._watched(x)
        one_hot = torch.eye(len(x)).to(outputs)[:, :, None] * torch.linspace(0, 1, outputs.shape[1]).to(outputs)
        edges = [call.output for call in calls]
        apart = {call.layer for call in calls}
        diverged = finite(outputs).isnan().any()  # nothing compares with NaN, which all sums will be
        for n in range(0 if diverged else len(x)):
            alone, calls_alone, _ = self._watched(x[n : n + 1])
            inputs = {call.layer: call.x for call in calls_alone}
            same = _close(finite(outputs[n]), finite(alone[0]))
            deltas = torch.autograd.grad(outputs, edges, one_hot[n], retain_graph=True) if edges else ()
            for call, delta in zip(calls, deltas, strict=True):
                others = torch.arange(len(x), device=delta.device) != n
                fits = same and call.layer in inputs and _close(call.x[n], inputs[call.layer][0])
                if not fits or delta[others].any():
                    apart.discard(call.layer)
        return {name for call in calls if call.layer in apart for name in call.names.values()}


def _close(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and bool((value - expected).abs().max() <= 0.01 * expected.abs().max())


def _in_parts(batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Tensor, Any]]:
    """Cut large batches on a CPU into parts whose activations stay in its cache: 128 was best from 16 to 512."""
    for x, y, *_ in batches:
        if x.device.type == "cpu" and isinstance(y, Tensor) and y.shape[:1] == x.shape[:1]:
            yield from zip(torch.split(x, 128), torch.split(y, 128), strict=True)
        else:
            yield x, y


def _targets(log_probs: Tensor, y: Tensor, estimator: Estimator, draw: torch.Generator | None) -> list[Tensor]:
    """Weight the log-probabilities ``(B, C)`` such that the gradient of their sum is what to square."""
    probs, classes = log_probs.exp(), log_probs.shape[1]
    if estimator == "exact":
        return [probs.sqrt() * one_hot for one_hot in torch.eye(classes).to(probs)]
    if estimator == "sampled":
        chances = probs.nan_to_num(1.0)  # of a model that has diverged: the sums will say so
        y = torch.multinomial(chances if draw is None else chances.to(draw.device), 1, generator=draw)[:, 0]
    elif estimator == "predicted":
        y = probs.argmax(1)
    elif y.is_floating_point() or y.shape != probs.shape[:1]:
        came = f"{y.dtype} of shape {tuple(y.shape)}"
        raise ValueError(
            f"`batches` must hold integer labels of shape ({len(probs)},), got {came}; convert them first."
        )
    elif len(y) and not 0 <= y.min() <= y.max() < classes:
        came = f"{int(y.min())} to {int(y.max())}"
        raise ValueError(f"`batches` must hold labels in [0, {classes}), got {came}; map them or widen the head.")
    return [F.one_hot(y.to(probs.device, torch.long), classes).to(probs)]


def _directions(outputs: Tensor, norm: OutputNorm) -> list[Tensor]:
    """The gradients by the outputs ``(B, C)`` of what is differentiated: of the norm, or of each output in turn."""
    if norm == "squared":
        return [2 * outputs]
    if norm == "plain":
        return [F.normalize(outputs, dim=1, eps=torch.finfo(outputs.dtype).tiny)]  # 0 where the output is 0
    return [one_hot.expand_as(outputs) for one_hot in torch.eye(outputs.shape[1]).to(outputs)]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, gradients on, autocast and compiled code off in a block; modes and random state come back."""
    devices = {p.device for p in model.parameters()}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in devices:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


# The rules: from the input and the gradient `delta` of the output, both (B, *), the sums over the batch of the powers
# (1: absolute values, 2: squares) of the gradients of weight and bias.


def _linear(layer: nn.Linear, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    if x.ndim == 2:  # the gradient is an outer product, so its power is one too
        return _power(delta, power).T @ _power(x, power), _power(delta, power).sum(0)
    x, delta = x.flatten(1, -2), delta.flatten(1, -2)
    weight = _in_chunks(layer.weight, x, delta, power, lambda x, delta: delta.mT @ x)
    return weight, _power(delta.sum(1), power).sum(0)


def _conv2d(layer: nn.Conv2d, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    def gradients(x: Tensor, delta: Tensor) -> Tensor:  # the samples are groups of a single convolution
        size, groups = (len(x) * layer.out_channels, *layer.weight.shape[1:]), len(x) * layer.groups
        x, delta = x.flatten(0, 1)[None], delta.flatten(0, 1)[None]
        return conv2d_weight(x, size, delta, layer.stride, layer.padding, layer.dilation, groups)  # type: ignore[no-untyped-call,no-any-return]

    return _in_chunks(layer.weight, x, delta, power, gradients), _power(delta.sum((2, 3)), power).sum(0)


def _batch_norm(layer: _BatchNorm, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    mean, var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    return _per_channel(F.batch_norm(x, mean.to(x), var.to(x), eps=layer.eps), delta, power)


def _group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    return _per_channel(F.group_norm(x, layer.num_groups, eps=layer.eps), delta, power)


def _per_channel(normed: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    weight, bias = (value.reshape(*value.shape[:2], -1).sum(2) for value in (delta * normed, delta))
    return _power(weight, power).sum(0), _power(bias, power).sum(0)


def _layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    normed = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    weight, bias = (value.reshape(len(x), -1, *layer.normalized_shape).sum(1) for value in (delta * normed, delta))
    return _power(weight, power).sum(0), _power(bias, power).sum(0)


def _embedding(layer: nn.Embedding, x: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    rows = layer.num_embeddings
    pairs = x.reshape(len(x), -1) + rows * torch.arange(len(x), device=x.device)[:, None]  # a number per sample and row
    pairs, index = torch.unique(pairs, return_inverse=True)
    scores = delta.new_zeros(len(pairs), delta.shape[-1]).index_add_(0, index.flatten(), delta.flatten(0, -2))
    weight = delta.new_zeros(layer.weight.shape).index_add_(0, pairs % rows, _power(scores, power))
    if layer.padding_idx is not None:
        weight[layer.padding_idx] = 0
    return weight, weight  # there is no bias


def _in_chunks(
    weight: Tensor, x: Tensor, delta: Tensor, power: int, gradients: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    total = delta.new_zeros(weight.shape)
    limit = 2**26 if x.device.type != "cpu" else 2**19 if weight.numel() <= 2**17 else 1  # what stays in a CPU's cache
    size = max(1, limit // weight.numel())
    for i in range(0, len(x), size):
        _add_powers(total, gradients(x[i : i + size], delta[i : i + size]).view(-1, *weight.shape), power)
    return total


def _add_powers(total: Tensor, scores: Tensor, power: int) -> None:
    if len(scores) == 1 and power == 2:
        total.addcmul_(scores[0], scores[0])  # one pass over the memory instead of three
    else:
        total += _power(scores, power).sum(0)


def _power(values: Tensor, power: int) -> Tensor:
    return values.square() if power == 2 else values.abs()


_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}


def _has_rule(layer: nn.Module) -> bool:
    if type(layer) not in _RULES or "forward" in vars(layer):  # a subclass or a patched layer may compute anything
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq
    return not isinstance(layer, _BatchNorm) or layer.running_mean is not None
