"""Every figure, drawn from what a run saved and from nothing else.

Lines are told apart by colour, by style and by marker, so that figures can be read in grey and by
the colour-blind. Training data is dashed, test data solid, as in the stage-cost paper.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocresnet.training import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = "figures"
PRUNING = "pruning.json"

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind can tell apart (Okabe and Ito 2008), without their pale yellow."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

INCHES_A_LABEL = 0.21
"""Height of a line in a legend beside the panels."""

MARKERS_A_LINE = 12
"""About how many points of a line are marked."""

SPLITS: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "color": PALETTE[1], "marker": "s"},
    "validation": {"linestyle": ":", "color": PALETTE[2], "marker": "^"},
    "test": {"linestyle": "-", "color": PALETTE[0], "marker": "o"},
}
"""How the parts of a data set are drawn."""


def line_style(index: int) -> dict[str, Any]:
    """The style of line `index` of a figure: no two of the first 32 have the same dashes and
    marker, and neighbours differ in the colour too."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[(index + index // len(MARKERS)) % len(LINES)],
    }


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
        _line(loss, epochs, losses, label=split, **SPLITS[split])
        if classes:
            percent = [100 * row[split]["accuracies"][-1] for row in metrics]
            _line(axes[1], epochs, percent, label=split, **SPLITS[split])
    rates = [row["learning_rate"] for row in metrics]
    _line(rate, epochs, rates, color=PALETTE[-1], marker=".")
    # A likelihood's loss may be negative.
    logarithmic((loss, rate) if classes else (rate,))
    loss.set(title="Loss of the network's output", ylabel="loss")
    if classes:
        axes[1].set(title="Accuracy of the network's output", ylabel="accuracy (%)")
    rate.set(title="Learning rate", ylabel="learning rate")
    _whole_numbers(axes, "epoch")
    _legend(figure, loss)
    return figure


def draw_depth(measured: Mapping[str, Any], kept: int | None = None) -> "Figure":
    """Losses and accuracies of every intermediate output over depth; `kept` marks a cut."""
    figure, (loss, accuracy) = panels(2)
    for split in (split for split in SPLITS if split in measured):
        depth = range(len(measured[split]["losses"]))
        percent = [100 * value for value in measured[split]["accuracies"]]
        _line(loss, depth, measured[split]["losses"], label=split, **SPLITS[split])
        _line(accuracy, depth, percent, label=split, **SPLITS[split])
    logarithmic((loss,))
    loss.set(title="Loss over depth", ylabel="loss of the exit")
    accuracy.set(title="Accuracy over depth", ylabel="accuracy of the exit (%)")
    _whole_numbers((loss, accuracy), "residual blocks before the exit")
    _mark((loss, accuracy), kept, kept)
    _legend(figure, loss)
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
        _line(axis, range(len(percent)), percent, label=label, linewidth=2.2, **line_style(index))
    axis.set(
        title="Accuracy after every residual block", ylabel=f"{split} accuracy of the exit (%)"
    )
    _whole_numbers((axis,), "residual blocks before the exit")
    axis.legend(loc="best", handlelength=3.5)
    return figure


def draw_convergence(measured: Mapping[str, Any], kept: int | None = None) -> "Figure":
    """What each block adds to the output, and the norm of its parameters, over depth."""
    figure, (residual, norm) = panels(2)
    for split in (split for split in SPLITS if split in measured):
        values = measured[split]["output_residuals"]
        _line(residual, range(len(values)), values, label=split, **SPLITS[split])
    norms = measured["parameter_norms"]
    _line(norm, range(len(norms)), norms, color=PALETTE[-1], marker=".")
    logarithmic((residual,))
    residual.set(
        title="What each block adds to the output",
        ylabel=r"output residual $\|\hat y_{k+1} - \hat y_k\|$",
    )
    norm.set(
        title="Size of each block's parameters",
        ylabel=r"parameter norm $\|w_{\mathcal{F},k}\|$",
    )
    _whole_numbers((residual, norm), "residual block k")
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
    handles = {}
    for axis, base in zip(axes, bases, strict=True):
        for row in (row for row in rows if row["base"] == base):
            handles[row["method"]] = _line(
                axis,
                row["learning_rates"],
                np.mean(row["accuracy"], axis=-1),
                **line_style(methods.index(row["method"])),
            )
        axis.set(title=base, xscale="log", xlabel="learning rate", ylabel="test accuracy (%)")
    figure.suptitle("Accuracy over learning rates")
    _legend_beside(figure, list(handles.values()), list(handles))
    return figure


def draw_tasks(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Test accuracy over the learning rate, relative to the usual one, a panel for each task.

    A line is the mean over the seeds, and what is shaded lies between the worst and the best. A
    method with a single rate is a thin level line, marked once, at a place of its own.

    Args:
      rows: each with `task`, `method`, `factors` of the usual learning rate, and `accuracy`
        [rates, seeds].

    Raises:
      ImportError: if matplotlib is not installed.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = panels(len(tasks), columns=min(len(tasks), 3))
    every = [factor for row in rows for factor in row["factors"]]
    ends = (min(every) / 1.5, max(every) * 1.5)
    handles = {}
    for axis, task in zip(axes, tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            index = methods.index(row["method"])
            style, of_seeds = line_style(index), np.asarray(row["accuracy"])
            low, mean, high = of_seeds.min(axis=-1), of_seeds.mean(axis=-1), of_seeds.max(axis=-1)
            if len(mean) == 1:
                x = np.geomspace(*ends, len(methods) + 2)
                style |= {"linewidth": 0.8, "markevery": [index + 1], "markersize": 5}
                (line,) = axis.plot(x, np.full(len(x), mean[0]), **style)
                axis.vlines(x[index + 1], low, high, color=style["color"], linewidth=0.8)
            else:
                line = _line(axis, row["factors"], mean, **style)
                axis.fill_between(
                    row["factors"], low, high, color=style["color"], alpha=0.15, linewidth=0
                )
            handles[row["method"]] = line
        axis.set(title=task, xscale="log", xlim=ends)
        axis.set(xlabel="learning rate / usual one", ylabel="test accuracy (%)")
    figure.suptitle("Accuracy over learning rates")
    _legend_beside(figure, list(handles.values()), list(handles))
    return figure


def draw_losses(
    rows: Sequence[dict[str, Any]], units: Sequence[str] = ("steps", "seconds")
) -> "Figure":
    """Training loss over each of the units, a panel each, with a line for each method.

    Args:
      rows: each with `method`, `losses` [parts], and every unit [parts].
      units: what the loss is drawn over.
    """
    figure, axes = panels(len(units))
    logarithmic(axes)
    for axis, unit in zip(axes, units, strict=True):
        for index, row in enumerate(rows):
            _line(axis, row[unit], row["losses"], label=row["method"], **line_style(index))
        title = f"Training loss over {unit}"
        axis.set(title=title, xlabel=unit, ylabel="training loss")
    _legend_beside(figure, *axes[0].get_legend_handles_labels())
    return figure


def draw_horizons(rows: Sequence[dict[str, Any]]) -> "Figure":
    """A trained horizon over steps, and accuracy and evaluations over the horizon on its way.

    Args:
      rows: each with `method`, and `steps`, `horizons`, `accuracies` (in percent) and `evaluations`
        [points].
    """
    figure, axes = panels(3)
    drawn = (
        ("steps", "horizons", "Horizon over steps", "training steps", "horizon"),
        ("horizons", "accuracies", "Accuracy over horizon", "horizon", "test accuracy (%)"),
        ("horizons", "evaluations", "Evaluations over horizon", "horizon", "in a solve"),
    )
    for axis, (x, y, title, below, beside) in zip(axes, drawn, strict=True):
        for index, row in enumerate(rows):
            _line(axis, row[x], row[y], label=row["method"], **line_style(index))
        axis.set(title=title, xlabel=below, ylabel=beside)
    _legend_beside(figure, *axes[0].get_legend_handles_labels())
    return figure


def draw_removals(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Test accuracy over the blocks kept, a line for each order of removal.

    A colour and marker is a criterion; scored once is dashed, greedily solid. The left panel has
    the batch statistics as trained, the right one those measured anew.

    Args:
      rows: each with `criterion`, `order`, and over the removals `kept`, `accuracy` and
        `accuracy_recalibrated`.
    """
    figure, axes = panels(2)
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    keys = ("accuracy", "accuracy_recalibrated")
    for axis, key, title in zip(axes, keys, ("as trained", "measured anew"), strict=True):
        for index, row in enumerate(rows):
            style = line_style(criteria.index(row["criterion"]))
            style["linestyle"] = "--" if row["order"] == "once" else "-"
            _line(
                axis,
                row["kept"],
                [100 * value for value in row[key]],
                # Orders often agree: thinner lines over thicker ones leave all of them visible.
                linewidth=4 - 3 * index / len(rows),
                label=f"{row['criterion']} ({row['order']})",
                **style,
            )
        axis.set(title=f"Batch statistics {title}", ylabel="test accuracy (%)")
    _whole_numbers(axes, "residual blocks kept")
    _legend_beside(figure, *axes[0].get_legend_handles_labels())
    return figure


def kept_blocks(pruning_file: Path) -> int | None:
    """How many blocks were kept, if the network was pruned."""
    if not pruning_file.exists():
        return None
    with _contents_of(pruning_file):
        return records.read_json(pruning_file)["pruned"]["blocks"]


def panels(count: int, columns: int | None = None) -> tuple["Figure", Any]:
    """A figure with `count` panels side by side, and their axes.

    Args:
      count: how many.
      columns: so many in a line, those of the next below; None: all in one.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is needed to draw figures: pip install 'ocresnet[plots]'."
        ) from error
    columns = columns or count
    lines = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for unused in axes[count:]:
        unused.remove()
    axes = axes[:count]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


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


def _line(axis: "Axes", x: Sequence[float], y: Sequence[float], **style: Any) -> Any:
    """A line with some of its points marked."""
    every = max(len(x) // MARKERS_A_LINE, 1)
    (line,) = axis.plot(x, y, markevery=every, markersize=5, **style)
    return line


def _whole_numbers(axes: Sequence["Axes"], label: str) -> None:
    """What is counted along the horizontal axes, with ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def logarithmic(axes: Sequence["Axes"], ticks: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Logarithmic vertical axes, with these ticks in a decade written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in axes:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=ticks))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: "Figure", axis: "Axes") -> None:
    """One legend for the whole figure, below its panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1))


def _legend_beside(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for the whole figure, at its right; long enough to show dashes and marker. The
    figure is made as high as it is."""
    figure.set_figwidth(figure.get_figwidth() + 3.0)
    figure.set_figheight(max(figure.get_figheight(), INCHES_A_LABEL * (len(labels) + 1)))
    figure.legend(handles, labels, loc="outside right center", handlelength=3.5)


def _mark(axes: Sequence["Axes"], position: float | None, kept: int | None) -> None:
    """A vertical line where the network was cut."""
    if position is not None:
        label = f"cut: {kept} blocks kept"
        for axis in axes:
            axis.axvline(position, color=PALETTE[-1], linestyle="-.", linewidth=1.2, label=label)
