"""MIR against a loop with closed forms, and that looking ahead leaves no trace."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl.callbacks import MIR, Replay
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, TinyStream, learn, same, scaled, seeded
from tests.helpers.rehearsal import Linear, Normed, Rows, forward_of, process, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS


@pytest.mark.parametrize("batch_size", [None, 5])
def test_without_a_choice_it_is_replay(batch_size: int | None) -> None:
    mir = MIR(10, batch_size, candidates=5)
    replay = Replay(10, batch_size, loss="sum", forward="separate")
    assert same(learn([mir]).weights, learn([replay]).weights)


def costs(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    scores = x.flatten(1) @ w.T
    return scores.exp().sum(1).log() - scores.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize("lr", [None, 3.0])
def test_most_interfered_candidates_are_replayed(lr: float | None, forward: Any) -> None:
    """The gradient of a linear softmax model is ``(p - [y = c]) x``, the mean over the batch."""

    def by_hand(module: Any, x: Tensor, y: Tensor, old: list[Rows]) -> tuple[Tensor, Tensor]:
        scores = module(x)
        loss = surprise(scores, y)
        if old:
            w = module.net[1].weight.detach()
            residual = scores.detach().softmax(1) - torch.eye(4, dtype=w.dtype)[y]
            ahead = w - (0.2 if lr is None else lr) * residual.T @ x.flatten(1) / len(y)
            old_x, old_y = scaled(old[0]["0"]), old[0]["1"]
            chosen = (costs(ahead, old_x, old_y) - costs(w, old_x, old_y)).argsort(descending=True)[:3]
            loss = loss + surprise(forward_of(module, {"0": old[0]["0"][chosen]}), old_y[chosen])
        return loss, scores

    mir = MIR(20, batch_size=3, candidates=9, lr=lr, forward=forward, seed=4)
    found = learn([mir], seeded(Linear), TinyStream(), precision="64-true")
    expected = written_out(by_hand, seeded(Linear), capacity=20, count=9)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)


class Trace(Callback):
    """Keeps the state of everything at the start of each batch."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        gradients = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        modes = [child.training for child in pl_module.modules()]
        momenta = [dict(state) for state in trainer.optimizers[0].state.values()]
        self.found.append([weights, gradients, modes, momenta, get_rng_state()])


class After(Trace):
    """The same, in another place."""


def test_looking_ahead_leaves_no_trace() -> None:
    class Noisy(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(0, torch.nn.Dropout(0.2))

    before, after, mir = Trace(), After(), MIR(10, batch_size=2)
    learn([before, mir, after], seeded(Noisy), TinyStream(), accumulate_grad_batches=2)
    assert same(before.found, after.found)
    assert mir.state_dict()["draws"] == 11


def test_all_processes_look_ahead_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may have as many candidates as it replays while another has more."""
    asked: list[int] = []
    monkeypatch.setattr(MIR, "_interference", lambda self, trainer, current, old: asked.append(len(old[1])) or old[1])
    mir, y = MIR(20), torch.arange(4)
    mir.memory.insert({"0": y, "1": y})
    batch = [y, y]
    for world_size in (1, 2):
        columns = mir.draw_beside(process(0, world_size), batch, mir_current(batch), 8)
        assert columns["1"].sort().values.tolist() == [0, 1, 2, 3]
    assert asked == [4]


def mir_current(batch: list[Tensor]) -> Any:
    from lightning_cl.rehearsal import Current

    columns = {str(k): column for k, column in enumerate(batch)}
    return Current(columns, columns)


@pytest.mark.parametrize(("name", "value"), [("candidates", 0), ("lr", -1.0)])
def test_errors(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
        MIR(**{name: value})
