"""Train a network, with stage costs or with OCNOpt, or continue the run in the workdir.

  python -m experiments.train --list_presets
  python -m experiments.train --preset=cifar10_homogeneous54_shared --data_dir=data --workdir=runs/c
  python -m experiments.train --dataset=mine.npz --epochs=20
  python -m experiments.train --dataset=mine.npz --architecture=mlp --hidden=64,64
  python -m experiments.train --preset=digits_homogeneous12_shared --optimizer=ocnopt

A residual network on data of one's own is cut to its depth while it is trained; --recipe=paper
leaves that to experiments.prune. A run writes to its workdir: config.json, run.json, metrics.jsonl
(an object an epoch), checkpoints/, and when finished trajectory.json, network/ and figures/. The
same command continues a run that was stopped, to the same numbers. On several hosts it is started
on each of them; Slurm and TPU pods are recognised, elsewhere the flags say which processes there
are.
"""

import sys
from collections.abc import Mapping, Sequence

from ocresnet.data.training_data import TrainingData
from ocresnet.stage_cost.pruning import recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.training.fit import Run, fit, for_dataset

from .common import command_line, presets, speed
from .common.display import draw_figures, print_depth_table
from .common.flag_kinds import FlagValues, Section
from .common.flags import TrainingRunFlags, WantedRun
from .common.hosts import is_first


class Flags(TrainingRunFlags):
    """Those of a training run, and the list of presets."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values)
        self.list_presets = Section(values, "Run").switch(
            "list_presets", "Print every preset with the minutes it takes here, and do nothing."
        )


def train(flags: Flags) -> None:
    """Run `fit` as the flags say, print the result over depth and draw the figures."""
    if flags.list_presets.value:
        rate = speed.multiply_adds_per_second()
        print(presets.describe(rate))
        print(f"(minutes: at {rate:.1e} multiply-adds a second, measured {speed.MEASUREMENT})")
        return
    wanted, _, run = run_training(flags)
    if is_first():
        print_results(run.trajectories)
        draw_figures(wanted.workdir)


def run_training(flags: TrainingRunFlags) -> tuple[WantedRun, TrainingData, Run]:
    """Run `fit` as the flags say.

    Returns:
      What was wanted, the data as it was split, and the finished run.

    Raises:
      KeyboardInterrupt: where a signal stopped the run.
    """
    wanted = flags.wanted()
    flags.hosts.start()
    devices = flags.hosts.devices()
    data = flags.data.open(wanted.dataset)
    run = fit(
        for_dataset(wanted.network, data),
        wanted.training,
        data,
        workdir=wanted.workdir,
        devices=devices,
        **flags.execution.records(),
    )
    if run.interrupted:
        raise KeyboardInterrupt
    split = data.split(wanted.training.validation, wanted.training.seed)
    return wanted, split, run


def print_results(trajectories: Mapping[str, Trajectory]) -> None:
    """The table over depth; the depth that the rule chooses on the validation split is marked."""
    validation = trajectories.get("validation")
    recommended = None
    if validation is not None and len(validation.losses) > 1:
        recommended = recommend_depth(validation)
    print_depth_table(trajectories, recommended)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit status."""
    return command_line.run(train, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
