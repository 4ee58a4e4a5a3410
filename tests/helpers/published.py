"""What is asserted alike of streams that differ in names and numbers only."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.segments import CorruptedFiles
from lightning_cl.stream import StreamDataModule
from tests.helpers.fakes._corrupted import write_arrays
from tests.helpers.fakes._images import distinct_images


def check_normalisation(stream: StreamDataModule, mean: float, std: float) -> None:
    """A pixel of 0 and one of 255 in the first channel become what these numbers say."""
    x = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).repeat(1, stream.input_shape[0], 1, 1)
    (normal,) = stream.transform_batch([x])
    torch.testing.assert_close(normal[0, 0, 0], torch.tensor([-mean / std, (1 - mean) / std]))


def check_idx_stream(cls: Any, arguments: dict[str, Any], mean: float, std: float) -> None:
    """Two classes at a time, with the images of :func:`write_idx_set`."""
    stream = cls(**arguments)
    stream.prepare_data()
    pairs = [((k, k + 1), 8, 4) for k in range(0, 10, 2)]
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == pairs
    x, y = stream.part(2, "test").batch(torch.arange(4))
    assert y.tolist() == [4, 5, 4, 5]
    assert torch.equal(x, torch.from_numpy(distinct_images(20, 1, 28, first=41)[[4, 5, 14, 15]]))
    check_normalisation(stream, mean, std)


def check_corrupted_files(cls: type[CorruptedFiles], root: Path, classes: int, mean: float, std: float) -> None:
    """Pixels say the corruption, the severity and the image; there is nothing to train on."""
    write_arrays(root, cls.folder, classes, each=1)
    stream = cls(str(root), severity=2)
    assert (stream.num_classes, stream.eval_batch_size) == (classes, 200)
    x, y = stream.part(14, "test").batch(torch.arange(classes))
    assert y.tolist() == list(range(classes))
    assert x[:, :, 5, 5].tolist() == [[14, 2, k] for k in range(classes)]
    check_normalisation(stream, mean, std)
    with pytest.raises(ValueError, match=f"test images only: train with .*streams/split_cifar{classes} --data.num_exp"):
        stream.setup("fit")
