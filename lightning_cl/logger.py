"""``metrics.csv``: a log that a killed and resumed run continues as if nothing had happened."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from lightning_cl.report import write_atomic


class RunLogger(CSVLogger):
    """Write what is logged to ``metrics.csv`` in the run folder, one row per call.

    Rows are appended as they come; when a new metric appears, the file is rewritten atomically with one more column.
    :meth:`rewind` drops the rows that came after a checkpoint, so that a resumed run writes them once. (Lightning's own
    CSVLogger deletes the file of a run that is resumed in its folder.)

    Args:
        run_dir: Folder of the run.

    Example:
        >>> import tempfile
        >>> logger = RunLogger(tempfile.mkdtemp())
        >>> logger.log_metrics({"loss": 0.5}, step=3)
        >>> logger.path.read_text().split()
        ['step,loss', '3,0.5']
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        super().__init__(self.run_dir.parent, name="", version=self.run_dir.name)
        self.path = self.run_dir / "metrics.csv"
        self.rows = 0
        self._columns: list[str] = []

    @property
    @override
    def experiment(self) -> Any:
        """The logger itself: there is no separate writer."""
        return self

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing to do: ``config.yaml`` in the same folder says more."""

    @override
    def save(self) -> None:
        """Nothing to do: every row is written when it is logged."""

    @override
    def finalize(self, status: str) -> None:
        """Nothing to do: every row is written when it is logged."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        row = {"step": self.rows if step is None else step, **row}
        if new := [key for key in row if key not in self._columns]:
            earlier = self._read()[: self.rows]
            self._columns += new
            self._rewrite([*earlier, row])
        else:
            with self.path.open("a", newline="") as file:
                self._writer(file).writerow(row)
        self.rows += 1

    def rewind(self, rows: int) -> None:
        """Keep the first ``rows`` rows of an earlier process's file."""
        kept = self._read()[:rows]
        self.rows = len(kept)
        self._columns = list(dict.fromkeys(key for row in kept for key, value in row.items() if value != ""))
        if kept:
            self._rewrite(kept)
        else:
            self.path.unlink(missing_ok=True)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            lines = [line for line in file if line.endswith("\n")]  # the last one may be cut off by a kill
        return list(csv.DictReader(lines))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())

    def _writer(self, file: Any) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n", extrasaction="ignore")
