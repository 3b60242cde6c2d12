"""The figures of studies: many runs, many methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ocresnet.plots.style import (
    draw_line,
    legend_beside,
    line_style,
    logarithmic,
    panels,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            handles[row["method"]] = draw_line(
                axis,
                row["learning_rates"],
                np.mean(row["accuracy"], axis=-1),
                **line_style(methods.index(row["method"])),
            )
        axis.set(title=base, xscale="log", xlabel="learning rate", ylabel="test accuracy (%)")
    figure.suptitle("Accuracy over learning rates")
    legend_beside(figure, list(handles.values()), list(handles))
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
                line = draw_line(axis, row["factors"], mean, **style)
                axis.fill_between(
                    row["factors"], low, high, color=style["color"], alpha=0.15, linewidth=0
                )
            handles[row["method"]] = line
        axis.set(title=task, xscale="log", xlim=ends)
        axis.set(xlabel="learning rate / usual one", ylabel="test accuracy (%)")
    figure.suptitle("Accuracy over learning rates")
    legend_beside(figure, list(handles.values()), list(handles))
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
            draw_line(axis, row[unit], row["losses"], label=row["method"], **line_style(index))
        title = f"Training loss over {unit}"
        axis.set(title=title, xlabel=unit, ylabel="training loss")
    legend_beside(figure, *axes[0].get_legend_handles_labels())
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
            draw_line(axis, row[x], row[y], label=row["method"], **line_style(index))
        axis.set(title=title, xlabel=below, ylabel=beside)
    legend_beside(figure, *axes[0].get_legend_handles_labels())
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
            draw_line(
                axis,
                row["kept"],
                [100 * value for value in row[key]],
                # Orders often agree: thinner lines over thicker ones leave all of them visible.
                linewidth=4 - 3 * index / len(rows),
                label=f"{row['criterion']} ({row['order']})",
                **style,
            )
        axis.set(title=f"Batch statistics {title}", ylabel="test accuracy (%)")
    whole_numbers(axes, "residual blocks kept")
    legend_beside(figure, *axes[0].get_legend_handles_labels())
    return figure
