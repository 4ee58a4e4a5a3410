"""Freezing all but some parameters, for the length of a fit."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from timm.models.vision_transformer import VisionTransformer

from lightning_cl.callbacks import TrainOnly
from lightning_cl.methods import Classifier
from lightning_cl.utilities import select_parameters
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, learn, seeded, transformer

pytestmark = LIGHTNINGS_OWN_WARNINGS
ATTENTION = [r"attn\.qkv\.", r"head\."]


def test_attention_of_12_blocks_is_24_tensors_beside_the_head() -> None:
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=12, num_heads=2, num_classes=4)
    chosen = select_parameters(model, ATTENTION)
    assert len(chosen) == 24 + 2
    assert sum(name.startswith("blocks.") for name in chosen) == 24
    assert all(p.shape[0] == 3 * 24 for name, p in chosen.items() if name.startswith("blocks."))


def test_what_is_frozen_keeps_its_bits() -> None:
    before = {name: p.detach().clone() for name, p in seeded(transformer).named_parameters()}
    after = learn([TrainOnly(ATTENTION)], seeded(transformer), max_epochs=1)
    moved = {name for name, value in after.weights.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "qkv" in name or "head" in name}
    assert all(p.requires_grad for p in after.module.parameters())


def test_what_was_frozen_before_stays_frozen() -> None:
    module = seeded()
    module.net[1].bias.requires_grad_(False)
    learn([TrainOnly(["net.4"])], module, max_epochs=1)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["net.1.bias"]


def test_a_head_grows_frozen_or_not() -> None:
    class Rows(Callback):
        flags: list[Any]

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.flags = [(name, p.requires_grad) for name, p in pl_module.named_parameters()]

    rows = Rows()
    for kept, expected in ((["layers"], False), (["fc"], True)):
        module = seeded(Classifier, num_classes=4, input_shape=(1, 8, 8), head="growing")
        learn([TrainOnly(kept), rows], module, max_epochs=1)
        assert {flag for name, flag in rows.flags if "fc" in name} == {expected}


def test_flags_come_back_after_an_error() -> None:
    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stop")

    module = seeded()
    with pytest.raises(RuntimeError, match="stop"):
        learn([TrainOnly(["net.4"]), Fails()], module)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["nothing"], "'nothing' matches no trainable parameter"), (["("], "`parameters` must hold regular expressions")],
)
def test_errors(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn([TrainOnly(patterns)])
