"""Tables of the study of untuned optimizers, from its rows.

A row is one method on one task, as `untuned.judged` gives it: `learning_rates`; `accuracy` and
`train_loss` [rates, seeds]; `accuracies_on_the_way` [rates, seeds, points] after `steps` [points],
of `seconds_a_step` each; `tuned`; `reference`, whether it is one of those that regret is to;
`own_rate`, the place of the default among the rates; `target`.

A tuned method stands for its best learning rate on the test set, which favours it; an untuned one
for its default.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common.reports import markdown_table
from .flags import spread
from .robustness import decades_within

Row = dict[str, Any]


def rate_that_counts(row: Row) -> int:
    """Place of the learning rate that a method is compared at: of a tuned method the one of highest
    mean accuracy, and of lowest training loss among equals."""
    if not row["tuned"]:
        return row["own_rate"]
    accuracies = np.mean(row["accuracy"], axis=-1)
    losses = np.nan_to_num(np.mean(row["train_loss"], axis=-1), nan=np.inf)
    return int(np.lexsort((losses, -accuracies))[0])


def accuracy(row: Row) -> float:
    """Mean over the seeds, in percent, at the rate that counts."""
    return float(np.mean(row["accuracy"][rate_that_counts(row)]))


def regrets(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """{(method, task): points below the best reference of that task}; negative above it. Tasks
    without reference have none."""
    best: dict[str, float] = {}
    for row in rows:
        if row["reference"]:
            best[row["task"]] = max(best.get(row["task"], 0.0), accuracy(row))
    return {
        (row["method"], row["task"]): best[row["task"]] - accuracy(row)
        for row in rows
        if row["task"] in best
    }


def decades(row: Row) -> float | None:
    """Of learning rate within one point of the method's best; None for a single rate."""
    if len(row["learning_rates"]) == 1:
        return None
    means = np.mean(row["accuracy"], axis=-1)
    return decades_within(row["learning_rates"], means, means.max())


def steps_to_target(row: Row) -> float | None:
    """Mean over the seeds of the steps after which the target was first measured, at the rate that
    counts; None where a seed never reaches it."""
    reached = np.asarray(row["accuracies_on_the_way"][rate_that_counts(row)]) >= row["target"]
    if not reached.any(axis=-1).all():
        return None
    return float(np.mean(np.asarray(row["steps"])[reached.argmax(axis=-1)]))


def tables(rows: Sequence[Row]) -> str:
    """All tables as Markdown, each with a line that says what it shows."""
    loss = "Training loss there, without augmentation and in inference mode."
    within = "Decades of learning rate within one point of the method's own best."
    parts = [
        (
            "Test accuracy (%), mean ± deviation over the seeds, and the learning rate: the best "
            "of the grid for tuned methods, the default for others.",
            _by_task(rows, _accuracy_cell),
        ),
        (loss, _by_task(rows, _loss_cell)),
        (
            "Regret: points of accuracy below the task's best tuned method, forms of OCNOpt aside "
            "(negative: above).",
            _regret_table(rows),
        ),
        (within, _by_task(rows, lambda row: _shown(decades(row), ".1f"))),
        (
            "Steps until the target is measured, mean over the seeds; — where a seed misses it.",
            _by_task(rows, lambda row: _shown(steps_to_target(row), ".0f", "—"), targets=True),
        ),
        (
            "Seconds until then: steps times the time of one, measured apart.",
            _by_task(rows, _seconds_cell, targets=True),
        ),
    ]
    return "\n\n".join(f"{text}\n\n{table}" for text, table in parts)


def _by_task(rows: Sequence[Row], cell: Callable[[Row], str | None], targets: bool = False) -> str:
    """A line for each method and a column for each task."""
    found = {(row["method"], row["task"]): cell(row) for row in rows}
    target = {row["task"]: f" ({row['target']:g} %)" if targets else "" for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    lines = [[method, *(found.get((method, task)) for task in target)] for method in methods]
    return markdown_table(["method", *(task + of for task, of in target.items())], lines)


def _regret_table(rows: Sequence[Row]) -> str:
    of = regrets(rows)
    tasks = dict.fromkeys(task for _, task in of)
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {task: of[method, task] for task in tasks if (method, task) in of}
        cells = [_shown(own.get(task), ".2f") for task in tasks]
        # Over other tasks than those of its peers a mean would compare nothing.
        whole = list(own.values()) if own and len(own) == len(tasks) else []
        ends = [f"{np.mean(whole):.2f}", f"{max(whole):.2f}"] if whole else [None, None]
        lines.append([method, *cells, *ends])
    return markdown_table(["method", *tasks, "mean", "worst"], lines)


def _accuracy_cell(row: Row) -> str:
    place = rate_that_counts(row)
    of_seeds, rate = row["accuracy"][place], row["learning_rates"][place]
    shown = spread(of_seeds) if len(of_seeds) > 1 else f"{of_seeds[0]:.2f}"
    return f"{shown} ({rate:g})"


def _loss_cell(row: Row) -> str:
    return f"{np.mean(row['train_loss'][rate_that_counts(row)]):.4f}"


def _seconds_cell(row: Row) -> str:
    steps = steps_to_target(row)
    return _shown(None if steps is None else steps * row["seconds_a_step"], ".2f", "—")


def _shown(value: float | None, digits: str, otherwise: str = "") -> str:
    return otherwise if value is None else f"{value:{digits}}"
