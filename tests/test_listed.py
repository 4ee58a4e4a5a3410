from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.listed import FileList, ListedSource, ListedStream
from lightning_cl.samples import ImageFiles, TensorData
from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_listed

LISTS = [[("b", 1), ("a", 0)], [("d", 1), ("c", 2), ("e", 0)]]


class Letters(ListedSource):
    name = "Letters"
    num_classes = 3
    remedy = "Write them."

    def __init__(self, root: Path, given: Sequence[Sequence[tuple[str, int]]] = LISTS, image_size: int = 32) -> None:
        super().__init__(str(root), "letters", image_size)
        self.given = given

    def missing(self) -> list[str]:
        return self.absent([self.place / "a.png"])

    def lists(self, train: bool) -> list[FileList]:
        return [
            ([f"{self.place}/{name}.png" for name, _ in part], torch.tensor([label for _, label in part]))
            for part in self.given
        ]


def write(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Five images, each of one colour."""
    names = "abcde"
    write_listed([folder / f"{name}.png" for name in names], colours(), 32)
    return dict(zip(names, colours(), strict=False))


@pytest.mark.parametrize("inner", ["", "letters"])
@pytest.mark.parametrize(("image_size", "kind"), [(64, TensorData), (65, ImageFiles)])
def test_an_experience_has_the_files_of_its_list_in_their_order(
    inner: str, image_size: int, kind: Any, tmp_path: Path
) -> None:
    colour = write(tmp_path / inner)
    stream = ListedStream(Letters(tmp_path, image_size=image_size), 2)
    assert stream.classes == [(0, 1), (0, 1, 2)]
    for experience, expected in enumerate(LISTS):
        part = stream.part(experience, "train")
        assert isinstance(part, kind)
        assert part.shares_storage(stream.part(0, "train"))
        for (name, label), (x, y) in zip(expected, [part[i] for i in range(len(part))], strict=True):
            assert (x.shape, x.dtype) == ((3, image_size, image_size), torch.uint8)
            assert (x[:, 5, 5].tolist(), int(y)) == (list(colour[name]), label)


def test_a_stream_is_made_without_files_and_asks_for_them(tmp_path: Path) -> None:
    stream = ListedStream(Letters(tmp_path), 2)
    assert (len(stream), stream.num_classes, stream.input_shape) == (2, 3, (3, 32, 32))
    message = r"Letters is missing: looked for a\.png in `root` .*\. Write them\."
    for ask in (stream.prepare_data, lambda: stream.classes, lambda: stream.part(0, "test")):
        with pytest.raises(FileNotFoundError, match=message):
            ask()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[("a", 0)], []], r"Letters: the lists of experiences \[1\] name no file"),
        ([[("a", 0), ("b", 1)], [("c", 2), ("b", 0)]], r"Letters: the lists give '.*/b\.png' two labels"),
        ([[("a", 0), ("b", 1)], [("c", 3)]], r"Labels must be in \[0, 3\) \(`num_classes`\), got \[3\]"),
        ([[("a", 0)], [("b", 1)]], r"`num_classes` is 3, and there is no training sample of \[2\]"),
    ],
    ids=["empty", "two labels", "out of range", "no sample"],
)
def test_bad_lists_are_named(given: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        ListedStream(Letters(tmp_path, given), 2).part(0, "train")


def test_missing_files_are_named_from_the_root_on(tmp_path: Path) -> None:
    source = Letters(tmp_path)
    assert source.absent([tmp_path, tmp_path / "x" / "y", Path("/elsewhere/b")]) == ["x/y", "/elsewhere/b"]


def test_image_size_is_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, got 0"):
        Letters(tmp_path, image_size=0)


def test_training_and_test_lists_are_kept_apart(tmp_path: Path) -> None:
    colour = write(tmp_path)

    class Two(Letters):
        def lists(self, train: bool) -> list[FileList]:
            return super().lists(train)[:: 1 if train else -1]

    stream = ListedStream(Two(tmp_path), 2)
    assert stream.classes == [(0, 1), (0, 1, 2)]  # of the training lists
    found = [[x[:, 5, 5].tolist() for x, _ in stream.part(i, name)] for i in (0, 1) for name in ("train", "test")]
    first, second = ([list(colour[name]) for name, _ in part] for part in LISTS)
    assert found == [first, second, second, first]


def test_images_are_normalised_as_those_of_imagenet(tmp_path: Path) -> None:
    (x,) = ListedStream(Letters(tmp_path), 2).transform_batch([torch.zeros(1, 3, 1, 1, dtype=torch.uint8)])
    torch.testing.assert_close(x.flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
