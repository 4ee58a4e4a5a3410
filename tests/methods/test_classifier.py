import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn

from lightning_cl import RunLogger, evaluate_stream, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.datamodules import SplitDigits
from lightning_cl.heads import GrowingHead
from lightning_cl.methods import Classifier
from lightning_cl.scenarios import ClassStream
from lightning_cl.stream import StreamDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")


class Points(ClassStream):
    """Four classes of three points each."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(4, (3,), 2, **kwargs)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        return torch.randint(256, (12, 3), generator=generator).to(torch.uint8), torch.arange(12) % 4


def trainer(**kwargs: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return lightning.Trainer(accelerator="cpu", **{**quiet, **kwargs})


def within(stream: StreamDataModule | None, model: Classifier) -> lightning.Trainer:
    """Attach the module to a trainer; the caller keeps that alive."""
    model.trainer = made = trainer()
    made.datamodule = stream  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss_classes", "labels", "competing"),
    [
        ("all", [4, 5, 4], range(10)),
        ("seen", [4, 5, 4], range(6)),
        ("current", [4, 5, 4], [4, 5]),
        ("current", [4, 0, 9], [4, 5, 0, 9]),  # replayed, and even of a class that is to come
        ("seen", [4, 0, 9], [*range(6), 9]),
    ],
)
def test_loss_is_among_the_competing_classes(
    loss_classes: Any, labels: list[int], competing: list[int], dtype: torch.dtype
) -> None:
    stream = SplitDigits(num_experiences=5)
    stream.current = 2
    model = Classifier(10, nn.Identity(), loss_classes=loss_classes)
    kept = within(stream, model)
    scores = (torch.randn(3, 10, generator=torch.Generator().manual_seed(0)) * 20).to(dtype).requires_grad_()
    loss = model.loss(scores, torch.tensor(labels))
    s = scores.detach().double().exp()
    expected = -sum((s[i, y] / s[i, list(competing)].sum()).log() for i, y in enumerate(labels)) / 3
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    others = [c for c in range(10) if c not in competing]
    assert scores.grad.isfinite().all()
    assert not scores.grad[:, others].any()
    assert kept is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss_classes", "labels", "competing"),
    [("all", [4, 5, 4], range(10)), ("seen", [4, 5, 0], range(6)), ("current", [4, 0, 9], [0, 4, 5, 9])],
)
def test_binary_loss_is_a_sum_over_the_competing_classes(
    loss_classes: Any, labels: list[int], competing: Any, dtype: torch.dtype
) -> None:
    stream = SplitDigits(num_experiences=5)
    stream.current = 2
    model = Classifier(10, nn.Identity(), loss="binary", loss_classes=loss_classes)
    kept = within(stream, model)
    scores = (torch.randn(3, 10, generator=torch.Generator().manual_seed(0)) * 3).to(dtype).requires_grad_()
    loss = model.loss(scores, torch.tensor(labels))
    p, columns = scores.detach().double().sigmoid(), list(competing)
    expected = -sum((p[i, c] if c == y else 1 - p[i, c]).log() for i, y in enumerate(labels) for c in columns) / 3
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(loss, scores)
    expected_gradient = torch.zeros(3, 10, dtype=torch.float64)
    expected_gradient[:, columns] = (p - torch.eye(10)[labels])[:, columns] / 3
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=2e-3 if dtype.itemsize < 4 else 1e-7)
    assert kept is not None


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_scores_of_minus_infinity_are_of_no_class(loss: Any) -> None:
    """A growing head has them for classes to come."""
    scores, y = torch.tensor([[1.0, -torch.inf, 2.0], [0.0, -torch.inf, 1.0]], requires_grad=True), torch.tensor([2, 0])
    model = Classifier(3, nn.Identity(), loss=loss)
    found = model.loss(scores, y)
    assert found == Classifier(2, nn.Identity(), loss=loss).loss(scores[:, [0, 2]], y // 2)
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.isfinite().all()
    assert not gradient[:, 1].any()


def test_loss_among_seen_classes_needs_a_stream() -> None:
    model = Classifier(10, nn.Identity(), loss_classes="seen")
    kept = within(None, model)
    with pytest.raises(ValueError, match=r"^`loss_classes='seen'` needs a stream .* or set `loss_classes` to 'all'\.$"):
        model.loss(torch.zeros(1, 10), torch.tensor([0]))
    assert kept is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "`loss` must be 'cross_entropy' or 'binary', got 'hinge'."),
        ({"loss_classes": "old"}, "`loss_classes` must be 'all', 'seen' or 'current', got 'old'."),
        (
            {"backbone": nn.Identity(), "backbone_args": {"hidden": [3]}},
            "`backbone_args` are those of a timm model: make `backbone` with them, or give its name.",
        ),
        ({"head": "wide"}, "`head` must be 'fixed' or 'growing', got 'wide'."),
        (
            {"head": "growing", "backbone": nn.Identity()},
            "`head='growing'` is for a timm model: give its name, or put a GrowingHead into `backbone`.",
        ),
        (
            {"head": "growing", "backbone": "deit_tiny_distilled_patch16_224", "backbone_args": {"depth": 1}},
            "`head='growing'` needs a `backbone` whose last layer is one nn.Linear, got ('head', 'head_dist').",
        ),
        (
            {"backbone": "resnet18_slm"},
            "`backbone`: timm has no model 'resnet18_slm'. Did you mean 'resnet18_slim' or ",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Classifier(10, **arguments)


@pytest.mark.parametrize(
    ("backbone", "shape", "extra"),
    [
        ("mlp", (1, 8, 8), {"hidden": [7, 5]}),
        ("resnet18_slim", (3, 16, 16), {}),
        ("resnet32_cifar", (1, 16, 16), None),
        ("vit_tiny_patch16_224", (1, 32, 32), {"depth": 1}),  # one of timm's that is made for one size of images
    ],
)
def test_timm_models_fit_the_samples(backbone: str, shape: tuple[int, ...], extra: dict[str, Any] | None) -> None:
    model = Classifier(7, backbone, shape, extra)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    if backbone == "mlp":
        widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
        assert widths == [7, 5, 7]


@pytest.mark.parametrize("backbone", ["mlp", "resnet18_slim", "vit_tiny_patch16_224"])
def test_growing_head_stands_where_timm_looks_for_it(backbone: str) -> None:
    extra = {"depth": 1} if backbone.startswith("vit") else {}
    model = Classifier(7, backbone, (1, 32, 32), extra, head="growing")
    head = model.backbone.get_classifier()  # type: ignore[operator]
    assert isinstance(head, GrowingHead)
    head.grow([6, 2])
    with torch.no_grad():
        scores, features = model(x := torch.rand(2, 1, 32, 32)), model.backbone.forward_features(x)  # type: ignore[operator]
        features = model.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
    assert torch.equal(scores[:, [6, 2]], head.linear(features))
    assert scores.isfinite().sum() == 4


def growing(**kwargs: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(10, "mlp", (1, 8, 8), {"hidden": [16]}, head="growing", **kwargs)


def head_of(model: nn.Module) -> GrowingHead:
    return next(module for module in model.modules() if isinstance(module, GrowingHead))


@pytest.mark.parametrize("method", [None, EWC(1.0), Replay(20, batch_size=4)])
def test_growing_head_has_a_row_for_each_class_seen(method: Any) -> None:
    """Widths are seen at the start of each fit, where the optimizer is made of the parameters."""
    found: list[tuple[int, int]] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.1)
        found.append((len(head_of(model).classes), sum(p.numel() for p in made.param_groups[0]["params"])))
        return made

    model, stream = growing(optimizer=optimizer), SplitDigits(num_experiences=5, class_order=1993)
    result = fit_stream(trainer(max_epochs=1, callbacks=[method] if method else []), model, stream, evaluate="all")
    assert found == [(n, 65 * 16 + 17 * n) for n in (2, 4, 6, 8, 10)]
    assert head_of(model).classes.tolist() == [c for group in stream.classes for c in group]
    assert result.accuracy_matrix.isfinite().all()


def test_growing_head_learns_as_a_fixed_one_among_the_seen_classes() -> None:
    """The rows of classes to come get no gradient there; they start alike here."""
    stream, grew = SplitDigits(num_experiences=5), growing()
    grew.double()
    fixed = Classifier(10, "mlp", (1, 8, 8), {"hidden": [16]}, loss_classes="seen").double()
    rows = GrowingHead(16, 10)
    rows.grow(range(10))
    with torch.no_grad():
        body = [p for p in grew.parameters() if p.numel()]
        for mine, other in zip(fixed.parameters(), [*body, *rows.linear.parameters()], strict=True):
            mine.copy_(other)
    results = [fit_stream(trainer(max_epochs=1, precision="64-true"), model, stream) for model in (grew, fixed)]
    torch.testing.assert_close([*grew.parameters()], [*fixed.parameters()])
    torch.testing.assert_close(results[0].accuracy_matrix, results[1].accuracy_matrix, equal_nan=True)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("checkpoint", ["*step=2.ckpt", "experience_0.ckpt", "*step=10.ckpt", "experience_1.ckpt"])
def test_growing_head_resumes(checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> dict[str, Tensor]:
        model, saver = growing(), ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
        options: dict[str, Any] = {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}
        run = trainer(max_epochs=1, callbacks=[saver, EWC(1.0)], **options)
        stream = SplitDigits(increment=4, batch_size=100)
        fit_stream(run, model, stream, ckpt_path, keep_checkpoints="all")
        return model.state_dict()

    whole = run(tmp_path / "whole", None)
    again = run(tmp_path / "again", next((tmp_path / "whole").rglob(checkpoint)))
    assert again.keys() == whole.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_growing_head_is_measured_as_a_checkpoint_has_it(tmp_path: Path) -> None:
    model, stream = growing(), SplitDigits(num_experiences=5)
    head_of(model).grow([0, 1, 2, 3])
    checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": lightning.__version__}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    other = growing()
    accuracies = evaluate_stream(trainer(), other, stream, tmp_path / "a.ckpt", scoring="all")
    assert head_of(other).classes.tolist() == [0, 1, 2, 3]
    assert accuracies[2:].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_growing_head_needs_a_stream() -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    data = lightning.LightningDataModule.from_datasets(torch.utils.data.TensorDataset(x, y))
    with pytest.raises(ValueError, match=r"^`head='growing'` needs a stream .* or set `head` to 'fixed'\.$"):
        trainer(max_epochs=1).fit(growing(), datamodule=data)


def test_any_module_is_taken_as_it_is() -> None:
    net = nn.Linear(3, 4)
    model = Classifier(num_classes=4, backbone=net)
    x = torch.randn(2, 3)
    assert model.backbone is net
    assert model.num_classes == 4
    assert torch.equal(model(x), net(x))
    assert [name for name, _ in model.named_parameters()] == ["backbone.weight", "backbone.bias"]


def test_each_experience_has_its_own_optimizer_and_scheduler() -> None:
    model = Classifier(
        4,
        nn.Linear(3, 4),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1),
    )
    made = [model.configure_optimizers() for _ in range(2)]
    for configured in made:
        assert isinstance(configured["optimizer"], torch.optim.Adam)
        assert configured["lr_scheduler"].optimizer is configured["optimizer"]
        assert configured["lr_scheduler"].get_last_lr() == [0.5]
        assert configured["optimizer"].param_groups[0]["params"] == list(model.parameters())
    assert made[0]["optimizer"] is not made[1]["optimizer"]
    assert isinstance(Classifier(4, nn.Linear(3, 4)).configure_optimizers(), torch.optim.SGD)


def test_plateau_scheduler_looks_at_what_it_monitors() -> None:
    """With patience 0 and a threshold that nothing passes, each epoch but the first shrinks the rate tenfold."""
    model = Classifier(
        4,
        nn.Linear(3, 4),
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(
            optimizer, "val_loss", patience=0, threshold=1e9, threshold_mode="abs"
        ),
    )
    fit = trainer(max_epochs=3, num_sanity_val_steps=0)
    fit.fit(model, datamodule=Points(val_fraction=0.5, mean=[0.5], std=[0.5]))
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**2)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_fine_tuning_equals_a_loop_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 4)
    weight, bias = net.weight.detach().clone().requires_grad_(), net.bias.detach().clone().requires_grad_()
    stream = Points(batch_size=2, seed=3)
    trainer(max_epochs=1).fit(Classifier(4, net), datamodule=stream)

    optimizer = torch.optim.SGD([weight, bias], lr=0.05)
    other = Points(batch_size=2, seed=3)
    for x, y in other.train_dataloader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(nn.functional.linear(x.float() * (1 / 255), weight, bias), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(net.weight, weight)
    assert torch.equal(net.bias, bias)


def test_evaluation_weighs_samples_not_batches() -> None:
    torch.manual_seed(0)
    model = Classifier(4, nn.Linear(3, 4))
    stream = Points(val_fraction=0.9, eval_batch_size=2)  # batches of 2, 2, 1 and of 2, 1
    run = trainer()
    whole, y = (torch.cat(column) for column in zip(*stream.val_dataloader(), strict=True))
    with torch.no_grad():
        scores = model(whole.float() / 255)
    (measured,) = run.validate(model, datamodule=stream, verbose=False)
    assert measured["val_acc"] == pytest.approx((scores.argmax(1) == y).float().mean().item())
    assert measured["val_loss"] == pytest.approx(nn.functional.cross_entropy(scores, y).item())
    assert [len(y) for _, y in stream.val_dataloader()] == [2, 2, 1]


def test_test_step_gives_scores_and_prediction_gives_classes() -> None:
    model, stream, run = Classifier(4, nn.Linear(3, 4)), Points(eval_batch_size=4), trainer()
    (measured,) = run.test(model, datamodule=stream, verbose=False)
    predicted: Any = run.predict(model, datamodule=stream)
    x, y = (torch.cat(column) for column in zip(*stream.test_dataloader(), strict=True))
    assert torch.equal(torch.cat(predicted), model(x.float() / 255).argmax(1))
    assert measured["test_acc"] == pytest.approx((torch.cat(predicted) == y).float().mean().item())
    batch = [torch.rand(2, 3), torch.tensor([0, 1])]
    model.trainer = run
    model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    assert torch.equal(model.test_step(batch, 0)["logits"], model(batch[0]))
