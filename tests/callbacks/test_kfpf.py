"""k-FPF against a loop written out, and when its phases come."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl import Memory
from lightning_cl.callbacks import KFPF
from lightning_cl.utilities import derive_seed
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, learn_plain, same, scaled, seeded

pytestmark = LIGHTNINGS_OWN_WARNINGS


def fine_tune(module: Net, memory: Memory, seen: int, kd: float, generator: torch.Generator) -> None:
    """Three steps of an optimizer on the last layer, 5 samples each, in passes over the memory."""
    optimizer = torch.optim.SGD(module.net[4].parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    slots = torch.cat([torch.randperm(len(memory), generator=generator) for _ in range(3)])
    count = min(5, len(memory))
    for step in range(3):
        x, y, *z = memory.take(slots[count * step : count * (step + 1)]).values()
        scores = module(scaled(x))
        loss = F.cross_entropy(scores[:, :seen], y)
        loss = loss + kd * F.mse_loss(scores, z[0]) if kd else loss
        optimizer.zero_grad()
        loss.backward(inputs=list(module.net[4].parameters()))
        optimizer.step()
        scheduler.step()


def written_out(every: int, kd: float, seed: int) -> dict[str, Tensor]:
    """Fine-tuning by hand, with a memory and phases."""
    module, stream = seeded(drop=0.0).double(), TinyStream()
    memory, steps, phases = Memory(10, "reservoir", derive_seed(seed, 0)), 0, 0
    for stream.current in range(2):
        optimizer, loader = module.configure_optimizers(), stream.train_dataloader()
        for batch in range(6):
            x, y = loader.dataset.batch(loader.batches(2 * stream.current + batch // 3)[batch % 3])
            scores = module(scaled(x))
            optimizer.zero_grad()
            F.cross_entropy(scores, y).backward()
            optimizer.step()
            steps += 1
            if batch < 3:
                memory.insert({"0": x, "1": y, **({"logits": scores.detach()} if kd else {})})
            if steps == every or (batch == 5 and steps):
                steps, phases = 0, phases + 1
                generator = torch.Generator().manual_seed(derive_seed(seed, 2, phases))
                fine_tune(module, memory, 2 * stream.current + 2, kd, generator)
    return {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("kd", [0.0, 0.5])
@pytest.mark.parametrize("every", [1, 4, 100])
def test_equals_the_loop_written_out(every: int, kd: float) -> None:
    callback = KFPF(10, every, modules=["head"], steps=3, batch_size=5, lr=0.3, kd=kd, seed=4)
    found = learn([callback], seeded(drop=0.0), TinyStream(), precision="64-true")
    torch.testing.assert_close(found.weights, written_out(every, kd, seed=4), rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", [learn, learn_plain])
@pytest.mark.parametrize("off", [{"steps": 0}, {"batch_size": 0}, {"every_n_steps": 13, "end_phase": False}])
def test_without_phases_it_is_fine_tuning_with_a_full_memory(off: dict[str, Any], how: Any) -> None:
    callback = KFPF(10, **off)
    assert same(how([callback]).weights, how().weights)
    assert callback.memory.seen == 48
    assert len(callback.memory) == 10


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("end_phase", [True, False])
def test_number_of_phases(every: int, accumulate: int, end_phase: bool) -> None:
    callback = KFPF(10, every, end_phase, steps=1)
    learn([callback], stream=TinyStream(1), max_epochs=4, accumulate_grad_batches=accumulate)
    steps = {1: 24, 2: 12, 4: 8}[accumulate]
    assert callback.phases == steps // every + (end_phase and steps % every > 0)


def test_only_the_chosen_layers_move_in_a_phase() -> None:
    callback, module = KFPF(10, 2, modules=["head"], steps=2, lr=0.5), seeded(drop=0.0)
    run = callback._run
    moved: list[list[bool]] = []

    def noted(*args: Any) -> None:
        before = [p.clone() for p in module.parameters()]
        run(*args)
        moved.append([not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)])

    callback._run = noted  # type: ignore[method-assign]
    learn([callback], module)
    assert moved == [[False, False, True, True]] * 6


def test_scores_are_stored_only_if_asked_for() -> None:
    plain, with_kd = KFPF(10), KFPF(10, kd=0.1)
    learn([plain, with_kd])
    assert plain.memory.items.keys() == {"0", "1"}
    assert with_kd.memory.items["logits"].shape == (10, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be 1 or more, got 0"),
        ({"steps": -1}, "`steps` must be 0 or more, got -1"),
        ({"kd": -0.5}, "`kd` must be 0 or more, got -0.5"),
        ({"bn_stats": "keep"}, "`bn_stats` must be one of .*'freeze'.*, got 'keep'"),
        ({"capacity": 0}, "`capacity` must be 1 or more, got 0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KFPF(**arguments)
