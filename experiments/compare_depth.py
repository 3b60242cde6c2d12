"""Accuracy after every block, of runs with stage cost beside runs without, averaged over seeds.

  python -m experiments.compare_depth --run=runs/shared_0 --run=runs/shared_1 \
      --plain=runs/plain_0 --plain=runs/plain_1 --output=results/depth_comparison/depth

reads trajectory.json of finished runs of one network (without stage cost its exits were calibrated
afterwards) and writes <output>.json, .md and .png.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocresnet.files import read_json, replace_file
from ocresnet.plots.runs import draw_depth_comparison
from ocresnet.training import records

from .common import command_line, reports
from .common.flag_kinds import FlagValues, Section

SPLIT = "test"
COLUMNS = ("blocks before the exit", "with stage cost (%)", "without (%)")


class Flags:
    """Which runs, and where to."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Runs")
        self.runs = section.texts("run", "Workdir of a run with stage cost; repeatable.")
        self.plain = section.texts("plain", "Workdir of a run without; repeatable.")
        self.output = section.text("output", "Where to write, without extension.")


def accuracies(workdirs: Sequence[str]) -> np.ndarray:
    """Test accuracy of every exit in percent, [runs, outputs].

    Raises:
      ValueError: if the networks differ in depth.
    """
    measured = [read_json(Path(folder) / records.TRAJECTORY) for folder in workdirs]
    values = [100 * np.asarray(one[SPLIT]["accuracies"]) for one in measured]
    if len({len(value) for value in values}) != 1:
        raise ValueError("the runs must be of networks of one depth.")
    return np.stack(values)


def compare(flags: Flags) -> None:
    """Write the table, the raw numbers and the figure."""
    if not (flags.runs.value and flags.plain.value and flags.output.value):
        raise ValueError("--run, --plain and --output are needed; see --help.")
    both = {"with": accuracies(flags.runs.value), "without": accuracies(flags.plain.value)}
    if both["with"].shape[1] != both["without"].shape[1]:
        raise ValueError("the runs must be of networks of one depth.")
    rows = [
        (str(depth), *map(_spread, pair))
        for depth, pair in enumerate(zip(both["with"].T, both["without"].T, strict=True))
    ]
    table = reports.markdown_table(COLUMNS, rows, left=0)
    print(table)
    output = Path(flags.output.value)
    reports.write(output.with_suffix(".json"), {"split": SPLIT, **both})
    replace_file(output.with_suffix(".md"), (table + "\n").encode())
    means: dict[str, Any] = {
        name: {SPLIT: {"accuracies": value.mean(axis=0) / 100}} for name, value in both.items()
    }
    figure = draw_depth_comparison(means["with"], means["without"], SPLIT)
    figure.savefig(output.with_suffix(".png"), dpi=150)


def _spread(values: np.ndarray) -> str:
    """Mean and sample deviation over the runs; of a single one the mean."""
    mean = f"{values.mean():.2f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the arguments say; returns the exit status."""
    return command_line.run(compare, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
