"""What every plugin must keep, whoever wrote it: plugins are found by inspection, so a new one is tested unasked."""

import copy
import inspect
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl import CheckpointError, ContinualCallback, Memory, RunLogger, Storage, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.loader import ordered_batches
from lightning_cl.rehearsal import RehearsalCallback
from lightning_cl.revisit import Uniform
from lightning_cl.utilities import derive_seed, get_rng_state, permutation
from tests.helpers.contracts import (
    CONTINUAL,
    LIGHTNINGS_OWN_WARNINGS,
    METHODS,
    MODELS,
    NETWORKS,
    STREAMS,
    Learned,
    Net,
    TinyStream,
    bad_arguments,
    case_of,
    jitter,
    learn,
    learn_plain,
    make,
    same,
    samples,
    seeded,
    stream_arguments,
    trainer,
)
from tests.helpers.distributed import Core

pytestmark = LIGHTNINGS_OWN_WARNINGS

BY_NAME = {"ids": lambda value: getattr(value, "__name__", None)}
every_callback = pytest.mark.parametrize("cls", CONTINUAL, **BY_NAME)
every_callback_in_every_loop = pytest.mark.parametrize(
    ("how", "cls"),
    [(how, cls) for how in (learn, learn_plain) for cls in CONTINUAL if how is learn or not case_of(cls).needs_stream],
    **BY_NAME,
)


@pytest.fixture(autouse=True)
def _seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks are made before the module that :func:`seeded` makes, and take the seed of the run."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")


def suited(cls: type, how: Any = learn) -> Any:
    """The loop, over a stream such as the callback needs."""
    if how is not learn:
        return how
    return lambda *args, **kwargs: learn(
        *args, **{"stream": TinyStream(augment=jitter, **case_of(cls).stream), **kwargs}
    )


@cache
def fine_tuning(how: Any) -> tuple[Any, Any]:
    """Weights and random state after a run without a callback."""
    return how().weights, get_rng_state()


def test_plugins_are_found() -> None:
    names = {cls.__name__ for cls in (*CONTINUAL, *STREAMS, *MODELS)}
    assert names >= {"EWC", "Replay", "SplitDigits", "SplitFashionMNIST", "Classifier"}


# -- callbacks ---------------------------------------------------------------------------------------------------------


@every_callback_in_every_loop
def test_switched_off_is_fine_tuning(cls: type, how: Any) -> None:
    weights, rng = fine_tuning(how)
    off = suited(cls, how)([make(cls, "inert")])
    assert same(off.weights, weights)
    assert same(get_rng_state(), rng)


@every_callback_in_every_loop
def test_acts_on_any_module_and_loop(cls: type, how: Any) -> None:
    assert same(suited(cls, how)([make(cls)]).weights, fine_tuning(how)[0]) == case_of(cls).watches


def interrupted(tmp_path: Path, make_run: Any, checkpoint: str) -> tuple[Learned, Learned, Path]:
    """A run, and another with fresh objects that goes on from a checkpoint of the first."""
    whole = make_run(tmp_path / "whole", None)
    path = next((tmp_path / "whole").rglob(checkpoint))
    return whole, make_run(tmp_path / "again", path), path


def with_checkpoints(folder: Path) -> dict[str, Any]:
    """Arguments of a trainer that saves in the middle of epochs."""
    return {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}


def every_two_steps() -> ModelCheckpoint:
    return ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)


@every_callback
@pytest.mark.parametrize("checkpoint", ["*step=2.ckpt", "experience_0.ckpt", "*step=8.ckpt", "*step=10.ckpt"])
def test_resumed_equals_uninterrupted(cls: type, checkpoint: str, tmp_path: Path) -> None:
    made: list[ContinualCallback] = []

    def run(folder: Path, ckpt_path: Path | None) -> Learned:
        made.append(make(cls))
        return suited(cls)([made[-1], every_two_steps()], ckpt_path=ckpt_path, **with_checkpoints(folder))

    whole, again, _ = interrupted(tmp_path, run, checkpoint)
    assert same(again.weights, whole.weights)
    assert same(made[1].state_dict(), made[0].state_dict())
    assert torch.equal(again.result.accuracy_matrix.nan_to_num(), whole.result.accuracy_matrix.nan_to_num())


@every_callback
def test_state_is_plain_and_round_trips(cls: type, tmp_path: Path) -> None:
    callback, fresh = make(cls), make(cls)
    suited(cls)([callback], **with_checkpoints(tmp_path))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert same(state, callback.state_dict())
    assert same(fresh.state_dict(), state) == case_of(cls).stateless
    fresh.load_state_dict(copy.deepcopy(state))
    assert same(fresh.state_dict(), state)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 4},
    "bf16": {"precision": "bf16-mixed"},
    "clipping": {"gradient_clip_val": 0.1},
}


@every_callback
@pytest.mark.parametrize("setting", SETTINGS)
def test_acts_once_per_step_in_every_setting(cls: Any, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    hooks = [name for name in ("on_before_optimizer_step", "after_optimizer_step") if make(cls)._has(name)]
    for hook in hooks:
        original = getattr(cls, hook)
        monkeypatch.setattr(cls, hook, lambda *args, f=original, h=hook: (steps.append(h), f(*args))[1])
    acted = suited(cls)([make(cls)], **SETTINGS[setting])
    assert [steps.count(hook) for hook in hooks] == [acted.trainer.global_step] * len(hooks)
    assert same(acted.weights, learn(**SETTINGS[setting]).weights) == case_of(cls).watches
    assert all(p.isfinite().all() for p in acted.weights.values())


@cache
def fine_tuned_network(network: str, setting: str) -> Any:
    return learn((), seeded(NETWORKS[network]), TinyStream(batch_size=4), max_epochs=1, **SETTINGS[setting]).weights


@every_callback
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_acts_on_networks_of_others(cls: Any, network: str, setting: str) -> None:
    stream = TinyStream(batch_size=4, **case_of(cls).stream)
    acted = learn([make(cls)], seeded(NETWORKS[network]), stream, max_epochs=1, **SETTINGS[setting])
    assert same(acted.weights, fine_tuned_network(network, setting)) == case_of(cls).watches
    assert all(p.isfinite().all() for p in acted.weights.values())


def compiled(**kwargs: Any) -> Any:
    return torch.compile(Net(**kwargs), backend="eager")


@every_callback_in_every_loop
def test_compiled_module_learns_the_same(cls: type, how: Any) -> None:
    torch.compiler.reset()  # code of other tests may fit, but for hooks that it does not call
    weights = [suited(cls, how)([make(cls)], seeded(net, drop=0.0)).weights for net in (compiled, Net)]
    assert same(*weights)


@every_callback_in_every_loop
def test_two_instances_side_by_side(cls: type, how: Any) -> None:
    first, second, alone = make(cls), make(cls, "other"), make(cls)
    both = suited(cls, how)([first, second])
    assert first.state_key != second.state_key
    assert same(both.weights, suited(cls, how)([alone]).weights) == case_of(cls).watches
    if case_of(cls).watches:  # neither is in the other's way
        assert same(first.state_dict(), alone.state_dict())


@pytest.mark.parametrize(
    ("cls", "argument", "value"),
    [(cls, *bad) for cls in (*CONTINUAL, *STREAMS, *MODELS) for bad in bad_arguments(cls)],
    **BY_NAME,
)
def test_a_bad_argument_is_named(cls: type, argument: str, value: Any, tmp_path: Path) -> None:
    others = stream_arguments(cls, tmp_path) if cls in STREAMS else METHODS.get(cls.__name__, [{}])[0]
    with pytest.raises((ValueError, TypeError), match=f"`{argument}`"):
        cls(**{**others, argument: value})


def as_found(run: Trainer, module: Any, stream: Any) -> dict[str, Any]:
    """What a run must leave as it was."""
    loops = (run.test_loop, run.predict_loop, run.validate_loop)
    hooks = [len(value) for child in module.modules() for name, value in vars(child).items() if name.endswith("_hooks")]
    return {
        "module": set(vars(module)) - {"_hparams"},
        "modes": [child.training for child in module.modules()],
        "steps": (module.training_step, module.test_step),
        "hooks": hooks,
        "callbacks": list(run.callbacks),
        "limits": (run.max_epochs, run.min_epochs, run.max_steps, run.min_steps),
        "inference_mode": [loop.inference_mode for loop in loops],
        "loop": set(vars(run.fit_loop)),
        "checkpoint_io": run.strategy.checkpoint_io,
        "stream": (stream.before_first_batch, stream._deterministic),
    }


@every_callback
def test_module_and_trainer_are_left_as_found(cls: type) -> None:
    module, stream, run = seeded(), TinyStream(**case_of(cls).stream), trainer([make(cls)])
    before = as_found(run, module, stream)
    fit_stream(run, module, stream)
    assert as_found(run, module, stream) == before
    assert len(module.made) == 2
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in module.made)


# -- methods and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "arguments"), [(cls, way) for cls in MODELS for way in METHODS[cls.__name__]], **BY_NAME
)
def test_method_fits_and_resumes(cls: type, arguments: dict[str, Any], tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> Learned:
        module = seeded(cls, **arguments)
        return learn([every_two_steps()], module, ckpt_path=ckpt_path, **with_checkpoints(folder))

    before = {name: p.detach() for name, p in seeded(cls, **arguments).named_parameters()}
    whole, again, path = interrupted(tmp_path, run, "*step=8.ckpt")
    assert not same(whole.weights, before)
    assert same(again.weights, whole.weights)
    fresh = cls(**arguments)
    fresh.load_state_dict(torch.load(tmp_path / "again/last.ckpt", weights_only=True)["state_dict"])
    assert same(dict(fresh.state_dict()), dict(whole.module.state_dict()))
    assert path.exists()


def test_methods_that_are_made_exist() -> None:
    assert METHODS.keys() == {cls.__name__ for cls in MODELS}


@pytest.fixture(scope="session")
def make_stream(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a stream of any class; its files are written once."""
    arguments: dict[type, dict[str, Any]] = {}

    def make(cls: Any, **kwargs: Any) -> Any:
        if cls not in arguments:
            arguments[cls] = stream_arguments(cls, tmp_path_factory.mktemp(cls.__name__))
        return cls(**{**arguments[cls], **kwargs})

    return make


every_stream = pytest.mark.parametrize("cls", STREAMS, **BY_NAME)
every_trained_stream = pytest.mark.parametrize("cls", [cls for cls in STREAMS if not cls.test_only], **BY_NAME)


def taken_by(stream: Any, rank: int, world_size: int) -> Any:
    """The stream as one process of several sees it."""
    stream.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=0)
    return stream


def identities(samples: Any) -> list[bytes]:
    """What tells samples apart: what is in them."""
    return [sample[0].numpy().tobytes() for sample in samples]


def rows(loader: Any) -> list[bytes]:
    return identities([row] for batch in loader for row in batch[0])


@every_trained_stream
def test_stream_is_a_function_of_its_seed(cls: Any, make_stream: Any) -> None:
    def batches(seed: int) -> list[Any]:
        stream = make_stream(cls, seed=seed, batch_size=2)
        _ = torch.rand(1000), np.random.rand(1000), [random.random() for _ in range(1000)]
        stream.current = len(stream) - 1
        return [list(batch) for batch in stream.train_dataloader()]

    first, again, other = batches(3), batches(3), batches(4)
    assert len(first) >= 2
    assert same(first, again)
    assert not same(first, other)


@every_trained_stream
def test_parts_of_a_stream_never_overlap(cls: Any, make_stream: Any) -> None:
    stream = make_stream(cls, val_fraction=0.25)
    names = ("train", "val", "test")
    whole = {name: [identities(stream.part(i, name)) for i in range(len(stream))] for name in names}
    assert all(len(part) for parts in whole.values() for part in parts)
    each = [set().union(*parts) for parts in whole.values()]
    assert sum(map(len, each)) == len(set.union(*each))
    trained = [row for name in ("train", "val") for part in whole[name] for row in part]
    assert len(trained) == len(set(trained)), "a sample is trained on in two experiences"
    uncut = make_stream(cls)
    assert {row for i in range(len(uncut)) for row in identities(uncut.part(i, "train"))} == set(trained)


@every_stream
def test_labels_of_a_stream_are_those_it_names(cls: Any, make_stream: Any) -> None:
    stream = make_stream(cls)
    for e in stream.experiences:
        for name in ("test",) if stream.test_only else ("train", "test"):
            x, y = next(iter(stream._once(stream.part(e.index, name))))[:2]
            assert tuple(x.shape[1:]) == stream.input_shape
            assert set(y.tolist()) <= (set(e.classes) if name == "train" else set(range(stream.num_classes)))


@every_stream
def test_shape_of_a_stream_is_plain_and_that_of_its_equal(cls: Any, make_stream: Any, tmp_path: Path) -> None:
    shape = make_stream(cls).shape()
    torch.save(shape, tmp_path / "shape.pt")
    assert torch.load(tmp_path / "shape.pt", weights_only=True) == make_stream(cls).shape()
    assert make_stream(cls, batch_size=17).shape() != shape


@every_trained_stream
def test_processes_share_the_samples_of_a_stream(cls: Any, make_stream: Any) -> None:
    stream = make_stream(cls, batch_size=3)
    stream.current = len(stream) - 1
    count = len(stream.part(stream.current, "train"))
    for make_loader in ("train_dataloader", "statistics_dataloader"):
        seen = [rows(getattr(taken_by(stream, rank, 2), make_loader)()) for rank in (0, 1)]
        if make_loader == "statistics_dataloader":
            assert set(seen[0] + seen[1]) == set(identities(stream.part(stream.current, "train")))
        assert len(seen[0] + seen[1]) == count
        assert len(set(seen[0] + seen[1])) == count


@every_trained_stream
def test_interrupted_epoch_of_a_stream_goes_on(cls: Any, make_stream: Any) -> None:
    whole = list(make_stream(cls, batch_size=2).train_dataloader())
    loader = make_stream(cls, batch_size=2).train_dataloader()
    loader.load_state_dict({"position": 1})
    assert same([list(batch) for batch in loader], [list(batch) for batch in whole[1:]])


@pytest.mark.parametrize("cls", [cls for cls in STREAMS if "root" in inspect.signature(cls).parameters], **BY_NAME)
def test_missing_files_of_a_stream_are_named(cls: Any, make_stream: Any, tmp_path: Path) -> None:
    make_stream(cls).prepare_data()
    options = {"download": False} if "download" in inspect.signature(cls).parameters else {}
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        make_stream(cls, root=str(tmp_path / "none"), **options).prepare_data()
    assert not list(tmp_path.iterdir())


FORMS: dict[str, dict[str, Any]] = {
    "blurry": {"blurry": "fixed", "blurry_percent": 50},
    "few-shot": {"num_experiences": None, "base_classes": 2, "increment": 1, "shots": 9},
    "limited": {"samples_per_experience": 20, "val_fraction": 0.1},
    "online": {"boundaries": False},
    "relabelled": {"class_order": 1993, "convention": "mammoth", "relabel": True},
    "revisited": {"revisit": Uniform(fraction=0.5)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checkpoint", ["*step=2.ckpt", "experience_0.ckpt", "*step=6.ckpt"])
def test_every_form_of_a_stream_resumes(form: str, checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> Learned:
        stream = TinyStream(**FORMS[form], augment=jitter)
        return learn([Replay(10), every_two_steps()], None, stream, ckpt_path, **with_checkpoints(folder))

    whole, again, _ = interrupted(tmp_path, run, checkpoint)
    assert same(again.weights, whole.weights)
    assert same(again.result.accuracy_matrix.nan_to_num(), whole.result.accuracy_matrix.nan_to_num())
    assert not same(whole.weights, learn([Replay(10)], None, TinyStream(augment=jitter)).weights)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_another_form_is_refused(form: str, tmp_path: Path) -> None:
    learn([], None, TinyStream(**FORMS[form]), **with_checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match="another stream"):
        learn([], None, TinyStream(), tmp_path / "last.ckpt", **with_checkpoints(tmp_path))


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """One launch for all, as it costs seconds: what two gloo processes left, between them and against one process."""
    for sharing in ("replicated", "sharded"):
        replay = Replay(10, storage=Storage(sharing))
        learn([replay], seeded(), TinyStream(batch_size=4), **with_checkpoints(tmp_path / sharing / "one"))
    script = [sys.executable, "-m", "tests.helpers.distributed", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert {cls.__name__ for cls in CONTINUAL} <= ranks[0]["callbacks"].keys()
    for name, first in ranks[0]["callbacks"].items():
        second = ranks[1]["callbacks"][name]
        assert same(first["weights"], second["weights"]), f"{name}: weights differ between ranks"
        assert same(first["state"], second["state"]), f"{name}: states differ between ranks"
        if name in ONE_PROCESS:
            ONE_PROCESS[name](first)
    check_core(ranks)
    check_sharing(ranks, tmp_path)


def check_as_alone(cls: Any, found: dict[str, Any]) -> Any:
    """Weights are those of one process with the joined batches; the callback of that is returned."""
    callback = make(cls)
    alone = learn([callback], seeded(drop=0.0), TinyStream(**case_of(cls).stream), precision="64-true")
    torch.testing.assert_close(found["weights"], alone.weights, rtol=1e-6, atol=1e-9)
    return callback


def check_ewc(found: dict[str, Any]) -> None:
    """So is the importance."""
    ewc = check_as_alone(EWC, found)
    importance = found["state"]["anchor"]["importance"]
    torch.testing.assert_close(importance, ewc.anchor.importance, rtol=1e-6, atol=1e-9)


def offered_by_hand(memories: Sequence[Memory]) -> list[dict[str, Any]]:
    """The states of memories that are offered the batches of rank 0 and 1: one both, joined, or two each its own."""
    x, y = samples(train=True)
    for experience in range(2):
        here = (y // 2 == experience).nonzero().flatten()
        seed = derive_seed(derive_seed(0, experience), 2 * experience)  # the first of its epochs
        shards = [ordered_batches(permutation(24, seed), 4, rank, 2) for rank in (0, 1)]
        for parts in zip(*shards, strict=True):
            for memory, index in zip(memories, parts if len(memories) == 2 else [torch.cat(parts)], strict=True):
                groups = y[here[index]] if "groups" in memory.needs else None
                memory.insert({"0": x[here[index]], "1": y[here[index]]}, groups=groups)
    return [memory.state_dict() for memory in memories]


def check_rehearsal(cls: Any, found: dict[str, Any]) -> None:
    """The memory is what one is that is offered the joined batches by hand; each rank replays samples of its own."""
    kept = found["state"]["memory"]
    if kept["policy"] != "gss":  # which asks the model
        [expected] = offered_by_hand([Memory(10, kept["policy"], derive_seed(1, 0))])
        for name in ("0", "1"):
            assert same(kept["columns"][name], expected["columns"][name]), cls.__name__
    assert kept["seen"] == 48


def check_sharing(ranks: list[dict[str, Any]], folder: Path) -> None:
    """How two processes share a memory, and what becomes of it with more or fewer of them."""
    for sharing in ("replicated", "sharded"):
        first, second = (rank["rehearsal"][sharing] for rank in ranks)
        assert same(first, second)
        assert same(first["whole"], first["again"])
        seeds = [derive_seed(1, 0)] if sharing == "replicated" else [derive_seed(1, 0, rank) for rank in (0, 1)]
        expected = offered_by_hand([Memory(10 // len(seeds), "reservoir", seed) for seed in seeds])
        assert same(first["whole"]["memory"], expected if sharing == "sharded" else expected[0])
        alone = Replay(10, storage=Storage(sharing))
        checkpoint = folder / sharing / "whole/checkpoints/experience_0.ckpt"
        stream = TinyStream(batch_size=4, augment=jitter)
        with pytest.warns(UserWarning, match="goes on with 1 process"):
            learn([alone], None, stream, checkpoint, **with_checkpoints(folder / sharing / "alone"))
        for memory in (first["from_one"]["memory"], alone.state_dict()["memory"]):
            states = memory if isinstance(memory, list) else [memory]
            assert [state["capacity"] for state in states] == [10 // len(states)] * len(states)
            assert sum(state["seen"] for state in states) == 48
            kept = torch.cat([state["columns"]["0"] for state in states])
            assert len(kept) == len(kept.unique(dim=0)) == 10


def check_flops(found: dict[str, Any]) -> None:
    """All samples of two epochs of both experiences, through 64-12-4 forward, and backward but for the images."""
    forward, backward = 2 * (64 * 12 + 12 * 4), 2 * (64 * 12 + 2 * 12 * 4)
    assert found["state"]["flops"]["train"] == 2 * 48 * (forward + backward)


def check_anytime_accuracy(found: dict[str, Any]) -> None:
    """The curve is that of one process with the joined batches."""
    from lightning_cl.callbacks import AnytimeAccuracy

    alone = AnytimeAccuracy(every_n_samples=8)
    learn([alone], seeded(drop=0.0), TinyStream(), precision="64-true")
    assert same(found["state"], alone.state_dict())


ONE_PROCESS: dict[str, Any] = {
    **{
        cls.__name__: partial(check_rehearsal if issubclass(cls, RehearsalCallback) else check_as_alone, cls)
        for cls in CONTINUAL
        if not case_of(cls).beside  # it works on what a replay keeps, which depends on the order of samples
    },
    "AnytimeAccuracy": check_anytime_accuracy,
    "EWC": check_ewc,
    "FlopsMeter": check_flops,
}


def check_core(ranks: list[dict[str, Any]]) -> None:
    """What the base promises to its methods."""
    core = [rank["core"] for rank in ranks]
    rows = torch.cat([torch.full((rank + 2 * rank, 2), rank, dtype=torch.uint8) for rank in (0, 1)])
    assert all(torch.equal(found["gathered"], rows) for found in core)
    assert all(found["sum"] == 3 for found in core)
    assert [int(found["own"]) for found in core] == [1, 2]
    assert all(found["objects"] == ["rank 0", "rank 1"] for found in core)
    assert not same(core[0]["drawn"], core[1]["drawn"]), "augmentation and dropout are the same on both ranks"
    assert same(core[0]["extra_loss"], core[1]["extra_loss"])
    alone = learn([Core()], seeded(drop=0.0), TinyStream(), precision="64-true")
    torch.testing.assert_close(core[0]["extra_loss"], alone.weights, rtol=1e-9, atol=1e-12)
    seen = torch.cat([found["statistics"] for found in core])
    expected = samples(train=True)[0][samples(train=True)[1] >= 2].double() / 255
    assert len(seen) == 24
    torch.testing.assert_close(seen.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
