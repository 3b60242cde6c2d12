"""What a run shows while it goes: a bar in a terminal, a line an epoch elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Epoch, loss, accuracy, images a second and time left of a run.

    Use as a context manager; outside a terminal it prints one line an epoch.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, batch_size: int, done: int, show: bool):
        """Start at step `done` of the run's `epochs * steps_per_epoch`; silent unless `show`."""
        self._console = Console(quiet=not show, highlight=False)
        self._epochs = epochs
        self._batch_size = batch_size
        self._total = epochs * steps_per_epoch
        self._steps_done = self._resumed_at = done
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[doing]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task(
            "training",
            total=self._total,
            completed=done,
            epoch=f"-/{epochs}",
            doing="compiling",
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, loss: float, accuracy: float | None) -> None:
        """One more step is done, with this loss and accuracy, if any; `epoch` counts from 1."""
        self._steps_done += 1
        seconds = time.perf_counter() - self._start
        speed = (self._steps_done - self._resumed_at) * self._batch_size / seconds
        right = "" if accuracy is None else f"accuracy {accuracy:.2%}  "
        self._bar.update(
            self._task,
            completed=self._steps_done,
            epoch=f"{epoch}/{self._epochs}",
            doing=f"loss {loss:.4f}  {right}{speed:,.0f} images/s",
        )

    def epoch(self, row: dict) -> None:
        """An epoch is done, with these metrics."""
        if self._console.is_terminal:
            return
        done = self._steps_done - self._resumed_at
        seconds = time.perf_counter() - self._start
        left = seconds / max(done, 1) * (self._total - self._steps_done)
        parts = [f"epoch {row['epoch']}/{self._epochs}", f"objective {row['objective']:.4f}"]
        for split in ("train", "validation", "test"):
            if split in row:
                accuracies, losses = row[split]["accuracies"], row[split]["losses"]
                shown = f"{accuracies[-1]:.2%}" if accuracies else f"{losses[-1]:.4f}"
                parts.append(f"{split} {shown}")
        parts += [f"{row['images_per_second']:,.0f} images/s", f"{left:.0f} s left"]
        self._console.print("  ".join(parts), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self._bar.console.print(text, soft_wrap=True)
