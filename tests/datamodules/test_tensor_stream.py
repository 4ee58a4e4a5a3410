import pytest
import torch

from lightning_cl.datamodules import TensorStream


def test_two_lines_are_enough() -> None:
    x, y = torch.arange(240, dtype=torch.uint8).view(60, 1, 2, 2), torch.arange(60) % 6
    stream = TensorStream(x, y, num_experiences=3)
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((0, 1), 16, 4),
        ((2, 3), 16, 4),
        ((4, 5), 16, 4),
    ]
    assert stream.part(0, "train").inputs.data_ptr() == x.data_ptr()
    assert stream.input_shape == (1, 2, 2)


def test_test_samples_are_those_given() -> None:
    x, y = torch.rand(12, 3), torch.arange(12) % 4
    stream = TensorStream(x, y, x[:4] + 10, y[:4], num_experiences=2)
    assert [e.num_train for e in stream.experiences] == [6, 6]
    assert float(stream.part(1, "test").batch(torch.arange(2))[0].min()) >= 10
    with pytest.raises(ValueError, match="`x_test` and `y_test` go together"):
        TensorStream(x, y, x)


def test_labels_that_are_no_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`y` must hold integers, the classes, got torch.float32"):
        TensorStream(torch.rand(8, 3), torch.arange(8) / 2, num_experiences=2)
