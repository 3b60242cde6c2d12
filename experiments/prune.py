"""Cut a run's network to the depth it needs, and keep the smaller network; nothing is retrained.

  python -m experiments.prune --workdir=runs/demo                   # depth by the rule
  python -m experiments.prune --workdir=runs/demo --tolerance=1.0   # the same, looser
  python -m experiments.prune --workdir=runs/demo --multiply_adds=2e6  # the best of that price
  python -m experiments.prune --workdir=runs/demo --blocks=12       # depth as given

The rule keeps the fewest blocks whose exit is within `--tolerance` percentage points of the whole
network on the validation split (without one, on the training set), in accuracy and in the mean
probability of the right class; with --multiply_adds, the depth that is right most often among those
that cost no more for an image. Writes <workdir>/pruned/ (loadable without the original) and
<workdir>/pruning.json, and draws the figures again with the cut marked.
"""

import sys
from collections.abc import Sequence

from ocresnet.plots.runs import PRUNING
from ocresnet.stage_cost.pruning import (
    best_depth_within,
    prune,
    recommend_depth,
    report,
    report_table,
)
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import residual

from .common import command_line, reports
from .common.display import draw_figures
from .common.flag_kinds import FlagValues, Section
from .common.runs import FinishedRun, FinishedRunFlags

PRUNED = "pruned"


class DepthFlags:
    """How deep the cut network is: as given, or by the depth rule."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Depth")
        self._blocks = section.whole("blocks", "How many blocks to keep.")
        self._tolerance = section.number(
            "tolerance", "Percentage points that the depth rule may lose.", 0.5
        )
        self._multiply_adds = section.number(
            "multiply_adds", "The most that an image may cost: the best depth within that."
        )

    @property
    def blocks(self) -> int | None:
        """The depth, if it is given."""
        return self._blocks.value

    @property
    def tolerance(self) -> float:
        """Percentage points that the depth rule may lose."""
        return self._tolerance.value

    @property
    def multiply_adds(self) -> float | None:
        """The most that an image may cost, if it is given."""
        return self._multiply_adds.value

    @property
    def rule_is_wanted(self) -> bool:
        """Whether a depth rule is asked for, by its tolerance or by what an image may cost."""
        return self._tolerance.present or self._multiply_adds.present

    def check(self) -> None:
        """Refuse two answers to one question.

        Raises:
          ValueError: if more than one of depth, tolerance and multiply-adds are given.
        """
        flags = self._blocks, self._tolerance, self._multiply_adds
        if sum(flag.present for flag in flags) > 1:
            raise ValueError("give one of --blocks, --tolerance and --multiply_adds, and no other.")


class Flags:
    """Which run, and how deep."""

    def __init__(self, values: FlagValues) -> None:
        self.run = FinishedRunFlags(values)
        self.depth = DepthFlags(values)


def depth_by_rule(run: FinishedRun, flags: DepthFlags) -> tuple[int, str]:
    """The depth that the rule chooses, and the part of the data it is chosen on."""
    chosen_on, architecture = run.data.choosing_part, residual(run.network.architecture)
    measured = run.measure(run.network, chosen_on)
    if flags.multiply_adds is None:
        blocks = recommend_depth(measured, flags.tolerance)
        what = f"are within {flags.tolerance} points of the whole network"
    else:
        blocks = best_depth_within(measured, architecture, flags.multiply_adds)
        what = f"are the best of at most {flags.multiply_adds:.3g} multiply-adds"
    print(f"depth rule: {blocks} of {architecture.depth} blocks {what} on the {chosen_on} set")
    return blocks, chosen_on


def cut(flags: Flags) -> None:
    """Choose the depth unless it is given, cut, save, and print the report on the test set."""
    flags.depth.check()
    run = flags.run.load()
    residual(run.network.architecture, "pruning")
    blocks, chosen_on = flags.depth.blocks, None
    if blocks is None:
        blocks, chosen_on = depth_by_rule(run, flags.depth)
    by_tolerance = chosen_on is not None and flags.depth.multiply_adds is None
    pruned = prune(run.network, blocks)
    images, labels = run.data.images("test"), run.data.labels("test")
    full, small = (
        report(network, images, labels, execution=run.training.execution)
        for network in (run.network, pruned)
    )
    networks.save(pruned, run.workdir / PRUNED)
    reports.write(
        run.workdir / PRUNING,
        {
            "chosen_on": chosen_on,
            "tolerance": flags.depth.tolerance if by_tolerance else None,
            "multiply_adds": flags.depth.multiply_adds,
            "full": vars(full),
            "pruned": vars(small),
        },
    )
    print(report_table(full, small))
    print(f"wrote {run.workdir / PRUNED}")
    draw_figures(run.workdir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune as the arguments say; returns the exit status."""
    return command_line.run(cut, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
