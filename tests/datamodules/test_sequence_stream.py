from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cl import fit_stream
from lightning_cl.datamodules import SequenceStream, from_scenario
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, samples, seeded, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS


class TaskSet:
    """What Continuum gives: triples of image, label, task."""

    def __init__(self, task: int, train: bool) -> None:
        x, y = samples(train)
        chosen = y // 2 == task
        self.x, self.y, self.task = x[chosen].float() / 255, y[chosen], task

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        return self.x[index], int(self.y[index]), self.task

    def get_classes(self) -> Any:
        return self.y.unique().numpy()


class Scenario(list[TaskSet]):
    nb_classes = 4


def continuum() -> SequenceStream:
    train, test = (Scenario([TaskSet(task, train) for task in (0, 1)]) for train in (True, False))
    return from_scenario(train, test, batch_size=8, seed=0)


def avalanche(test_sets: int = 2) -> SequenceStream:
    def experience(task: int, train: bool) -> Any:
        data = TaskSet(task, train)
        return SimpleNamespace(dataset=data, classes_in_this_experience={int(y) for y in data.y})

    train, test = ([experience(task, train) for task in (0, 1)] for train in (True, False))
    benchmark = SimpleNamespace(train_stream=train, test_stream=test[:test_sets], n_classes=4)
    return from_scenario(benchmark, batch_size=8, seed=0)


@pytest.mark.parametrize("make", [continuum, avalanche])
def test_streams_of_others_are_taken_as_they_are(make: Any) -> None:
    stream = make()
    assert (stream.classes, stream.num_classes, stream.input_shape) == ([(0, 1), (2, 3)], 4, (1, 8, 8))
    result = fit_stream(trainer(max_epochs=1), seeded(Net), stream)
    assert result.accuracy_matrix.shape == (2, 2)
    x, y = next(iter(stream.test_dataloader().loaders[1]))
    assert torch.equal(x, TaskSet(1, False).x)
    assert torch.equal(y, TaskSet(1, False).y)


def test_classes_that_avalanche_leaves_out_are_those_of_the_targets() -> None:
    """As of its generators that make a plain scenario."""

    def experience(task: int, train: bool) -> Any:
        data: Any = TaskSet(task, train)
        data.targets = data.y.tolist()
        return SimpleNamespace(dataset=data)

    streams = [[experience(task, train) for task in (0, 1)] for train in (True, False)]
    stream = from_scenario(SimpleNamespace(train_stream=streams[0], test_stream=streams[1]))
    assert (stream.classes, stream.num_classes) == ([(0, 1), (2, 3)], 4)


def test_one_test_set_for_all_is_measured_once() -> None:
    stream = avalanche(test_sets=1)
    count = len(stream.part(0, "test"))
    result = fit_stream(trainer(max_epochs=1), seeded(Net), stream)
    assert torch.equal(result.accuracy_matrix[1, 0], result.accuracy_matrix[1, 1])
    assert list(stream.evaluated) == [0]
    assert [e.num_test for e in stream.experiences] == [count, count]


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`scenario` must be a Continuum scenario .* got a int\."):
        from_scenario(3)
    with pytest.raises(ValueError, match="`test` must be the test scenario"):
        from_scenario(Scenario())
    with pytest.raises(ValueError, match="`test` must hold 1 data set, or one for each of 2, got 3"):
        SequenceStream([[0], [0]], [[0]] * 3, [[0], [1]])


def test_what_comes_again_is_cut_as_before_and_jointly_trained_on_once() -> None:
    first, second = TaskSet(0, True), TaskSet(1, True)
    classes = [[0, 1], [2, 3], [0, 1]]
    stream = SequenceStream([first, second, first], [first], classes, 4, val_fraction=0.5, cumulative=True)
    assert stream.part(0, "val") is stream.part(2, "val")
    assert stream.part(0, "val").indices.tolist() != stream.part(1, "val").indices.tolist()
    stream.current = 2
    assert sum(len(y) for _, y in stream.train_dataloader()) == len(stream.part(0, "train")) + len(
        stream.part(1, "train")
    )
    tests = [first, second, first]
    labelled = SequenceStream(tests, tests, classes, 4, task_labels=True)
    labelled.setup("test")
    assert [e.task_label for e in labelled.experiences] == [0, 1, 0]


def test_labels_may_have_gaps_and_classes_are_as_many_as_data_sets() -> None:
    tasks = [[(torch.zeros(1), label)] for label in (0, 5)]
    assert SequenceStream(tasks, tasks, [[0], [5]]).num_classes == 6
    with pytest.raises(ValueError, match="`classes` must name those of 2 experiences, got 1 groups"):
        SequenceStream(tasks, tasks, [[0]])


def test_what_continuum_says_of_the_classes_counts() -> None:
    class Reversed(TaskSet):
        def get_classes(self) -> Any:
            return super().get_classes()[::-1]

    class More(Scenario):
        nb_classes = 7

    parts = More([Reversed(task, True) for task in (0, 1)])
    stream = from_scenario(parts, parts)
    assert (stream.classes, stream.num_classes) == ([(0, 1), (2, 3)], 7)


def test_arguments_reach_the_stream_and_half_a_benchmark_is_refused() -> None:
    assert avalanche().batch_size == continuum().batch_size == 8
    with pytest.raises(TypeError, match="`scenario` must be a Continuum scenario"):
        from_scenario(SimpleNamespace(train_stream=[]))
