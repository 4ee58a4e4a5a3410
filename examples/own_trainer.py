"""Your own LightningModule and Trainer, and a stream around them: nothing in the module knows of continual learning."""

import lightning as L
import torch
from torch import Tensor, nn

from lightning_cl import RunLogger, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.datamodules import SplitDigits


class Net(L.LightningModule):
    """A classifier as one writes it for a single task."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, 10)``."""
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch ``[x, y]``."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Called anew in each experience."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=5,  # per experience
        accelerator="cpu",
        logger=RunLogger("runs/own_trainer"),  # a folder that stays: `ckpt_path="last"` finds it after a kill
        log_every_n_steps=5,
        callbacks=[Replay(capacity=100), EWC(strength=1.0)],
    )
    result = fit_stream(trainer, Net(), SplitDigits(batch_size=16), ckpt_path="last")
    print(result.accuracy_matrix, result.average_accuracy, result.forgetting)
