"""The whole story on the bundled digits: train, look over the depth, prune, leave early.

  python -m experiments.demo --workdir=runs/demo

is `experiments.train --preset=digits_homogeneous12_shared`, then `experiments.prune` and
`experiments.evaluate --exit_budget=0.2` on its result.
"""

import time

from absl import flags

from experiments import command_line, evaluate, prune, runs
from experiments.display import draw_figures, print_depth_table
from experiments.presets import PRESETS
from ocresnet.data.sources import load_dataset
from ocresnet.stage_cost.pruning import recommend_depth
from ocresnet.training.fit import fit, for_dataset

PRESET = "digits_homogeneous12_shared"
EXIT_BUDGET = 0.2

GROUPS: dict[str, list[flags.FlagHolder]] = {"Run": [runs.WORKDIR]}


def main() -> None:
    start = time.perf_counter()
    preset = PRESETS[PRESET]
    workdir = runs.WORKDIR.value or "runs/demo"
    data = load_dataset(preset.dataset)
    result = fit(
        for_dataset(preset.network, data),
        preset.training,
        data,
        workdir=workdir,
    )
    if result.interrupted:
        return
    recommended = recommend_depth(result.trajectories["validation"])
    print_depth_table(result.trajectories, recommended)
    run = runs.load_run(workdir)
    prune.prune_run(run, None, prune.TOLERANCE.value)
    early = evaluate.measure_early_exit(
        run, accuracy=None, budget=EXIT_BUDGET, batch_size=len(data.test_labels)
    )
    evaluate.print_early_exit(early)
    draw_figures(workdir)
    print(f"done in {time.perf_counter() - start:.0f} s; everything is in {workdir}")


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
