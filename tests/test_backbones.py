import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_cl import backbones

RESNETS = ["resnet18_cifar", "resnet18_slim", "resnet32_cifar"]


def create(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name, **kwargs)


def small(name: str, **kwargs: Any) -> Any:
    """Any backbone, for 3x16x16 images."""
    return create(name, **({"img_size": 16, "in_chans": 3} if name == "mlp" else {}), **kwargs)


def resnet_parameters(channels: list[int], depth: int, projection: bool) -> int:
    """Convolutions have 9 (or 1) weights for a pair of channels, normalisations 2 for a channel, 10 classes."""
    total = 3 * channels[0] * 9 + 2 * channels[0] + (channels[-1] + 1) * 10
    for before, width in zip([channels[0], *channels], channels, strict=False):
        total += 9 * before * width + (2 * depth - 1) * 9 * width**2 + 2 * depth * 2 * width
        total += (before * width + 2 * width) * (projection and before != width)
    return total


@pytest.mark.parametrize(
    ("name", "expected", "derived"),
    [
        ("resnet18_cifar", 11_173_962, resnet_parameters([64, 128, 256, 512], 2, projection=True)),
        ("resnet18_slim", 1_094_750, resnet_parameters([20, 40, 80, 160], 2, projection=True)),
        ("resnet32_cifar", 464_154, resnet_parameters([16, 32, 64], 5, projection=False)),
        ("mlp", 478_410, 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10),
    ],
)
def test_number_of_parameters_at_ten_classes(name: str, expected: int, derived: int) -> None:
    model = create(name)
    assert sum(p.numel() for p in model.parameters()) == expected == derived


def test_resnet18_is_timms_but_for_the_stem() -> None:
    reference, model = create("resnet18", num_classes=10), create("resnet18_cifar")
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), reference(x))


def test_resnet32_pads_the_shortcut_with_zeros() -> None:
    """With the residual branch off, a block of the next stage is what option A says."""
    block = create("resnet32_cifar").layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 5, 5)
    out = block(x)
    assert out[:, :16].equal(x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_resnet32_can_be_that_of_the_icarl_code() -> None:
    assert small("resnet32_cifar").forward_features(torch.randn(2, 3, 16, 16)).min() >= 0
    assert small("resnet32_cifar", final_relu=False).forward_features(torch.randn(2, 3, 16, 16)).min() < 0


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 13)])
def test_resnets_take_images_of_any_size(name: str, shape: tuple[int, int, int]) -> None:
    model = create(name, num_classes=7, in_chans=shape[0])
    assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("img_size", "shape"), [(28, (1, 28, 28)), ((32, 32), (3, 32, 32)), ([4, 6], (2, 4, 6))])
def test_mlp_takes_images_of_its_size_also_flattened(img_size: object, shape: tuple[int, int, int]) -> None:
    model = create("mlp", num_classes=7, in_chans=shape[0], img_size=img_size, hidden=[8, 5, 6])
    x = torch.randn(2, *shape)
    assert model(x).shape == (2, 7)
    assert model(x).equal(model(x.flatten(1)))
    assert model.forward_features(x).shape == (2, 6)


def test_mlp_is_linear_layers_with_relu_between() -> None:
    model = create("mlp", img_size=2, hidden=(5, 3), num_classes=4)
    a, b, c = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    x = torch.randn(6, 1, 2, 2)
    expected = c((b((a(x.view(6, 4))).clamp(min=0))).clamp(min=0))
    torch.testing.assert_close(model(x), expected)


def test_mlp_names_the_argument_when_the_image_has_another_size() -> None:
    with pytest.raises(
        ValueError, match=r"`img_size` and `in_chans` make this .*\(B, 1, 28, 28\), got \(2, 3, 32, 32\)"
    ):
        create("mlp")(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="`hidden` must name at least one layer"):
        create("mlp", hidden=())


@pytest.mark.parametrize("name", [*RESNETS, "mlp"])
def test_head_and_features_are_those_of_timm(name: str) -> None:
    model, x = small(name).eval(), torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    pre_logits: Tensor = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.num_features)
    assert model(x).equal(model.forward_head(features))
    assert model(x).equal(model.get_classifier()(pre_logits))
    assert small(name, num_classes=0).eval().load_state_dict(model.state_dict(), strict=False).missing_keys == []


@pytest.mark.parametrize("name", [*RESNETS, "mlp"])
def test_reset_classifier_exchanges_the_last_layer_only(name: str) -> None:
    model, x = small(name).eval().double(), torch.randn(2, 3, 16, 16).double()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert (model.num_classes, model(x).shape, model(x).dtype) == (3, (2, 3), torch.float64)
    model.reset_classifier(0)
    assert model(x).equal(features)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", [*RESNETS, "mlp"])
def test_drop_rate_acts_before_the_classifier_in_training_only(name: str) -> None:
    model = small(name, drop_rate=0.5)
    features = torch.ones_like(model.forward_features(torch.randn(2, 3, 16, 16)))
    assert set(model.forward_head(features, pre_logits=True).unique().tolist()) == {0.0, 2.0}
    assert set(model.eval().forward_head(features, pre_logits=True).unique().tolist()) == {1.0}


@pytest.mark.parametrize("name", [*RESNETS, "mlp"])
def test_the_global_seed_fixes_the_weights(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(small(name).state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not next(iter(states[0].values())).equal(next(iter(states[2].values())))


def test_convolutions_start_at_variance_two_over_fan_out() -> None:
    for conv in create("resnet18_cifar").modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.bias is None
            std = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(std, rel=5 / (2 * conv.weight.numel()) ** 0.5)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_give_the_features_of_each_stage(name: str) -> None:
    maps = create(name, features_only=True)(torch.randn(2, 3, 16, 16))
    assert [m.shape[-1] for m in maps] == [16, 16, 8, 4, 2][: len(maps)]
    assert len(maps) == (4 if name == "resnet32_cifar" else 5)


@pytest.mark.parametrize("name", [*RESNETS, "mlp"])
def test_there_are_no_pretrained_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`pretrained` must be False for '{name}'.*`checkpoint_path`"):
        create(name, pretrained=True)
    assert not timm.is_model_pretrained(name)
    model = small(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = small(name, checkpoint_path=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_names_are_registered_by_this_module_alone() -> None:
    assert set(timm.list_models(module="backbones")) == {*RESNETS, "mlp"}
    assert {timm.model_entrypoint(name).__module__ for name in [*RESNETS, "mlp"]} == {backbones.__name__}


@pytest.mark.slow
def test_registration_says_nothing() -> None:
    code = "import lightning_cl.backbones, timm; timm.create_model('mlp')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
