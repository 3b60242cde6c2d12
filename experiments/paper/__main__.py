"""Every table and figure of the stage-cost paper, with the training runs that they need.

  python -m experiments.paper --scale=small --dataset=mnist --data_dir=data --plan
  python -m experiments.paper --scale=small --dataset=cifar10 --data_dir=data --output=results/paper
  python -m experiments.paper --artefact=table3 --scale=paper --dataset=cifar10 --data_dir=data

plans the runs, skips those that are finished in the workdir, continues those that were interrupted,
trains the rest, and writes each artefact (all the paper has of that data set, unless --artefact
names some) to
<output>/<scale>_<dataset>/: tables as .md and .csv beside the paper's numbers, figures as .png and
.pdf, and the measured values behind both as .json. --plan only prints the runs and their cost.
runs.json beside them has what was measured on every run; from it alone --redraw makes them again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ..common import command_line, reports
from ..common.flag_kinds import FlagValues, Section
from . import artefacts, runs
from .plan import DATASETS, SCALES, Artefact, default_artefacts, plan

RUNS = "runs.json"


class Flags:
    """What is made, from where, to where."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        self.artefacts = section.choices(
            "artefact",
            get_args(Artefact),
            "Tables and figures to make. Default: all the paper has.",
            None,
        )
        self.dataset = section.choice("dataset", DATASETS, "What the networks learn.", "cifar10")
        self.scale = section.choice("scale", SCALES, "How large the experiment is.", "small")
        self.seeds = section.whole(
            "seeds", "Runs of each network, with seeds 0, 1, ...", 1, least=1
        )
        section = Section(values, "Where")
        self.data_dir = section.text("data_dir", "Folder of the TFDS data (array_record).")
        self.workdir = section.text("workdir", "Where the runs lie.", "runs/paper")
        self.output = section.text("output", "Where artefacts go. Default: the workdir.")
        section = Section(values, "Plan")
        self.plan = section.switch("plan", "Print the runs with their cost, and do nothing.")
        self.redraw = section.switch(
            "redraw", "Make the artefacts from runs.json in the output; train nothing."
        )
        self.rate = section.number(
            "rate", "Multiply-adds a second, for the plan; the default is two CPU cores.", 4e10
        )


def make(flags: Flags) -> None:
    """Carry out the plan, then write the artefacts."""
    dataset, scale, seeds = flags.dataset.value, flags.scale.value, range(flags.seeds.value)
    wanted = flags.artefacts.value or default_artefacts(dataset)
    planned = plan(wanted, dataset, scale, seeds)
    folder = Path(flags.workdir.value) / scale
    output = Path(flags.output.value or flags.workdir.value) / f"{scale}_{dataset}"
    if flags.redraw.value:
        found = runs.gathered(output / RUNS)
        runs.require(planned, found, output / RUNS)
    else:
        print(runs.describe(planned, folder, flags.rate.value))
        if flags.plan.value:
            return
        runs.carry_out(planned, folder, flags.data_dir.value)
        # Those of artefacts that were made before stay.
        found = {**runs.gathered(output / RUNS), **runs.gather(planned, folder)}
        reports.write(output / RUNS, {"runs": found})
    for artefact in wanted:
        for path in artefacts.write(artefact, dataset, scale, seeds, found, output):
            print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the artefacts as the arguments say; returns the exit status."""
    return command_line.run(make, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
