"""The five ways to touch a training, each with a callback that exists only here."""

import re
from collections import UserDict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import ContinualCallback, fit_stream
from lightning_cl.callback import (
    columns_of,
    competing_logits,
    gather_objects,
    gather_rows,
    replace_columns,
    statistics_batches,
    unpack_batch,
)
from lightning_cl.forwards import Forwards
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    PlainData,
    TinyStream,
    learn,
    learn_plain,
    same,
    samples,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
EXACT = {"rtol": 0.0, "atol": 1e-12}


# -- gradient ----------------------------------------------------------------------------------------------------------


class Gradient(ContinualCallback):
    """Replaces every gradient by a constant."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.calls = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.calls += 1
        for p in pl_module.parameters():
            p.grad.fill_(self.value)


def test_gradient_is_what_the_optimizer_steps_with() -> None:
    assert same(learn([Gradient(0.0)]).weights, dict(seeded().named_parameters()))


def test_gradient_is_clipped_afterwards() -> None:
    before = dict(seeded().named_parameters())
    after = learn([Gradient(1e6)], max_epochs=1, limit_train_batches=1, gradient_clip_val=0.5, stream=TinyStream(1))
    moved = torch.cat([(after.weights[name] - p).flatten() for name, p in before.items()]).norm()
    torch.testing.assert_close(moved, torch.tensor(0.2 * 0.5))  # learning rate times the largest norm


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_refused(fused: bool) -> None:
    """A fused optimizer unscales in its own step: what is added before would be divided by the scale."""
    module = seeded()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1, fused=fused)
    run = trainer([Gradient()], plugins=[MixedPrecision("16-mixed", "cpu")], max_epochs=1)
    if fused:
        with pytest.raises(ValueError, match="`fused=False`"):
            run.fit(module, PlainData())
    else:
        run.fit(module, PlainData())


# -- loss --------------------------------------------------------------------------------------------------------------


class Small(ContinualCallback):
    """Asks for small scores."""

    def __init__(self, strength: float = 0.3) -> None:
        super().__init__()
        self.strength = strength

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor:
        return self.strength * pl_module(batch[0]).square().mean()


class ByHand(Net):
    """Has the same terms in its own ``training_step``."""

    strengths: tuple[float, ...] = (0.3,)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        terms = [strength * self(batch[0]).square().mean() for strength in self.strengths]
        return F.cross_entropy(self(batch[0]), batch[1]) + sum(terms)


class WithDict(Net):
    """Returns its loss in a dict, and takes the batch only."""

    def training_step(self, batch: Any) -> Any:
        return {"loss": F.cross_entropy(self(batch[0]), batch[1]), "other": "kept"}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.05},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("net", [Net, WithDict])
def test_extra_loss_equals_the_term_by_hand(setting: str, net: type) -> None:
    added = learn([Small()], seeded(net, drop=0.0), **SETTINGS[setting], **DOUBLE)
    by_hand = learn([], seeded(ByHand, drop=0.0), **SETTINGS[setting], **DOUBLE)
    torch.testing.assert_close(added.weights, by_hand.weights, **EXACT)
    assert not same(added.weights, learn([], seeded(net, drop=0.0), **SETTINGS[setting], **DOUBLE).weights)


def test_two_extra_losses_are_added_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByHand, "strengths", (0.3, 0.1))
    added = learn([Small(0.3), Small(0.1)], seeded(drop=0.0), **DOUBLE)
    torch.testing.assert_close(added.weights, learn([], seeded(ByHand, drop=0.0), **DOUBLE).weights, **EXACT)


def test_extra_loss_with_a_compiled_module() -> None:
    compiled = seeded(lambda: torch.compile(Net(drop=0.0), backend="eager"))
    added = learn_plain([Small()], compiled, **DOUBLE)
    steps = [added.module.training_step, added.module.forward]
    torch.testing.assert_close(added.weights, learn_plain([], seeded(ByHand, drop=0.0), **DOUBLE).weights, **EXACT)
    assert all(hasattr(step, "__wrapped__") for step in steps)  # still compiled


def test_outputs_keep_what_else_was_returned() -> None:
    class Look(Small):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert outputs["other"] == "kept"
            looked.append(outputs["loss"])

    looked: list[Tensor] = []
    learn([Look()], seeded(WithDict))
    assert len(looked) == 12


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_stays_without() -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super(type(self), self).training_step(batch, batch_idx)

    runs = [
        learn(callbacks, seeded(type("Skips", (base,), {"training_step": step}), drop=0.0), **DOUBLE)
        for base, callbacks in ((Net, [Small()]), (ByHand, []))
    ]
    torch.testing.assert_close(runs[0].weights, runs[1].weights, **EXACT)


def test_nothing_may_be_added() -> None:
    class Nothing(Small):
        def extra_loss(self, *args: Any) -> None:  # type: ignore[override]
            return None

    assert same(learn([Nothing()]).weights, learn().weights)


def test_extra_loss_needs_automatic_optimization() -> None:
    module = seeded()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match=r"Small adds to the loss .* `automatic_optimization=False`"):
        trainer([Small()]).fit(module, PlainData())


# -- what a module computes on the way ---------------------------------------------------------------------------------


class Reads(ContinualCallback):
    """Notes the scores of each batch and what layers computed, and asks for small scores."""

    def __init__(self, places: tuple[str, ...] = ("net.1",)) -> None:
        super().__init__()
        self.places = places
        self.scores_seen: list[Tensor] = []
        self.values_seen: list[list[Tensor]] = []

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for place in ("", *self.places):
            self.watch(trainer, pl_module, place)

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor:
        self.scores_seen.append(self.scores(pl_module, batch[0], outputs))
        self.values_seen.append([self.forward_of(pl_module, batch[0])[place] for place in self.places])
        return 0.3 * self.scores_seen[-1].square().mean()


class Asked(Net):
    """Notes the scores that its loss is made of, and how often its first layer runs."""

    gives_logits = False

    def __init__(self) -> None:
        super().__init__(drop=0.5)
        self.mine: list[Tensor] = []
        self.forwards = 0
        self.net[1].register_forward_hook(lambda *args: setattr(self, "forwards", self.forwards + 1))

    def scores(self, x: Tensor) -> Tensor:
        return self(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.mine.append(self.scores(batch[0]))
        loss = F.cross_entropy(self.mine[-1], batch[1])
        return {"loss": loss, "logits": self.mine[-1]} if self.gives_logits else loss


class OnOther(Asked):
    """The only call is of something that is made of the inputs."""

    def scores(self, x: Tensor) -> Tensor:
        return self(x * 2)


class Several(Asked):
    """Calls itself on other things, and without gradients, around the call of the inputs."""

    def scores(self, x: Tensor) -> Tensor:
        self(x * 2)
        scores: Tensor = self(x)
        with torch.no_grad():
            self(x)
        self(x + 1)
        return scores


class Parts(Asked):
    """Calls a part of itself only."""

    def scores(self, x: Tensor) -> Tensor:
        return self.net(x)


class GivesLogits(Parts):
    """Says what its scores are."""

    gives_logits = True


@pytest.mark.parametrize(
    ("net", "forwards", "same_scores"),
    [(Asked, 1, True), (OnOther, 1, True), (Several, 4, True), (GivesLogits, 1, True), (Parts, 2, False)],
)
def test_scores_and_features_are_those_of_training_step(net: Any, forwards: int, same_scores: bool) -> None:
    callback, module = Reads(), seeded(net)
    trainer([callback], max_epochs=1).fit(module, PlainData())
    assert module.forwards == 3 * forwards
    assert all((a is b) == same_scores for a, b in zip(callback.scores_seen, module.mine, strict=True))
    assert all(scores.grad_fn is not None for scores in callback.scores_seen)
    for scores, (features,) in zip(callback.scores_seen, callback.values_seen, strict=True):
        shown = scores.grad_fn.next_functions[1][0].next_functions[0][0].next_functions[0][0]  # before dropout and ReLU
        assert shown is features.grad_fn
    assert not module._forward_hooks
    assert len(module.net[1]._forward_hooks) == 1  # its own


@pytest.mark.parametrize("places", [("net.1",), ("net.1", "net.4:input"), ("net.2:input", "net")])
def test_compiled_code_of_an_earlier_fit_is_not_run_with_other_hooks(
    places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    again: list[Any] = []
    monkeypatch.setattr(Forwards, "again", lambda self, *args: again.append(args) or {})
    module = seeded(torch.compile, model=Net(drop=0.0), backend="eager", fullgraph=True)
    data, start = PlainData(), {name: p.clone() for name, p in module._orig_mod.state_dict().items()}
    for before in ((), ("net.4",), places):
        module._orig_mod.load_state_dict(start)
        trainer([reads := Reads(before)], max_epochs=1).fit(module, data)
    assert [len(values) for values in reads.values_seen] == [len(places)] * 3
    assert not again


def test_a_layer_that_the_forward_does_not_reach_is_named() -> None:
    module = seeded()
    module.unused = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^'unused' was not called in the forward of Net: name a submodule that is"):
        trainer([Reads(("unused",))]).fit(module, PlainData())


# -- weights -----------------------------------------------------------------------------------------------------------


class Steps(ContinualCallback):
    """Counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Any) -> None:
        self.count += 1


class Freezes(ContinualCallback):
    """Puts the weights back after each step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Any) -> None:
        for p, before in zip(pl_module.parameters(), self.before, strict=True):
            assert not torch.equal(p, before)
            p.data.copy_(before)


def test_weights_can_be_changed_after_each_step() -> None:
    assert same(learn([Freezes()]).weights, dict(seeded().named_parameters()))


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 8), (4, 4)])
def test_true_steps_are_counted(accumulate: int, steps: int) -> None:
    callback = Steps()
    module = learn([callback], accumulate_grad_batches=accumulate).module
    assert callback.count == steps
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in module.made)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_not_counted(fused: bool) -> None:
    class Overflows(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (torch.inf if batch_idx == 1 else 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=fused)

    callback = Steps()
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    run = trainer([callback], plugins=[precision], max_epochs=2)
    run.fit(seeded(Overflows), PlainData())
    assert run.global_step == 6
    assert callback.count == 4


# -- test time ---------------------------------------------------------------------------------------------------------


class Adapts(ContinualCallback):
    """Makes a gradient of each test batch."""

    adapts_at_test_time = True

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.number = number
        self.norms: list[float] = []

    def adapt(self, pl_module: LightningModule, batch: Any) -> None:
        with torch.enable_grad():
            grads = torch.autograd.grad(pl_module(batch[0]).square().sum(), list(pl_module.parameters()))
        self.norms.append(float(sum(g.norm() for g in grads)))

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.adapt(pl_module, batch)

    on_predict_batch_start = on_test_batch_start


class Evaluated(Net):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        assert not self(batch[0]).requires_grad

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self(batch[0])
        assert not scores.requires_grad
        return scores


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_gradients_at_test_time_with_a_default_trainer(stage: str) -> None:
    callbacks = [Adapts(0), Adapts(1)]
    run = trainer(callbacks)
    getattr(run, stage)(seeded(Evaluated), DataLoader(TensorDataset(samples(False)[0].float()), batch_size=24))
    assert [len(callback.norms) for callback in callbacks] == [2, 2]
    assert all(norm > 0 for callback in callbacks for norm in callback.norms)
    assert run.test_loop.inference_mode
    assert run.predict_loop.inference_mode


# -- the life of a callback --------------------------------------------------------------------------------------------


class Epochs(ContinualCallback):
    """Notes the epoch within the experience."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.fail = fail
        self.epochs: list[int] = []
        self.consolidated = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(self.epoch_of_experience(trainer))
        if self.fail and trainer.current_epoch == 1:
            raise RuntimeError("as wanted")

    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.consolidated += 1
        torch.rand(1)


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_epochs_are_counted_within_the_experience(how: Any) -> None:
    callback = Epochs()
    how([callback])
    assert callback.epochs == [0, 1, 0, 1]
    assert callback.consolidated == 2


def test_epochs_are_counted_anew_after_a_failure() -> None:
    callback, module = Epochs(fail=True), seeded()
    run = trainer([callback])
    with pytest.raises(RuntimeError, match="as wanted"):
        run.fit(module, PlainData())
    callback.fail = False
    run.fit_loop.max_epochs = 3
    run.fit(module, PlainData())
    assert callback.epochs == [0, 1, 0, 1]


def test_consolidation_leaves_the_random_state() -> None:
    learn_plain()
    rng = get_rng_state()
    learn_plain([Epochs()])
    assert same(get_rng_state(), rng)


def test_a_failed_fit_leaves_nothing_behind() -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("as wanted")

    module, stream = seeded(Fails), TinyStream()
    run = trainer([Small(), Steps(), Adapts()])
    with pytest.raises(RuntimeError, match="as wanted"):
        fit_stream(run, module, stream)
    assert "training_step" not in vars(module)
    assert not module.made[0]._optimizer_step_post_hooks
    assert run.test_loop.inference_mode
    assert len(run.callbacks) == 3


class Takes(ContinualCallback):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function


class Callable:
    def __call__(self) -> None: ...


@pytest.mark.parametrize("make", [lambda: partial(samples, True), Callable, lambda: lambda: None])
def test_state_key_is_the_same_in_the_next_process(make: Any) -> None:
    """A default ``repr`` holds an address."""
    first, second = make(), make()
    assert Takes(first).state_key == Takes(second).state_key
    assert not re.search("0x", Takes(first).state_key)
    assert Takes(first).state_key != Takes(samples).state_key


# -- batches -----------------------------------------------------------------------------------------------------------


X, Y = torch.zeros(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    "batch",
    [(X, Y), [X, Y], [X, Y, torch.zeros(2)], {"pixel_values": X, "labels": Y}, UserDict(x=X, y=Y, mask=X)],
)
def test_unpack_batch(batch: Any) -> None:
    x, y = unpack_batch(batch)
    assert x is X
    assert y is Y


@pytest.mark.parametrize(
    ("batch", "form"), [(X, "a Tensor"), ([X], "a list"), ({"x": X, "z": Y}, r"a dict with the keys \['x', 'z'\]")]
)
def test_a_batch_of_another_form_is_refused(batch: Any, form: str) -> None:
    with pytest.raises(TypeError, match=f"got {form}: pass `unpack`"):
        unpack_batch(batch)


@pytest.mark.parametrize("batch", [[X, Y], {"x": X, "y": Y}, {0: X, 1: Y}])
def test_columns_are_replaced_in_place(batch: Any) -> None:
    keys = list(batch) if isinstance(batch, dict) else None
    columns = columns_of(batch, "Mine")
    replace_columns(batch, {name: torch.cat([column, column]) for name, column in columns.items()})
    values = list(batch.values()) if isinstance(batch, dict) else batch
    assert [len(value) for value in values] == [4, 4]
    assert keys is None or keys == list(batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y), "Mine changes the batch in place, .* tuple .* `collate_fn`"),
        (X, "Mine needs a batch that is a list or a dict of tensors, got a Tensor"),
        ([X, ["a", "b"]], "Mine needs a tensor .* got a list in column 1: leave it out in your `collate_fn`"),
        ({"x": X, "n": torch.tensor(2)}, "Mine needs a tensor with one row per sample .* in column n"),
    ],
)
def test_a_batch_that_cannot_be_changed_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        columns_of(batch, "Mine")


# -- passes over the data ----------------------------------------------------------------------------------------------


class Collects(ContinualCallback):
    """Keeps what a statistics pass gives."""

    def __init__(self, count: int | None = None) -> None:
        super().__init__()
        self.count = count
        self.passes: list[list[Any]] = []

    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.passes.append(list(statistics_batches(trainer, self.count)))


def flip(x: Tensor) -> Tensor:
    return 255 - x


@pytest.mark.parametrize("arguments", [{}, {"drop_last": True}, {"cumulative": True}, {"val_fraction": 0.25}])
def test_statistics_pass_has_every_sample_once_without_augmentation(arguments: dict[str, Any]) -> None:
    callback, stream = Collects(), TinyStream(batch_size=7, eval_batch_size=5, augment=flip, **arguments)
    learn([callback], stream=stream)
    for i, batches in enumerate(callback.passes):
        expected = stream.part(i, "train")
        assert torch.equal(torch.cat([batch[1] for batch in batches]), expected.targets[expected.indices])
        x = expected.inputs[expected.indices].float() / 255
        torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), x)
    assert len(callback.passes) == 2


def test_statistics_pass_over_some_samples() -> None:
    some, stream = Collects(10), TinyStream(eval_batch_size=4)
    learn([some], stream=stream)
    for i, batches in enumerate(some.passes):
        stream.current = i
        assert sum(len(batch[1]) for batch in batches) == 10
        chosen = torch.cat([x for x, _ in stream.statistics_dataloader(10)]).float() / 255
        torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), chosen)
    plain = Collects(10)
    learn_plain([plain])
    assert [sum(len(batch[1]) for batch in batches) for batches in plain.passes] == [16, 16], "whole batches of 8"


def test_statistics_pass_over_ordinary_loaders() -> None:
    callback = Collects()
    learn_plain([callback])
    labels = [torch.cat([batch[1] for batch in batches]).bincount(minlength=4).tolist() for batches in callback.passes]
    assert labels == [[12, 12, 0, 0], [0, 0, 12, 12]]


def test_statistics_pass_goes_through_the_hooks_and_the_precision() -> None:
    class Shifted(PlainData):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 7, batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 2, batch[1]]

    callback = Collects()
    trainer([callback], max_epochs=1, **DOUBLE).fit(seeded(), Shifted())
    x = torch.cat([batch[0] for batch in callback.passes[0]])
    assert x.dtype == torch.float64
    assert 14 <= x.min() < x.max() <= 16


def test_statistics_pass_over_a_dict_of_loaders() -> None:
    class Two(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["left"], batch_idx)

    callback, data = Collects(), PlainData()
    loaders = {"left": data.train_dataloader(), "right": data.train_dataloader()}
    trainer([callback], max_epochs=1).fit(seeded(Two), loaders)
    assert [sorted(batch) for batch in callback.passes[0]] == [["left", "right"]] * 3


def test_gathering_in_one_process() -> None:
    run = trainer()
    assert gather_rows(run, X) is X
    assert gather_objects(run, "mine") == ["mine"]


def test_sharded_strategies_are_refused_where_whole_parameters_are_needed() -> None:
    class Whole(ContinualCallback):
        needs_whole_parameters = True

    strategy = FSDPStrategy.__new__(FSDPStrategy)
    for cls in (Whole, ContinualCallback):
        stand_in: Any = SimpleNamespace(strategy=strategy)
        if cls is Whole:
            with pytest.raises(
                ValueError, match=r"Whole needs whole parameters .* FSDPStrategy .*: set `strategy` to 'ddp'"
            ):
                cls().setup(stand_in, seeded(), "fit")
        else:
            cls().setup(stand_in, seeded(), "fit")


def test_logits_of_classes_that_do_not_compete_are_minus_infinity() -> None:
    def finite(stream: Any, which: Any) -> list[int]:
        stand_in: Any = SimpleNamespace(datamodule=stream, strategy=SimpleNamespace(root_device="cpu"))
        logits = competing_logits(stand_in, which)({"logits": torch.zeros(2, 4)})
        classes: list[int] = logits.isfinite().all(0).nonzero().flatten().tolist()
        return classes

    stream, with_tasks = TinyStream(4), TinyStream(4, task_labels=True)
    stream.current = with_tasks.current = 1
    assert finite(stream, None) == finite(stream, "all") == finite(PlainData(), None) == [0, 1, 2, 3]
    assert finite(stream, "seen") == [0, 1]
    assert finite(with_tasks, None) == finite(stream, "current") == [1]
    assert finite(with_tasks, "all") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="`classes='seen'` needs a StreamDataModule"):
        finite(PlainData(), "seen")
