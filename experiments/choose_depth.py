"""Depth for free: sweep the stage cost and its schedule, and let validation data choose the depth.

  python -m experiments.choose_depth --preset=mnist_homogeneous12_small --data_dir=data \
      --workdir=runs/depth

trains the preset (every flag of experiments.train applies) once for each stage cost and schedule,
to <workdir>/<stage cost>_<schedule>/, and for each recommends a depth by the depth rule on the
validation split, with the 90 % interval of that depth over resampled validation sets. In the end
the smallest of all cut networks is recommended whose validation accuracy is within --tolerance of
the best of all. The test set is measured and takes no part. Writes <workdir>/choose_depth.json and
.md, and .jsonl as it goes: the same command goes on where it was stopped.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ocresnet.data.training_data import TrainingData
from ocresnet.problem import StageCostSchedule
from ocresnet.stage_cost.depth_choice import choose_depth
from ocresnet.stage_cost.trajectory import logits_over_depth
from ocresnet.systems import families
from ocresnet.systems.architecture import Architecture, residual
from ocresnet.training import config as configs
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset

from .common import command_line, reports
from .common.flag_kinds import FlagValues, Section
from .common.flags import TrainingRunFlags
from .common.hosts import is_first


class Flags(TrainingRunFlags):
    """The sweep, and a training run."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Sweep")
        self.stage_costs = section.numbers(
            "gamma", "Stage costs to try (instead of --stage_cost).", [0.0, 0.005, 0.02, 0.1, 0.5]
        )
        self.schedules = section.choices(
            "gamma_schedule",
            get_args(StageCostSchedule),
            "How each is spread over depth (instead of --stage_cost_schedule).",
            ["constant"],
        )
        self.tolerance = section.number("tolerance", "Percentage points that a cut may lose.", 0.5)
        super().__init__(values)

    def trials(self, training: TrainingConfig) -> Iterator[TrainingConfig]:
        """Every stage cost with every schedule; a stage cost of zero has none."""
        for gamma in self.stage_costs.value:
            for schedule in self.schedules.value[: None if gamma > 0 else 1]:
                yield replace(training, stage_cost=gamma, stage_cost_schedule=schedule)


def measure(
    network: Architecture,
    training: TrainingConfig,
    data: TrainingData,
    workdir: Path,
    flags: Flags,
) -> dict[str, Any]:
    """Train, or continue, and measure what the run recommends and how good that is."""
    trained = fit(network, training, data, workdir=workdir, devices=flags.hosts.devices())
    if trained.interrupted:
        raise KeyboardInterrupt
    split = data.split(training.validation, training.seed)
    validation, labels = split.images("validation"), split.labels("validation")
    logits = logits_over_depth(trained.network, validation, execution=training.execution)
    chosen = choose_depth(logits, labels, tolerance=flags.tolerance.value)
    accuracies = {part: trained.trajectories[part].accuracies for part in ("validation", "test")}
    return {**chosen._asdict(), **accuracies}


def recommend(rows: Sequence[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """The row of the smallest cut network that is nearly as good as any, on validation data."""

    def accuracy(row: dict[str, Any]) -> float:
        return float(row["validation"][row["blocks"]])

    best = max(float(max(row["validation"])) for row in rows)
    near = [row for row in rows if accuracy(row) >= best - tolerance / 100 - 1e-9]
    return min(near or rows, key=lambda row: (row["blocks"], -accuracy(row)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracies of whole and cut networks as Markdown."""
    return reports.markdown_table(
        [
            "schedule",
            "stage cost",
            "whole: validation (%)",
            "test (%)",
            "blocks kept (90 %)",
            "cut: validation (%)",
            "test (%)",
        ],
        [
            [
                row["schedule"],
                f"{row['stage_cost']:g}",
                *(f"{100 * row[part][-1]:.2f}" for part in ("validation", "test")),
                f"{row['blocks']} ({row['low']} to {row['high']})",
                *(f"{100 * row[part][row['blocks']]:.2f}" for part in ("validation", "test")),
            ]
            for row in rows
        ],
    )


def sweep(flags: Flags) -> None:
    """Train every trial, measure what it recommends, and recommend one of all."""
    wanted, tolerance = flags.wanted(recipe="paper"), flags.tolerance.value
    if wanted.training.validation == 0:
        raise ValueError("choosing a depth needs a validation split: give --validation=0.1.")
    residual(wanted.network, "choosing a depth")
    if wanted.training.shrink:
        raise ValueError(
            "choosing a depth compares networks of the whole depth: leave out --shrink and "
            "--recipe=shrink."
        )
    flags.hosts.start()
    data = flags.data.open(wanted.dataset)
    network = for_dataset(wanted.network, data)
    not_swept = replace(wanted.training, stage_cost=0.0, stage_cost_schedule="constant")
    settings = {
        "dataset": wanted.dataset,
        "network": families.describe(network),
        "training": configs.describe(not_swept),
        "tolerance": tolerance,
    }
    folder = Path(wanted.workdir)
    study = reports.Study(folder / "choose_depth", settings, writes=is_first())
    for training in flags.trials(wanted.training):
        key = {"stage_cost": training.stage_cost, "schedule": training.stage_cost_schedule}
        name = f"{key['stage_cost']:g}_{key['schedule']}"
        print(name, flush=True)
        study.row(key, partial(measure, network, training, data, folder / name, flags))
    if is_first():
        chosen = recommend(study.rows, tolerance)
        text = (
            f"{table(study.rows)}\n\nRecommended: stage cost {chosen['stage_cost']:g}, "
            f"{chosen['schedule']}, {chosen['blocks']} blocks."
        )
        print(text)
        study.write(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep as the arguments say; returns the exit status."""
    return command_line.run(sweep, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
