"""Remove any blocks of a run's network, not only the last; nothing is retrained.

  python -m experiments.surgery --workdir=runs/demo                    # compare the criteria
  python -m experiments.surgery --workdir=runs/demo --keep=6           # and cut to 6 blocks
  python -m experiments.surgery --workdir=runs/demo --budget=0.5       # to half the multiply-adds
  python -m experiments.surgery --workdir=runs/demo --tolerance=1.0 --criterion=taylor --order=once

Blocks are scored on `--samples` images of the validation split (without one, of the training set),
once or again after each removal (greedy). Of every order the table names the test accuracy over the
blocks that are kept, with the batch statistics as trained and measured anew on training images;
"exits (prune)" is cutting the tail with the statistics that the exit there had. Writes
<workdir>/surgery.json, surgery.md and figures/surgery.png, surgery.jsonl as it goes, and with a
size given <workdir>/surgical/ (the network, recalibrated and loadable without the original) and
surgical.json.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from ocresnet.costs import make_cost
from ocresnet.plots.runs import FIGURES
from ocresnet.plots.studies import draw_removals
from ocresnet.stage_cost.block_scores import (
    CRITERIA,
    RESCORED,
    ScoringData,
    measure,
)
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
from ocresnet.systems.architecture import residual

from .common import command_line, reports
from .common.flag_kinds import FlagValues, Section
from .common.runs import FinishedRun, FinishedRunFlags

PAPER_STAGE_COST = 0.02
"""gamma of the stage-cost sensitivity for a network that was trained without stage cost."""

PREFERRED = "loss_increase"
"""The criterion that cuts, unless another is named."""

SURGICAL = "surgical"

Row = dict[str, Any]


class Flags:
    """Which run, which orders of removal, how they are measured, and how much is cut."""

    def __init__(self, values: FlagValues) -> None:
        self.run = FinishedRunFlags(values)
        section = Section(values, "Size")
        self.keep = section.whole("keep", "How many blocks to keep.", least=0)
        self.budget = section.share("budget", "Share of the multiply-adds to keep.")
        self.tolerance = section.number(
            "tolerance",
            "Percentage points that may be lost on the images that blocks are scored on.",
        )
        section = Section(values, "Order")
        self.criterion = section.choice(
            "criterion", CRITERIA, f"Which score. Default: all; cut by {PREFERRED}."
        )
        self.order = section.choice(
            "order", ("once", "greedy"), "Score once or anew. Default: both; cut by greedy."
        )
        self.samples = section.whole(
            "samples", "Images that blocks are scored on, at most.", 2000, least=1
        )
        self.recalibrate_scores = section.switch(
            "recalibrate_scores", "Score with statistics measured anew for each set of blocks."
        )
        self.seed = section.whole("seed", "Of the random order.", 0)
        section = Section(values, "Measurement")
        self.statistics = section.whole(
            "statistics",
            "Training images that batch statistics are measured on, at most.",
            2000,
            least=1,
        )
        self.test_samples = section.whole(
            "test_samples", "Test images to use. Default: all.", least=1
        )

    def size_is_given(self) -> bool:
        """Whether something is to be cut.

        Raises:
          ValueError: if the size is given twice.
        """
        sizes = [flag for flag in (self.keep, self.budget, self.tolerance) if flag.present]
        if len(sizes) > 1:
            raise ValueError("give only one of --keep, --budget and --tolerance.")
        return bool(sizes)

    def orders(self) -> list[tuple[str, str]]:
        """(criterion, order) of everything that is compared."""
        criteria = [self.criterion.value] if self.criterion.value else list(CRITERIA)
        wanted = [self.order.value] if self.order.value else ["once", "greedy"]
        return [
            (name, order)
            for name in criteria
            for order in (wanted if name in RESCORED else ["once"])
        ]


class Laboratory:
    """A run's network with the images that blocks are scored and measured on."""

    def __init__(self, run: FinishedRun, flags: Flags) -> None:
        self._run, self._flags = run, flags
        self.part = run.data.choosing_part
        self.statistics = run.data.images("train")[: flags.statistics.value]
        self.data = self._scoring_data(self.part, flags.samples.value)
        self._test = self._scoring_data("test", flags.test_samples.value)
        # Many orders pass through the same sets.
        self._accuracy = cache(self._measure_accuracy)

    def _scoring_data(self, part: str, samples: int | None) -> ScoringData:
        """The first samples of a part, with the run's loss and stage cost."""
        training = self._run.training
        return ScoringData(
            self._run.data.images(part)[:samples],
            self._run.data.labels(part)[:samples],
            loss=make_cost(training.loss, training.label_smoothing).value,
            stage_cost=training.stage_cost or PAPER_STAGE_COST,
            seed=self._flags.seed.value,
            execution=training.execution,
        )

    def settings(self) -> dict[str, Any]:
        """What all orders have in common."""
        return {
            "checkpoint": self._flags.run.checkpoint,
            "chosen_on": self.part,
            "samples": len(self.data.labels),
            "statistics_images": len(self.statistics),
            "test_samples": len(self._test.labels),
            "recalibrate_scores": self._flags.recalibrate_scores.value,
            "stage_cost": self.data.stage_cost,
            "seed": self._flags.seed.value,
        }

    def measure_order(self, criterion: str, order: str) -> Row:
        """An order of removal, the seconds that finding it took, and its accuracies."""
        anew = self._flags.recalibrate_scores.value
        scored = replace(self.data, statistics_images=self.statistics if anew else None)
        find = removal_order if order == "once" else greedy_removal_order
        start = time.perf_counter()
        removed = find(self._run.network, CRITERIA[criterion], scored)
        seconds = time.perf_counter() - start
        print(f"{criterion} ({order}), {seconds:.1f} s: {removed}", flush=True)
        sets = [frozenset(removed[:count]) for count in range(len(removed) + 1)]
        return {
            "removed": removed,
            "seconds": seconds,
            "kept": [len(removed) - len(blocks) for blocks in sets],
            "accuracy": [self._accuracy(blocks, False) for blocks in sets],
            "accuracy_recalibrated": [self._accuracy(blocks, True) for blocks in sets],
        }

    def _measure_accuracy(self, removed: frozenset[int], anew: bool) -> float:
        data = replace(self._test, statistics_images=self.statistics) if anew else self._test
        return float(measure(self._run.network, data, removed, own_output=True).accuracies[-1])

    def measure_exits(self) -> Row:
        """The accuracies of cutting the tail, with the statistics of the exit there."""
        test = self._test
        exits = trajectory(self._run.network, test.images, test.labels, execution=test.execution)
        accuracies = exits.accuracies[::-1]
        kept = range(len(accuracies) - 1, -1, -1)
        return {"kept": list(kept), "accuracy": accuracies, "accuracy_recalibrated": accuracies}

    def removals(self, order: Sequence[int]) -> int:
        """How many blocks of an order the flags want removed."""
        flags, network = self._flags, self._run.network
        if flags.keep.value is not None:
            return residual(network.architecture).depth - flags.keep.value
        if flags.budget.value is not None:
            return removals_within_budget(residual(network.architecture), order, flags.budget.value)
        repaired = replace(self.data, statistics_images=self.statistics)
        curve = removal_curve(network, order, repaired)
        return removals_within_tolerance(curve, flags.tolerance.value)

    def cut(self, row: Row) -> Row:
        """Remove as many blocks as the flags say, save, and print the report on the test set."""
        run, execution = self._run, self.data.execution
        removed = sorted(row["removed"][: self.removals(row["removed"])])
        small = recalibrate(
            remove_blocks(run.network, removed),
            self.statistics,
            batch_size=self.data.batch_size,
            execution=execution,
        )
        networks.save(small, run.workdir / SURGICAL)
        images, labels = run.data.images("test"), run.data.labels("test")
        full, surgical = (
            report(network, images, labels, execution=execution) for network in (run.network, small)
        )
        print(f"removed blocks {removed}; batch statistics measured anew")
        print(report_table(full, surgical))
        print(f"wrote {run.workdir / SURGICAL}")
        return {
            "criterion": row["criterion"],
            "order": row["order"],
            "removed": removed,
            "full": vars(full),
            "surgical": vars(surgical),
        }


def tables(rows: Sequence[Row]) -> str:
    """Test accuracies over blocks kept as Markdown, a part for each kind of statistics."""
    parts = []
    for key, title in (
        ("accuracy_recalibrated", "batch statistics measured anew"),
        ("accuracy", "batch statistics as trained"),
    ):
        table = reports.markdown_table(
            ["blocks kept", *map(str, rows[0]["kept"])],
            [
                [
                    f"{row['criterion']} ({row['order']})",
                    *(f"{100 * accuracy:.1f}" for accuracy in row[key]),
                ]
                for row in rows
            ],
        )
        parts.append(f"Test accuracy (%) over residual blocks kept, {title}:\n\n{table}")
    return "\n\n".join(parts)


def operate(flags: Flags) -> None:
    """Find and measure every order, and cut by one of them if a size is given."""
    size_is_given = flags.size_is_given()
    run = flags.run.load()
    architecture = residual(run.network.architecture, "surgery")
    if flags.keep.value is not None:
        architecture.subresnet(flags.keep.value)  # refuses what cannot be kept
    laboratory = Laboratory(run, flags)
    study = reports.Study(run.workdir / "surgery", laboratory.settings())
    rows = [
        study.row(
            {"criterion": criterion, "order": order},
            partial(laboratory.measure_order, criterion, order),
        )
        for criterion, order in flags.orders()
    ]
    study.row({"criterion": "exits", "order": "prune"}, laboratory.measure_exits)
    text = tables(study.rows)
    print(text)
    study.write(text)
    print(f"wrote {study.path('.json')} and .md")
    if size_is_given:
        preferred = flags.criterion.value or PREFERRED
        # Of one criterion the greedy order comes last.
        chosen = [row for row in rows if row["criterion"] == preferred][-1]
        reports.write(run.workdir / f"{SURGICAL}.json", laboratory.cut(chosen))
    draw(run, study.rows)


def draw(run: FinishedRun, rows: Sequence[Row]) -> None:
    """Draw the figure, or say what is missing to do so."""
    try:
        figure = draw_removals(rows)
    except ImportError as error:
        print(f"no figure: {command_line.sentence(error)}", file=sys.stderr)
        return
    path = run.workdir / FIGURES / "surgery.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Operate as the arguments say; returns the exit status."""
    return command_line.run(operate, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
