"""Tables 1, 2 and 3 of the stage-cost paper from finished runs, beside the paper's numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ocresnet.stage_cost import bounds
from ocresnet.systems.architecture import Exits
from ocresnet.training.config import TrainingConfig

from ..common.reports import markdown_table
from .numbers import BOUNDS, TABLE_1
from .plan import (
    SCALES,
    Architecture,
    Artefact,
    architectures,
    plan,
    run_name,
)
from .runs import Measurements


class Table(NamedTuple):
    """A table and what it was made of.

    Attributes:
      columns: names; the first is that of the rows.
      rows: cells, text or numbers.
      notes: sentences to stand below.
    """

    columns: list[str]
    rows: list[list[Any]]
    notes: list[str]


def table1(dataset: str, scale_name: str, seeds: Sequence[int], found: Measurements) -> Table:
    """Test accuracies of full, shallow and pruned networks (Table 1), in percent."""
    scale = SCALES[scale_name]
    columns, cells = ["model"], []
    rows: list[tuple[str, str, Exits, int, int]] = [
        (f"ResNet-{scale.blocks} standard training", "full plain", "none", scale.blocks, -1),
        (f"SubResNet-{scale.cut} standard training", "cut plain", "none", scale.cut, -1),
        (f"ResNet-{scale.blocks} shared stage cost", "full shared", "shared", scale.blocks, -1),
        (f"SubResNet-{scale.cut} pruned", "cut shared", "shared", scale.blocks, scale.cut),
        (
            f"ResNet-{scale.blocks} separate stage cost",
            "full separate",
            "separate",
            scale.blocks,
            -1,
        ),
        (f"SubResNet-{scale.cut} pruned", "cut separate", "separate", scale.blocks, scale.cut),
    ]
    for architecture in architectures("table1", dataset):
        columns += [f"{architecture} (%)", "paper (%)", "difference"]
    for title, key, exits, blocks, output in rows:
        row: list[Any] = [title]
        for architecture in architectures("table1", dataset):
            values = [
                100 * run["test"]["accuracies"][output]
                for run in _of_seeds(found, dataset, architecture, blocks, exits, seeds)
            ]
            paper = TABLE_1.get((dataset, architecture), {}).get(key)
            row += [_mean(values, 2), paper, None if paper is None else _signed(values, paper)]
        cells.append(row)
    notes = []
    if scale_name != "paper":
        notes = [
            f"The paper's numbers are those of its own setting; this is scale={scale_name}, with "
            "smaller networks, less data and fewer epochs: compare the rows, not the columns."
        ]
    return Table(columns, cells, notes)


def bounds_table(
    architecture: Architecture,
    dataset: str,
    scale_name: str,
    seeds: Sequence[int],
    found: Measurements,
) -> Table:
    """Theorems 1 and 2 on training losses (Tables 2 and 3), in inference and in training mode."""
    scale = SCALES[scale_name]
    planned = {run.name: run for run in plan(["table2", "table3"], dataset, scale_name, seeds[:1])}
    full = planned[run_name(dataset, architecture, scale.blocks, "shared", seeds[0])].training
    paper = {row.blocks: row for row in BOUNDS[architecture]} if scale_name == "paper" else {}
    columns = ["M", "L_bar", "J_N", "J_bar", "gap 1", "L_avg", "L_bar_avg", "gap 2", "as printed"]
    columns += ["training mode: L_bar", "J_N", "J_bar", "L_avg", "L_bar_avg"]
    if paper:
        columns += ["paper: L_bar", "J_N", "J_bar", "gap 1", "L_avg", "L_bar_avg", "gap 2"]
    stage_cost = _of_seeds(found, dataset, architecture, scale.blocks, "shared", seeds)
    rows = []
    for blocks in scale.depths:
        numbers = []
        subresnets = _of_seeds(found, dataset, architecture, blocks, "none", seeds)
        for trained, shallow in zip(stage_cost, subresnets, strict=True):
            inference, training = (
                _bounds(trained, shallow, mode, scale.blocks, full)
                for mode in ("train", "train_in_training_mode")
            )
            in_training_mode = [training[index] for index in (0, 1, 2, 4, 5)]
            numbers.append([*inference, *in_training_mode])
        row: list[Any] = [blocks, *(_mean(values, 3) for values in zip(*numbers, strict=True))]
        if paper:
            row += list(paper[blocks][1:])
        rows.append(row)
    notes = [
        f"gamma = {full.stage_cost:g}, lambda = {full.optimizer.weight_decay:g}, "
        f"N = {scale.blocks}.",
        "Training losses are without augmentation, in inference mode (running statistics) and in "
        "training mode (statistics of each batch).",
        "L_bar_avg is Theorem 2 as it is proved; 'as printed' is the formula that the paper's "
        "Tables 2 and 3 fit (see `ocresnet.stage_cost.bounds`).",
    ]
    return Table(columns, rows, notes)


def _bounds(
    trained: dict[str, Any],
    shallow: dict[str, Any],
    mode: str,
    blocks: int,
    training: TrainingConfig,
) -> list[float]:
    """L_bar; J_N, J_bar and the gap; L_avg, L_bar_avg and the gap; L_bar_avg as printed."""
    losses = shallow[mode]["losses"]
    gamma, decay = training.stage_cost, training.optimizer.weight_decay
    first = bounds.tightness(
        bounds.theorem1(
            losses,
            np.square(shallow["parameter_norms"]),
            blocks=blocks,
            stage_cost=gamma,
            weight_decay=decay,
        ),
        bounds.training_objective(
            trained[mode]["losses"],
            np.square(trained["parameter_norms"]),
            stage_cost=gamma,
            weight_decay=decay,
        ),
    )
    average = bounds.theorem2(losses, blocks=blocks, stage_cost=gamma)
    second = bounds.tightness(average.bound, bounds.average_loss(trained[mode]["losses"]))
    return [
        losses[-1],
        first.value,
        first.bound,
        first.gap,
        second.value,
        second.bound,
        second.gap,
        average.as_printed,
    ]


def make(
    artefact: Artefact, dataset: str, scale_name: str, seeds: Sequence[int], found: Measurements
) -> Table:
    """The table called `artefact`."""
    if artefact == "table1":
        return table1(dataset, scale_name, seeds, found)
    architecture = architectures(artefact, dataset)[0]
    return bounds_table(architecture, dataset, scale_name, seeds, found)


def markdown(table: Table) -> str:
    """The table as Markdown, its notes below."""
    return "\n\n".join([markdown_table(table.columns, table.rows), "\n".join(table.notes)]).strip()


def _of_seeds(
    found: Measurements,
    dataset: str,
    architecture: Architecture,
    blocks: int,
    exits: Exits,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    return [found[run_name(dataset, architecture, blocks, exits, seed)] for seed in seeds]


def _mean(values: Sequence[float], digits: int) -> str:
    """Mean, and with several values their standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _signed(values: Sequence[float], paper: float) -> str:
    return f"{np.mean(values) - paper:+.2f}"
