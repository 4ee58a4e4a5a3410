import json
import os
import random
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl import mapped
from lightning_cl.mapped import MappedRows


def stamped(stamps: list[int] | Tensor) -> dict[str, Tensor]:
    """Rows that tell their own content: 13 bytes and a number each."""
    y = torch.as_tensor(stamps, dtype=torch.int64)
    return {"x": (y[:, None] * 31 + torch.arange(13)).to(torch.uint8), "y": y}


def new(path: Path) -> MappedRows:
    return MappedRows.create(path, stamped([0]))


def assert_reads(rows: MappedRows, content: Mapping[int, int]) -> None:
    read = rows.read(torch.tensor(list(content), dtype=torch.int64))
    torch.testing.assert_close(read, stamped(torch.tensor(list(content.values()), dtype=torch.int64)), rtol=0, atol=0)


def put(rows: MappedRows, stamps: list[int]) -> dict[int, int]:
    return dict(zip(rows.write(stamped(stamps)).tolist(), stamps, strict=True))


def of_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Rows ``(5, *shape)`` of random bits, which include NaN."""
    if dtype == torch.bool:
        return torch.rand(5, *shape) > 0.5
    return torch.randint(256, (5, *shape, dtype.itemsize), dtype=torch.uint8).view(dtype).squeeze(-1)


def bits(values: Tensor) -> Tensor:
    return values[..., None].view(torch.uint8)


DTYPES = "bool uint8 int8 int16 uint16 int32 int64 uint64 float16 bfloat16 float32 float64 float8_e4m3fn complex64 "
DTYPES += "complex128"


@pytest.mark.parametrize("dtype", DTYPES.split())
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5), (0,)])
def test_bits_of_every_dtype_and_shape_come_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    columns = {"before": torch.arange(5, dtype=torch.uint8), "x": of_dtype(getattr(torch, dtype), shape)}
    rows = MappedRows.create(tmp_path / "rows", columns)
    order = rows.write(columns).flip(0)
    read = rows.read(order)
    assert read["x"].dtype == columns["x"].dtype
    assert read["x"].shape == columns["x"].shape
    assert read["x"].is_contiguous()
    assert torch.equal(bits(read["x"]), bits(columns["x"]).flip(0))
    assert torch.equal(read["before"], columns["before"].flip(0))


def test_views_of_any_kind_are_stored(tmp_path: Path) -> None:
    values = torch.randn(4, 6, requires_grad=True)
    columns = {"t": values.mT[:4], "odd": torch.arange(17, dtype=torch.uint8)[1:].view(4, 4), "c": (values + 1j).conj()}
    rows = MappedRows.create(tmp_path / "rows", columns)
    torch.testing.assert_close(
        rows.read(rows.write(columns)), {name: column.detach().resolve_conj() for name, column in columns.items()}
    )


def test_first_what_is_free_then_the_end(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    assert list(put(rows, [0, 1, 2, 3])) == [0, 1, 2, 3]
    rows.release(torch.tensor([2]))
    rows.release(torch.tensor([0, 2]))
    assert list(put(rows, [4, 5, 6])) == [0, 2, 4]
    rows.release(torch.tensor([4]))
    rows.commit()
    rows.release(torch.tensor([1]))
    assert list(put(rows, [7])) == [5]
    assert_reads(rows, {0: 4, 1: 1, 2: 5, 3: 3, 4: 6, 5: 7})


def test_without_commits_the_file_holds_what_its_owner_holds(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    held = list(put(rows, list(range(10))))
    for step in range(50):
        held += put(rows, [step, step, step])
        rows.release(torch.tensor(held[:3]))
        del held[:3]
    assert max(held) < 10 + 3


@pytest.mark.parametrize("seed", range(6))
def test_no_committed_row_ever_changes(tmp_path: Path, seed: int) -> None:
    """Random writes, releases, commits and resumes from random markers, against a dict."""
    rng, path = random.Random(seed), tmp_path / "rows"
    rows, stamp = new(path), 0
    live: dict[int, int] = {}
    states: list[tuple[dict[str, Any], dict[int, int]]] = []
    for _ in range(150):
        action = rng.choice(["write", "write", "release", "commit", "resume"])
        if action == "write":
            count = rng.randrange(6)
            live |= put(rows, list(range(stamp, stamp + count)))
            stamp += count
        elif action == "release":
            gone = rng.sample(sorted(live), rng.randint(0, len(live)))
            rows.release(torch.tensor(gone, dtype=torch.int64))
            live = {row: value for row, value in live.items() if row not in gone}
        elif action == "commit":
            states.append((rows.commit(), dict(live)))
        elif states:
            marker, live = rng.choice(states)
            live = dict(live)
            rows.close()
            rows = MappedRows.open(path, marker)
        assert_reads(rows, live)
    for marker, content in states:
        assert_reads(MappedRows.open(path, marker, mode="r"), content)


def test_resume_goes_on_after_the_last_commit_whatever_the_marker(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    put(rows, [0, 1])
    first = rows.commit()
    put(rows, [2, 3, 4])
    rows.commit()
    put(rows, [5])  # lost
    rows.close()
    assert list(put(MappedRows.open(tmp_path / "rows", first), [6])) == [5]


def test_a_marker_is_plain_and_survives_json(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    content = put(rows, [5, 6])
    marker = json.loads(json.dumps(rows.commit()))
    assert rows.commit() == marker == {"file": "rows", "id": marker["id"], "rows": 2}
    rows.close()
    assert_reads(MappedRows.open(tmp_path / "rows", marker), content)


def test_rows_reach_the_disk_before_the_number_that_vouches_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, at_sync = new(tmp_path / "rows"), []
    put(rows, [1, 2, 3])

    def sync(file: Any) -> None:
        at_sync.append(mapped._Header.read(file, tmp_path).committed)

    monkeypatch.setattr(mapped, "_sync", sync)
    rows.commit()
    rows.commit()
    assert at_sync == [-1, 3]


def forked(work: Any) -> int:
    """Run ``work()`` in a forked child; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, where threads are about
        pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def keep_writing(path: Path, marker: dict[str, Any] | None, content: dict[int, int], pipe: int, seed: int) -> None:
    """Replace random rows and commit now and then; tell of each commit once it is done."""
    rng = random.Random(seed)
    rows = new(path) if marker is None else MappedRows.open(path, marker)
    while True:
        gone = rng.sample(sorted(content), max(0, len(content) - 40))
        rows.release(torch.tensor(gone, dtype=torch.int64))
        content = {row: value for row, value in content.items() if row not in gone}
        content |= put(rows, [rng.randrange(2**40) for _ in range(rng.randrange(20))])
        if rng.random() < 0.3:
            state = json.dumps([rows.commit(), list(content.items())])
            os.write(pipe, state.encode() + b"\n")


def test_killed_while_writing(tmp_path: Path) -> None:
    states: list[Any] = [[None, []]]
    for seed in range(5):
        reader, writer = os.pipe()
        marker, content = random.Random(seed).choice(states[1:] or states)
        pid = forked(lambda: keep_writing(tmp_path / "rows", marker, dict(content), writer, seed))  # noqa: B023
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            told = [lines.readline()]
            time.sleep(random.Random(seed).uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            told += lines.readlines()
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        states += [json.loads(line) for line in told if line.endswith(b"\n")]
    assert len(states) > 5
    for marker, content in states[1:]:
        assert_reads(MappedRows.open(tmp_path / "rows", marker, mode="r"), dict(content))


def test_one_writer_at_a_time_and_any_readers(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    content = put(rows, [1, 2])
    marker = rows.commit()
    put(rows, [3])
    reader = MappedRows.open(tmp_path / "rows", marker, mode="r")
    assert_reads(reader, content)
    with pytest.raises(BlockingIOError, match="`file` must be written by one process only"):
        new(tmp_path / "rows")
    with pytest.raises(BlockingIOError, match="`file` must be written by one process only"):
        MappedRows.open(tmp_path / "rows", marker)
    del rows  # as good as closed
    assert list(put(MappedRows.open(tmp_path / "rows", marker), [4])) == [2]
    with pytest.raises(RuntimeError, match='opened with `mode="r"`'):
        put(reader, [1])
    with pytest.raises(RuntimeError, match='opened with `mode="r"`'):
        reader.commit()
    with pytest.raises(IndexError):
        reader.read(torch.tensor([2]))


def test_a_view_that_lives_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    view, marker = rows._records, rows.commit()
    rows.close()
    MappedRows.open(tmp_path / "rows", marker)
    del view


def test_a_forked_worker_neither_holds_the_lock_nor_writes(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    reader, writer = os.pipe()

    def worker() -> None:
        try:
            rows.commit()
            os.write(writer, b"committed")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        time.sleep(60)

    pid = forked(worker)
    try:
        assert "is closed, as it is in every forked process" in os.read(reader, 1000).decode()
        marker = rows.commit()
        with pytest.raises(BlockingIOError):
            MappedRows.open(tmp_path / "rows", marker)
        rows.close()
        MappedRows.open(tmp_path / "rows", marker).close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_a_run_that_never_committed_may_begin_again(tmp_path: Path) -> None:
    (tmp_path / "rows").touch()  # killed at once
    put(new(tmp_path / "rows"), [1, 2])
    rows = new(tmp_path / "rows")
    assert list(put(rows, [3])) == [0]
    rows.commit()
    rows.close()
    with pytest.raises(FileExistsError, match=r"`file` must be new .* but .*rows exists: resume the run"):
        new(tmp_path / "rows")
    (tmp_path / "other").write_bytes(b"mine" * 20)
    with pytest.raises(FileExistsError):
        new(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"mine" * 20


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def foreign(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)


def newer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8] + b"\x02" + path.read_bytes()[9:])


def older_copy(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[32:40] = (1).to_bytes(8, "little")
    path.write_bytes(data)


def another(path: Path) -> None:
    path.unlink()
    new(path).commit()


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(
    ("harm", "error", "match"),
    [
        (Path.unlink, FileNotFoundError, "`file` must be the 'rows' that the saved state belongs to, but there is no"),
        (cut, ValueError, "`file` must hold the 2 rows that saved states name, but .*rows holds 1"),
        (older_copy, ValueError, "`file` must hold the 2 rows that saved states name, but .*rows holds 1"),
        (foreign, ValueError, "`file` must be a file of rows, but .*rows is something else"),
        (newer, ValueError, "`file` must be of format 1, but .*rows is of format 2"),
        (another, ValueError, "`file` must be the one that the saved state belongs to, of id"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, harm: Any, error: type[Exception], match: str, mode: Any) -> None:
    rows = new(tmp_path / "rows")
    put(rows, [1, 2])
    marker = rows.commit()
    rows.close()
    harm(tmp_path / "rows")
    with pytest.raises(error, match=match):
        MappedRows.open(tmp_path / "rows", marker, mode)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"x": torch.zeros(1, 13, dtype=torch.uint8)}, r"`columns` must be those of .*rows, \['x', 'y'\], got \['x'\]"),
        (stamped([1]) | {"y": torch.zeros(1)}, r"'y' must be torch.int64 of shape \(1,\) as in .*, got torch.float32"),
        (stamped([1]) | {"x": torch.zeros(1, 12, dtype=torch.uint8)}, r"'x' must .* \(1, 13\) .* got .* \(1, 12\)"),
        (stamped([1]) | {"y": torch.zeros(2, dtype=torch.int64)}, r"'y' must be .* \(1,\) .*, got torch.int64 of \(2,"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, columns: dict[str, Tensor], match: str) -> None:
    rows = new(tmp_path / "rows")
    content = put(rows, [1, 2])
    marker = rows.commit()
    rows.close()
    rows = MappedRows.open(tmp_path / "rows", marker)
    with pytest.raises(ValueError, match=match):
        rows.write(columns)
    assert_reads(rows, content)


@pytest.mark.parametrize("row", [-1, 2])
def test_rows_that_were_never_written(tmp_path: Path, row: int) -> None:
    rows = new(tmp_path / "rows")
    put(rows, [1, 2])
    with pytest.raises(ValueError, match=r"`rows` must be rows that were written, 0 to 1, got"):
        rows.release(torch.tensor([0, row]))
    with pytest.raises(IndexError):
        rows.read(torch.tensor([0, row]))


def test_closed_and_unknown_mode(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    marker = rows.commit()
    rows.close()
    rows.close()
    with pytest.raises(RuntimeError, match="is closed"):
        rows.read(torch.tensor([0]))
    with pytest.raises(ValueError, match="`mode` must be 'r\\+' or 'r', got 'w'"):
        MappedRows.open(tmp_path / "rows", marker, mode="w")  # type: ignore[arg-type]


def test_what_was_read_stays_when_the_file_grows(tmp_path: Path) -> None:
    rows = new(tmp_path / "rows")
    content = put(rows, [1, 2])
    before = rows.read(torch.tensor([0, 1]))
    for stamp in range(3, 300):
        content |= put(rows, [stamp])
    torch.testing.assert_close(before, stamped([1, 2]))
    assert_reads(rows, content)


def test_the_part_of_the_file_that_is_not_yet_written_takes_no_space(tmp_path: Path) -> None:
    columns = {"x": torch.ones(1, 2**16, dtype=torch.uint8)}
    rows = MappedRows.create(tmp_path / "rows", columns)
    for _ in range(17):
        rows.write(columns)
    rows.commit()
    status = (tmp_path / "rows").stat()
    assert status.st_size > 32 * 2**16
    assert status.st_blocks * 512 < 19 * 2**16


def test_a_full_disk_is_an_error_that_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = new(tmp_path / "rows")
    content = put(rows, [1, 2, 3])
    rows.release(torch.tensor([1]))

    def full(*_: Any) -> int:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            rows.write(stamped([4, 5]))
    assert_reads(rows, content)
    assert list(put(rows, [4, 5])) == [1, 3]


def test_a_write_that_the_system_cuts_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:7], offset))
    rows = new(tmp_path / "rows")
    assert_reads(rows, put(rows, [1, 2, 3]))


def test_written_in_inference_mode_and_then_in_training(tmp_path: Path) -> None:
    with torch.inference_mode():
        rows = new(tmp_path / "rows")
        content = put(rows, [1, 2])
        rows.release(torch.tensor([0]))
    assert_reads(rows, content | put(rows, [3]))


def test_a_file_larger_than_ram_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_CACHED", 0)
    rows = new(tmp_path / "rows")
    assert_reads(rows, put(rows, list(range(1000))))
