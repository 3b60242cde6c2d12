"""What a network cut to its depth is worth, against one of its size trained at the same price.

  python -m experiments.depth_study --output=results/depth_study/digits
  python -m experiments.depth_study --dataset='cifar10.npz[:10000]' --seed=0,1 \\
      --method=probe --method=shrink --output=results/depth_study/cifar10

Every method spends one budget, counted in multiply-adds of all the training that leads to its
network: what --epochs of the whole network with stage costs cost. Methods:

  stage_costs  the paper's recipe: stage costs, then a cut to the depth of the rule and to each of
               --cut, with and without fine-tuning at each --rate (the table shows the rate that is
               best on the validation part)
  taught       the same with the whole network as teacher of the fine-tuning
  surgery      a plain network that loses the blocks that surgery finds, to each of --cut
  probe        stage costs for a share of the budget find the depth; the rest trains the network
               of that depth, from the probe's weights or from new ones
  shrink       the depth rule cuts at --milestones, and training goes on with what is left, after
               the last cut without stage costs
  shrink_paid  the same with stage costs to the end
  shrink_few   shrink, with cuts to the fewest blocks that resampled validation sets ask for
  search       plain networks of each --depth for --epochs: what the other methods save

Each network that comes out is compared with a plain one of its size that was trained from scratch
for the whole budget. Writes <output>.json, .md and .png, and .jsonl as it goes, with the runs in
<output>_runs/: the same command goes on where it was stopped.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ocresnet.data.sources import load_dataset
from ocresnet.problem import StageCostSchedule
from ocresnet.stage_cost.masks import WeightDecayOn
from ocresnet.systems import counts, families
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training import config as configs
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import SGD
from ocresnet.training.schedules import ScheduleName

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section, shown
from ..common.recipe import EARLY_TOLERANCE
from ..common.reports import Study
from .laboratory import Laboratory, Plan
from .methods import (
    FromScratch,
    Method,
    ProbeThenTrain,
    ShrinkToTheFewest,
    ShrinkWhileTraining,
    TrainThenCut,
)
from .tables import draw, tables

GROUPS = (
    "stage_costs",
    "taught",
    "surgery",
    "probe",
    "shrink",
    "shrink_paid",
    "shrink_few",
    "search",
)


MILESTONES = (0.2, 0.4)
"""Shares of the budget where shrinking cuts, by default."""


class Flags:
    """The data, the network, the budget and the methods."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        self.dataset = section.text("dataset", "Name or .npz file of the data.", "digits")
        self.data_dir = section.text("data_dir", "Folder of the TFDS data (array_record).")
        self.groups = section.choices("method", GROUPS, "What is compared, repeatable.", GROUPS)
        self.seeds = section.wholes("seed", "Runs of each method, separated by commas.", (0, 1, 2))
        self._output = section.text("output", "Where to write, without extension.")
        section = Section(values, "Network")
        self._blocks = section.whole("blocks", "Of the whole network.", 12, least=1)
        self._filters = section.whole("filters", "Of each block.", 16, least=1)
        self._stem_stride = section.whole("stem_stride", "Of the first convolution.", 2, least=1)
        section = Section(values, "Training")
        self._epochs = section.whole(
            "epochs", "The budget: of the whole network with stage costs.", 30, least=1
        )
        self._batch_size = section.whole("batch_size", "Samples a step.", 128, least=1)
        self._learning_rate = section.number("learning_rate", "Of every training.", 0.1)
        self._schedule = section.choice(
            "schedule", ("cosine", "milestones"), "Of every learning rate that falls.", "cosine"
        )
        self._weight_decay = section.number("weight_decay", "Of every training.", 1e-3)
        self._weight_decay_on = section.choice(
            "weight_decay_on", get_args(WeightDecayOn), "Which parameters decay.", "all"
        )
        self._augmentation = section.choice(
            "augmentation", ("none", "crop", "crop_flip"), "Of training images.", "none"
        )
        self._stage_cost = section.number("stage_cost", "gamma, where stage costs are paid.", 0.09)
        self._stage_cost_schedule = section.choice(
            "stage_cost_schedule",
            get_args(StageCostSchedule),
            "How it is spread over depth.",
            "constant",
        )
        self._validation = section.share("validation", "Held out for the depth rule.", 0.1)
        section = Section(values, "Methods")
        self._depths = section.wholes("depths", "Of the search. Default: 1 to all blocks.", None)
        self._cuts = section.wholes("cut", "Depths to cut to, beside the rule's.", (4,))
        self._rates = section.numbers(
            "rate", "Learning rate of fine-tuning, repeatable.", [0.01, 0.03, 0.1]
        )
        self._finetuning = section.share("finetuning", "Share of the budget for it.", 0.25)
        self._probe = section.share("probe", "Share of the budget for the probe.", 1 / 3)
        self.tolerance = section.number(
            "tolerance", "Points that the depth rule may lose, and the search.", 0.5
        )
        self._early_tolerance = section.number(
            "early_tolerance",
            "The same after a probe and in shrinking: before a network has converged, deeper exits "
            "are surer of the same classes.",
            EARLY_TOLERANCE,
        )
        self._milestones = section.row(
            "milestones",
            f"Shares of the budget where shrinking cuts. Default: {shown(MILESTONES)}.",
        )

    def check(self) -> None:
        """Refuse what only a method would notice, after other methods were trained.

        Raises:
          ValueError: naming the flag.
        """
        most = self._blocks.value
        for flag in (self._cuts, self._depths):
            for blocks in flag.value or ():
                if not 1 <= blocks <= most:
                    raise ValueError(f"--{flag.name}={blocks} must be 1 to {most} blocks.")
        milestones = self._milestones.value or MILESTONES
        within = all(0 < milestone < 1 for milestone in milestones)
        if not within or list(milestones) != sorted(set(milestones)):
            raise ValueError(
                f"--milestones={shown(milestones)} must be increasing shares of the budget, above "
                "0 and below 1."
            )
        if not self.seeds.value:
            raise ValueError("--seed must be one whole number or several.")

    def plan(self) -> Plan:
        """What all methods have in common.

        Raises:
          ValueError: for an impossible value.
        """
        schedule: ScheduleName = self._schedule.value
        optimizer = SGD(
            learning_rate=self._learning_rate.value,
            schedule=schedule,
            weight_decay=self._weight_decay.value,
            weight_decay_on=self._weight_decay_on.value,
        )
        training = TrainingConfig(
            epochs=self._epochs.value,
            batch_size=self._batch_size.value,
            optimizer=optimizer,
            stage_cost=self._stage_cost.value,
            stage_cost_schedule=self._stage_cost_schedule.value,
            augmentation=self._augmentation.value,
            validation=self._validation.value,
        )
        network = ResNetConfig.homogeneous(
            self._blocks.value, self._filters.value, stem_stride=self._stem_stride.value
        )
        return Plan(network, training)

    def methods(self) -> Iterator[Method]:
        """Those that are asked for, but for the networks from scratch they are compared with."""
        groups, share = self.groups.value, self._finetuning.value
        rates, cuts = self._rates.value, self._cuts.value
        tolerance, early = self.tolerance.value, self._early_tolerance.value
        if "stage_costs" in groups:
            for blocks in (None, *cuts):
                yield TrainThenCut(True, blocks, tolerance=tolerance)
                for rate in rates:
                    yield TrainThenCut(True, blocks, share, rate, tolerance=tolerance)
        if "taught" in groups:
            for rate in rates:
                yield TrainThenCut(True, None, share, rate, True, tolerance)
        if "surgery" in groups:
            for blocks in cuts:
                yield TrainThenCut(False, blocks)
                for rate in rates:
                    yield TrainThenCut(False, blocks, share, rate)
        if "probe" in groups:
            for on in (True, False):
                yield ProbeThenTrain(self._probe.value, on, early)
        milestones = self._milestones.value or MILESTONES
        if "shrink" in groups:
            yield ShrinkWhileTraining(milestones, to_the_end=False, tolerance=early)
        if "shrink_paid" in groups:
            yield ShrinkWhileTraining(milestones, to_the_end=True, tolerance=early)
        if "shrink_few" in groups:
            yield ShrinkToTheFewest(milestones, to_the_end=False, tolerance=early)
        if "search" in groups:
            for blocks in self._depths.value or range(1, self._blocks.value + 1):
                yield FromScratch(blocks, self._epochs.value)

    def study(self, plan: Plan) -> Study:
        """The rows."""
        settings = {
            "dataset": self.dataset.value,
            "network": families.describe(plan.network),
            "training": configs.describe(plan.training),
            "tolerance": self.tolerance.value,
            "early_tolerance": self._early_tolerance.value,
        }
        return Study(self._output.value, settings)

    def workdir(self) -> Path | None:
        """Where the runs lie."""
        return Path(f"{self._output.value}_runs") if self._output.value else None


def measure(laboratory: Laboratory, method: Method) -> dict[str, Any]:
    """Carry out a method: the network that comes out, how good it is, and what it has cost.

    Accuracies are in percent; `price` is in multiply-adds, `share_of_budget` in budgets.
    """
    trained = method.carry_out(laboratory)
    return {
        "kept": trained.architecture.depth,
        "multiply_adds": counts.multiply_adds(trained.architecture).total,
        "validation": laboratory.accuracy(trained.network, "validation"),
        "test": laboratory.accuracy(trained.network, "test"),
        "price": trained.price,
        "share_of_budget": trained.price / laboratory.budget,
        "block_epochs": trained.block_epochs,
    }


def study(flags: Flags) -> None:
    """Carry out every method for every seed, each against a network from scratch."""
    flags.check()
    plan = flags.plan()
    found = flags.study(plan)
    data = load_dataset(flags.dataset.value, flags.data_dir.value)
    for seed in flags.seeds.value:
        laboratory = Laboratory(plan, data, seed, flags.workdir())

        def row(method: Method, laboratory: Laboratory = laboratory, seed: int = seed) -> Any:
            key = {**method.key, "seed": seed}
            measured = found.row(key, partial(measure, laboratory, method))
            print(
                f"seed {seed}  {method.name:40} {measured['kept']:3} blocks  "
                f"{measured['test']:6.2f} %  {measured['share_of_budget']:.2f} budgets",
                flush=True,
            )
            return measured

        for method in flags.methods():
            kept = row(method)["kept"]
            if not isinstance(method, FromScratch):
                row(FromScratch(kept))
    text = tables(found.rows, flags.tolerance.value)
    print(f"\n{text}")
    found.write(text)
    if found.writes:
        draw(found.rows).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
