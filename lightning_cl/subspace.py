r"""Subspaces of layer inputs, and updates of weights that leave them alone.

A layer that multiplies its inputs by a matrix :math:`W` does not change on inputs :math:`x` with
:math:`\Delta W x = 0`. If the inputs of an experience lie near a space with the orthonormal basis :math:`B`, updates
with :math:`\Delta W B = 0` keep what the layer does there. :func:`input_grams` looks at the inputs, the functions after
it choose directions, :class:`SubspaceBank` keeps them over the experiences of a stream, and :class:`Projector` takes
them out of gradients. :func:`scaled_weight` is for what may be reused of the past.

Weights are seen as ``(groups, o, d)``: ``nn.Linear`` has one group and ``d = in_features``; ``nn.Conv2d`` has its own
groups and ``d = in_channels / groups * height * width`` of the kernel, and its inputs are all patches that it sees.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lightning_cl.importance import undisturbed
from lightning_cl.utilities import at_least_float32

Rule: TypeAlias = Literal["residual", "pool"]

NOISE = 1e-12
"""Share of the energy below which a direction is rounding: float64 keeps 16 digits, float32 inputs 7 (14 squared)."""
CHUNK = 2**23
"""Numbers that are held at a time while inputs are summed: 64 MiB in float64."""


# -- what goes into the layers -----------------------------------------------------------------------------------------


def linear_layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Find the layers that do nothing but multiply inputs by a weight of their own (and add a bias), by name.

    These are ``nn.Linear`` and ``nn.Conv2d`` as torch has them: a subclass or a patched layer may compute anything.
    Layers that share a weight stand together under the first name, but not if anything else holds the weight too.

    Example:
        >>> list(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Bilinear(2, 2, 2))))
        ['0']
    """
    owners: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for name, layer in model.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append((name, layer))
    found = {}
    for weight, users in owners.items():
        if all(_is_plain(layer) and layer._parameters.get("weight") is weight for _, layer in users):
            found[users[0][0]] = [layer for _, layer in users]
    return found


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Conv2d) and "forward" not in vars(layer)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Return the number of groups and the width ``d`` of the inputs of each.

    Example:
        >>> shape_of(nn.Conv2d(4, 6, 3, groups=2))
        (2, 18)
    """
    weight: Any = layer.weight
    groups: Any = getattr(layer, "groups", 1)
    return groups, weight[0].numel()


def input_grams(
    model: nn.Module, batches: Iterable[Sequence[Any]], layers: Mapping[str, Sequence[nn.Module]]
) -> dict[str, Tensor]:
    r"""Sum :math:`R R^\top` over the inputs of layers, where each column of :math:`R` is one input (a row, or a patch).

    Its eigenvectors are the left singular vectors of :math:`R`, its eigenvalues the squared singular values, and it
    takes :math:`d^2` numbers however many inputs there are. Sums over batches and processes add up.

    Inputs are seen in eval mode and without autocast. Modes, buffers and torch's random state are left as found.

    Args:
        model: Maps inputs to anything.
        batches: Inputs, on the model's device, and whatever else; only the first element of a batch is used.
        layers: As :func:`linear_layers` returns them.

    Returns:
        The sums ``(groups, d, d)`` in float64, by name; zero for a layer that the model never calls.

    Raises:
        ValueError: If an input is not finite.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> input_grams(layer, [(torch.tensor([[1.0, 0.0], [1.0, 2.0]]),)], {"": [layer]})[""]
        tensor([[[2., 2.],
                 [2., 4.]]], dtype=torch.float64)
    """
    grams: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        for name, same in layers.items():
            groups, d = shape_of(same[0])
            grams[name] = torch.zeros(groups, d, d, dtype=torch.float64, device=same[0].weight.device)  # type: ignore[arg-type]
            for layer in same:
                stack.callback(_watch(layer, partial(_add_inputs, grams[name])).remove)
        for x, *_ in batches:
            model(x)
    for name, gram in grams.items():
        if not gram.isfinite().all():
            raise ValueError(
                f"Inputs of layer {name!r} are not finite: training has diverged; lower the learning rate."
            )
    return grams


def _watch(layer: nn.Module, use: Callable[[nn.Module, Tensor], None]) -> RemovableHandle:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        use(layer, args[0] if args else kwargs["input"])

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _add_inputs(gram: Tensor, layer: nn.Module, x: Tensor) -> None:
    for columns in _columns(layer, x):
        gram.baddbmm_(columns, columns.mT)


def _columns(layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The inputs as columns ``(groups, d, n)`` in float64, in parts of bounded size."""
    if isinstance(layer, nn.Conv2d):
        x = x if x.ndim == 4 else x[None]
        outputs = -(-x.shape[-2] * x.shape[-1] // (layer.stride[0] * layer.stride[1]))
        for part in torch.split(x, max(1, CHUNK // (outputs * layer.weight[0].numel() * layer.groups))):
            yield _patches(layer, part.double())
    else:
        for rows in torch.split(x.reshape(-1, x.shape[-1]), max(1, CHUNK // x.shape[-1])):
            yield rows.double().T[None]


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)  # (B, groups * d, n)
    return patches.view(len(x), layer.groups, -1, patches.shape[2]).permute(1, 2, 0, 3).flatten(2)


# -- which directions matter -------------------------------------------------------------------------------------------


def leading_vectors(gram: Tensor, share: float) -> Tensor:
    r"""Return as many leading eigenvectors as together hold *less* than ``share`` of the energy.

    The rule of GPM for the first task: the largest :math:`r` with
    :math:`\sum_{i \le r} \sigma_i^2 < \text{share} \cdot \sum_i \sigma_i^2`.

    Args:
        gram: :math:`R R^\top` ``(d, d)``.
        share: Of the energy, in [0, 1].

    Returns:
        Orthonormal columns ``(d, r)``.

    Example:
        >>> leading_vectors(torch.diag(torch.tensor([1.0, 9.0, 90.0])), 0.95).abs()
        tensor([[0.],
                [0.],
                [1.]])
    """
    energy, vectors = _spectrum(gram, gram.trace())
    return vectors[:, : int((energy.cumsum(0) < share * gram.trace()).sum())]


def missing_vectors(gram: Tensor, basis: Tensor, share: float) -> Tensor:
    r"""Return the fewest directions that a basis lacks to hold ``share`` of the energy *or more*.

    The rule of GPM for later tasks: leading left singular vectors of :math:`(I - O O^\top) R`.

    Args:
        gram: :math:`R R^\top` ``(d, d)``.
        basis: Orthonormal columns :math:`O` ``(d, r)``.
        share: Of the energy, in [0, 1].

    Returns:
        Orthonormal columns ``(d, n)``, orthogonal to the basis.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 9.0, 90.0]))
        >>> missing_vectors(gram, torch.eye(3)[:, 2:], 0.95).abs()
        tensor([[0.],
                [1.],
                [0.]])
    """
    total, rest = gram.trace(), _outside(gram, basis)
    known = total - rest.trace()
    if known >= share * total:
        return gram.new_zeros(len(gram), 0)
    energy, vectors = _spectrum(rest, total)
    return vectors[:, : int((known + energy.cumsum(0) < share * total).sum()) + 1]


def pooled_vectors(gram: Tensor, basis: Tensor, share: float) -> tuple[Tensor, Tensor]:
    r"""Choose the fewest directions that hold ``share`` of the energy, from a basis and from what is outside it.

    The rule of TRGP: the energies of the basis :math:`u^\top R R^\top u` and the squared singular values of
    :math:`(I - O O^\top) R` are sorted together.

    Args:
        gram: :math:`R R^\top` ``(d, d)``.
        basis: Orthonormal columns :math:`O` ``(d, r)``.
        share: Of the energy, in [0, 1].

    Returns:
        Which columns of the basis are among them ``(r,)``, and the others ``(d, n)``, orthogonal to the basis.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 9.0, 90.0]))
        >>> used, new = pooled_vectors(gram, torch.eye(3)[:, :2], 0.95)
        >>> used, new.flatten().abs()
        (tensor([False,  True]), tensor([0., 0., 1.]))
    """
    total, rank = gram.trace(), basis.shape[1]
    energy, vectors = _spectrum(_outside(gram, basis), total)
    pool = torch.cat([(gram @ basis * basis).sum(0), energy])
    order = pool.argsort(descending=True, stable=True)
    before = pool[order].cumsum(0) - pool[order]
    best = order[(before < share * total) & (pool[order] > NOISE * total)]
    chosen = torch.zeros_like(pool, dtype=torch.bool).index_fill_(0, best, True)
    return chosen[:rank], vectors[:, chosen[rank:]]


def _outside(gram: Tensor, basis: Tensor) -> Tensor:
    """The Gram matrix of what is orthogonal to a basis."""
    rest = gram - basis @ (basis.T @ gram)
    return rest - (rest @ basis) @ basis.T


def _spectrum(gram: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in descending order and their vectors, without those that are rounding."""
    energy, vectors = torch.linalg.eigh(gram)
    energy, vectors = energy.flip(0), vectors.flip(1)
    count = int((energy > NOISE * total).sum())
    return energy[:count], vectors[:, :count]


# -- what is kept of the past ------------------------------------------------------------------------------------------


class SubspaceBank:
    r"""The spaces that the inputs of each task take up, layer by layer.

    A layer has one basis :math:`O` ``(groups, d, r)``, whose columns are orthonormal in each group and never change;
    new ones are appended. The space of a task is spanned by some of the columns, so that the space of several tasks is
    spanned by those that any of them uses, and what tasks share counts once. Where groups differ in rank, columns of
    zeros fill up.

    Args:
        rule: ``"residual"``: a task adds what all before it lack (:func:`leading_vectors`, then
            :func:`missing_vectors`; GPM), and its space is all that there is by then. ``"pool"``: it uses the best
            among old and new (:func:`leading_vectors`, then :func:`pooled_vectors`; TRGP).

    Raises:
        ValueError: If the rule is unknown.

    Example:
        >>> bank = SubspaceBank()
        >>> bank.update("layer", torch.diag(torch.tensor([1.0, 9.0, 90.0]))[None], 0.95)
        >>> bank.update("layer", torch.diag(torch.tensor([1.0, 9.0, 90.0]))[None], 0.95)
        >>> bank.space("layer").shape, bank.space("layer", [0]).shape
        (torch.Size([1, 3, 2]), torch.Size([1, 3, 1]))
    """

    def __init__(self, rule: Rule = "residual") -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"`rule` must be one of {get_args(Rule)}, got {rule!r}.")
        self.rule = rule
        self.basis: dict[str, Tensor] = {}
        self.used: dict[str, Tensor] = {}
        """Which columns each task uses ``(tasks, groups, r)``."""

    def __bool__(self) -> bool:
        return any(basis.shape[-1] for basis in self.basis.values())

    @torch.no_grad()
    def update(self, name: str, gram: Tensor, share: float, dtype: torch.dtype = torch.float32) -> None:
        """Take in the inputs of one more task.

        Args:
            name: Of the layer.
            gram: As :func:`input_grams` returns it, ``(groups, d, d)``.
            share: Of the energy that its space shall hold, in [0, 1].
            dtype: Of the basis.
        """
        groups, d, _ = gram.shape
        basis = self.basis.get(name, torch.zeros(groups, d, 0, dtype=dtype, device=gram.device))
        past = self.used.get(name, torch.zeros(0, groups, 0, dtype=torch.bool, device=gram.device))
        columns, used = [], []
        for matrix, old, rank in zip(gram.double(), basis.double(), self._ranks(basis), strict=True):
            old = old[:, :rank]
            mask, new = self._choose(matrix, old, share, first=len(past) == 0)
            new = _orthonormal(new, old)
            columns.append(torch.cat([old, new], 1))
            used.append(torch.cat([mask, mask.new_ones(new.shape[1])]))
        width = max(column.shape[1] for column in columns)
        self.basis[name] = torch.stack([_widened(column, width) for column in columns]).to(basis.dtype)
        row = torch.stack([_widened(mask, width) for mask in used])
        self.used[name] = torch.cat([_widened(past, width), row[None]])

    def _choose(self, gram: Tensor, basis: Tensor, share: float, first: bool) -> tuple[Tensor, Tensor]:
        everything = torch.ones(basis.shape[1], dtype=torch.bool, device=basis.device)
        if first:
            return everything, leading_vectors(gram, share)
        if self.rule == "pool":
            return pooled_vectors(gram, basis, share)
        return everything, missing_vectors(gram, basis, share)

    def _ranks(self, basis: Tensor) -> list[int]:
        ranks: list[int] = basis.any(1).sum(-1).tolist()
        return ranks

    def space(self, name: str, tasks: Sequence[int] | None = None) -> Tensor:
        """Return an orthonormal basis ``(groups, d, r)`` of the spaces of some tasks together, or of ``None``: all."""
        basis = self.basis[name]
        if tasks is None:
            return basis
        used: Tensor = self.used[name][list(tasks)].any(0)
        kept: Tensor = used.any(0)
        return basis[..., kept].mul(used[:, None, kept])

    def free_share(self, name: str) -> float:
        """Return the share of directions in which the layer is still free."""
        groups, d, _ = self.basis[name].shape
        return 1 - sum(self._ranks(self.basis[name])) / (groups * d)

    def to(self, device: torch.device | str) -> "SubspaceBank":
        """Move the state; needed after :meth:`load_state_dict`, which keeps the device of what it is given."""
        for state in (self.basis, self.used):
            state.update({name: value.to(device) for name, value in state.items()})
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the state in tensors and strings; ``torch.load`` reads it with ``weights_only=True``."""
        return {"basis": dict(self.basis), "used": dict(self.used)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over."""
        self.basis, self.used = dict(state_dict["basis"]), dict(state_dict["used"])


def _orthonormal(new: Tensor, basis: Tensor) -> Tensor:
    """New columns made orthonormal to each other and to a basis, of which float32 kept 7 digits."""
    free = basis.shape[0] - basis.shape[1]
    new = new[:, :free].to(basis)
    columns: Tensor = torch.linalg.qr(new - basis @ (basis.T @ new))[0]
    return columns


def _widened(value: Tensor, width: int) -> Tensor:
    return F.pad(value, (0, width - value.shape[-1]))


# -- updates that leave a space alone ----------------------------------------------------------------------------------


def project_out(value: Tensor, basis: Tensor) -> Tensor:
    r"""Return :math:`V - V B B^\top`: the part of a gradient or a step that does not act in a space.

    Args:
        value: In the shape of a weight ``(o, ...)``.
        basis: Orthonormal columns :math:`B` ``(groups, d, r)``.

    Example:
        >>> project_out(torch.ones(2, 3), torch.eye(3)[None, :, :1])
        tensor([[0., 1., 1.],
                [0., 1., 1.]])
    """
    return Projector(basis)(value)


class Projector:
    r"""Takes a space out of gradients, in two products with a thin matrix: :math:`V - (V B) B^\top`.

    Where the space takes up more than half of the directions, the thin matrix is :math:`N`, a basis of the rest, and
    the result :math:`(V N) N^\top`: either way at most half of the memory of :math:`B B^\top`, and no more operations.

    The products are taken in the type of the basis.

    Args:
        basis: Orthonormal columns :math:`B` ``(groups, d, r)``, at least float32.

    Example:
        >>> gradient = torch.ones(2, 3)
        >>> Projector(torch.eye(3)[None, :, :2]).apply_(gradient)
        >>> gradient
        tensor([[0., 0., 1.],
                [0., 0., 1.]])
    """

    def __init__(self, basis: Tensor) -> None:
        groups, d, rank = basis.shape
        self.keeps = groups == 1 and 2 * rank > d  # what the factor spans is kept, not taken out
        self.factor = basis
        if self.keeps:
            whole = torch.linalg.qr(basis[0].double(), mode="complete")[0]
            self.factor = whole[None, :, rank:].to(basis.dtype).contiguous()

    def apply_(self, value: Tensor) -> None:
        """Project in place."""
        flat = value.reshape(len(self.factor), -1, self.factor.shape[1])  # a copy if it is not contiguous
        wide = flat.to(self.factor.dtype)
        self._project_(wide)
        if wide.data_ptr() != value.data_ptr():
            value.copy_(wide.view(value.shape))

    def __call__(self, value: Tensor) -> Tensor:
        """Return the projection."""
        result = value.clone(memory_format=torch.contiguous_format)
        self.apply_(result)
        return result

    def _project_(self, flat: Tensor) -> None:
        if len(self.factor) == 1:
            rows, factor = flat[0], self.factor[0]
            rows.addmm_(rows @ factor, factor.T, beta=0 if self.keeps else 1, alpha=1 if self.keeps else -1)
        else:
            flat.baddbmm_(flat @ self.factor, self.factor.mT, alpha=-1)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep float32 matrix products in float32 for a block: with 8 or 11 bits, much of what is taken out would stay.

    Example:
        >>> with exact_products(torch.device("cpu")), torch.no_grad():
        ...     pass
    """
    settings = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"  # torch 2.9
    before = getattr(settings, name)
    setattr(settings, name, "ieee" if name == "fp32_precision" else False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(settings, name, before)


# -- weights that are scaled in a space --------------------------------------------------------------------------------


Scaling: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Of a weight in a space: its basis ``B``, the offset ``D``, and if it is known ``W B``."""


def scaled_weight(weight: Tensor, scalings: Sequence[Scaling]) -> Tensor:
    r"""Return :math:`W + \sum_j W B_j D_j B_j^\top`: a weight that acts differently on inputs in some spaces.

    With :math:`D_j = Q_j - I` this is :math:`W + \sum_j (W B_j Q_j B_j^\top - W B_j B_j^\top)` of TRGP. At
    :math:`D_j = 0` it is :math:`W`, exactly.

    Args:
        weight: :math:`W`, in its own shape ``(o, ...)``.
        scalings: For each space orthonormal columns :math:`B_j` ``(groups, d, r)``, :math:`D_j` ``(groups, r, r)``, and
            :math:`W B_j` ``(groups, o / groups, r)`` or ``None``. Given, it saves half of the operations, and no
            gradient goes through it: right where steps leave it as it is, as gradients lose their part in the space.

    Example:
        >>> scaled_weight(torch.ones(2, 3), [(torch.eye(3)[None, :, :1], torch.ones(1, 1, 1), None)])
        tensor([[2., 1., 1.],
                [2., 1., 1.]])
    """
    if not scalings:
        return weight
    groups, d, _ = scalings[0][0].shape
    flat = weight.reshape(groups, -1, d).to(scalings[0][0].dtype)
    insides = [flat @ basis if inside is None else inside for basis, _, inside in scalings]
    for inside, (basis, offset, _) in zip(insides, scalings, strict=True):
        flat = flat + inside @ offset @ basis.mT
    return flat.view(weight.shape).to(weight.dtype)


def loss_gradients(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    weights: Mapping[str, Tensor],
    logits: Callable[[Any], Tensor] | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Sum the gradients of the cross-entropy of a classifier over a data set, in eval mode and without autocast.

    Modes, gradients and torch's random state are left as found.

    Args:
        model: Maps inputs ``(B, *)`` to logits ``(B, C)``.
        batches: Inputs ``(B, *)`` on the model's device and labels ``(B,)``; further elements of a batch are ignored.
        weights: Parameters by name.
        logits: Maps what the model returns to logits ``(B, C)``.

    Returns:
        The sums in at least float32, by name, zero for a weight without influence; and the number of samples.

    Example:
        >>> layer = nn.Linear(1, 2)
        >>> _ = nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        >>> loss_gradients(layer, [(torch.ones(3, 1), torch.tensor([0, 0, 1]))], {"weight": layer.weight})
        ({'weight': tensor([[-0.5000],
                            [ 0.5000]])}, 3)
    """
    sums = {name: torch.zeros_like(w, dtype=at_least_float32(w.dtype)) for name, w in weights.items()}
    count = 0
    with undisturbed(model):
        for x, y, *_ in batches:
            output = model(x)
            loss = F.cross_entropy(output if logits is None else logits(output), y, reduction="sum")
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True) if weights else ()
            for total, grad in zip(sums.values(), grads, strict=True):
                total.add_(0 if grad is None else grad)
            count += len(y)
    return {name: total.detach() for name, total in sums.items()}, count
