"""Cut a run's network to the depth it needs, and keep the smaller network; nothing is retrained.

  python -m experiments.prune --workdir=runs/demo                   # depth by the rule
  python -m experiments.prune --workdir=runs/demo --tolerance=1.0   # the same, looser
  python -m experiments.prune --workdir=runs/demo --blocks=12       # depth as given

The rule keeps the fewest blocks whose exit is within `--tolerance` percentage points of the whole
network on the validation split (without one, on the training set), in accuracy and in the mean
probability of the right class. Writes <workdir>/pruned/ (loadable without the original) and
<workdir>/pruning.json, and draws the figures again with the cut marked.
"""

import sys
from collections.abc import Sequence

from ocresnet.plots.runs import PRUNING
from ocresnet.stage_cost.pruning import prune, recommend_depth, report, report_table
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

    @property
    def blocks(self) -> int | None:
        """The depth, if it is given."""
        return self._blocks.value

    @property
    def tolerance(self) -> float:
        """Percentage points that the depth rule may lose."""
        return self._tolerance.value

    @property
    def rule_is_wanted(self) -> bool:
        """Whether the depth rule is asked for by its tolerance."""
        return self._tolerance.present

    def check(self) -> None:
        """Refuse two answers to one question.

        Raises:
          ValueError: if both depth and tolerance are given.
        """
        if self._blocks.present and self._tolerance.present:
            raise ValueError("give either --blocks or --tolerance, and not both.")


class Flags:
    """Which run, and how deep."""

    def __init__(self, values: FlagValues) -> None:
        self.run = FinishedRunFlags(values)
        self.depth = DepthFlags(values)


def depth_by_rule(run: FinishedRun, tolerance: float) -> tuple[int, str]:
    """The depth that the rule chooses, and the part of the data it is chosen on."""
    chosen_on = run.data.choosing_part
    blocks = recommend_depth(run.measure(run.network, chosen_on), tolerance)
    depth = residual(run.network.architecture).depth
    print(
        f"depth rule: {blocks} of {depth} blocks are within {tolerance} "
        f"points of the whole network on the {chosen_on} set"
    )
    return blocks, chosen_on


def cut(flags: Flags) -> None:
    """Choose the depth unless it is given, cut, save, and print the report on the test set."""
    flags.depth.check()
    run = flags.run.load()
    residual(run.network.architecture, "pruning")
    blocks, chosen_on = flags.depth.blocks, None
    if blocks is None:
        blocks, chosen_on = depth_by_rule(run, flags.depth.tolerance)
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
            "tolerance": flags.depth.tolerance if chosen_on else None,
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
