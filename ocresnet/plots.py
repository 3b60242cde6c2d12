"""Every figure, drawn from what a run saved and from nothing else.

Training data is dashed, test data solid, as in the stage-cost paper.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocresnet.training import records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"
PRUNING = "pruning.json"

STYLES = {"train": "--", "validation": ":", "test": "-"}
COLOR, MARK = "C0", "C3"


def save_figures(workdir: str | os.PathLike) -> list[Path]:
    """Draw the figures of a run into `<workdir>/figures`, as PNG.

    `epochs.png`: losses, accuracies and learning rate over epochs, from metrics.jsonl.
    `depth.png`: losses and accuracies over depth, from trajectory.json (a finished run).
    `convergence.png`: output residuals and parameter norms over depth, from the same file.

    Args:
      workdir: folder of a run.

    Returns:
      The files that were written.

    Raises:
      FileNotFoundError: if the folder holds no metrics.
      ImportError: if matplotlib is not installed.
    """
    workdir = Path(workdir)
    metrics = records.read_metrics(workdir)
    if not metrics:
        raise FileNotFoundError(f"there are no metrics in {workdir}: is it a run's workdir?")
    figures = {"epochs": draw_epochs(metrics)}
    trajectory_file = workdir / records.TRAJECTORY
    if trajectory_file.exists():
        measured = records.read_json(trajectory_file)
        kept = kept_blocks(workdir / PRUNING)
        figures["depth"] = draw_depth(measured, kept)
        figures["convergence"] = draw_convergence(measured, kept)
    (workdir / FIGURES).mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = workdir / FIGURES / f"{name}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def draw_epochs(metrics: Sequence[dict[str, Any]]) -> "Figure":
    """Loss and accuracy of the network's own output, and the learning rate, over epochs."""
    figure, (loss, accuracy, rate) = panels(3)
    epochs = [row["epoch"] for row in metrics]
    for split, style in STYLES.items():
        if split in metrics[0]:
            losses = [row[split]["losses"][-1] for row in metrics]
            accuracies = [100 * row[split]["accuracies"][-1] for row in metrics]
            loss.plot(epochs, losses, style, color=COLOR, label=split)
            accuracy.plot(epochs, accuracies, style, color=COLOR, label=split)
    rate.plot(epochs, [row["learning_rate"] for row in metrics], color=COLOR)
    loss.set(xlabel="epoch", ylabel="loss of the output", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy of the output (%)")
    rate.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    _legend(figure, loss)
    return figure


def draw_depth(measured: dict[str, Any], kept: int | None = None) -> "Figure":
    """Losses and accuracies of every intermediate output over depth; `kept` marks a cut."""
    figure, (loss, accuracy) = panels(2)
    for split, style in STYLES.items():
        if split in measured:
            depth = range(len(measured[split]["losses"]))
            loss.plot(depth, measured[split]["losses"], style, color=COLOR, label=split)
            percent = [100 * value for value in measured[split]["accuracies"]]
            accuracy.plot(depth, percent, style, color=COLOR, label=split)
    loss.set(xlabel="residual blocks before the exit", ylabel="loss", yscale="log")
    accuracy.set(xlabel="residual blocks before the exit", ylabel="accuracy (%)")
    _mark((loss, accuracy), kept, kept)
    _legend(figure, loss)
    return figure


def draw_convergence(measured: dict[str, Any], kept: int | None = None) -> "Figure":
    """What each block adds to the output, and the norm of its parameters, over depth."""
    figure, (residual, norm) = panels(2)
    for split, style in STYLES.items():
        if split in measured:
            values = measured[split]["output_residuals"]
            residual.plot(range(len(values)), values, style, color=COLOR, label=split)
    norms = measured["parameter_norms"]
    norm.plot(range(len(norms)), norms, color=COLOR)
    residual.set(
        xlabel="residual block k",
        ylabel=r"output residual $\|\hat y_{k+1} - \hat y_k\|$",
        yscale="log",
    )
    norm.set(xlabel="residual block k", ylabel=r"parameter norm $\|w_{\mathcal{F},k}\|$")
    # Block k goes if k >= kept: the mark stands between the last that stays and the first cut.
    _mark((residual, norm), None if kept is None else kept - 0.5, kept)
    _legend(figure, residual)
    return figure


def draw_learning_rates(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Test accuracy over the learning rate, a panel for each base optimizer.

    Args:
      rows: each with `base`, `method`, `learning_rates` and `accuracy` [learning rates, seeds].
    """
    bases = list(dict.fromkeys(row["base"] for row in rows))
    figure, axes = panels(len(bases))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles = {
        name: {"color": f"C{index % 10}", "linestyle": ("-", "--")[index // 10]}
        for index, name in enumerate(methods)
    }
    handles = {}
    for axis, base in zip(axes, bases, strict=True):
        for row in (row for row in rows if row["base"] == base):
            mean = np.mean(row["accuracy"], axis=-1)
            (line,) = axis.plot(row["learning_rates"], mean, **styles[row["method"]])
            handles[row["method"]] = line
        axis.set(xscale="log", xlabel=f"learning rate ({base})", ylabel="test accuracy (%)")
    figure.set_figwidth(figure.get_figwidth() + 3.0)
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    return figure


def draw_losses(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Training loss over steps and over seconds, a line for each method.

    Args:
      rows: each with `method`, `steps` and `seconds` [parts], and `losses` [parts].
    """
    figure, axes = panels(2)
    for axis, unit in zip(axes, ("steps", "seconds"), strict=True):
        for row in rows:
            axis.plot(row[unit], row["losses"], label=row["method"])
        axis.set(yscale="log", xlabel=unit, ylabel="training loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw_removals(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Test accuracy over the blocks kept, a line for each order of removal.

    A color is a criterion; scored once is dashed, greedily solid. The left panel has the batch
    statistics as trained, the right one those measured anew.

    Args:
      rows: each with `criterion`, `order`, and over the removals `kept`, `accuracy` and
        `accuracy_recalibrated`.
    """
    figure, axes = panels(2)
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    keys = ("accuracy", "accuracy_recalibrated")
    for axis, key, title in zip(axes, keys, ("as trained", "measured anew"), strict=True):
        for index, row in enumerate(rows):
            axis.plot(
                row["kept"],
                [100 * value for value in row[key]],
                "--" if row["order"] == "once" else "-",
                # Orders often agree: thinner lines over thicker ones leave all of them visible.
                linewidth=4 - 3 * index / len(rows),
                color=f"C{criteria.index(row['criterion'])}",
                label=f"{row['criterion']} ({row['order']})",
            )
        axis.set(
            xlabel="residual blocks kept",
            ylabel="test accuracy (%)",
            title=f"batch statistics {title}",
        )
    figure.set_figwidth(figure.get_figwidth() + 3.0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def kept_blocks(pruning_file: Path) -> int | None:
    """How many blocks were kept, if the network was pruned."""
    if not pruning_file.exists():
        return None
    try:
        return records.read_json(pruning_file)["pruned"]["blocks"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{pruning_file} is damaged: {error}") from error


def panels(count: int) -> tuple["Figure", Any]:
    """A figure with `count` panels side by side, and their axes.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is needed to draw figures: pip install 'ocresnet[plots]'."
        ) from error
    figure = Figure(figsize=(4.2 * count, 3.4), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _legend(figure: "Figure", axis: Any) -> None:
    """One legend for the whole figure, above its panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _mark(axes: Sequence[Any], position: float | None, kept: int | None) -> None:
    if position is not None:
        for axis in axes:
            axis.axvline(position, color=MARK, linewidth=1, label=f"cut: {kept} blocks kept")
