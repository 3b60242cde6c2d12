"""Test log-likelihoods (nats) of flows over seeds, beside those of normal densities.

  python -m experiments.compare_flows --run=runs/moons_0 --run=runs/moons_1 \
      --output=results/flows/likelihoods

reads config.json and likelihood.json of finished runs of experiments.flow and writes <output>.json
and .md, with a line for each data set, way of computing the trace, and solver.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocresnet.files import read_json, replace_file
from ocresnet.training import records

from .common import command_line, reports
from .common.flag_kinds import FlagValues, Section
from .flow import LIKELIHOOD

SPLIT = "test"
NAMES = ("flow", "own solver", "normal density")
KIND = ("data", "trace", "solver")
COLUMNS = ("data", "trace in training", "solver", "runs", *NAMES)


class Flags:
    """Which runs, and where to."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Runs")
        self.runs = section.texts("run", "Workdir of a run of experiments.flow; repeatable.")
        self.output = section.text("output", "Where to write, without extension.")


def measured(workdir: Path) -> dict[str, Any]:
    """What a run is a line of, and its mean test log-likelihoods."""
    likelihood = read_json(workdir / LIKELIHOOD)
    config = records.read_json(workdir / records.CONFIG)
    architecture = config["architecture"]
    steps = architecture["steps"]
    return {
        "data": likelihood["dataset"],
        "trace": architecture["trace"],
        "solver": architecture["solver"] + (f", {steps} steps" if steps else ""),
        "seed": config["training"]["seed"],
        **{name: likelihood[SPLIT].get(name, {}).get("mean") for name in NAMES},
    }


def compare(flags: Flags) -> None:
    """Write the table and the raw numbers."""
    if not (flags.runs.value and flags.output.value):
        raise ValueError("--run and --output are needed; see --help.")
    runs = [measured(Path(folder)) for folder in flags.runs.value]
    kinds = dict.fromkeys(tuple(run[part] for part in KIND) for run in runs)
    rows = []
    for kind in kinds:
        own = [run for run in runs if tuple(run[part] for part in KIND) == kind]
        values = (_over_seeds([run[name] for run in own]) for name in NAMES)
        rows.append((*kind, len(own), *values))
    table = reports.markdown_table(COLUMNS, rows, left=3)
    print(table)
    reports.write(Path(f"{flags.output.value}.json"), {"split": SPLIT, "runs": runs})
    replace_file(Path(f"{flags.output.value}.md"), (table + "\n").encode())


def _over_seeds(values: Sequence[float | None]) -> str | None:
    """Mean and, of several, sample deviation; None where a run has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    deviation = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{deviation}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the arguments say; returns the exit status."""
    return command_line.run(compare, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
