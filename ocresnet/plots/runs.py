"""The figures of a run, drawn from what it saved and from nothing else."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocresnet.plots.style import (
    PALETTE,
    draw_line,
    legend_below,
    line_style,
    logarithmic,
    panels,
    whole_numbers,
)
from ocresnet.training import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = "figures"
PRUNING = "pruning.json"

SPLITS: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "color": PALETTE[1], "marker": "s"},
    "validation": {"linestyle": ":", "color": PALETTE[2], "marker": "^"},
    "test": {"linestyle": "-", "color": PALETTE[0], "marker": "o"},
}
"""How the parts of a data set are drawn."""


def save_figures(workdir: str | os.PathLike) -> list[Path]:
    """Draw the figures of a run into `<workdir>/figures`, as PNG.

    `epochs.png`: losses, accuracies and learning rate over epochs, from metrics.jsonl.
    `depth.png`: losses and accuracies over depth, from trajectory.json (a finished run), where
    there are intermediate outputs.
    `convergence.png`: output residuals and parameter norms over depth, from the same file, where
    there are residual blocks.

    Args:
      workdir: folder of a run.

    Returns:
      The files that were written.

    Raises:
      FileNotFoundError: if the folder holds no metrics.
      ValueError: if one of the files is damaged.
      ImportError: if matplotlib is not installed.
    """
    workdir = Path(workdir)
    metrics = records.read_metrics(workdir)
    if not metrics:
        raise FileNotFoundError(f"there are no metrics in {workdir}: is it a run's workdir?")
    with _contents_of(workdir / records.METRICS):
        figures = {"epochs": draw_epochs(metrics)}
    trajectory_file = workdir / records.TRAJECTORY
    if trajectory_file.exists():
        measured = records.read_json(trajectory_file)
        kept = kept_blocks(workdir / PRUNING)
        with _contents_of(trajectory_file):
            if any(len(measured[split]["losses"]) > 1 for split in SPLITS if split in measured):
                figures["depth"] = draw_depth(measured, kept)
            if measured.get("parameter_norms"):
                figures["convergence"] = draw_convergence(measured, kept)
    (workdir / FIGURES).mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = workdir / FIGURES / f"{name}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def draw_epochs(metrics: Sequence[dict[str, Any]]) -> "Figure":
    """Loss and accuracy (if there is any) of the network's own output, and the learning rate, over
    epochs."""
    classes = bool(metrics[0]["train"]["accuracies"])
    figure, axes = panels(3 if classes else 2)
    loss, rate = axes[0], axes[-1]
    epochs = [row["epoch"] for row in metrics]
    for split in (split for split in SPLITS if split in metrics[0]):
        losses = [row[split]["losses"][-1] for row in metrics]
        draw_line(loss, epochs, losses, label=split, **SPLITS[split])
        if classes:
            percent = [100 * row[split]["accuracies"][-1] for row in metrics]
            draw_line(axes[1], epochs, percent, label=split, **SPLITS[split])
    rates = [row["learning_rate"] for row in metrics]
    draw_line(rate, epochs, rates, color=PALETTE[-1], marker=".")
    # A likelihood's loss may be negative.
    logarithmic((loss, rate) if classes else (rate,))
    loss.set(title="Loss of the network's output", ylabel="loss")
    if classes:
        axes[1].set(title="Accuracy of the network's output", ylabel="accuracy (%)")
    rate.set(title="Learning rate", ylabel="learning rate")
    whole_numbers(axes, "epoch")
    legend_below(figure, loss)
    return figure


def draw_depth(measured: Mapping[str, Any], kept: int | None = None) -> "Figure":
    """Losses and accuracies of every intermediate output over depth; `kept` marks a cut."""
    figure, (loss, accuracy) = panels(2)
    for split in (split for split in SPLITS if split in measured):
        depth = range(len(measured[split]["losses"]))
        percent = [100 * value for value in measured[split]["accuracies"]]
        draw_line(loss, depth, measured[split]["losses"], label=split, **SPLITS[split])
        draw_line(accuracy, depth, percent, label=split, **SPLITS[split])
    logarithmic((loss,))
    loss.set(title="Loss over depth", ylabel="loss of the exit")
    accuracy.set(title="Accuracy over depth", ylabel="accuracy of the exit (%)")
    whole_numbers((loss, accuracy), "residual blocks before the exit")
    _mark((loss, accuracy), kept, kept)
    legend_below(figure, loss)
    return figure


def draw_depth_comparison(
    with_stage_cost: Mapping[str, Any], without: Mapping[str, Any], split: str = "test"
) -> "Figure":
    """Accuracy of every exit over depth, of a network trained with stage cost and of one without.

    Args:
      with_stage_cost, without: {split: trajectory}, as a finished run saves them; the network
        trained without stage cost is read through exits that were calibrated afterwards.
      split: which part of the data is shown.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    figure, (axis,) = panels(1)
    figure.set_size_inches(6.4, 4.0)
    named = (("with stage cost", with_stage_cost), ("without stage cost", without))
    for index, (label, measured) in enumerate(named):
        percent = [100 * value for value in measured[split]["accuracies"]]
        draw_line(
            axis, range(len(percent)), percent, label=label, linewidth=2.2, **line_style(index)
        )
    axis.set(
        title="Accuracy after every residual block", ylabel=f"{split} accuracy of the exit (%)"
    )
    whole_numbers((axis,), "residual blocks before the exit")
    axis.legend(loc="best", handlelength=3.5)
    return figure


def draw_convergence(measured: Mapping[str, Any], kept: int | None = None) -> "Figure":
    """What each block adds to the output, and the norm of its parameters, over depth."""
    figure, (residual, norm) = panels(2)
    for split in (split for split in SPLITS if split in measured):
        values = measured[split]["output_residuals"]
        draw_line(residual, range(len(values)), values, label=split, **SPLITS[split])
    norms = measured["parameter_norms"]
    draw_line(norm, range(len(norms)), norms, color=PALETTE[-1], marker=".")
    logarithmic((residual,))
    residual.set(
        title="What each block adds to the output",
        ylabel=r"output residual $\|\hat y_{k+1} - \hat y_k\|$",
    )
    norm.set(
        title="Size of each block's parameters",
        ylabel=r"parameter norm $\|w_{\mathcal{F},k}\|$",
    )
    whole_numbers((residual, norm), "residual block k")
    # Block k goes if k >= kept: the mark stands between the last that stays and the first cut.
    _mark((residual, norm), None if kept is None else kept - 0.5, kept)
    legend_below(figure, residual)
    return figure


def kept_blocks(pruning_file: Path) -> int | None:
    """How many blocks were kept, if the network was pruned."""
    if not pruning_file.exists():
        return None
    with _contents_of(pruning_file):
        return records.read_json(pruning_file)["pruned"]["blocks"]


@contextmanager
def _contents_of(path: Path) -> Iterator[None]:
    """Say that a file is damaged where it does not hold what is read from it.

    Raises:
      ValueError: naming the file.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it lacks what a figure shows ({error}).") from error


def _mark(axes: Sequence["Axes"], position: float | None, kept: int | None) -> None:
    """A vertical line where the network was cut."""
    if position is not None:
        label = f"cut: {kept} blocks kept"
        for axis in axes:
            axis.axvline(position, color=PALETTE[-1], linestyle="-.", linewidth=1.2, label=label)
