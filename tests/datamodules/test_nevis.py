"""Several data sets in a row: names, label spaces, pixels, repeats, and what happens where one is missing."""

import re
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cl import fit_stream
from lightning_cl.datamodules.nevis import NevisStream, fit_images
from lightning_cl.methods import Classifier
from lightning_cl.nevis22 import CLASSES
from lightning_cl.samples import ImageFiles, TensorData
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS
from tests.helpers.fakes import nevis
from tests.helpers.fakes._images import distinct_images, write_idx_set

pytestmark = LIGHTNINGS_OWN_WARNINGS


def written(root: Path, **kwargs: Any) -> NevisStream:
    return NevisStream(**{**nevis.write(root), **kwargs})


def test_each_data_set_has_labels_of_its_own(tmp_path: Path) -> None:
    stream = written(tmp_path, data_sets=["COIL 20", "MNIST"])
    stream.prepare_data()
    assert stream.classes == [(0, 1), tuple(range(2, 12))]
    assert stream.num_classes == 12
    assert [(e.num_train, e.num_test, e.task_label) for e in stream.experiences] == [(8, 4, 0), (40, 20, 1)]
    assert [stream.name_of(i) for i in (0, 1)] == ["COIL 20", "MNIST"]
    _, y, task = stream.part(1, "train").batch(torch.arange(40))
    assert y.tolist() == [2 + i % 10 for i in range(40)]
    assert task.tolist() == [1] * 40


def test_names_find_sources_and_folders(tmp_path: Path) -> None:
    stream = NevisStream(
        str(tmp_path), ["Fashion MNIST", "CIFAR 10", "tiny_imagenet", "EMNIST Balanced", "8 Scene Dataset"]
    )
    found = {name: (type(source).__name__, source.root.name) for name, source in stream.sources.items()}
    assert found == {
        "Fashion MNIST": ("FashionMNIST", tmp_path.name),
        "CIFAR 10": ("CIFAR10", tmp_path.name),
        "tiny_imagenet": ("TinyImageNet", tmp_path.name),
        "EMNIST Balanced": ("EMNIST", tmp_path.name),
        "8 Scene Dataset": ("_Absent", tmp_path.name),
    }


@pytest.mark.parametrize("variant", ["full", "short", "tiny", "debug"])
def test_streams_of_the_paper_can_be_made_without_their_files(variant: Any, tmp_path: Path) -> None:
    stream = NevisStream(str(tmp_path), variant, download=False)
    assert [len(group) for group in stream.classes] == [CLASSES[name] for name in stream.data_sets]
    assert stream.num_classes == sum(CLASSES[name] for name in set(stream.data_sets))
    assert len(NevisStream(str(tmp_path), variant, stop_year=2015, shuffle_seed=1)) <= len(stream)


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_of_the_right_size_stay_as_they_are(part: str, tmp_path: Path) -> None:
    small, large = written(tmp_path, image_size=28, channels=1), written(tmp_path, image_size=40)
    digits = small.part(0, part).batch(torch.arange(20))[0]
    assert torch.equal(digits, torch.from_numpy(distinct_images(20, 1, 28, 1 if part == "train" else 41)))
    objects = torch.stack([large.part(1, part)[i][0] for i in range(4)])
    first = 101 if part == "train" else 201
    in_folders = [k for label in (0, 1) for k in range(label, 8 if part == "train" else 4, 2)][:4]
    assert torch.equal(objects, torch.from_numpy(distinct_images(8, 3, 40, first)[in_folders]))


def test_grey_images_get_three_equal_channels_and_another_size(tmp_path: Path) -> None:
    """Pillow's bilinear filter, for which the pixels that are left are averaged, is the reference."""
    data = written(tmp_path, image_size=20).part(0, "train")
    x = data.batch(torch.arange(10))[0]
    assert x.shape == (10, 3, 20, 20)
    assert x.dtype == torch.uint8
    for got, image in zip(x, distinct_images(10, 1, 28), strict=True):
        expected = np.asarray(Image.fromarray(image[0]).resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
        assert all(np.abs(channel.numpy().astype(int) - expected).max() <= 1 for channel in got)
    assert data.inputs.shape == (40, 1, 28, 28)  # at rest they keep their size


def test_colours_become_grey_by_their_brightness(tmp_path: Path) -> None:
    grey = written(tmp_path, image_size=40, channels=1).part(1, "train")[0][0]
    red, green, blue = distinct_images(1, 3, 40, 101)[0].astype(float)
    assert grey.shape == (1, 40, 40)
    assert np.abs(grey[0].numpy() - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_in_files_are_cut_to_the_middle(channels: int, tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 10:50] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    files = ImageFiles([tmp_path / "a.png"], torch.tensor([3]), transform=abs, train_transform=abs)
    x, y = fit_images(files, (channels, 20, 20)).for_training()[0]
    assert (x.shape, x.dtype, int(y)) == ((channels, 20, 20), torch.uint8, 3)
    assert (x[..., 1:-1].int() - 200).abs().max() <= 2  # black begins right outside
    assert x.min() > 150


def test_a_part_of_the_images_stays_a_part() -> None:
    data = TensorData(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5), torch.tensor([4, 2]))
    x, y = fit_images(data, (3, 2, 2)).batch(torch.tensor([1, 0]))  # type: ignore[attr-defined]
    assert torch.equal(x, torch.tensor([2, 4], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2))
    assert y.tolist() == [2, 4]


def test_pixels_are_normalised_to_minus_one_to_one() -> None:
    x = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    (normal,) = NevisStream(data_sets=["digits"]).transform_batch([x])
    torch.testing.assert_close(normal[0, :, 0], torch.tensor([[-1.0, 1.0]] * 3))


# -- repeats -----------------------------------------------------------------------------------------------------------


def test_a_repeated_data_set_has_the_same_samples_and_labels() -> None:
    stream = NevisStream(data_sets=["digits", "digits"], image_size=8, channels=1, val_fraction=0.15)
    assert stream.classes == [tuple(range(10))] * 2
    assert (stream.num_classes, stream.test_of(1)) == (10, 0)
    for name in ("train", "val", "test"):
        first, again = (stream.part(i, name).batch(torch.arange(20)) for i in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [e.task_label for e in stream.experiences] == [0, 0]
    assert stream.experiences[0].num_val == int(0.15 * 1442)


def test_a_repeated_data_set_is_predicted_by_the_latest_state(tmp_path: Path) -> None:
    stream = written(tmp_path, data_sets=["COIL 20", "MNIST", "COIL 20"], image_size=16)
    model = Classifier(12, "mlp", stream.input_shape, {"hidden": [8]}, loss_classes="current", head="growing")
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    run = lightning.Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **quiet)
    matrix = fit_stream(run, model, stream).accuracy_matrix
    assert matrix[2, 0] == matrix[2, 2]
    assert matrix[2].isfinite().all()
    assert sum(p.numel() for p in model.parameters()) == 8 * (3 * 16 * 16 + 1) + 12 * 9


# -- what is not there -------------------------------------------------------------------------------------------------


def test_a_missing_data_set_is_an_error(tmp_path: Path) -> None:
    stream = written(tmp_path, data_sets=["COIL 20", "Brodatz"])
    with pytest.raises(FileNotFoundError, match=r"^Brodatz of NEVIS'22 is missing: looked for brodatz/train/"):
        stream.prepare_data()
    with pytest.raises(FileNotFoundError, match=rf"in `root` {str(tmp_path)!r}, .*Make these folders"):
        stream.part(1, "train")
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}/my_own'"):
        written(tmp_path, data_sets=["my own"])


def test_missing_data_sets_are_skipped_on_request_and_the_rest_is_noted(tmp_path: Path) -> None:
    names = ["Brodatz", "COIL 20", "my own", "svhn", "COIL 20", "Brodatz"]
    with pytest.warns(
        UserWarning, match=r"^'(Brodatz|my own|svhn)' is left out of the stream\. .*(is missing: |is the name of no)"
    ) as warned:
        stream = written(tmp_path, data_sets=names, skip_missing=True)
    assert len(warned) == 3
    assert stream.shape()["data_sets"] == ["COIL 20", "COIL 20"]
    assert stream.classes == [(0, 1), (0, 1)]
    assert written(tmp_path, data_sets=["svhn"], skip_missing=True, download=True).data_sets == ["svhn"]  # to be had


@pytest.mark.filterwarnings("ignore:.*is left out of the stream")
def test_a_stream_of_nothing_is_refused(tmp_path: Path) -> None:
    for names, skip in (([], False), (["Brodatz"], True)):
        with pytest.raises(ValueError, match=r"^`data_sets` must name at least one data set that is there, got "):
            written(tmp_path, data_sets=names, skip_missing=skip)


def test_what_is_wrong_with_a_data_set_names_it(tmp_path: Path) -> None:
    stream = written(tmp_path, data_sets=["MNIST"])
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes().replace(b"\x03", b"\x04"))
    with pytest.raises(ValueError, match=r"^MNIST: `num_classes` is 10, and there is no training sample of \[3\]\.$"):
        stream.part(0, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be 1 or more, got 0."),
        ({"channels": 2}, "`channels` must be 1 or 3, got 2."),
        ({"stop_year": 2020}, "`stop_year` is for the streams of NEVIS'22 ('full', ...): leave it out, got 2020."),
        ({"shuffle_seed": 1}, "`shuffle_seed` is for the streams of NEVIS'22 ('full', ...): leave it out, got 1."),
        ({"data_sets": "all"}, "`data_sets` must be a list or one of full, short, tiny, debug, got 'all'."),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NevisStream(**{"data_sets": ["digits"], **arguments})


@pytest.mark.parametrize(
    ("form", "count"), [({"cumulative": True}, 1442), ({"boundaries": False, "task_labels": False}, 2 * 1442)]
)
def test_what_comes_again_is_jointly_trained_on_once(form: dict[str, bool], count: int) -> None:
    """And in the stream again, where it comes again."""
    stream = NevisStream(data_sets=["digits", "digits"], image_size=8, channels=1, **form)
    stream.current = len(stream) - 1
    assert sum(len(y) for _, y, *_ in stream.train_dataloader()) == count
    assert len(stream.part(stream.current, "test")) == 355


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    stream = NevisStream(str(tmp_path), ["Brodatz", "svhn", "digits", "COIL 20"], download=False)
    with pytest.raises(FileNotFoundError, match=r"brodatz/train.* Likewise missing: svhn, COIL 20\."):
        stream.prepare_data()


def test_files_of_one_data_set_are_not_those_of_another(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    stream = NevisStream(str(tmp_path), ["MNIST", "Fashion MNIST"], download=False)
    with pytest.raises(ValueError, match=r"`root`: 'MNIST' and 'Fashion MNIST' would both be read from"):
        stream.prepare_data()


def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'fashon_mnist' is the name of no data set, .* Did you mean 'fashion_mnist"
    ):
        NevisStream(str(tmp_path), ["fashon_mnist"])


def test_statistics_of_a_data_set_that_comes_again_are_its_own(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw")
    names = ["digits", "MNIST", "digits"]
    stream = NevisStream(str(tmp_path), names, image_size=8, channels=1, download=False, cumulative=True)
    stream.current = 2
    assert {int(y) for _, labels, _ in stream.statistics_dataloader() for y in labels} == set(range(10))


def test_punctuation_of_a_name_does_not_count(tmp_path: Path) -> None:
    assert written(tmp_path, data_sets=["(COIL 20)"]).classes == [(0, 1)]
