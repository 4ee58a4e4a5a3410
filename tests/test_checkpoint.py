import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.checkpoint import (
    RUN_STATE,
    AtomicCheckpointIO,
    CheckpointError,
    check_state,
    find_last,
    link_atomic,
    read_checkpoint,
    remove_leftovers,
)


def checkpoint(finished: int = 0, step: int = 0, consolidated: bool = False) -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.full((100,), float(finished))},
        "global_step": step,
        "callbacks": {RUN_STATE: {"finished": finished, "consolidated": consolidated}},
    }


def save(path: Path, **state: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint(checkpoint(**state), path)
    return path


def truncate(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


# -- writing ----------------------------------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path / "epoch=1.ckpt", finished=1)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(9), "last": Unpicklable()}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_when_the_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[Any] = []
    monkeypatch.setattr("os.replace", lambda temporary, path: whole.append((read_checkpoint(temporary), path)))
    save(tmp_path / "new" / "a.ckpt", finished=3)
    ((content, path),) = whole
    assert content["callbacks"][RUN_STATE]["finished"] == 3
    assert path == tmp_path / "new" / "a.ckpt"
    assert not path.exists()


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt")
    for leftover in (".a.ckpt.tmp", ".last.ckpt.tmp"):
        (tmp_path / leftover).touch()
    (tmp_path / ".notes.tmp").touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".notes.tmp", path]
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", [torch.optim.SGD, lambda x: x, Path("data")], ids=["class", "lambda", "path"])
def test_hyper_parameters_that_cannot_be_read_are_left_out(key: str, value: Any, tmp_path: Path) -> None:
    content = {**checkpoint(), key: {"lr": 0.1, "other": value}}
    with pytest.warns(UserWarning, match=rf"without `{key}`.*save_hyperparameters\(ignore="):
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").keys() == checkpoint().keys()
    assert key in content  # that of the trainer is not changed


def test_hyper_parameters_that_can_be_read_stay(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({**checkpoint(), "hyper_parameters": {"lr": 0.1}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"] == {"lr": 0.1}


def test_link_always_leads_somewhere(tmp_path: Path) -> None:
    link = tmp_path / "last.ckpt"
    for i in (0, 1):
        link_atomic(save(tmp_path / "checkpoints" / f"{i}.ckpt", finished=i), link)
        assert read_checkpoint(link)["callbacks"][RUN_STATE]["finished"] == i
    (tmp_path / ".last.ckpt.tmp").symlink_to("left by a killed process")
    link_atomic(tmp_path / "checkpoints" / "0.ckpt", link)
    assert link.readlink() == Path("checkpoints/0.ckpt")  # so that the folder can be moved


def test_link_in_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    """``runs`` on another disk; a resumed run has the resolved path of the checkpoint."""
    (tmp_path / "disk" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep" / "runs")
    path = save(tmp_path / "runs" / "checkpoints" / "a.ckpt")
    link_atomic(path.resolve(), tmp_path / "runs" / "last.ckpt")
    assert (tmp_path / "runs" / "last.ckpt").resolve() == path.resolve()


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(part: float, tmp_path: Path) -> None:
    path = truncate(save(tmp_path / "a.ckpt"), part)
    with pytest.raises(CheckpointError, match=r"^`ckpt_path`: '.*a\.ckpt' cannot be read \(.*truncated.*'last'"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, {"callbacks": {"EWC": {}}}, {"callbacks": None}, [1, 2], torch.zeros(2)], ids=str
)
def test_foreign_file_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt' was not written by `fit_stream`.*load_state_dict"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({**checkpoint(), "hyper_parameters": {"where": Path()}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "a.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^`ckpt_path`: there is no checkpoint '{path}'"):
            read_checkpoint(path)


def test_last_is_the_furthest_in_the_stream(tmp_path: Path) -> None:
    """By experiences finished, then steps, then consolidation; neither by name nor by time."""
    ahead = [
        save(tmp_path / "b" / "a.ckpt", finished=2, step=9),
        save(tmp_path / "a" / "c.ckpt", finished=1, step=30, consolidated=True),
        save(tmp_path / "a" / "x.ckpt", finished=1, step=30),
        save(tmp_path / "a" / "z.ckpt", finished=1, step=4),
        save(tmp_path / "a" / "y.ckpt", finished=0, step=90, consolidated=True),
    ]
    save(tmp_path / "a" / "deeper" / "other_run.ckpt", finished=5)
    for path in ahead:
        assert find_last([tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"]) == path
        path.unlink()
    assert find_last([tmp_path / "a"]) is None


def test_last_passes_over_what_cannot_be_used(tmp_path: Path) -> None:
    good = save(tmp_path / "a.ckpt", finished=1)
    truncate(save(tmp_path / "b.ckpt", finished=2), 0.5)
    torch.save({"state_dict": {}}, tmp_path / "c.ckpt")
    (tmp_path / "d.ckpt").symlink_to("deleted.ckpt")
    with pytest.warns(UserWarning, match="`ckpt_path`") as warned:
        assert find_last([tmp_path]) == good
    named = [re.search(r"\w+\.ckpt", str(warning.message))[0] for warning in warned]  # type: ignore[index]
    assert named == ["b.ckpt", "c.ckpt", "deleted.ckpt"]


def test_last_follows_links(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "a.ckpt")
    link_atomic(path, tmp_path / "last.ckpt")
    assert find_last([tmp_path, tmp_path / "checkpoints"]) == path.resolve()


# -- whose it is ------------------------------------------------------------------------------------------------------


SHAPE = {"stream": "SplitDigits", "classes": [[0, 1], [2, 3]], "seed": 0, "batch_size": 16}
SAVED = ["EWC{'strength': '1.0'}", "Replay{'capacity': '100'}"]
STATE = {"shape": SHAPE, "world_size": 1, "within": False, "callbacks": SAVED}


def test_checkpoint_of_the_same_run_is_accepted() -> None:
    check_state(STATE, SHAPE, 1, SAVED)


@pytest.mark.parametrize(
    ("shape", "difference"),
    [
        ({"stream": "Mine"}, "`stream` was SplitDigits and is Mine now"),
        ({"seed": 1, "batch_size": 8}, "`seed` was 0 and is 1 now"),
        ({"classes": [[0, 1], [3, 2]]}, "`classes[1]` was [2, 3] and is [3, 2] now"),
        ({"classes": [[0, 1]]}, "`classes` was [[0, 1], [2, 3]] and is [[0, 1]] now"),
        ({"new": True}, "`new` was None and is True now"),
    ],
)
def test_checkpoint_of_another_stream_is_refused(shape: dict[str, Any], difference: str) -> None:
    with pytest.raises(CheckpointError, match=f"another stream: {re.escape(difference)}. Resume with the arguments"):
        check_state(STATE, {**SHAPE, **shape}, 1, SAVED)


def test_only_between_experiences_the_number_of_processes_may_change() -> None:
    with pytest.raises(CheckpointError, match=r"by 1 process\(es\) and this run has 2, .* `devices` .*experience_<i>"):
        check_state({**STATE, "within": True}, SHAPE, 2, SAVED)
    with pytest.warns(UserWarning, match=r"goes on with 2 process\(es\), after 1: (.|\n)*Set `batch_size`"):
        check_state(STATE, SHAPE, 2, SAVED)


@pytest.mark.parametrize(
    ("callbacks", "difference"),
    [
        ([SAVED[0], "Replay{'capacity': '9'}"], "with {1}, and this run has Replay{{'capacity': '9'}}:"),
        ([*SAVED, "LwF{'alpha': '1.0'}"], "with fewer callbacks, and this run has LwF{{'alpha': '1.0'}}:"),
        (SAVED[:1], "with {1}, and this run has no such callback:"),
    ],
)
def test_checkpoint_of_other_callbacks_is_refused(callbacks: list[str], difference: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"The checkpoint was written {difference.format(*SAVED)}")):
        check_state(STATE, SHAPE, 1, callbacks)
