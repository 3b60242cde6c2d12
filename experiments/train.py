"""Train a residual network with stage costs, or continue the run in the workdir.

  python -m experiments.train --preset=cifar10_homogeneous54_shared --data_dir=data --workdir=runs/c

writes to the workdir: config.json, run.json, metrics.jsonl (an object an epoch), checkpoints/, and
of a finished run trajectory.json, network/ and figures/. The same command continues a run that was
stopped, to the same numbers.

Presets:
"""

from experiments import command_line, flags, presets
from experiments.display import draw_figures, print_depth_table
from ocresnet.data.sources import open_dataset
from ocresnet.data.training_data import TrainingData
from ocresnet.training.fit import Run, fit, for_dataset


def train(wanted: flags.RunFlags, data: TrainingData) -> Run:
    """Run `fit` as the flags say, print the result over depth and draw the figures."""
    run = fit(
        for_dataset(wanted.network, data),
        wanted.training,
        data,
        workdir=wanted.workdir,
        devices=flags.chosen_devices(),
        keep_checkpoints=flags.KEEP_CHECKPOINTS.value,
        tensorboard=flags.TENSORBOARD.value,
    )
    if not run.interrupted:
        print_depth_table(run.trajectories)
        draw_figures(wanted.workdir)
    return run


def main() -> None:
    wanted = flags.run_flags()
    flags.chosen_devices()
    data = open_dataset(wanted.dataset, flags.DATA_DIR.value, download=flags.DOWNLOAD.value)
    train(wanted, data)


if __name__ == "__main__":
    command_line.run(main, __doc__ + presets.describe(), flags.GROUPS)
