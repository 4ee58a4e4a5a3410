"""The backbones of continual-learning papers, under names that ``timm.create_model`` knows once this is imported."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["MLP", "CifarResNet", "mlp", "resnet18_cifar", "resnet18_slim", "resnet32_cifar"]


class PadShortcut(nn.Module):
    """Halve the image and append channels of zeros: option A of He et al., CVPR 2016.

    Args:
        extra_channels: Number of channels to append.
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C + extra_channels, ceil(H / 2), ceil(W / 2))``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra_channels))


class BasicBlock(nn.Module):
    """Add two 3x3 convolutions, each with batch normalisation, to a shortcut.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: 2 halves the image.
        shortcut: Where the shape changes: ``"A"`` pads with zeros, ``"B"`` is a 1x1 convolution with normalisation.
        final_relu: Whether a ReLU follows the sum.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: Literal["A", "B"], final_relu: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()  # not in place: users hang hooks on layers, and those see what follows them
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "A":
            self.downsample = PadShortcut(channels - in_channels)
        elif stride != 1:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))
        self.act2 = nn.ReLU() if final_relu else nn.Identity()

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, channels, ceil(H / stride), ceil(W / stride))``."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(residual + self.downsample(x))
        return out


class CifarResNet(nn.Module):
    """Residual network for small images: a 3x3 stem of stride 1 without pooling, then stages of basic blocks.

    The parameters have the names of timm's and torchvision's ``ResNet``.

    Convolutions have no bias and start from a normal distribution of variance ``2 / fan_out`` (He et al., ICCV 2015; as
    in torchvision, timm and PyCIL, whereas mammoth and GEM leave PyTorch's default). Normalisation starts at weight 1
    and bias 0, also at the end of a block, where timm's own start at 0. The classifier has PyTorch's default.

    Args:
        channels: Channels of each stage; from the second on, a stage halves the image.
        layers: Number of blocks of each stage.
        num_classes: Number of logits; at 0 there is no classifier and the output is the features.
        in_chans: Channels of the images.
        global_pool: Pooling of the last feature map, one of timm's names; ``""`` leaves it as it is (without classes).
        drop_rate: Dropout before the classifier.
        shortcut: Where the shape changes: ``"A"`` pads with zeros, ``"B"`` is a 1x1 convolution with normalisation.
        final_relu: Whether the last block ends with a ReLU, as all others do.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (2, 2, 2, 2),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        shortcut: Literal["A", "B"] = "B",
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU()
        self.feature_info = [{"num_chs": channels[0], "reduction": 1, "module": "act1"}]  # for timm's `features_only`
        self.stages: list[str] = []
        width = channels[0]
        for stage, (out_width, depth) in enumerate(zip(channels, layers, strict=True)):
            blocks = nn.Sequential()
            for block in range(depth):
                last = stage == len(layers) - 1 and block == depth - 1
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(width, out_width, stride, shortcut, final_relu or not last))
                width = out_width
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], blocks)
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": self.stages[-1]})
        self.num_features = self.head_hidden_size = width
        self.drop_rate = drop_rate
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Exchange the last layer for a new one.

        Args:
            num_classes: Number of logits; 0 removes the classifier.
            global_pool: New pooling; ``None`` keeps what there is.
        """
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool: Any
        self.fc: nn.Module
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.fc.to(self.conv1.weight).train(self.training)  # device and dtype of the rest
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)`` to a feature map ``(B, num_features, H', W')``."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a feature map to logits ``(B, num_classes)``, or to the features ``(B, num_features)`` below them."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


class MLP(nn.Module):
    """Flatten the input, then fully connected layers with ReLU.

    All layers have a bias and PyTorch's default initialisation.

    Args:
        img_size: Height and width of the images, or one number for both.
        in_chans: Channels of the images.
        hidden: Width of each hidden layer; the last one is that of the features.
        num_classes: Number of logits; at 0 there is no classifier and the output is the features.
        drop_rate: Dropout before the classifier.
        global_pool: Part of timm's convention. Without effect: the features have no height and width to pool.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 28,
        in_chans: int = 1,
        hidden: Sequence[int] = (400, 400),
        num_classes: int = 10,
        drop_rate: float = 0.0,
        global_pool: str | None = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("`hidden` must name at least one layer, got none.")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.input_shape = (in_chans, height, width)
        self.layers = nn.Sequential()
        size = in_chans * height * width
        for out_size in hidden:
            self.layers.extend((nn.Linear(size, out_size), nn.ReLU()))
            size = out_size
        self.num_features = self.head_hidden_size = size
        self.drop_rate = drop_rate
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Exchange the last layer for a new one.

        Args:
            num_classes: Number of logits; 0 removes the classifier.
            global_pool: Without effect.
        """
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc.to(next(self.layers.parameters())).train(self.training)  # device and dtype of the rest

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)``, or the same flattened, to features ``(B, num_features)``.

        Raises:
            ValueError: If the images have another size than ``img_size``.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.layers[0].in_features:
            raise ValueError(
                f"`img_size` and `in_chans` make this an MLP for inputs (B, {', '.join(map(str, self.input_shape))}), "
                f"got {tuple(x.shape)}. Create it with the size of your images."
            )
        features: Tensor = self.layers(flat)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features ``(B, num_features)`` to logits ``(B, num_classes)``, or pass them on."""
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)``, or the same flattened, to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


_CIFAR = {"input_size": (3, 32, 32), "num_classes": 10, "pool_size": (4, 4), "first_conv": "conv1", "classifier": "fc"}
# timm's defaults of each model and, without an address in it, the fact that there are no weights to download
default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar": _CIFAR,
        "resnet18_slim": _CIFAR,
        "resnet32_cifar": {**_CIFAR, "pool_size": (8, 8)},
        "mlp": {"input_size": (1, 28, 28), "num_classes": 10, "classifier": "fc", "fixed_input_size": True},
    }
)


def _build(model: type[nn.Module], name: str, pretrained: bool, **kwargs: Any) -> Any:
    if pretrained:
        raise ValueError(
            f"`pretrained` must be False for {name!r}: it has no published weights. "
            "Weights of your own load with `checkpoint_path`."
        )
    return build_model_with_cfg(model, name, pretrained=False, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build the ResNet-18 of He et al., CVPR 2016, for small images, as mammoth and PyCIL use it.

    The stem is a 3x3 convolution of stride 1 without pooling; the stages have 64, 128, 256 and 512 channels.
    11 173 962 parameters at 10 classes and RGB.

    Args:
        pretrained: Must be ``False``: there are no weights.
        kwargs: ``num_classes``, ``in_chans`` and other arguments of :class:`CifarResNet`.

    Example:
        >>> import timm, torch
        >>> timm.create_model("resnet18_cifar", num_classes=100)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    model: CifarResNet = _build(CifarResNet, "resnet18_cifar", pretrained, **kwargs)
    return model


@register_model
def resnet18_slim(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build the slim ResNet-18 of Lopez-Paz & Ranzato, NeurIPS 2017 (GEM): the same with 20 base channels.

    The stages have 20, 40, 80 and 160 channels. 1 094 750 parameters at 10 classes and RGB.

    Args:
        pretrained: Must be ``False``: there are no weights.
        kwargs: ``num_classes``, ``in_chans`` and other arguments of :class:`CifarResNet`.

    Example:
        >>> import timm
        >>> timm.create_model("resnet18_slim", num_classes=10).num_features
        160
    """
    args = {"channels": (20, 40, 80, 160), **kwargs}
    model: CifarResNet = _build(CifarResNet, "resnet18_slim", pretrained, **args)
    return model


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build the ResNet-32 for CIFAR of He et al., CVPR 2016.

    Three stages of 5 blocks with 16, 32 and 64 channels. 464 154 parameters at 10 classes and RGB.

    Shortcuts are option A (no parameters), as in the paper, the authors' code of iCaRL (Rebuffi et al., CVPR 2017) and
    PyCIL; ``shortcut="B"`` is FACIL's. The last block ends with a ReLU as in the paper and PyCIL; that of iCaRL's code
    does not, which ``final_relu=False`` gives. iCaRL's code pads zeros on both sides of the channels and PyCIL, as
    here, after them: the same networks with the channels in another order.

    Args:
        pretrained: Must be ``False``: there are no weights.
        kwargs: ``num_classes``, ``in_chans`` and other arguments of :class:`CifarResNet`.

    Example:
        >>> import timm
        >>> timm.create_model("resnet32_cifar", num_classes=10).num_features
        64
    """
    args = {"channels": (16, 32, 64), "layers": (5, 5, 5), "shortcut": "A", **kwargs}
    model: CifarResNet = _build(
        CifarResNet, "resnet32_cifar", pretrained, feature_cfg={"out_indices": (0, 1, 2, 3)}, **args
    )
    return model


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> MLP:
    """Build a multilayer perceptron with ReLU: 784-400-400-10, a network for MNIST.

    Two hidden layers of 400 units are what the code of van de Ven & Tolias, arXiv 2019, has for split MNIST.

    Args:
        pretrained: Must be ``False``: there are no weights.
        kwargs: ``img_size``, ``in_chans``, ``hidden``, ``num_classes`` and other arguments of :class:`MLP`.

    Example:
        >>> import timm, torch
        >>> timm.create_model("mlp", img_size=8, hidden=(32,))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    model: MLP = _build(MLP, "mlp", pretrained, **kwargs)
    return model
