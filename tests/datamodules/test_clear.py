from pathlib import Path

from lightning_cl.datamodules import CLEAR
from tests.helpers.fakes import clear


def test_each_bucket_is_an_experience_of_all_classes(tmp_path: Path) -> None:
    stream = CLEAR(**clear.write(tmp_path))
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [(tuple(range(11)), 44, 22)] * 2
    assert (len(CLEAR()), len(CLEAR(protocol="streaming")), CLEAR(data_set="clear100").num_classes) == (10, 9, 100)


def test_streaming_tests_on_what_the_next_experience_trains_on(tmp_path: Path) -> None:
    arguments = clear.write(tmp_path)
    forth, back = (CLEAR(**{**arguments, "buckets": b}, protocol="streaming") for b in ([1, 2], [2, 1]))
    for one, other in ((forth, back), (back, forth)):
        images = [{x.numpy().tobytes() for x, _ in part} for part in (one.part(0, "test"), other.part(0, "train"))]
        assert images[0] == images[1]
        assert len(images[0]) == 66


def test_what_was_cut_is_in_the_shape(tmp_path: Path) -> None:
    shape = CLEAR(**clear.write(tmp_path), protocol="streaming").shape()
    assert {name: shape[name] for name in ("folder", "protocol", "split_seed", "buckets")} == {
        "folder": "clear10",
        "protocol": "streaming",
        "split_seed": None,
        "buckets": [1, 2],
    }


def test_experiences_are_named_after_their_buckets() -> None:
    assert [CLEAR(buckets=[3, 7]).name_of(i) for i in (0, 1)] == ["bucket 3", "bucket 7"]
