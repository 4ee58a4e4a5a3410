from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from lightning_cl.samples import (
    Batched,
    ImageFiles,
    MapData,
    Samples,
    TensorData,
    center_crop,
    joined,
    random_crop,
    read_image,
)


class Numbers(Dataset[Any]):
    """Sample ``k`` is ``(k, k % 3)``."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index % 3


def tensors() -> TensorData:
    return TensorData(torch.arange(9.0).view(9, 1), torch.arange(9) % 3)


def files(folder: Path, **kwargs: Any) -> ImageFiles:
    for k in range(9):
        Image.new("L", (6, 4), 20 * k).save(folder / f"{k}.png")
    paths = [folder / f"{k}.png" for k in range(9)]
    return ImageFiles(paths, torch.arange(9) % 3, center_crop(4), **kwargs)


def values(data: Any) -> list[int]:
    return [int(data[k][0].flatten()[0]) for k in range(len(data))]


@pytest.mark.parametrize("kind", ["tensors", "map", "files"])
def test_parts_keep_labels_and_tasks_beside_their_samples(kind: str, tmp_path: Path) -> None:
    whole: Samples = {"tensors": tensors, "map": lambda: MapData(Numbers(), torch.arange(9) % 3)}.get(
        kind, lambda: files(tmp_path)
    )()
    part = whole.with_task(4).subset(torch.tensor([8, 2, 5])).subset(torch.tensor([1, 0]))
    scale = 20 if kind == "files" else 1
    assert values(part) == [2 * scale, 8 * scale]
    assert part.labels.tolist() == [2, 2]
    assert [[int(column) for column in part[k][1:]] for k in (0, 1)] == [[2, 4], [2, 4]]
    assert part.relabelled([5, 6, 7]).labels.tolist() == [7, 7]
    assert len(whole) == 9
    assert whole.tasks is None


@pytest.mark.parametrize("make", [tensors, lambda: MapData(Numbers(), torch.arange(9) % 3)], ids=["tensors", "map"])
def test_joined_parts_of_one_storage_are_one_part_of_it(make: Any) -> None:
    whole = make()
    data = joined([whole.subset(torch.tensor([4, 1])).with_task(0), whole.subset(torch.tensor([7])).with_task(1)])
    assert type(data) is type(whole)
    assert values(data) == [4, 1, 7]
    assert data.tasks.tolist() == [0, 0, 1]


def test_joined_tensors_make_whole_batches_in_any_order() -> None:
    parts = [tensors().subset(torch.arange(n)).relabelled([n, n, n]) for n in (3, 1, 4)]
    data = joined(parts)
    assert isinstance(data, Batched)
    order = torch.tensor([7, 0, 3, 2, 4, 4, 1])
    x, y = data.batch(order)
    each = [(0, 3), (1, 3), (2, 3), (0, 1), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert list(zip(x[:, 0].long().tolist(), y.tolist(), strict=True)) == [each[k] for k in order]
    assert values(data) == [value for value, _ in each]


def test_joined_samples_of_different_kinds_are_chained() -> None:
    data = joined([tensors(), MapData(Numbers())])
    assert isinstance(data, ConcatDataset)
    assert values(data) == [*range(9), *range(9)]
    assert joined([data]) is data


def test_map_data_leaves_labels_to_the_samples_unless_told() -> None:
    data = MapData(Numbers()).subset(torch.tensor([5]))
    assert [column.item() if isinstance(column, Tensor) else column for column in data[0]] == [5.0, 2]
    with pytest.raises(ValueError, match="labels of this MapData are not known: make it with `targets`"):
        _ = data.labels


def test_map_data_of_dicts_needs_targets() -> None:
    with pytest.raises(ValueError, match=r"`targets` must be given where samples are dicts"):
        _ = MapData([{"x": 1}])[0]
    with pytest.raises(ValueError, match=r"`input_key` 'x' says where the input is: `targets` must be given too"):
        MapData([{"x": 1}], input_key="x")


def test_input_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"`input_key` must be one of \['image'\], as samples are dicts, got 0"):
        _ = MapData([{"image": 1}], torch.tensor([0]))[0]


def test_map_data_reads_dicts_images_and_arrays() -> None:
    rows = [{"image": Image.new("RGB", (3, 2), (1, 2, 3)), "label": 7}, {"image": np.ones(4), "label": 8}]
    data = MapData(rows, torch.tensor([7, 8]), input_key="image")
    assert (data[0][0].shape, data[0][0].dtype) == ((3, 2, 3), torch.uint8)
    assert data[0][0][:, 0, 0].tolist() == [1, 2, 3]
    assert torch.equal(data[1][0], torch.ones(4).double())
    assert MapData(rows, torch.tensor([7, 8]), "image", lambda x: 5)[1] == [5, torch.tensor(8)]


def test_image_files_are_augmented_for_training_only(tmp_path: Path) -> None:
    data = files(tmp_path, train_transform=lambda image: torch.full((3, 4, 4), 255 - image.getpixel((0, 0))[0]))
    assert values(data) == [20 * k for k in range(9)]
    assert values(data.for_training()) == [255 - 20 * k for k in range(9)]
    assert values(data) == [20 * k for k in range(9)]
    plain = files(tmp_path)
    assert plain.for_training() is plain


def test_crops_are_of_the_size_and_place_that_they_say() -> None:
    columns = np.arange(40, dtype=np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2)
    image = Image.fromarray(columns)  # 40 wide, 20 high
    crop = center_crop(10, 20)(image)
    assert (crop.shape, crop.dtype) == ((3, 10, 10), torch.uint8)
    assert crop[0, 0].tolist() == list(range(15, 25))
    torch.manual_seed(0)
    random = [random_crop(8, scale=(0.2, 0.5), flip=flip)(image) for flip in (0.0, 1.0) for _ in range(5)]
    assert all(part.shape == (3, 8, 8) for part in random)
    assert len({part.numpy().tobytes() for part in random}) > 5
    assert all((part[0, 0].long().diff() >= 0).all() for part in random[:5])  # brighter to the right
    assert all((part[0, 0].long().diff() <= 0).all() for part in random[5:])  # mirrored


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    whole = (tmp_path / "half.png").read_bytes()
    for name, content in (("half.png", whole[: len(whole) // 2]), ("text.png", b"no image")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' is no image or not downloaded whole .*: get it again\."):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


def test_labels_must_be_as_many_as_samples() -> None:
    with pytest.raises(ValueError, match=r"`inputs` and `targets` must be of one length, got 9 and 8"):
        MapData(Numbers(), torch.arange(8))


# -- at the edges -----------------------------------------------------------------------------------------------------


def test_task_labels_stay_with_their_samples() -> None:
    data = joined([tensors().subset(torch.tensor([k])).with_task(k) for k in (4, 1, 7)])
    part = data.subset(torch.tensor([2, 0]))
    assert (values(part), part.tasks.tolist()) == ([7, 4], [7, 4])


def test_distinct_samples_keep_their_order() -> None:
    assert values(tensors().subset(torch.tensor([7, 3, 7, 1, 3])).distinct()) == [7, 3, 1]


def test_labels_of_joined_tensors_are_those_of_all_parts() -> None:
    parts = [tensors().subset(torch.arange(n)).relabelled([n, n, n]) for n in (2, 1)]
    assert joined(parts).labels.tolist() == [2, 2, 1]


def test_storage_is_shared_by_equal_labels_of_one_kind() -> None:
    class Other(TensorData):
        pass

    data = tensors()
    assert data.shares_storage(TensorData(data.inputs, data.targets.clone()))
    assert not data.shares_storage(TensorData(data.inputs, data.targets + 1))
    assert not data.shares_storage(Other(data.inputs, data.targets))


def test_pairs_are_transformed_too() -> None:
    x, y = MapData([(np.ones(4), 7)])[0]
    assert (torch.equal(x, torch.ones(4).double()), y) == (True, 7)


def test_images_are_resized_by_the_bicubic_filter() -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (9, 9, 3), np.uint8))
    expected = np.asarray(image.resize((4, 4), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(center_crop(4)(image).numpy(), expected)


def test_random_crops_are_small_and_large_and_mirrored_half_of_the_time() -> None:
    image = Image.fromarray(np.arange(40, dtype=np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2))
    torch.manual_seed(0)
    ends = torch.stack([random_crop(8)(image)[0, 0, [0, -1]].int() for _ in range(100)])
    widths = (ends[:, 1] - ends[:, 0]).abs()
    assert widths.min() < 8  # an area of 0.05 and the narrowest shape: 5.5 columns
    assert widths.max() > 20
    assert 30 < (ends[:, 1] < ends[:, 0]).sum() < 70
