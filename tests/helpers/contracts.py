"""What every plugin is put through: the plugins, found by inspection, and a stream and a module that are tiny.

A new plugin needs a line here only where the rules below do not suffice: an argument named ``strength`` is off at 0.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import ClassStream, ContinualCallback, StreamDataModule, StreamResult, fit_stream
from lightning_cl.shipped import import_plugins, plugins


class Case(NamedTuple):
    """How a callback is made for the contracts.

    Attributes:
        acts: Arguments with which it changes the second experience of the tiny stream.
        inert: Arguments with which it is fine-tuning; ``None`` is ``strength=0``.
        other: Arguments of a second instance beside the first.
        watches: It measures and never changes training.
        needs_stream: It works in a stream only, not with ordinary data loaders.
        stateless: It keeps nothing from one experience to the next.
        stream: Arguments of the stream that it needs.
        beside: A callback that it needs beside it, by the name of its class, with its arguments.
    """

    acts: Mapping[str, Any] = {}
    inert: Mapping[str, Any] | None = None
    other: Mapping[str, Any] = {"strength": 0.5}
    watches: bool = False
    needs_stream: bool = False
    stateless: bool = False
    stream: Mapping[str, Any] = {}
    beside: Mapping[str, Mapping[str, Any]] = {}


EVERY_BATCH = {"every_n_samples": 8}
SCALED: dict[str, Any] = {
    "acts": {"threshold": 0.9, "eps1": 0.1, "free": []},
    "inert": {"threshold": 0.0, "free": []},
    "other": {"threshold": 0.97, "eps1": 0.1, "free": []},
    "needs_stream": True,
    "stream": {"task_labels": True},
}
SMALL_MEMORY: dict[str, Any] = {"capacity": 10}
FILLS_ONLY: dict[str, Any] = {"capacity": 10, "batch_size": 0}
PHASES: dict[str, Any] = {"modules": ["head"], "every_n_steps": 3, "steps": 2, "kd": 0.5}
CALLBACKS = {
    "AnytimeAccuracy": Case(EVERY_BATCH, EVERY_BATCH, {"every_n_samples": 24}, watches=True, needs_stream=True),
    "CUBER": Case(**SCALED),
    "DER": Case({"capacity": 10, "alpha": 0.5}, {"capacity": 10, "alpha": 0.0}, {"capacity": 6, "seed": 1}),
    "DERpp": Case(SMALL_MEMORY, {**SMALL_MEMORY, "alpha": 0.0, "beta": 0.0}, {"capacity": 6, "num_draws": 1}),
    "ERACE": Case({**SMALL_MEMORY, "task_free": True}, FILLS_ONLY, {"capacity": 6, "absent": "all"}),
    "EWC": Case({"strength": 2.0}, other={"strength": 3.0, "mode": "separate"}),
    "FPF": Case(
        {"modules": ["head"], "steps": 3, "lr": 0.1},
        {"modules": ["head"], "steps": 0},
        {"modules": ["head"], "steps": 2, "lr": 0.1},
        beside={"Replay": FILLS_ONLY},
    ),
    "FeatureDistillation": Case({"strength": 0.5, "features": ["net"]}, other={"strength": 3.0, "features": ["net"]}),
    "FisherMerge": Case({"samples": 20}),
    "FlopsMeter": Case(inert={}, other={"count_eval": True}, watches=True),
    "GDumb": Case(SMALL_MEMORY, FILLS_ONLY, {"capacity": 6, "reset": False}),
    "GPM": Case({"threshold": 0.9}, {"threshold": 0.0}, {"threshold": 0.97}),
    "GSS": Case({**SMALL_MEMORY, "references": 2}, {**FILLS_ONLY, "references": 2}, {"capacity": 6, "references": 1}),
    "KFPF": Case(
        {**SMALL_MEMORY, **PHASES, "lr": 0.1},
        {**FILLS_ONLY, **PHASES},
        {"capacity": 6, **PHASES, "lr": 0.2, "kd": 0.0},
    ),
    "L2Anchor": Case({"strength": 2.0, "pretrained": True}, other={"strength": 3.0, "parameters": ["bias"]}),
    "LwF": Case({"strength": 2.0}, other={"strength": 3.0, "loss": "binary"}),
    "MAS": Case({"strength": 1.0}, other={"strength": 0.5, "norm": "plain"}),
    "MIR": Case({**SMALL_MEMORY, "batch_size": 3}, FILLS_ONLY, {"capacity": 6, "candidates": 5}),
    "RefreshLearning": Case({"delta": 0.01, "noise": 0.1}, {"delta": 0.0}, {"delta": 0.02}),
    "Replay": Case(SMALL_MEMORY, FILLS_ONLY, {"capacity": 6, "seed": 1}),
    "SynapticIntelligence": Case({"strength": 2.0}),
    "TRGP": Case(**SCALED),
    "TaskFreeMAS": Case(
        {"hard_samples": 6, "updates_per_batch": 1, "window": 2, "max_mean": 3.0},
        other={"strength": 2.0, "hard_samples": 4, "updates_per_batch": 1},
    ),
    "UER": Case(SMALL_MEMORY, {**FILLS_ONLY, "incoming": "dot"}, {"capacity": 6, "incoming": "dot"}),
    "TrainOnly": Case({"parameters": ["weight"]}, {"parameters": ["."]}, {"parameters": ["net.4"]}, stateless=True),
}
SMALL = {"num_classes": 4, "backbone": "mlp", "input_shape": (1, 8, 8), "backbone_args": {"hidden": (16,)}}
METHODS: dict[str, Sequence[Mapping[str, Any]]] = {
    "Classifier": [SMALL, {**SMALL, "head": "growing"}],
    "ICaRL": [{**SMALL, "capacity": 10}, {**SMALL, "capacity": 6, "head": "growing", "loss_classes": "seen"}],
}
"""In how many ways a method is tried, and with what arguments."""
FAKES = Path(__file__).parent / "fakes"
"""A module for each stream that needs something, of the stream's own name: `write(root)` makes tiny files in the
published layout and returns the arguments of a stream on them."""
LIGHTNINGS_OWN_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "The '.*_dataloader' does not have many workers",
        "The number of training batches",
        "`isinstance.treespec, LeafSpec.` is deprecated",
        "You passed in a `val_dataloader` but have no `validation_step`",
        "The dirpath has changed from",
    )
]
ANY_VALUE: dict[str, str] = {}  # "Class.argument" of a number that may be -1, or a word that may be any: why


# -- the plugins -------------------------------------------------------------------------------------------------------


def found(base: type) -> list[type]:
    """The public, concrete subclasses of ``base`` that plugins define, sorted by name."""
    import_plugins()
    roots = tuple(package.__name__ for package in plugins())
    modules = [m for name, m in sys.modules.items() if name in roots or name.startswith(tuple(r + "." for r in roots))]
    classes = {
        cls
        for module in modules
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__
        if not name.startswith("_") and not inspect.isabstract(cls)
    }
    return sorted(classes, key=lambda cls: cls.__qualname__)


CONTINUAL = found(ContinualCallback)
STREAMS = found(StreamDataModule)
MODELS = found(LightningModule)


def case_of(cls: type) -> Case:
    """How a continual callback is made for the contracts."""
    return CALLBACKS.get(cls.__name__, Case())


def make(cls: type, role: Literal["acts", "inert", "other"] = "acts") -> Any:
    """An instance of a continual callback for the contracts."""
    case = case_of(cls)
    if role == "inert" and case.inert is None:
        assert "strength" in inspect.signature(cls).parameters, f"tell CALLBACKS how {cls.__name__} does nothing"
        return cls(**{**case.acts, "strength": 0.0})
    return cls(**(getattr(case, role) or {}))


def stream_arguments(cls: type, root: Path) -> dict[str, Any]:
    """What a stream is made with for the contracts; files are written to ``root``."""
    name = cls.__module__.split(".")[-1]
    if not (FAKES / f"{name}.py").is_file():
        return {}
    arguments: dict[str, Any] = importlib.import_module(f"tests.helpers.fakes.{name}").write(root)
    return arguments


def bad_arguments(cls: type) -> Iterator[tuple[str, Any]]:
    """A value out of range for each number and each choice among the arguments."""
    hints = get_type_hints(cls.__init__)
    for name in inspect.signature(cls).parameters:
        hint = hints.get(name)
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if f"{cls.__name__}.{name}" in ANY_VALUE:
            continue
        if any(get_origin(member) is Literal for member in members):
            yield name, "no such choice"
        elif any(member in (int, float) for member in members):
            yield name, -1


# -- what they are tried on --------------------------------------------------------------------------------------------


def samples(train: bool, per_class: int = 12) -> tuple[Tensor, Tensor]:
    """Noisy pictures of four classes ``(N, 1, 8, 8)``, uint8, and their labels."""
    generator = torch.Generator().manual_seed(int(train))
    y = torch.arange(4).repeat(per_class)
    x = torch.randint(0, 128, (len(y), 1, 8, 8), generator=generator, dtype=torch.uint8)
    for c in range(4):
        x[y == c, :, 2 * c : 2 * c + 2] += 127
    return x, y


def scaled(x: Tensor) -> Tensor:
    """Inputs as the stream scales them, in float32, as float64."""
    return (x.float() * (1 / torch.tensor(255.0))).double()


def jitter(x: Tensor) -> Tensor:
    """An augmentation that draws from the global generator."""
    return x.roll(int(torch.randint(-1, 2, (1,))), -1)


class TinyStream(ClassStream):
    """Two experiences of two classes, with 24 samples to train and 8 to test each."""

    def __init__(self, num_experiences: int = 2, **kwargs: Any) -> None:
        super().__init__(4, (1, 8, 8), num_experiences, **{"batch_size": 8, "seed": 0, **kwargs})

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        return samples(train, 12 if train else 4)


class PlainData(LightningDataModule):
    """Ordinary data loaders, one task after another; knows nothing of streams."""

    def __init__(self) -> None:
        super().__init__()
        self.task = 0

    def train_dataloader(self) -> Any:
        x, y = samples(train=True)
        chosen = y // 2 == self.task
        return DataLoader(TensorDataset(x[chosen] / 255, y[chosen]), batch_size=8, shuffle=True)


class Net(LightningModule):
    """Somebody's module: no ``test_step``, nothing of ours."""

    def __init__(self, drop: float = 0.2, lr: float = 0.2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(drop), nn.Linear(12, 4))
        self.lr = lr
        self.made: list[torch.optim.Optimizer] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.made.append(torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.5))
        return self.made[-1]


class Foreign(Net):
    """Somebody's module around somebody's network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def resnet() -> LightningModule:
    """A small ResNet of timm, with batch normalisation."""
    sizes = {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 4, "in_chans": 1, "num_classes": 4}
    return Foreign(ResNet(BasicBlock, **sizes))


def transformer() -> LightningModule:
    """A small vision transformer of timm, with dropout."""
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 12, "depth": 2}
    return Foreign(VisionTransformer(num_heads=2, proj_drop_rate=0.1, **sizes))


class Growing(Net):
    """Somebody's module that gets a head with each experience, scales by one number, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*self.net[:3])
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.heads = nn.ModuleList()

    def setup(self, stage: str) -> None:
        while len(self.heads) <= self.trainer.datamodule.current:
            self.heads.append(nn.Linear(12, 2).to(self.scale))

    def forward(self, x: Tensor) -> Any:
        features = self.scale * self.net(x)
        scores = torch.cat([head(features) for head in self.heads], 1)
        return {"logits": F.pad(scores, (0, 4 - scores.shape[1]), value=-torch.inf)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0])["logits"], batch[1])


NETWORKS = {"resnet": resnet, "transformer": transformer, "growing": Growing}


def trainer(callbacks: Sequence[Callback] = (), **kwargs: Any) -> Trainer:
    """A trainer that says and writes nothing, with what the callbacks need beside them."""
    needed = {name: needs for callback in callbacks for name, needs in case_of(type(callback)).beside.items()}
    classes = {cls.__name__: cls for cls in CONTINUAL}
    callbacks = [*(classes[name](**needs) for name, needs in needed.items()), *callbacks]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        **{
            **quiet,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **kwargs,
        }
    )


class Learned(NamedTuple):
    """What is left of a run."""

    module: LightningModule
    trainer: Trainer
    result: StreamResult | None

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}


def seeded(make_module: Any = Net, **kwargs: Any) -> Any:
    """A module whose weights, and what is drawn after it, are always the same."""
    L.seed_everything(1, verbose=False)
    return make_module(**kwargs)


def learn(
    callbacks: Sequence[Callback] = (),
    module: Any = None,
    stream: StreamDataModule | None = None,
    ckpt_path: Any = None,
    **kwargs: Any,
) -> Learned:
    """Run a stream through ``fit_stream``."""
    module = seeded() if module is None else module
    run = trainer(callbacks, **kwargs)
    stream = TinyStream(augment=jitter) if stream is None else stream
    result = fit_stream(run, module, stream, ckpt_path, keep_checkpoints="all")
    return Learned(getattr(module, "_orig_mod", module), run, result)


def learn_plain(callbacks: Sequence[Callback] = (), module: Any = None, **kwargs: Any) -> Learned:
    """Run two tasks as somebody would with their own loop: one ``trainer.fit`` a task, ordinary data loaders."""
    module = seeded() if module is None else module
    run, data = trainer(callbacks, **kwargs), PlainData()
    for task in range(2):
        data.task = task
        run.fit_loop.max_epochs = 2 * (task + 1)
        run.fit(module, datamodule=data)
    return Learned(getattr(module, "_orig_mod", module), run, None)


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal: bit for bit in tensors."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
