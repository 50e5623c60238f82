"""What a training run says while it goes on: metrics.csv, TensorBoard events, a progress bar."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_runtime.files import atomic_write_text


class MetricsLog:
    """metrics.csv (wide, one row a step that was logged) and TensorBoard events.

    Args:
        start: step that the run goes on from; later rows of an interrupted run are dropped.
    """

    def __init__(self, out: Path, start: int) -> None:
        self.path = out / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        if start and self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= start]
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def add(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Adds a row; it is on disk after ``write``."""
        row = {"step": str(step), "epoch": str(epoch)}
        row |= {k: f"{v:.6g}" for k, v in values.items()}
        self.rows.append(row)
        for key, value in values.items():
            self.board.add_scalar(key, value, step)

    def write(self) -> None:
        """Writes all rows."""
        names = list(dict.fromkeys(k for row in self.rows for k in row))
        lines = [",".join(names)]
        lines += [",".join(row.get(n, "") for n in names) for row in self.rows]
        atomic_write_text(self.path, "\n".join(lines) + "\n")
        self.board.flush()


@contextmanager
def progress(total: int, start: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar with the time left; the function it yields advances it by a step."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not shown,
    )
    task = bar.add_task("training", total=total, completed=start, note="")
    with bar:
        yield lambda note: bar.update(task, advance=1, note=note)
