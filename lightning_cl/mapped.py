"""Rows of tensors in a file, for a memory that is larger than RAM: a checkpoint names rows instead of holding them.

For Linux and macOS, and for a local disk: maps, locks and flushing of network file systems promise less.
"""

import fcntl
import json
import math
import mmap
import os
import struct
import uuid
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

__all__ = ["Column", "MappedRows", "pack"]

_HEADER = struct.Struct("<8sII16sq")  # magic, version, bytes of the header, id, committed rows; a JSON layout follows
_COMMITTED_AT = 32  # aligned, in one sector: a power failure leaves the old or the new number
_MAGIC, _VERSION, _NEVER = b"lcl-rows", 1, -1
_CACHED = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4  # bytes; larger files are read row by row


@dataclass(frozen=True)
class Column:
    """Where a column is in a record, which is a number of 8-byte words.

    Attributes:
        dtype: Of its items.
        shape: Of one row.
        start: Its first word. Every column starts at a whole word, so that 8 bytes are copied at a time.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The word after its last."""
        return self.start + -(-math.prod(self.shape) * self.dtype.itemsize // 8)


def pack(columns: Mapping[str, Tensor], layout: Mapping[str, Column]) -> Tensor:
    """Lay the rows of several columns side by side.

    Args:
        columns: Tensors ``(N, *)`` on any device.
        layout: Their places.

    Returns:
        Records ``(N, words)``, int64 on the CPU; what fills up a word is zero.

    Example:
        >>> pack({"y": torch.tensor([3, 4]), "x": torch.ones(2, 3, dtype=torch.uint8)}, {
        ...     "y": Column(torch.int64, (), 0), "x": Column(torch.uint8, (3,), 1)})
        tensor([[    3, 65793],
                [    4, 65793]])
    """
    parts = []
    for name, column in layout.items():
        rows = columns[name].detach()
        words = torch.zeros(len(rows), column.stop - column.start, dtype=torch.int64, device="cpu")
        _rows(words, column).copy_(rows)
        parts.append(words)
    return torch.cat(parts, 1)


class MappedRows:
    r"""Rows that are written once and read at random, in a memory-mapped file that outlives the process.

    The file is the state. :meth:`commit` returns a small marker for a checkpoint, and from then on no row that was
    written before is ever written again, by this process or by one that goes on from any marker. So every checkpoint
    stays exact, whatever was written after it, and a process that is killed loses nothing that a checkpoint names.

    On disk are all rows that were committed: for a reservoir of capacity :math:`B` after :math:`N` offers about
    :math:`B (1 + \ln(N / B))` at most. Rows released before they are committed are used again, so that without commits
    there are never more than the owner holds at one time. The file is grown by doubling; what is not yet written takes
    no space where files may be sparse.

    Make one with :meth:`create` or :meth:`open`. The file is locked for other writers until :meth:`close`, garbage
    collection or the end of the process; forked processes, such as workers of a data loader, get it closed.

    Attributes:
        path: The file.
        columns: Type, shape and place of each column, by name.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "memory.rows")
        >>> images = torch.zeros(3, 2, 2, dtype=torch.uint8)
        >>> rows = MappedRows.create(path, {"x": images, "y": torch.arange(3)})
        >>> rows.write({"x": images, "y": torch.tensor([7, 8, 9])})
        tensor([0, 1, 2])
        >>> rows.release(torch.tensor([1]))
        >>> rows.write({"x": images[:2], "y": torch.tensor([10, 11])})
        tensor([1, 3])
        >>> marker = rows.commit()
        >>> rows.close()
        >>> MappedRows.open(path, marker).read(torch.tensor([3, 1]))["y"]
        tensor([11, 10])
    """

    def __init__(self, path: Path, file: FileIO, header: "_Header", count: int) -> None:
        self.path = path
        self.columns = header.columns
        self._file = file
        self._header = header
        self._committed = header.committed
        self._count = count  # rows written; the next is appended here
        self._free = torch.empty(0, dtype=torch.int64, device="cpu")  # rows that no state names, to be used again
        self._close = weakref.finalize(self, _give_back, file, os.getpid())
        self._map(max(count, (_size(file) - header.size) // header.record) if file.writable() else count)
        _OPENED.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str], columns: Mapping[str, Tensor]) -> Self:
        """Begin a new file.

        Args:
            path: The file. What is there is replaced only if it is of a run that never committed.
            columns: Examples of what will be written: tensors ``(N, *)``, of which dtype and shape of a row matter.

        Raises:
            FileExistsError: If there is a file already.
            BlockingIOError: If another process writes it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path, os.O_RDWR | os.O_CREAT) as file:
            _lock(file, path)
            if not _unused(file):
                raise FileExistsError(
                    f"`file` must be new where a run starts afresh, but {path} exists: resume the run that wrote it, "
                    "remove it, or choose another."
                )
            header = _Header.new(columns)
            os.ftruncate(file.fileno(), 0)
            _write(file, header.encode(), 0)
            _sync(file)
            _sync_folder(path.parent)
            return cls(path, file, header, count=0)

    @classmethod
    def open(cls, path: str | os.PathLike[str], marker: Mapping[str, Any], mode: Literal["r+", "r"] = "r+") -> Self:
        """Go on from a marker of :meth:`commit`; also from one that is not the last.

        Args:
            path: The file.
            marker: What :meth:`commit` returned.
            mode: ``"r+"`` writes after all rows that any marker names. ``"r"`` reads the rows of this marker only, and
                may do so while another process writes.

        Raises:
            FileNotFoundError: If there is no file.
            BlockingIOError: If another process writes it.
            ValueError: If it is not the file that the marker was taken of, or not all of it, or ``mode`` is another.
        """
        path = Path(path)
        if mode not in ("r+", "r"):
            raise ValueError(f"`mode` must be 'r+' or 'r', got {mode!r}.")
        if not path.is_file():
            raise FileNotFoundError(
                f"`file` must be the {marker['file']!r} that the saved state belongs to, but there is no {path}: "
                "bring it back, or start without the state."
            )
        with _opened(path, os.O_RDONLY if mode == "r" else os.O_RDWR) as file:
            if mode == "r+":
                _lock(file, path)
            header = _Header.read(file, path)
            header.check(marker, file, path)
            return cls(path, file, header, count=marker["rows"] if mode == "r" else header.committed)

    def write(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Store rows; never over one that a committed state names.

        Args:
            columns: Tensors ``(N, *)`` on any device, in names, dtypes and shapes like those of :meth:`create`.

        Returns:
            The number ``(N,)`` of each row, int64 on the CPU.

        Raises:
            ValueError: If they are of other names, dtypes or shapes, or differ in length.
            OSError: If the disk is full. Nothing that is stored has changed then.
        """
        self._check_writable()
        self._check(columns)
        records = pack(columns, self.columns)
        reused, first = self._free[: len(records)], self._count
        self._append(records[len(reused) :])
        self._records.index_copy_(0, reused, records[: len(reused)])
        self._free = self._free[len(reused) :]
        return torch.cat([reused, torch.arange(first, self._count, device="cpu")])

    def release(self, rows: Tensor) -> None:
        """Give rows up. Those that no committed state names are used again.

        Args:
            rows: Their numbers ``(n,)``.

        Raises:
            ValueError: If one was never written.
        """
        self._check_writable()
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            came = f"{int(rows.min())} to {int(rows.max())}"
            raise ValueError(f"`rows` must be rows that were written, 0 to {self._count - 1}, got {came}.")
        self._free = torch.unique(torch.cat([self._free, rows[rows >= self._committed]]))

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return copies of rows.

        Args:
            rows: Their numbers ``(n,)``, int64 on the CPU, in any order, also repeated.

        Returns:
            Tensors ``(n, *)`` on the CPU by name.

        Raises:
            IndexError: If one was never written.
        """
        self._check_open()
        if len(self._mapping) > _CACHED:
            self._prefetch(rows)
        records = self._records[: self._count]
        return {
            name: _rows(records[:, column.start : column.stop].index_select(0, rows), column).contiguous()
            for name, column in self.columns.items()
        }

    def commit(self) -> dict[str, Any]:
        """Bring all rows to disk and keep them for good. Costs nothing if none was written since the last time.

        Returns:
            A marker for the checkpoint: the name of the file, its id, and the number of rows that a state with this
            marker may name.

        Raises:
            OSError: If the disk is full or fails.
        """
        self._check_writable()
        if self._committed != self._count:
            self._mapping.flush()
            _sync(self._file)  # first the rows, then the number that vouches for them
            _write(self._file, struct.pack("<q", self._count), _COMMITTED_AT)
            _sync(self._file)
            self._committed = self._count
            self._free = self._free[:0]
        return {"file": self.path.name, "id": self._header.id, "rows": self._count}

    def close(self) -> None:
        """Give the file and its lock back. Rows written since the last commit are lost."""
        if self._close.alive:
            self._close()
            del self._mapping, self._records

    def _map(self, capacity: int) -> None:
        """Map the file as ``capacity`` records."""
        size = self._header.size + capacity * self._header.record
        access = mmap.ACCESS_WRITE if self._file.writable() else mmap.ACCESS_READ
        self._mapping = mmap.mmap(self._file.fileno(), size, access=access)
        if size > _CACHED:  # the neighbours of a row are not worth reading: they would be gone when they are wanted
            self._mapping.madvise(mmap.MADV_RANDOM)
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that a map for reading is not writable
            words = torch.frombuffer(self._mapping, dtype=torch.int64)
        self._records = words[self._header.size // 8 :].view(capacity, self._header.record // 8)

    def _append(self, records: Tensor) -> None:
        """Write through the file, not the map: a full disk is then an error and not the end of the process."""
        count = self._count + len(records)
        if count > len(self._records):
            capacity = max(count, 2 * len(self._records))
            os.ftruncate(self._file.fileno(), self._header.size + capacity * self._header.record)
            self._map(capacity)
        _write(self._file, records.view(torch.uint8).flatten().numpy().data, self._header.offset(self._count))
        self._count = count

    def _prefetch(self, rows: Tensor) -> None:
        """Ask for all rows at once: the disk serves them side by side, faults in the map one page after the other."""
        length = self._header.record + mmap.PAGESIZE
        for row in rows.tolist():
            start = self._header.offset(row)
            self._mapping.madvise(mmap.MADV_WILLNEED, start - start % mmap.PAGESIZE, length)

    def _check(self, columns: Mapping[str, Tensor]) -> None:
        if columns.keys() != self.columns.keys():
            raise ValueError(f"`columns` must be those of {self.path}, {list(self.columns)}, got {list(columns)}.")
        count = len(next(iter(columns.values())))
        for name, column in self.columns.items():
            rows = columns[name]
            if rows.dtype != column.dtype or rows.shape != (count, *column.shape):
                raise ValueError(
                    f"`columns`: {name!r} must be {column.dtype} of shape {(count, *column.shape)} as in {self.path}, "
                    f"got {rows.dtype} of {tuple(rows.shape)}."
                )

    def _check_open(self) -> None:
        if not self._close.alive:
            raise RuntimeError(f"{self.path} is closed, as it is in every forked process: open it again.")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._file.writable():
            raise RuntimeError(f'{self.path} was opened with `mode="r"`: open it with "r+" to write.')


@dataclass(frozen=True)
class _Header:
    """The first bytes of a file."""

    id: str
    size: int  # bytes, whole pages
    committed: int  # rows that a state may name
    columns: dict[str, Column]

    @property
    def record(self) -> int:
        """The bytes of a row of all columns, one word or more."""
        return 8 * max(1, *(column.stop for column in self.columns.values()))

    def offset(self, row: int) -> int:
        return self.size + row * self.record

    @classmethod
    def new(cls, columns: Mapping[str, Tensor]) -> Self:
        layout = _layout((name, rows.dtype, tuple(rows.shape[1:])) for name, rows in columns.items())
        size = _HEADER.size + len(_encode(layout))
        return cls(uuid.uuid4().hex, -(-size // 4096) * 4096, _NEVER, layout)

    def encode(self) -> bytes:
        fixed = _HEADER.pack(_MAGIC, _VERSION, self.size, bytes.fromhex(self.id), self.committed)
        return (fixed + _encode(self.columns)).ljust(self.size, b"\0")

    @classmethod
    def read(cls, file: FileIO, path: Path) -> Self:
        fixed = os.pread(file.fileno(), _HEADER.size, 0)
        if len(fixed) < _HEADER.size or not fixed.startswith(_MAGIC):
            raise ValueError(f"`file` must be a file of rows, but {path} is something else: choose another.")
        _, version, size, id_, committed = _HEADER.unpack(fixed)
        if version != _VERSION:
            raise ValueError(
                f"`file` must be of format {_VERSION}, but {path} is of format {version}: use its release."
            )
        layout = json.loads(os.pread(file.fileno(), size - _HEADER.size, _HEADER.size).rstrip(b"\0"))
        columns = _layout((name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in layout)
        return cls(id_.hex(), size, committed, columns)

    def check(self, marker: Mapping[str, Any], file: FileIO, path: Path) -> None:
        """Refuse a file in which the rows of ``marker``, or those of later states, are not."""
        if self.id != marker["id"]:
            raise ValueError(
                f"`file` must be the one that the saved state belongs to, of id {marker['id']}, but {path} has id "
                f"{self.id}: give the original, or start without the state."
            )
        if self.committed < marker["rows"] or _size(file) < self.offset(self.committed):
            held = min(self.committed, (_size(file) - self.size) // self.record)
            raise ValueError(
                f"`file` must hold the {max(self.committed, marker['rows'])} rows that saved states name, but {path} "
                f"holds {held}: it is an older copy or was cut off, so give the original, or start without the state."
            )


def _layout(columns: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> dict[str, Column]:
    """Place columns one after the other."""
    layout: dict[str, Column] = {}
    start = 0
    for name, dtype, shape in columns:
        layout[name] = Column(dtype, shape, start)
        start = layout[name].stop
    return layout


def _encode(layout: Mapping[str, Column]) -> bytes:
    rows = [[name, str(c.dtype).removeprefix("torch."), list(c.shape)] for name, c in layout.items()]
    return json.dumps(rows).encode()


def _rows(words: Tensor, column: Column) -> Tensor:
    """The rows ``(n, *)`` of a column that lie in its words ``(n, w)``: a view."""
    width = words.shape[1] * 8 // column.dtype.itemsize
    items = words.flatten().view(column.dtype).view(len(words), width)
    return items[:, : math.prod(column.shape)].view(len(words), *column.shape)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[FileIO]:
    """Open a file, and close it again if the block fails."""
    file = FileIO(os.open(path, flags, 0o666), "r+" if flags & os.O_RDWR else "r")
    try:
        yield file
    except BaseException:
        file.close()
        raise


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"`file` must be written by one process only, but {path} is in use: end the other run, or choose another."
        ) from None


def _give_back(file: FileIO, owner: int) -> None:
    """Unlock and close. The map has a copy of the descriptor, which would hold the lock for as long as a view lives."""
    if os.getpid() == owner:  # a forked process shares the lock and must not open it for others
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _unused(file: FileIO) -> bool:
    """Whether no saved state can name rows of this file: it is empty, or ours and was never committed."""
    fixed = os.pread(file.fileno(), _HEADER.size, 0)
    return not fixed or (len(fixed) == _HEADER.size and _HEADER.unpack(fixed)[::4] == (_MAGIC, _NEVER))


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _write(file: FileIO, data: bytes | memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, offset)  # 2 GiB at most at one time
        data, offset = data[written:], offset + written


def _sync(file: FileIO) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS `fsync` leaves the data in the cache of the drive
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Bring the name of a new file to disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_OPENED: weakref.WeakSet[MappedRows] = weakref.WeakSet()


def _close_in_child() -> None:
    """Leave the lock to the parent: it would outlive a killed run for as long as a worker of its data loader does."""
    for rows in tuple(_OPENED):
        rows.close()


os.register_at_fork(after_in_child=_close_in_child)
