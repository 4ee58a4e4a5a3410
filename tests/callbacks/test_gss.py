"""GSS against closed forms on a linear model: scores, the gate, and what is admitted."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cl import Memory
from lightning_cl.callbacks import GSS
from lightning_cl.callbacks.replay.gss import sample_gradients
from lightning_cl.utilities import derive_seed
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, TinyStream, learn, resnet, same, scaled, seeded
from tests.helpers.rehearsal import Linear, process

pytestmark = LIGHTNINGS_OWN_WARNINGS


def test_sample_gradients_are_those_of_a_loop() -> None:
    module = seeded(resnet).double().eval()
    x, y = torch.rand(5, 1, 8, 8).double(), torch.tensor([0, 3, 2, 0, 1])
    weights = dict(module.named_parameters())
    expected = []
    for sample, label in zip(x, y, strict=True):
        gradients = torch.autograd.grad(-module(sample[None]).log_softmax(1)[0, label], list(weights.values()))
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]))
    torch.testing.assert_close(sample_gradients(module, weights, x, y), torch.stack(expected))


def closed_form(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Unit gradients of samples ``(B, 4 * 64)`` of a linear softmax model: ``(p - [y = c]) x``."""
    residual = (x.flatten(1) @ w.T).softmax(1) - torch.eye(4, dtype=w.dtype)[y]
    return torch.einsum("nc,nd->ncd", residual, x.flatten(1)).flatten(1)


def offered(memory: Memory, w: Tensor) -> Iterator[bool]:
    """Offer two experiences by hand; whether a full memory admits each batch."""
    stream = TinyStream()
    for stream.current in range(2):
        loader = stream.train_dataloader()
        for index in loader.batches(2 * stream.current):
            x, y = loader.dataset.batch(index)
            own, scores, full = closed_form(w, scaled(255 - x), y), torch.full((8,), 0.1), len(memory) == 8
            if len(memory):
                generator = torch.Generator().manual_seed(derive_seed(3, 2, memory.seen))
                drawn = [memory.draw(4, generator) for _ in range(5)]
                means = torch.stack([closed_form(w, scaled(rows["0"]), rows["1"]).mean(0) for rows in drawn])
                scores = F.cosine_similarity(own[:, None], means[None], dim=2).amax(1)
                if full and F.cosine_similarity(own.mean(0)[None], means, dim=1).max() >= 0:
                    memory.seen += 8
                    yield False
                    continue
            memory.insert({"0": x, "1": y}, scores=scores)
            if full:
                yield True


def test_memory_equals_one_offered_scores_by_hand() -> None:
    """Also what is refused: with lr 0 all can be computed from the first weights. Current samples are augmented."""
    gss, module = GSS(8, references=5, reference_size=4, seed=3), seeded(Linear, lr=0.0)
    learn([gss], module, TinyStream(augment=lambda x: 255 - x), precision="64-true")
    memory = Memory(8, "gss", derive_seed(3, 0))
    admitted = list(offered(memory, module.net[1].weight.detach().double()))
    assert set(admitted) == {True, False}
    assert same(gss.memory.items, memory.items)
    assert gss.memory.seen == 48
    torch.testing.assert_close(gss.memory.scores, memory.scores)


def test_while_there_is_room_all_stay() -> None:
    gss = GSS(100, references=1)
    learn([gss])
    assert gss.memory.items["1"].bincount().tolist() == [12] * 4
    assert gss.memory.scores is not None
    assert (gss.memory.scores.float() == 0.1).tolist() == [True] * 8 + [False] * 40


def test_references_are_the_same_on_all_ranks() -> None:
    x, y, module = torch.rand(20, 1, 8, 8), torch.arange(20) % 4, seeded(Linear)
    found: list[list[Tensor]] = []
    for rank in (0, 1):
        gss = GSS(20, references=2, seed=3)
        gss.memory.insert({"0": x, "1": y}, scores=torch.zeros(20))
        gss.start(process(rank, 2), module)
        found.append(gss._references(process(rank, 2), module, [x, y], list(module.parameters())))
    assert same(*found)
    assert not torch.equal(*found[0])


@pytest.mark.parametrize(("name", "value"), [("references", 0), ("reference_size", 0), ("insert_epochs", "end")])
def test_errors(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got '?{value}"):
        GSS(**{name: value})
