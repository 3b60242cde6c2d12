"""Depth for free: sweep the stage cost and its schedule, and let validation data choose the depth.

  python -m experiments.choose_depth --preset=mnist_homogeneous12_small --data_dir=data \
      --workdir=runs/depth

trains the preset (every flag of experiments.train applies) once for each stage cost and schedule,
to <workdir>/<stage cost>_<schedule>/, and for each recommends a depth by the depth rule on the
validation split, with the 90 % interval of that depth over resampled validation sets. In the end
the smallest of all cut networks is recommended whose validation accuracy is within --tolerance of
the best of all. The test set is measured and takes no part. Writes <workdir>/choose_depth.json and
.md. Runs that are finished are read, those that were interrupted go on.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from absl import flags as absl_flags

from experiments import command_line, flags
from ocresnet.data.sources import load_dataset
from ocresnet.stage_cost.depth_choice import choose_depth
from ocresnet.stage_cost.objective import StageCostSchedule
from ocresnet.stage_cost.trajectory import logits_over_depth, trajectory
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset

STAGE_COSTS = absl_flags.DEFINE_multi_float(
    "gamma", [0.0, 0.005, 0.02, 0.1, 0.5], "Stage costs to try (instead of --stage_cost)."
)
SCHEDULES = absl_flags.DEFINE_multi_enum(
    "schedule", ["constant"], ["constant", "linear", "terminal"], "Schedules to try with each."
)
TOLERANCE = absl_flags.DEFINE_float("tolerance", 0.5, "Percentage points that a cut may lose.")

GROUPS = {"Sweep": [STAGE_COSTS, SCHEDULES, TOLERANCE], **flags.GROUPS}

COLUMNS = (
    ("stage cost", "stage_cost"),
    ("schedule", "schedule"),
    ("whole: validation (%)", "validation_whole"),
    ("test (%)", "test_whole"),
    ("blocks kept (90 %)", "depth"),
    ("cut: validation (%)", "validation_cut"),
    ("test (%)", "test_cut"),
)


def trials(schedules: list[StageCostSchedule]) -> list[tuple[float, StageCostSchedule]]:
    """Every stage cost with every schedule; a stage cost of zero has none."""
    return [
        (gamma, schedule)
        for gamma in STAGE_COSTS.value
        for schedule in (schedules if gamma > 0 else schedules[:1])
    ]


def row_of(run: Run, data: Any, training: TrainingConfig, tolerance: float) -> dict[str, Any]:
    """What one run recommends, and how good that is."""
    images, labels = data.validation_images, data.validation_labels
    logits = logits_over_depth(run.network, images, execution=training.execution)
    chosen = choose_depth(logits, labels, tolerance=tolerance)
    validation, test = (
        trajectory(
            run.network, data.images(part), data.labels(part), execution=training.execution
        ).accuracies
        for part in ("validation", "test")
    )
    return {
        "stage_cost": training.stage_cost,
        "schedule": training.stage_cost_schedule,
        "blocks": chosen.blocks,
        "depth": f"{chosen.blocks} ({chosen.low} to {chosen.high})",
        "shares": chosen.shares,
        "validation": validation,
        "test": test,
        "validation_whole": f"{100 * validation[-1]:.2f}",
        "validation_cut": f"{100 * validation[chosen.blocks]:.2f}",
        "test_whole": f"{100 * test[-1]:.2f}",
        "test_cut": f"{100 * test[chosen.blocks]:.2f}",
    }


def recommend(rows: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """The row of the smallest cut network that is nearly as good as any, on validation data."""

    def accuracy(row: dict[str, Any]) -> float:
        return float(row["validation"][row["blocks"]])

    best = max(float(max(row["validation"])) for row in rows)
    near = [row for row in rows if accuracy(row) >= best - tolerance / 100 - 1e-9]
    return min(near or rows, key=lambda row: (row["blocks"], -accuracy(row)))


def main() -> None:
    wanted = flags.run_flags()
    if wanted.training.validation == 0:
        raise ValueError("choosing a depth needs a validation split: give --validation=0.1.")
    data = load_dataset(wanted.dataset, flags.DATA_DIR.value, download=flags.DOWNLOAD.value)
    split = data.split(wanted.training.validation, wanted.training.seed)
    rows = []
    for gamma, schedule in trials(cast(list[StageCostSchedule], SCHEDULES.value)):
        training = replace(wanted.training, stage_cost=gamma, stage_cost_schedule=schedule)
        workdir = Path(wanted.workdir) / f"{gamma:g}_{schedule}"
        print(f"stage cost {gamma:g}, {schedule}", flush=True)
        run = fit(for_dataset(wanted.network, data), training, data, workdir=workdir)
        if run.interrupted:
            print("interrupted; the same command goes on from here")
            return
        rows.append(row_of(run, split, training, TOLERANCE.value))
    chosen = recommend(rows, TOLERANCE.value)
    lines = [
        "| " + " | ".join(title for title, _ in COLUMNS) + " |",
        "|---:|---|" + "---:|" * (len(COLUMNS) - 2),
        *("| " + " | ".join(str(row[key]) for _, key in COLUMNS) + " |" for row in rows),
        "",
        f"Recommended: stage cost {chosen['stage_cost']:g}, {chosen['schedule']}, "
        f"{chosen['blocks']} blocks.",
    ]
    print("\n".join(lines))
    folder = Path(wanted.workdir)
    (folder / "choose_depth.md").write_text("\n".join(lines) + "\n")
    record = {"tolerance": TOLERANCE.value, "rows": rows, "recommended": chosen}
    records.write_json(folder / "choose_depth.json", record)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
