"""Every table and figure of the stage-cost paper, with the training runs that they need.

  python -m experiments.paper --scale=small --dataset=mnist --data_dir=data --plan
  python -m experiments.paper --scale=small --dataset=cifar10 --data_dir=data --output=results/paper
  python -m experiments.paper --artefact=table3 --scale=paper --dataset=cifar10 --data_dir=data

plans the runs, skips those that are finished in the workdir, continues those that were interrupted,
trains the rest, and writes each artefact (all the paper has of that data set, unless --artefact
names some) to
<output>/<scale>_<dataset>/: tables as .md and .csv beside the paper's numbers, figures as .png and
.pdf, and the measured values behind both as .json. --plan only prints the runs and their cost.
"""

from pathlib import Path
from typing import cast, get_args

from absl import flags

from experiments import command_line, paper_artefacts, paper_runs
from experiments.paper_plan import SCALES, Artefact, default_artefacts, plan
from experiments.presets import IMAGE_SHAPES

ARTEFACTS = flags.DEFINE_multi_enum(
    "artefact", None, get_args(Artefact), "Tables and figures to make. Default: all the paper has."
)
DATASET = flags.DEFINE_enum("dataset", "cifar10", list(IMAGE_SHAPES), "What the networks learn.")
SCALE = flags.DEFINE_enum("scale", "small", list(SCALES), "How large the experiment is.")
SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Runs of each network, with seeds 0, 1, ...", lower_bound=1
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the TFDS data (array_record).")
WORKDIR = flags.DEFINE_string("workdir", "runs/paper", "Where the runs lie.")
OUTPUT = flags.DEFINE_string("output", None, "Where artefacts go. Default: the workdir.")
PLAN = flags.DEFINE_bool("plan", False, "Print the runs with their cost, and do nothing.")
RATE = flags.DEFINE_float(
    "rate", 4e10, "Multiply-adds a second, for the plan; the default is two CPU cores."
)

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "What": [ARTEFACTS, DATASET, SCALE, SEEDS],
    "Where": [DATA_DIR, WORKDIR, OUTPUT],
    "Plan": [PLAN, RATE],
}


def main() -> None:
    dataset, scale, seeds = DATASET.value, SCALE.value, range(SEEDS.value)
    artefacts = cast(list[Artefact], ARTEFACTS.value) or default_artefacts(dataset)
    runs = plan(artefacts, dataset, scale, seeds)
    folder = Path(WORKDIR.value) / scale
    print(paper_runs.describe(runs, folder, RATE.value))
    if PLAN.value:
        return
    if not paper_runs.carry_out(runs, folder, DATA_DIR.value):
        print("interrupted; the same command goes on from here")
        return
    output = Path(OUTPUT.value or WORKDIR.value) / f"{scale}_{dataset}"
    output.mkdir(parents=True, exist_ok=True)
    for artefact in artefacts:
        for path in paper_artefacts.write(artefact, dataset, scale, seeds, folder, output):
            print(f"wrote {path}")


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
