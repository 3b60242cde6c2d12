"""Remove any blocks of a run's network, not only the last; nothing is retrained.

  python -m experiments.surgery --workdir=runs/demo                    # compare the criteria
  python -m experiments.surgery --workdir=runs/demo --keep=6           # and cut to 6 blocks
  python -m experiments.surgery --workdir=runs/demo --budget=0.5       # to half the multiply-adds
  python -m experiments.surgery --workdir=runs/demo --tolerance=1.0 --criterion=taylor --order=once

Blocks are scored on `--samples` images of the validation split (without one, of the training set),
once or again after each removal (greedy). Of every order the table names the test accuracy over the
blocks that are kept, with the batch statistics as trained and measured anew on training images;
"exits (prune)" is cutting the tail with the statistics that the exit there had. Writes
<workdir>/surgery.json, surgery.md and figures/surgery.png, and with a size given the network
<workdir>/surgical/, recalibrated and loadable without the original.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from absl import flags

from experiments import command_line, runs
from ocresnet import plots
from ocresnet.files import replace_file
from ocresnet.stage_cost.block_scores import (
    CRITERIA,
    RESCORED,
    ScoringData,
    measure,
    own_output,
)
from ocresnet.stage_cost.objective import per_sample_loss
from ocresnet.stage_cost.pruning import report, report_table
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.surgery import (
    greedy_removal_order,
    removal_curve,
    removal_order,
    removals_within_budget,
    removals_within_tolerance,
    remove_blocks,
)
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems import network as networks
from ocresnet.training import records

KEEP = flags.DEFINE_integer("keep", None, "How many blocks to keep.")
BUDGET = flags.DEFINE_float("budget", None, "Share of the multiply-adds to keep.")
TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "Percentage points that may be lost on the images that blocks are scored on."
)
CRITERION = flags.DEFINE_enum(
    "criterion", None, list(CRITERIA), "Which score. Default: all; cut by loss_increase."
)
ORDER = flags.DEFINE_enum(
    "order", None, ["once", "greedy"], "Score once or anew. Default: both; cut by greedy."
)
SAMPLES = flags.DEFINE_integer("samples", 2000, "Images that blocks are scored on, at most.")
STATISTICS = flags.DEFINE_integer(
    "statistics", 2000, "Training images that batch statistics are measured on, at most."
)
RECALIBRATE_SCORES = flags.DEFINE_boolean(
    "recalibrate_scores", False, "Score with statistics measured anew for each set of blocks."
)
TEST_SAMPLES = flags.DEFINE_integer("test_samples", None, "Test images to use. Default: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the random order.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "Run": runs.FLAGS,
    "Size": [KEEP, BUDGET, TOLERANCE],
    "Order": [CRITERION, ORDER, SAMPLES, RECALIBRATE_SCORES, SEED],
    "Measurement": [STATISTICS, TEST_SAMPLES],
}

PAPER_STAGE_COST = 0.02
"""gamma of the stage-cost sensitivity for a network that was trained without stage cost."""

SURGICAL = "surgical"


def scoring_data(run: runs.FinishedRun, part: str, samples: int | None) -> ScoringData:
    """The first samples of a part, with the run's loss and stage cost."""
    training = run.training
    return ScoringData(
        run.data.images(part)[:samples],
        run.data.labels(part)[:samples],
        loss=per_sample_loss(training.loss, training.label_smoothing),
        stage_cost=training.stage_cost or PAPER_STAGE_COST,
        seed=SEED.value,
        execution=training.execution,
    )


def removal_orders(run: runs.FinishedRun, data: ScoringData) -> list[dict[str, Any]]:
    """Every order that is compared, with the seconds that finding it took."""
    rows = []
    for name in [CRITERION.value] if CRITERION.value else CRITERIA:
        for order in ("once", "greedy") if name in RESCORED else ("once",):
            if ORDER.value not in (None, order) and name in RESCORED:
                continue
            find = removal_order if order == "once" else greedy_removal_order
            start = time.perf_counter()
            removed = find(run.network, CRITERIA[name], data)
            seconds = time.perf_counter() - start
            rows.append({"criterion": name, "order": order, "removed": removed, "seconds": seconds})
            print(f"{name} ({order}), {seconds:.1f} s: {removed}", flush=True)
    return rows


def measure_rows(
    run: runs.FinishedRun, rows: Sequence[dict[str, Any]], statistics_images: np.ndarray
) -> list[dict[str, Any]]:
    """The orders with their test accuracies over the blocks kept, and that of the exits."""
    depth = run.network.config.depth
    test = scoring_data(run, "test", TEST_SAMPLES.value)
    recalibrated = replace(test, statistics_images=statistics_images)

    @cache  # many orders pass through the same sets
    def accuracy(removed: frozenset[int], anew: bool) -> float:
        network = own_output(run.network)
        return float(measure(network, recalibrated if anew else test, removed).accuracies[-1])

    measured = []
    for row in rows:
        sets = [frozenset(row["removed"][:count]) for count in range(depth + 1)]
        accuracies = {
            name: [accuracy(removed, anew) for removed in sets]
            for name, anew in (("accuracy", False), ("accuracy_recalibrated", True))
        }
        measured.append({**row, "kept": list(range(depth, -1, -1)), **accuracies})
    exits = trajectory(run.network, test.images, test.labels, execution=test.execution)
    own = {"accuracy": exits.accuracies[::-1], "accuracy_recalibrated": exits.accuracies[::-1]}
    reference = {"criterion": "exits", "order": "prune", "kept": measured[0]["kept"], **own}
    return [*measured, reference]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Test accuracies over blocks kept as Markdown, a part for each kind of statistics."""
    lines = []
    for key, title in (
        ("accuracy_recalibrated", "batch statistics measured anew"),
        ("accuracy", "batch statistics as trained"),
    ):
        kept = rows[0]["kept"]
        lines += [
            "",
            f"Test accuracy (%) over residual blocks kept, {title}:",
            "",
            f"| blocks kept | {' | '.join(map(str, kept))} |",
            "|---|" + "---:|" * len(kept),
        ]
        for row in rows:
            cells = " | ".join(f"{100 * value:.1f}" for value in row[key])
            lines.append(f"| {row['criterion']} ({row['order']}) | {cells} |")
    return "\n".join(lines[1:]) + "\n"


def cut(
    run: runs.FinishedRun,
    order: Sequence[int],
    data: ScoringData,
    statistics_images: np.ndarray,
) -> dict[str, Any]:
    """Remove as many blocks as the flags say, save, and print the report on the test set."""
    config = run.network.config
    if KEEP.value is not None:
        removals = config.depth - KEEP.value
    elif BUDGET.value is not None:
        removals = removals_within_budget(config, order, BUDGET.value)
    else:
        assert TOLERANCE.value is not None
        repaired = replace(data, statistics_images=statistics_images)
        curve = removal_curve(run.network, order, repaired)
        removals = removals_within_tolerance(curve, TOLERANCE.value)
    removed = sorted(order[:removals])
    small = recalibrate(
        remove_blocks(run.network, removed),
        statistics_images,
        batch_size=data.batch_size,
        execution=data.execution,
    )
    networks.save(small, run.workdir / SURGICAL)
    reports = [
        report(network, run.data.images("test"), run.data.labels("test"), execution=data.execution)
        for network in (run.network, small)
    ]
    print(f"removed blocks {removed}; batch statistics measured anew")
    print(report_table(*reports))
    print(f"wrote {run.workdir / SURGICAL}")
    return {"removed": removed, "full": vars(reports[0]), "surgical": vars(reports[1])}


def check_flags() -> bool:
    """Refuse impossible flags; whether a size was given."""
    sizes = [flag for flag in (KEEP, BUDGET, TOLERANCE) if flag.value is not None]
    if len(sizes) > 1:
        raise ValueError("give only one of --keep, --budget and --tolerance.")
    for flag in (SAMPLES, STATISTICS, TEST_SAMPLES):
        if flag.value is not None and flag.value < 1:
            raise ValueError(f"--{flag.name} is {flag.value}, but must be at least 1.")
    return bool(sizes)


def main() -> None:
    sized = check_flags()
    run = runs.run_of_flags()
    if KEEP.value is not None:
        run.network.config.subresnet(KEEP.value)  # refuses what cannot be kept
    part = run.data.choosing_part
    data = scoring_data(run, part, SAMPLES.value)
    statistics_images = run.data.images("train")[: STATISTICS.value]
    scored = replace(
        data, statistics_images=statistics_images if RECALIBRATE_SCORES.value else None
    )
    rows = removal_orders(run, scored)
    result: dict[str, Any] = {
        "chosen_on": part,
        "samples": len(data.labels),
        "statistics_images": len(statistics_images),
        "recalibrate_scores": RECALIBRATE_SCORES.value,
        "stage_cost": data.stage_cost,
        "seed": SEED.value,
        "rows": measure_rows(run, rows, statistics_images),
    }
    text = table(result["rows"])
    print(text)
    if sized:
        preferred = CRITERION.value or "loss_increase"
        # Of one criterion the greedy order comes last.
        chosen = [row for row in rows if row["criterion"] == preferred][-1]
        result["cut"] = {"criterion": preferred, "order": chosen["order"]}
        result["cut"] |= cut(run, chosen["removed"], data, statistics_images)
    records.write_json(run.workdir / "surgery.json", result)
    replace_file(run.workdir / "surgery.md", text.encode())
    print(f"wrote {run.workdir / 'surgery.json'} and surgery.md")
    draw(run, result["rows"])


def draw(run: runs.FinishedRun, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the figure, or say what is missing to do so."""
    try:
        figure = plots.draw_removals(rows)
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return
    path = run.workdir / plots.FIGURES / "surgery.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
