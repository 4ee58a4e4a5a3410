"""Streams of other libraries: a scenario of Continuum or a benchmark of Avalanche, as it is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import MapData, Samples
from lightning_cl.stream import StreamDataModule


class SequenceStream(StreamDataModule):
    """One data set of pairs ``(x, y)`` for each experience.

    Args:
        train: The training data set of each experience.
        test: The test data set of each, or one for all, which then is measured once.
        classes: The labels of each experience.
        num_classes: Number of labels in the whole stream; ``None`` is the largest of ``classes`` and one.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Raises:
        ValueError: If there are not as many ``classes`` as training data sets, or not as many or one test data set.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> tasks = [TensorDataset(torch.rand(8, 2), torch.full((8,), label)) for label in (0, 1)]
        >>> stream = SequenceStream(tasks, tasks, classes=[[0], [1]])
        >>> len(stream), stream.experiences[1].num_train
        (2, 8)
    """

    def __init__(
        self,
        train: Sequence[Any],
        test: Sequence[Any],
        classes: Sequence[Sequence[int]],
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        if len(train) != len(classes):
            raise ValueError(f"`classes` must name those of {len(train)} experiences, got {len(classes)} groups.")
        if len(test) not in (1, len(train)):
            raise ValueError(f"`test` must hold 1 data set, or one for each of {len(train)}, got {len(test)}.")
        if num_classes is None:
            num_classes = max(c for group in classes for c in group) + 1
        self._sets = {True: train, False: test}
        shape = tuple(MapData(train[0])[0][0].shape)
        super().__init__(classes, num_classes, shape, **kwargs)

    @override
    def dataset(self, experience: int, train: bool) -> Samples:
        sets = self._sets[train]
        return MapData(_Pairs(sets[experience if len(sets) > 1 else 0]))

    @override
    def first_of(self, experience: int) -> int:
        return _first(self._sets[True], experience)

    @override
    def test_of(self, experience: int) -> int:
        return _first(self._sets[False], experience) if len(self._sets[False]) > 1 else 0


def from_scenario(scenario: Any, test: Any = None, **kwargs: Any) -> SequenceStream:
    """Take a stream of another library; nothing of it is imported here.

    Continuum (Douillard & Lesort, 2021): a scenario is a sequence of task sets, with another for testing. Avalanche
    (Lomonaco et al., CVPR Workshops 2021): a benchmark holds its train and test streams. Their transforms are applied
    to each sample as they say; labels are as they map them.

    Args:
        scenario: A Continuum scenario, or an Avalanche benchmark.
        test: The test scenario of Continuum. An Avalanche benchmark brings its own.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Raises:
        TypeError: If it is neither.
        ValueError: If ``test`` is missing.
    """
    if hasattr(scenario, "train_stream") and hasattr(scenario, "test_stream"):
        train, tested = list(scenario.train_stream), list(scenario.test_stream)
        sets = [[experience.dataset for experience in experiences] for experiences in (train, tested)]
        return SequenceStream(sets[0], sets[1], [*map(_classes_of, train)], **kwargs)
    if not (hasattr(scenario, "nb_classes") and hasattr(scenario, "__getitem__") and hasattr(scenario, "__len__")):
        raise TypeError(
            "`scenario` must be a Continuum scenario (`nb_classes`, a length, task sets) or an Avalanche benchmark "
            f"(`train_stream`, `test_stream`), got a {type(scenario).__name__}."
        )
    if test is None:
        raise ValueError("`test` must be the test scenario: Continuum keeps it apart from the one for training.")
    train, tested = ([part[i] for i in range(len(part))] for part in (scenario, test))
    classes = [sorted(map(int, task.get_classes())) for task in train]
    return SequenceStream(train, tested, classes, int(scenario.nb_classes), **kwargs)


def _first(sets: Sequence[Any], at: int) -> int:
    """Where the data set at a position comes first."""
    return next(i for i, other in enumerate(sets) if other is sets[at])


def _classes_of(experience: Any) -> list[int]:
    """The classes of an experience of Avalanche, some of whose generators leave them out."""
    classes = getattr(experience, "classes_in_this_experience", None)
    return sorted({*map(int, experience.dataset.targets if classes is None else classes)})


class _Pairs(torch.utils.data.Dataset[Any]):
    """The first two columns of each sample: others are the library's own task labels."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @override
    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        x, y, *_ = self.dataset[index]
        return x, torch.as_tensor(y)
