import random
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_cl.loader import ChainLoader, StreamLoader, ordered_batches
from lightning_cl.revisit import Uniform
from lightning_cl.samples import MapData, TensorData
from lightning_cl.scenarios import ClassStream
from lightning_cl.stream import StreamBatch, StreamDataModule
from lightning_cl.utilities import permutation

COUNTS = {True: 45, False: 15}


class Numbers(ClassStream):
    """Sample ``k`` is filled with ``k`` (100 and up for testing) and has the label ``k % 5``."""

    def __init__(self, num_experiences: int = 5, class_order: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(5, (2, 3), num_experiences, class_order, **kwargs)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(COUNTS[train], dtype=torch.uint8)
        inputs = (numbers if train else numbers + 100).view(-1, 1, 1).repeat(1, 2, 3)
        return inputs, numbers % 5


class Noisy(Dataset[Any]):
    """An ordinary data set: samples one by one, with a random transform that uses all three generators."""

    def __init__(self, numbers: list[int], label: int) -> None:
        self.numbers, self.label = numbers, label

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([self.numbers[index], *noise], dtype=torch.float64), self.label


class Ordinary(StreamDataModule):
    """The same numbers without :class:`TensorData`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__([[0], [1], [2], [3], [4]], 5, (4,), **kwargs)

    def dataset(self, experience: int, train: bool) -> Dataset[Any]:
        return Noisy(list(range(experience, COUNTS[train], 5)), experience)


def at(stream: StreamDataModule, epoch: int = 0, rank: int = 0, world_size: int = 1, training: bool = True) -> Any:
    """Let the stream see a trainer of which it reads no more than this."""
    stream.trainer = SimpleNamespace(  # type: ignore[assignment]
        current_epoch=epoch,
        global_rank=rank,
        world_size=world_size,
        training=training,
        precision_plugin=Precision(),
    )
    return stream


def numbers(batches: Any) -> list[list[int]]:
    """Which samples are in each batch."""
    return [batch[0].flatten(1)[:, 0].long().tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return [number for batch in numbers(batches) for number in batch]


def draw() -> None:
    _ = torch.rand(1000), np.random.rand(1000), [random.random() for _ in range(1000)]


def generators() -> list[Any]:
    _, keys, position, *_ = np.random.get_state()
    return [torch.get_rng_state().tolist(), np.asarray(keys).tolist(), position, random.getstate()]


# -- the order of samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
def test_order_depends_on_nothing_that_others_drew(kind: Callable[..., StreamDataModule]) -> None:
    first = list(at(kind(batch_size=2, seed=1)).train_dataloader())
    draw()
    other = at(kind(batch_size=2, seed=1))
    draw()
    for one, two in zip(first, other.train_dataloader(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        draw()


def test_order_changes_with_seed_experience_and_epoch() -> None:
    def order(seed: int, experience: int, epoch: int) -> tuple[int, ...]:
        stream = at(Numbers(batch_size=2, seed=seed), epoch)
        stream.current = experience
        return tuple(n // 5 for n in flat(stream.train_dataloader()))  # n % 5 is the experience

    orders = [order(*key) for key in product((0, 1), repeat=3)]
    assert all(sorted(one) == list(range(9)) for one in orders)
    assert len(set(orders)) == len(orders)
    assert orders == [order(*key) for key in product((0, 1), repeat=3)]


def test_epoch_is_that_of_the_first_batch() -> None:
    """Lightning makes the loader, and iterators that it drops, in the epoch before."""
    stream = at(Numbers(batch_size=2))
    loader = stream.train_dataloader()
    passes = [iter(loader), iter(loader)]
    at(stream, epoch=3)
    assert numbers(passes[1]) == numbers(at(Numbers(batch_size=2), epoch=3).train_dataloader())


@pytest.mark.parametrize("seed", [0, 5])
def test_default_seed_is_that_of_seed_everything(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    assert numbers(at(Numbers()).train_dataloader()) == numbers(at(Numbers(seed=seed)).train_dataloader())


def test_drop_last_leaves_out_only_what_is_not_full_and_not_all() -> None:
    sizes = {
        count: [len(b) for b in ordered_batches(permutation(count, 0), 3, drop_last=True)] for count in (2, 3, 4, 8, 9)
    }
    assert sizes == {2: [2], 3: [3], 4: [3], 8: [3, 3], 9: [3, 3, 3]}
    for count, (size, world) in product((1, 4, 5), ((2, 1), (2, 3), (4, 2))):
        stream = at(Ordinary(batch_size=size, drop_last=True), world_size=world)
        stream._parts[0, "train"] = MapData(Noisy(list(range(count)), 0))
        assert len(list(stream.train_dataloader())) == len(stream.train_dataloader()) > 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_pass_but_training_has_every_sample_once(world_size: int) -> None:
    stream = Numbers(val_fraction=0.4, eval_batch_size=2)
    stream.evaluated = [0, 3]

    def over_ranks(name: str) -> list[int]:
        loaders = (getattr(at(stream, rank=r, world_size=world_size), name)() for r in range(world_size))
        return [number for loader in loaders for number in flat(loader)]

    val, test = over_ranks("val_dataloader"), over_ranks("test_dataloader")
    assert sorted(val + over_ranks("statistics_dataloader")) == list(range(0, 45, 5))
    assert len(val) == 3  # floor(9 * 0.4)
    assert sorted(test) == [100, 103, 105, 108, 110, 113]


def test_chained_loaders_say_which_experience_a_batch_is_of() -> None:
    stream = at(Numbers(eval_batch_size=2))
    stream.evaluated = [4, 1]
    loader = stream.test_dataloader()
    assert isinstance(loader, ChainLoader)
    assert len(loader) == 4
    assert [{int(y) for y in batch[1]} for batch in loader] == [{j} for j in loader.experience_of_batch]


def test_one_experience_has_all_classes() -> None:
    stream = at(Numbers(num_experiences=1, class_order=[4, 2, 0, 1, 3]))
    assert stream.classes == [(4, 2, 0, 1, 3)]
    assert sorted(flat(stream.test_dataloader())) == list(range(100, 115))
    assert numbers(stream.predict_dataloader()) == numbers(stream.test_dataloader())


# -- the position in an epoch -----------------------------------------------------------------------------------------


def continued(make: Callable[[], StreamLoader]) -> Iterator[tuple[list[Any], list[Any]]]:
    """For each place of an interruption: what comes after it, in a new loader and in one that was not interrupted."""
    whole = list(make())
    for done in range(len(whole) + 1):
        loader = make()
        batches = iter(loader)
        for _ in range(done):
            next(batches)
        resumed = make()
        draw()
        resumed.load_state_dict(loader.state_dict())
        assert resumed.state_dict() == loader.state_dict()  # also if it is interrupted again before the first batch
        yield list(resumed), whole[done:]
        torch.testing.assert_close(list(resumed), whole, rtol=0, atol=0)  # once only


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
def test_resumed_epoch_goes_on_with_the_next_batch(kind: Callable[..., StreamDataModule]) -> None:
    for resumed, rest in continued(lambda: at(kind(batch_size=2, seed=3), epoch=1).train_dataloader()):
        torch.testing.assert_close(resumed, rest, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # from Python 3.12 on
def test_workers_change_nothing() -> None:
    """Neither random transforms nor where an epoch goes on depend on who reads the samples."""
    whole = list(at(Ordinary(batch_size=2, seed=3)).train_dataloader())
    for workers, done in ((1, 0), (2, 3)):
        loader = at(Ordinary(batch_size=2, seed=3, num_workers=workers)).train_dataloader()
        loader.load_state_dict({"position": done})
        torch.testing.assert_close(list(loader), whole[done:], rtol=0, atol=0)
    tests = [list(at(Ordinary(eval_batch_size=2, num_workers=n)).test_dataloader()) for n in (0, 1)]
    torch.testing.assert_close(*tests, rtol=0, atol=0)


def test_random_transforms_differ_by_epoch_batch_and_rank() -> None:
    noise = [
        round(float(value), 12)
        for epoch, rank in product((0, 1), (0, 1))
        for x, _ in at(Ordinary(batch_size=1), epoch, rank, world_size=2).train_dataloader()
        for value in x[:, 1:].flatten()
    ]
    assert len(set(noise)) == len(noise) == 2 * 9 * 3  # nine samples, each once


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
def test_loaders_leave_the_global_generators_alone(kind: Callable[..., StreamDataModule]) -> None:
    stream = at(kind(batch_size=2, val_fraction=0.2))
    before = generators()
    for name in ("train", "val", "test", "predict", "statistics"):
        assert len(list(getattr(stream, f"{name}_dataloader")()))
        assert generators() == before


class Recorder(lightning.LightningModule):
    """An ordinary module that notes what it was trained on, in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 5)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.current_epoch, batch.raw[0][:, 0, 0].tolist()))
        return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*no `validation_step`")
@pytest.mark.parametrize("step", [1, 4, 6])
def test_lightning_resumes_in_the_middle_of_an_epoch(step: int, tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None) -> list[tuple[int, list[int]]]:
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            callbacks=[saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        stream, model = Numbers(batch_size=2), Recorder()
        if ckpt_path is None:
            stream.current = 2
        trainer.fit(model, datamodule=stream, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        assert stream.current == 2
        return model.seen

    whole = fit(None)
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5
    with pytest.warns(match="exists and is not empty"):
        assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_parts_are_a_partition_that_stays(kind: Callable[..., StreamDataModule], fraction: float) -> None:
    def parts(stream: StreamDataModule) -> list[list[int]]:
        found = [stream.part(i, name) for i in range(5) for name in ("train", "val")]
        return [[int(part[k][0].flatten()[0]) for k in range(len(part))] for part in found]

    stream = kind(val_fraction=fraction, seed=1)
    found = parts(stream)
    assert sorted(number for part in found for number in part) == list(range(45))
    assert [len(part) for part in found] == [9 - int(9 * fraction), int(9 * fraction)] * 5
    assert all(part == sorted(part) for part in found)
    draw()
    assert parts(kind(val_fraction=fraction, seed=1)) == found
    if fraction:
        assert parts(kind(val_fraction=fraction, seed=2)) != found


def test_test_data_is_no_training_data() -> None:
    stream = at(Numbers(val_fraction=0.5))
    assert min(flat(stream.test_dataloader())) >= 100 > max(flat(stream.train_dataloader()))


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
@pytest.mark.parametrize("task_labels", [False, True])
def test_cumulative_training_is_on_all_so_far(kind: Callable[..., StreamDataModule], task_labels: bool) -> None:
    stream = at(kind(cumulative=True, task_labels=task_labels, batch_size=4, val_fraction=0.3))
    stream.current = 2
    columns = [list(column) for column in zip(*stream.train_dataloader(), strict=True)]
    y = torch.cat(columns[1])
    assert y.bincount().tolist() == [7, 7, 7]
    assert len(set(y[:7].tolist())) > 1  # mixed, not one after another
    assert torch.cat([batch[1] for batch in stream.val_dataloader()]).bincount().tolist() == [2, 2, 2]
    if task_labels:
        assert torch.cat(columns[2]).tolist() == y.tolist()  # here each class is a task
    assert len(columns) == 2 + task_labels
    assert len(flat(stream.statistics_dataloader())) == 7  # the current experience alone


@pytest.mark.parametrize("kind", [Numbers, Ordinary])
def test_task_labels_are_a_third_column_everywhere(kind: Callable[..., StreamDataModule]) -> None:
    stream = at(kind(task_labels=True, batch_size=4, val_fraction=0.3))
    stream.current = 3
    for name in ("train", "val", "statistics"):
        for _, _, task in getattr(stream, f"{name}_dataloader")():
            assert task.dtype == torch.int64
            assert set(task.tolist()) == {3}
    assert [e.task_label for e in stream.experiences] == [0, 1, 2, 3, 4]
    assert (
        torch.cat([batch[2] for batch in stream.test_dataloader()]).tolist()
        == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    )


def test_cumulative_tensors_of_experiences_that_do_not_share_them() -> None:
    """As of permuted images, or of images shared under other labels."""

    class Permuted(StreamDataModule):
        def __init__(self, shared: bool) -> None:
            super().__init__([[0, 1], [0, 1]], 2, (3,), cumulative=True, batch_size=3)
            self.shared = torch.zeros(4, 3) if shared else None

        def dataset(self, experience: int, train: bool) -> TensorData:
            inputs = torch.full((4, 3), experience) if self.shared is None else self.shared
            return TensorData(inputs, torch.full((4,), experience))

    for shared in (False, True):
        stream = at(Permuted(shared))
        stream.current = 1
        x, y = (torch.cat(column) for column in zip(*stream.train_dataloader(), strict=True))
        assert sorted(y.tolist()) == [0] * 4 + [1] * 4
        assert shared or x[:, 0].tolist() == y.tolist()


def test_experiences_say_what_is_in_them() -> None:
    stream = Numbers(num_experiences=5, class_order=[3, 1, 4, 0, 2], val_fraction=0.25)
    stream.current = 2
    assert stream.seen_classes == (3, 1, 4)
    assert len(stream) == len(stream.experiences) == 5
    e = stream.experiences[4]
    assert (e.index, e.classes, e.task_label, e.num_train, e.num_val, e.num_test) == (4, (2,), None, 7, 2, 3)
    assert stream.shape()["sizes"] == [[7, 2, 3]] * 5


def test_state_is_the_position_in_the_stream() -> None:
    stream, other = Numbers(), Numbers()
    stream.current = 3
    other.load_state_dict(stream.state_dict())
    assert other.current == 3


# -- tensors ----------------------------------------------------------------------------------------------------------


def test_images_are_never_copied() -> None:
    class Held(Numbers):
        images = torch.zeros(10, 2, 3, dtype=torch.uint8)

        def load(self, train: bool) -> tuple[Tensor, Tensor]:
            return self.images, torch.arange(10) % 5

    stream = at(Held(val_fraction=0.5, task_labels=True, cumulative=True))
    stream.current = 4
    parts = [stream.part(i, name) for i in range(5) for name in ("train", "val", "test")]
    loaders: list[Any] = [stream.train_dataloader(), stream.val_dataloader(), *stream.test_dataloader().loaders]
    assert {part.inputs.data_ptr() for part in parts} == {Held.images.data_ptr()}
    assert {loader.dataset.inputs.data_ptr() for loader in loaders} == {Held.images.data_ptr()}


def test_tensor_data_is_an_ordinary_data_set_too() -> None:
    """Anybody may put it into torch's own loader."""
    part = Numbers(task_labels=True).part(2, "test")
    x, y, task = next(iter(DataLoader(part, batch_size=2)))
    assert x.tolist() == [[[102] * 3] * 2, [[107] * 3] * 2]
    assert (y.tolist(), task.tolist()) == ([2, 2], [2, 2])
    assert len(list(part)) == 3


def test_own_kinds_of_tensor_data_stay_what_they_are() -> None:
    class Shifted(TensorData):
        def batch(self, index: Tensor) -> list[Tensor]:
            x, *rest = super().batch(index)
            return [x + 100, *rest]

    class Stream(StreamDataModule):
        def dataset(self, experience: int, train: bool) -> TensorData:
            return Shifted(torch.arange(8.0).view(8, 1), torch.arange(8) % 2)

    stream = at(Stream([[0, 1], [0, 1]], 2, (1,), val_fraction=0.5, task_labels=True, cumulative=True))
    stream.current = 1
    assert min(flat(stream.train_dataloader())) >= 100


def test_batches_are_normalised_on_the_way_and_keep_what_they_were() -> None:
    mean, std = (0.2, 0.7), (0.5, 0.3)

    class Coloured(ClassStream):
        def load(self, train: bool) -> tuple[Tensor, Tensor]:
            return torch.arange(200, 248, dtype=torch.uint8).view(4, 2, 2, 3), torch.tensor([0, 1, 0, 1])

    stream = at(Coloured(2, (2, 2, 3), 1, mean=mean, std=std))
    (stored,) = stream.statistics_dataloader()
    moved = [column.clone() for column in stream.on_before_batch_transfer(stored, 0)]  # as to a device
    batch = stream.on_after_batch_transfer(moved, 0)
    x = stored[0].double() / 255
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in (0, 1)], 1)
    assert isinstance(batch, StreamBatch)
    torch.testing.assert_close(batch[0], expected.float())
    assert batch[0].dtype == torch.float32
    assert batch[1] is moved[1]
    assert batch.raw is stored
    assert torch.equal(stored[0], torch.arange(200, 248, dtype=torch.uint8).view(4, 2, 2, 3))


def test_floating_inputs_are_normalised_but_not_scaled() -> None:
    x = torch.rand(4, 2, 3)
    (same,) = at(Numbers()).transform_batch([x])
    assert same is x
    (normal,) = at(Numbers(mean=[0.1, 0.2], std=[0.5, 0.25])).transform_batch([x])
    torch.testing.assert_close(normal, torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25], 1))


@pytest.mark.parametrize(
    ("plugin", "dtype"),
    [(Precision(), torch.float32), (HalfPrecision("bf16-true"), torch.bfloat16), (DoublePrecision(), torch.float64)],
)
def test_inputs_are_of_the_type_that_the_trainer_works_with(plugin: Any, dtype: torch.dtype) -> None:
    stream = at(Numbers())
    stream.trainer.precision_plugin = plugin
    x, y = stream.transform_batch(stream.part(0, "train").batch(torch.arange(3)))
    assert (x.dtype, y.dtype) == (dtype, torch.int64)


def test_augmentation_is_for_training_only_and_before_normalisation() -> None:
    seen: list[torch.dtype] = []

    def invert(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return 255 - x

    stream = Numbers(augment=invert)
    batch = stream.part(1, "train").batch(torch.arange(2))  # samples 1 and 6

    def first(training: bool) -> list[float]:
        at(stream, training=training)
        stream.on_before_batch_transfer(batch, 0)
        x = stream.on_after_batch_transfer(batch, 0)[0]
        return [round(value * 255) for value in x[:, 0, 0].tolist()]

    assert first(training=True) == [254, 249]
    assert first(training=False) == [1, 6]
    with stream.without_augmentation():
        assert first(training=True) == [1, 6]
    assert first(training=True) == [254, 249]
    assert set(seen) == {torch.uint8}


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_experiences": 2},
            "`num_experiences` must divide the 5 classes: one of [1, 5], got 2. Or set `convention` to 'facil', which "
            "makes the first ones larger by one.",
        ),
        ({"num_experiences": 0}, "`num_experiences` must divide the 5 classes: one of [1, 5], got 0."),
        ({"class_order": [0, 1, 2, 3, 3]}, "`class_order` must be a permutation of 0 to 4, got [0, 1, 2, 3, 3]."),
        ({"class_order": [1, 2, 3, 4]}, "`class_order` must be a permutation of 0 to 4, got [1, 2, 3, 4]."),
        ({"batch_size": 0}, "`batch_size` must be 1 or more, got 0."),
        ({"eval_batch_size": -1}, "`eval_batch_size` must be 1 or more, got -1."),
        ({"val_fraction": 1.0}, "`val_fraction` must be in [0, 1), got 1.0."),
        ({"num_workers": -1}, "`num_workers` must be 0 or more, got -1."),
        ({"seed": -1}, "`seed` must be 0 or more, got -1."),
        ({"mean": [0.1] * 3}, "`mean` must hold one value, or one per channel of (2, 3), got [0.1, 0.1, 0.1]."),
        ({"std": []}, "`std` must hold one value, or one per channel of (2, 3), got []."),
        ({"std": [0.5, 0.0]}, "`std` must be above 0, got [0.5, 0.0]."),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Numbers(**arguments)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "`classes` must name at least one class for each experience, got []."),
        ([[0], []], "`classes` must name at least one class for each experience, got [[0], []]."),
        ([[0, 7], [1, -1]], "`classes` must be in [0, 5) (`num_classes`), got [-1, 7]."),
    ],
)
def test_bad_classes_are_named(classes: list[list[int]], message: str) -> None:
    class Empty(StreamDataModule):
        def dataset(self, experience: int, train: bool) -> Dataset[Any]:
            raise AssertionError

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Empty(classes, 5, (1,))


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((10, 2, 3), [0, 1, 2, 3, 4, 5, 0, -1, 0, 9], "Labels must be in [0, 5) (`num_classes`), got [-1, 5, 9]."),
        ((10, 3, 2), [0, 1, 2, 3, 4] * 2, "`input_shape` is (2, 3), and the samples are of shape (3, 2)."),
        ((10, 2, 3), [0, 1, 2, 2, 1] * 2, "`num_classes` is 5, and there is no training sample of [3, 4]."),
        ((10, 2, 3), [0, 1, 2, 3, 4], "`inputs` and `targets` must be of one length, got 10 and 5."),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(shape: Any, labels: list[int], message: str) -> None:
    class Bad(Numbers):
        def load(self, train: bool) -> tuple[Tensor, Tensor]:
            return torch.zeros(shape, dtype=torch.uint8), torch.tensor(labels)

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Bad().setup("fit")


def test_a_class_may_be_without_test_samples() -> None:
    class Few(Numbers):
        def load(self, train: bool) -> tuple[Tensor, Tensor]:
            inputs, targets = super().load(train)
            return (inputs, targets) if train else (inputs[:1], targets[:1])

    stream = Few(num_experiences=1)
    stream.setup("fit")
    assert stream.experiences[0].num_test == 1


def test_experience_without_samples_is_refused_before_training() -> None:
    class Short(Ordinary):
        def dataset(self, experience: int, train: bool) -> Dataset[Any]:
            return Noisy([1, 2] if train or experience < 4 else [], 0)

    with pytest.raises(ValueError, match=r"^Experience 4 has no test sample: leave \(4,\) out of `classes`\.$"):
        Short().setup("fit")


def test_more_processes_than_samples_are_refused_before_training() -> None:
    stream = at(Ordinary(val_fraction=0.25), world_size=2)
    stream.setup("fit")
    at(stream, world_size=3)  # 7 to train, 2 for validation, 3 to test
    with pytest.raises(ValueError, match=r"a part of 2 sample\(s\), too few for 3 processes: set `devices`"):
        stream.setup("fit")


@pytest.mark.parametrize("index", [-1, 5])
def test_unknown_experience_is_named(index: int) -> None:
    with pytest.raises(IndexError, match=rf"^There is no experience {index}: `current` must be in \[0, 5\)\.$"):
        Numbers().current = index
    with pytest.raises(IndexError, match=rf"^There is no experience {index}: `experience` must be in \[0, 5\)\.$"):
        Numbers().part(index, "train")


def test_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match="`name` must be 'train', 'val' or 'test', got 'training'"):
        Numbers().part(0, "training")


@pytest.mark.parametrize(("batch", "kind"), [({"x": torch.zeros(1)}, "dict"), (["text", torch.zeros(1)], "str")])
def test_samples_of_another_form_are_refused(batch: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"`dataset` must return samples \(x, y\) with a tensor x, got a {kind}\."):
        at(Numbers()).transform_batch(batch)


# -- at the edges -----------------------------------------------------------------------------------------------------


class Shared(StreamDataModule):
    """Three experiences of five numbers each; the last has the class and the test samples of the first."""

    def __init__(self, num_classes: int = 2, **kwargs: Any) -> None:
        super().__init__([[0], [1], [0]], num_classes, (1,), **kwargs)

    def dataset(self, experience: int, train: bool) -> TensorData:
        first = 10 * experience + (0 if train else 100)
        return TensorData(torch.arange(first, first + 5).view(5, 1), torch.full((5,), experience % 2))

    def test_of(self, experience: int) -> int:
        return experience % 2


def test_shared_test_samples_are_measured_once() -> None:
    stream = Shared()
    assert stream.part(2, "test") is stream.part(0, "test")
    assert flat(at(Shared(boundaries=False)).test_dataloader()) == [*range(100, 105), *range(110, 115)]
    with pytest.raises(ValueError, match="`task_labels` must be off: experiences share test samples"):
        Shared(task_labels=True).setup("test")


def test_a_class_that_comes_again_is_named_once() -> None:
    stream, online = Shared(), Shared(boundaries=False)
    stream.current = 2
    assert stream.seen_classes == (0, 1)
    assert (online.classes, online.name_of(0)) == ([(0, 1)], "classes 0, 1")


def test_task_labels_are_those_that_the_stream_says() -> None:
    class Numbered(Numbers):
        def task_of(self, experience: int) -> int:
            return experience + 10

    stream = Numbered(task_labels=True)
    assert stream.experiences[2].task_label == 12
    assert {int(task) for _, _, task in stream.part(2, "train")} == {12}


def test_experiences_of_one_size_are_drawn_differently() -> None:
    """Which samples are held out, and the order of a stream without boundaries."""
    stream = Numbers(val_fraction=0.4)
    held_out = {tuple(int(x[0, 0]) // 5 for x, _ in stream.part(i, "val")) for i in range(5)}
    assert len(held_out) > 1
    order = torch.tensor(flat(at(Numbers(boundaries=False)).train_dataloader())) // 5
    assert len(order.view(5, 9).unique(dim=0)) > 1


def test_some_statistics_are_a_choice_of_the_seed() -> None:
    def chosen(**kwargs: Any) -> list[int]:
        return flat(at(Numbers(**kwargs)).statistics_dataloader(4))

    whole = flat(at(Numbers()).statistics_dataloader())
    assert len(chosen()) == 4
    assert set(chosen()) <= set(whole)
    assert chosen() == sorted(chosen()) == chosen()
    assert chosen() != chosen(seed=5)
    assert flat(at(Numbers()).statistics_dataloader(1000)) == whole


def test_competing_classes() -> None:
    stream = Numbers()
    stream.current = 1
    assert stream.competing("all") == tuple(range(stream.num_classes))
    assert stream.competing("seen") == (*stream.classes[0], *stream.classes[1])
    assert stream.competing("current") == stream.classes[1]


def test_statistics_without_boundaries_are_of_the_whole_stream() -> None:
    assert sorted(flat(at(Numbers(boundaries=False)).statistics_dataloader())) == list(range(45))


def test_shape_tells_apart_all_that_is_trained_differently() -> None:
    others: list[dict[str, Any]] = [
        *({name: True} for name in ("cumulative", "drop_last", "task_labels")),
        *({name: 3} for name in ("batch_size", "eval_batch_size", "seed")),
        *({"revisit": Uniform(fraction)} for fraction in (0.4, 0.5)),
        *({"num_experiences": 1, "boundaries": boundaries} for boundaries in (True, False)),
    ]
    shapes = [Numbers(**other).shape() for other in ({}, *others)]
    assert all(shape not in shapes[:k] for k, shape in enumerate(shapes))
    assert Shared().shape() != Shared(num_classes=3).shape()


def test_doubles_stay_so_only_where_all_is_double() -> None:
    stream, x = at(Numbers()), torch.rand(2, 2, 3, dtype=torch.float64)
    assert stream.transform_batch([x])[0].dtype == torch.float32
    stream.trainer.precision, stream.trainer.precision_plugin = "64-true", DoublePrecision()
    assert torch.equal(stream.transform_batch([x])[0], x)


def test_augmentation_comes_back_with_the_outermost_block_even_after_an_error() -> None:
    calls: list[str] = []

    def augment(x: Tensor) -> Tensor:
        calls.append("augment")
        return x

    stream = at(Numbers(augment=augment))
    batch = stream.part(0, "train").batch(torch.arange(2))
    with pytest.raises(KeyError), stream.without_augmentation():  # noqa: PT012
        with stream.without_augmentation():
            pass
        stream.on_after_batch_transfer(batch, 0)
        assert not calls
        raise KeyError
    stream.on_after_batch_transfer(batch, 0)
    assert calls == ["augment"]


def test_training_alone_says_when_it_begins() -> None:
    calls: list[str] = []
    stream = at(Numbers())
    stream.before_first_batch = lambda: calls.append("first")
    assert [len(list(stream.test_dataloader())), *calls] == [5]
    assert [len(list(stream.train_dataloader())), *calls] == [1, "first"]


def test_position_in_a_longer_stream_is_the_end_of_a_shorter_one() -> None:
    stream = Numbers(num_experiences=1)
    stream.load_state_dict({"current": 3})
    assert stream.current == 0


def test_limits_themselves_are_allowed_and_nothing_beyond() -> None:
    assert [e.num_train for e in Numbers(samples_per_experience=9).experiences] == [9] * 5
    with pytest.raises(ValueError, match=r"`val_fraction` must be in \[0, 1\), got -0\.1"):
        Numbers(val_fraction=-0.1)
    with pytest.raises(ValueError, match=r"`classes` must be in \[0, 1\) \(`num_classes`\), got \[1\]"):
        Shared(num_classes=1)


def test_a_fraction_of_less_than_one_sample_is_refused_before_training() -> None:
    stream = Numbers(val_fraction=0.1)
    stream.setup("test")
    with pytest.raises(ValueError, match=r"`val_fraction` 0\.1 is less than one sample of experiences \[0, 1, 2"):
        stream.setup("fit")


@pytest.mark.parametrize("few", [True, False])
def test_too_few_samples_to_train_or_to_test_are_refused_before_training(few: bool) -> None:
    class Sized(Ordinary):
        def dataset(self, experience: int, train: bool) -> Dataset[Any]:
            return Noisy(list(range(2 if train == few else 5)), experience)

    with pytest.raises(ValueError, match=r"a part of 2 sample\(s\), too few for 3 processes"):
        at(Sized(), world_size=3).setup("fit")
