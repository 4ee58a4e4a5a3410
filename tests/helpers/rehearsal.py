"""Rehearsal written out as a loop, and what tests of several rehearsal methods share."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cl import Memory
from lightning_cl.utilities import derive_seed
from tests.helpers.contracts import Net, TinyStream, scaled, seeded

Rows = dict[str, Tensor]
Loss = Callable[[Any, Tensor, Tensor, list[Rows]], tuple[Tensor, Tensor]]


class Spy(Net):
    """Keeps the batches that ``training_step`` gets, and counts forwards."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches: list[list[Tensor]] = []
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += self.training  # not those of the evaluation
        return super().forward(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append([column.clone() for column in batch])
        return super().training_step(batch, batch_idx)


class Linear(Net):
    """One layer, without a bias: gradients are known in closed form."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))


class Normed(Net):
    """Has batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.net[3] = nn.BatchNorm1d(12)


class Erases(Net):
    """Changes its inputs in place."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step([column.clone() for column in batch], batch_idx)
        for column in batch:
            column.zero_()
        return loss


def written_out(
    loss: Loss,
    module: Any = None,
    stream: TinyStream | None = None,
    *,
    capacity: int = 10,
    count: int = 8,
    draws: int = 1,
    balanced: bool = False,
    insert_epochs: str = "first",
    policy: str = "reservoir",
    keeps_logits: bool = False,
    seed: int = 4,
) -> Any:
    """Two experiences of two epochs: draw, ``loss``, which also returns the scores, step, and only then offer."""
    module = (seeded(drop=0.0) if module is None else module).double()
    stream = TinyStream() if stream is None else stream
    memory, drawn = Memory(capacity, policy, derive_seed(seed, 0)), 0
    for stream.current in range(2):
        optimizer, loader = module.configure_optimizers(), stream.train_dataloader()
        for epoch in range(2):
            for index in loader.batches(2 * stream.current + epoch):
                x, y = loader.dataset.batch(index)
                old = []
                for _ in range(draws if len(memory) else 0):
                    generator = torch.Generator().manual_seed(derive_seed(seed, 1, 0) + drawn)
                    drawn += 1
                    old.append(memory.draw(count, generator, balanced))
                optimizer.zero_grad()
                value, scores = loss(module, scaled(x), y, old)
                value.backward()
                optimizer.step()
                if epoch == 0 or insert_epochs == "all":
                    logits = {"logits": scores.detach()} if keeps_logits else {}
                    memory.insert({"0": x, "1": y, **logits}, groups=y)
    return module


def surprise(scores: Tensor, y: Tensor) -> Tensor:
    """The mean of ``log sum_c exp(f_c) - f_y``."""
    return (scores.exp().sum(1).log() - scores.gather(1, y[:, None])[:, 0]).sum() / len(y)


def forward_of(module: Any, old: Rows) -> Tensor:
    """The scores of replayed samples, in a forward of their own."""
    return module(scaled(old["0"]))


def distance(scores: Tensor, stored: Tensor) -> Tensor:
    """The mean squared difference."""
    return F.mse_loss(scores, stored)


def process(rank: int, world_size: int) -> Any:
    """A trainer as far as a memory asks: that of one of several processes."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy, datamodule=None)
