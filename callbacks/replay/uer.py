"""UER: current samples learn by the angle to the class weights only, replayed ones by angle and norm."""

from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.heads import last_layer_of
from lightning_cl.rehearsal import Epochs, ForwardOf, LossRehearsal, Storage, as_float32

Reading = Literal["cosine", "dot"]


def cosine_logits(features: Tensor, weight: Tensor, scale: float) -> Tensor:
    r"""Return :math:`s \cos(w_c, h_n)`, in float32 at least.

    Args:
        features: :math:`h`, ``(B, d)``.
        weight: :math:`w`, ``(C, d)``.
        scale: :math:`s`, above 0.

    Example:
        >>> cosine_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]]), scale=10.0)
        tensor([[8., 6.]])
    """
    features, weight = as_float32(features), as_float32(weight)
    with torch.autocast(features.device.type, enabled=False):
        return scale * (F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T)


class UER(LossRehearsal):
    r"""Replay in which the loss of current samples sees cosines, and that of replayed ones dot products.

    After Lin et al., "UER: A Heuristic Bias Addressing Approach for Online Continual Learning", ACM Multimedia 2023:
    :math:`L(s \cos(w, h), y) + \mathrm{CE}(w h_m, y_m)` with one weight matrix for both, and dot products in tests. The
    gradient of the first term is orthogonal to every :math:`w_c` and :math:`h`, so that to first order only the
    replayed samples, which are balanced over time, decide about norms, and new classes do not outgrow old ones.

    No code of the authors is public. Confirmed, by the abstract, is that current samples are learned by angle and
    replayed ones by angle and norm; the two cross-entropies, their sum, the scale and dot products in tests are
    reconstructed. Plain SGD without weight decay keeps the orthogonality; Adam does not.

    The last layer is read in both ways by a hook. Its bias is set to 0 and stays so: a bias is neither angle nor norm.
    With ``"dot"`` for both, which is ``Replay(loss="sum")``, nothing is read or set.

    Args:
        capacity: Number of samples in memory, 1 or more.
        scale: Factor :math:`s` of cosines, above 0: with a small one the loss cannot become small. The default is that
            of the cosine head in other code of the authors, 1 / 0.09.
        incoming: How current samples are read, ``"cosine"`` or ``"dot"``.
        replayed: How replayed samples are read.
        head: Name of the last layer, an ``nn.Linear``; ``None`` finds it by timm's convention, or else takes the last.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has; 0 is to learn a
            cosine classifier.
        forward: ``"separate"`` forwards of current and replayed samples, as published, or one ``"joint"`` one (see
            :class:`lightning_cl.rehearsal.LossRehearsal`).
        insert_epochs: As in :class:`Replay`.
        policy: As in :class:`Replay`.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range, or the last layer cannot be found; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[UER(capacity=200)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        capacity: int = 500,
        scale: float = 11.1,
        incoming: Reading = "cosine",
        replayed: Reading = "dot",
        head: str | None = None,
        batch_size: int | None = None,
        forward: ForwardOf = "separate",
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, forward, storage, seed, unpack)
        if not scale > 0:
            raise ValueError(f"`scale` must be above 0, got {scale}.")
        for name, value in {"incoming": incoming, "replayed": replayed}.items():
            if value not in get_args(Reading):
                raise ValueError(f"`{name}` must be 'cosine' or 'dot', got {value!r}.")
        self.scale = scale
        self.incoming = incoming
        self.replayed = replayed
        self.head = head
        self._handle: Any = None
        self._replaying = False

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        if self._reads:
            self._layer(pl_module)

    @property
    def _reads(self) -> bool:
        """Whether the last layer is read in another way than its own."""
        return "cosine" in (self.incoming, self.replayed)

    def _layer(self, pl_module: LightningModule) -> nn.Linear:
        """The last layer."""
        layers = dict(pl_module.named_modules())
        name = last_layer_of(pl_module) if self.head is None else self.head
        layer = layers.get(name or "")
        layer = getattr(layer, "linear", layer)  # of a head that grows
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"`head` must name the last layer, an nn.Linear, got {name!r} ({type(layer).__name__}).")
        return layer

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        if not self._reads:
            return
        layer, forwards = self._layer(pl_module), self.forwards_in(pl_module)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

        def read(layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            own = forwards.own_rows
            if not torch.is_grad_enabled():
                return None  # with a bias of 0 these are the dot products
            if own is None:
                return self._read(layer, args[0], output, self.replayed if self._replaying else "dot")
            if not own:
                return self._read(layer, args[0], output, self.incoming)
            parts = ((args[0][:own], output[:own], self.incoming), (args[0][own:], output[own:], self.replayed))
            return torch.cat([self._read(layer, *part) for part in parts])

        self._handle = layer.register_forward_hook(read)

    @override
    def _release(self, pl_module: LightningModule) -> None:
        super()._release(pl_module)
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _read(self, layer: Any, features: Tensor, output: Tensor, reading: Reading) -> Tensor:
        if reading == "cosine":
            logits = cosine_logits(features, layer.weight, self.scale)
        else:
            logits = output if layer.bias is None else F.linear(features, layer.weight)
        # A bias that has no part in the graph would be an error in DDP.
        return logits if layer.bias is None else logits + 0.0 * layer.bias

    @override
    def replayed_output(self, pl_module: LightningModule, x: Tensor) -> Any:
        self._replaying = True
        try:
            return super().replayed_output(pl_module, x)
        finally:
            self._replaying = False
