"""Any map-style data set as a stream: of torchvision, of Hugging Face, your own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_cl.samples import MapData
from lightning_cl.scenarios import OwnStream


class DatasetStream(OwnStream):
    """A map-style data set with labels, cut by class, by domain or by lists of indices.

    Samples are read one by one, by ``num_workers`` processes. What fits into memory as one tensor is faster as a
    :class:`TensorStream`.

    Args:
        train: The training samples: a torch data set of pairs ``(x, y)``, or a Hugging Face ``Dataset`` of dicts.
        test: The test samples; ``None`` cuts ``test_fraction`` off the training samples, of each class.
        targets: Labels of ``train`` ``(N,)``; ``None`` looks for them (see :func:`targets_of`).
        test_targets: Labels of ``test``, likewise.
        input_key: Where the input is in a sample: its position in a tuple, or its key in a dict.
        target_key: The key of the label in a dict.
        transform: Applied to each input; ``None`` turns a ``PIL.Image`` into ``uint8`` ``(C, H, W)``.
        **kwargs: As for :class:`lightning_cl.scenarios.OwnStream`.

    Raises:
        ValueError: If the labels are not found, or ``input_key`` is negative.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.rand(40, 3), torch.arange(40) % 4)
        >>> stream = DatasetStream(data, num_experiences=2)
        >>> [(e.classes, e.num_train, e.num_test) for e in stream.experiences]
        [((0, 1), 16, 4), ((2, 3), 16, 4)]
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        *,
        targets: Tensor | None = None,
        test_targets: Tensor | None = None,
        input_key: int | str | None = None,
        target_key: str = "label",
        transform: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(input_key, int) and input_key < 0:
            raise ValueError(f"`input_key` must be 0 or more where it is a position, got {input_key}.")

        if test is None and test_targets is not None:
            raise ValueError("`test_targets` go with `test`: give both, or leave them out.")

        def samples(dataset: Any, targets: Tensor | None, name: str) -> MapData:
            key = input_key if input_key is not None else _input_key(dataset, target_key)
            labels = targets_of(dataset, target_key, name) if targets is None else torch.as_tensor(targets)
            return MapData(dataset, labels, key, transform)

        super().__init__(
            samples(train, targets, "targets"),
            None if test is None else samples(test, test_targets, "test_targets"),
            **kwargs,
        )


def targets_of(dataset: Any, key: str = "label", name: str = "targets") -> Tensor:
    """The labels of a data set, without reading its samples.

    They are looked for in the column ``key`` of a Hugging Face data set, in the attributes ``targets`` and ``labels``,
    and inside ``Subset``, ``ConcatDataset`` and ``TensorDataset``.

    Args:
        dataset: The data set.
        key: The column of the labels in a Hugging Face data set.
        name: The argument that the error names.

    Returns:
        int64 ``(N,)``.

    Raises:
        ValueError: If they are in none of these.

    Example:
        >>> from torch.utils.data import Subset, TensorDataset
        >>> targets_of(Subset(TensorDataset(torch.zeros(3), torch.tensor([4, 5, 6])), [2, 0]))
        tensor([6, 4])
    """
    from torch.utils.data import ConcatDataset, Subset, TensorDataset

    if isinstance(dataset, Subset):
        return targets_of(dataset.dataset, key, name)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([targets_of(part, key, name) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[1].long()
    if key in getattr(dataset, "column_names", ()):
        return torch.as_tensor(dataset[key]).long()
    for attribute in ("targets", "labels"):
        if hasattr(dataset, attribute):
            return torch.as_tensor(getattr(dataset, attribute)).long()
    raise ValueError(
        f"`{name}` must be given: {type(dataset).__name__} has no column {key!r} and no attribute `targets` or "
        "`labels`."
    )


def _input_key(dataset: Any, target_key: str) -> int | str:
    """The first column that is not the label, in a data set of columns; else the first of a pair."""
    from torch.utils.data import ConcatDataset, Subset

    if isinstance(dataset, Subset | ConcatDataset):
        return _input_key(dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0], target_key)
    columns = [name for name in getattr(dataset, "column_names", ()) if name != target_key]
    return columns[0] if columns else 0
