"""Gradient-based sample selection (GSS): replay from a memory of samples whose gradients differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Generator, Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from lightning_cl.callback import Unpack, prepared, sum_over_ranks
from lightning_cl.callbacks.replay.replay import Loss, Replay
from lightning_cl.forwards import scores_in
from lightning_cl.rehearsal import Current, Epochs, ForwardOf, Storage, as_float32
from lightning_cl.utilities import derive_seed, evaluating

FIRST_SCORE = 0.1  # of samples that come before there is anything to compare with
CHUNK = 2**24  # numbers of per-sample gradients held at a time: 64 MiB


def sample_gradients(module: torch.nn.Module, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy of each sample, flattened, ``(B, P)``.

    Args:
        module: Maps inputs ``(B, *)`` to scores ``(B, C)``, of each sample by itself (batch normalisation in eval
            mode), and can be traced by ``torch.func.vmap``.
        parameters: Those of ``module`` that are differentiated by, by name.
        x: Inputs ``(B, *)``.
        y: Labels ``(B,)``.

    Example:
        >>> net = torch.nn.Linear(2, 3, bias=False)
        >>> sample_gradients(net, dict(net.named_parameters()), torch.ones(4, 2), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4, 6])
    """

    def loss(weights: Mapping[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        scores = scores_in(functional_call(module, dict(weights), (sample[None],)))
        return F.cross_entropy(as_float32(scores), label[None])

    weights = {name: p.detach() for name, p in parameters.items()}
    # `vmap` has no rule for the fused attention kernels
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return torch.cat([gradient.reshape(len(x), -1) for gradient in gradients.values()], 1)


class GSS(Replay):
    r"""Replay from a memory that admits samples by the directions of their gradients.

    GSS-Greedy of Aljundi et al., "Gradient based sample selection for online continual learning", NeurIPS 2019, as in
    the authors' code. The score of a sample is the largest cosine between the gradient of its cross-entropy and those
    of ``references`` random batches of the memory, in eval mode, before the step. A full memory is offered a batch only
    if the largest cosine between the gradient of the whole batch and the references is negative; then each sample
    competes with one that is in the memory (:class:`lightning_cl.policies.GradientDiversity`). Samples that come before
    there is a reference score 0.1.

    What is replayed, and in what loss, is as in :class:`Replay`; the authors take several separate steps on the batch
    and on the memory in turn. Their selections by integer programming and clustering are left out.

    It costs a backward pass for each reference, and the gradient of each sample. With several processes and a
    replicated memory the gradient of the batch is that of all, and the references are the same.

    Args:
        capacity: Number of samples in memory, 1 or more. The authors': 300 for MNIST, 1000 for CIFAR-10.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        references: Number of random batches of the memory, 1 or more.
        reference_size: Samples in each of them, 1 or more.
        loss: As in :class:`Replay`.
        forward: As in :class:`Replay`.
        insert_epochs: As in :class:`Replay`, ``"first"`` or ``"all"``.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[GSS(capacity=300)], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True
    gives_scores = True

    def __init__(
        self,
        capacity: int = 500,
        batch_size: int | None = None,
        references: int = 10,
        reference_size: int = 10,
        loss: Loss = "joint",
        forward: ForwardOf = "joint",
        insert_epochs: Epochs = "first",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, "gss", "uniform", loss, forward, storage, seed, unpack)
        if insert_epochs == "end":
            raise ValueError("`insert_epochs` must be 'first' or 'all' for samples to be scored on the way, got 'end'.")
        for name, value in {"references": references, "reference_size": reference_size}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        self.references = references
        self.reference_size = reference_size

    @override
    def offer(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        if not self.offers(trainer):
            return
        x, y = self.unpacked(batch, current.columns)
        scores: Tensor | None = torch.full(y.shape, FIRST_SCORE, device=y.device)
        if len(self.memory):
            with evaluating(pl_module):
                scores = self._scores(trainer, pl_module, batch, x, y)
        if scores is not None:
            self.keep(trainer, current.raw, self.groups_of(batch, current), scores)
        else:  # offered all the same, and the next batch is compared with other references
            count = torch.tensor(len(y), device=y.device)
            self.memory.seen += int(sum_over_ranks(trainer, count) if self.storage.sharing == "replicated" else count)

    def _scores(self, trainer: Trainer, pl_module: LightningModule, batch: Any, x: Tensor, y: Tensor) -> Tensor | None:
        """The score of each sample ``(B,)``, or ``None`` if the batch is not admitted."""
        weights = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        references = F.normalize(torch.stack(self._references(trainer, pl_module, batch, list(weights.values()))))
        if len(self.memory) == self.memory.capacity:
            whole = _gradient(pl_module, x, y, list(weights.values()))
            if self.storage.sharing == "replicated":
                whole = sum_over_ranks(trainer, whole)
            cosine = (references @ F.normalize(whole, dim=0)).max()
            if self.storage.sharing == "replicated":
                cosine = sum_over_ranks(trainer, cosine)  # what differs by a rounding must not part the ranks
            if cosine >= 0:
                return None
        step = max(1, CHUNK // references.shape[1])
        rows = [
            F.normalize(sample_gradients(pl_module, weights, *part)) @ references.T
            for part in zip(torch.split(x, step), torch.split(y, step), strict=True)
        ]
        return torch.cat(rows).amax(1)

    def _references(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, weights: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients ``(P,)`` of random batches of the memory: the same on ranks that hold the same."""
        generator = Generator().manual_seed(derive_seed(self.seed, 2, self.memory.seen))
        drawn = [self.memory.draw(self.reference_size, generator) for _ in range(self.references)]
        batches = [self.unpacked(batch, prepared(trainer, columns, augment=False)) for columns in drawn]
        return [_gradient(pl_module, x, y, weights) for x, y in batches]


def _gradient(module: LightningModule, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient ``(P,)`` of the mean cross-entropy."""
    with torch.compiler.set_stance("force_eager"):
        loss = F.cross_entropy(as_float32(scores_in(module(x))), y)
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
