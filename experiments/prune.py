"""Cut a run's network to the depth it needs, and keep the smaller network; nothing is retrained.

  python -m experiments.prune --workdir=runs/demo                   # depth by the rule
  python -m experiments.prune --workdir=runs/demo --tolerance=1.0   # the same, looser
  python -m experiments.prune --workdir=runs/demo --blocks=12       # depth as given

The rule keeps the fewest blocks whose exit is within `--tolerance` percentage points of the whole
network on the validation split (without one, on the training set), in accuracy and in the mean
probability of the right class. Writes <workdir>/pruned/ (loadable without the original) and
<workdir>/pruning.json, and draws the figures again with the cut marked.
"""

from absl import flags

from experiments import command_line, runs
from experiments.display import draw_figures
from ocresnet import plots
from ocresnet.stage_cost.pruning import prune, recommend_depth, report, report_table
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems import network as networks
from ocresnet.training import records

BLOCKS = flags.DEFINE_integer("blocks", None, "How many blocks to keep.")
TOLERANCE = flags.DEFINE_float("tolerance", 0.5, "Percentage points that the depth rule may lose.")

GROUPS: dict[str, list[flags.FlagHolder]] = {"Run": runs.FLAGS, "Depth": [BLOCKS, TOLERANCE]}

PRUNED = "pruned"


def prune_run(run: runs.FinishedRun, blocks: int | None, tolerance: float) -> networks.Network:
    """Choose the depth unless it is given, cut, save, and print the report on the test set."""
    data = run.data
    chosen_on = None
    if blocks is None:
        blocks, chosen_on = depth_by_rule(run, tolerance)
    pruned = prune(run.network, blocks)
    reports = [
        report(network, data.images("test"), data.labels("test"), execution=run.training.execution)
        for network in (run.network, pruned)
    ]
    networks.save(pruned, run.workdir / PRUNED)
    records.write_json(
        run.workdir / plots.PRUNING,
        {
            "chosen_on": chosen_on,
            "tolerance": tolerance if chosen_on else None,
            "full": vars(reports[0]),
            "pruned": vars(reports[1]),
        },
    )
    print(report_table(*reports))
    print(f"wrote {run.workdir / PRUNED}")
    return pruned


def depth_by_rule(run: runs.FinishedRun, tolerance: float) -> tuple[int, str]:
    """The depth that the rule chooses, and the part of the data it is chosen on."""
    chosen_on = run.data.choosing_part
    measured = trajectory(
        run.network,
        run.data.images(chosen_on),
        run.data.labels(chosen_on),
        execution=run.training.execution,
    )
    blocks = recommend_depth(measured, tolerance)
    print(
        f"depth rule: {blocks} of {run.network.config.depth} blocks are within {tolerance} "
        f"points of the whole network on the {chosen_on} set"
    )
    return blocks, chosen_on


def main() -> None:
    if BLOCKS.present and TOLERANCE.present:
        raise ValueError("give either --blocks or --tolerance, and not both.")
    run = runs.run_of_flags()
    prune_run(run, BLOCKS.value, TOLERANCE.value)
    draw_figures(run.workdir)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
