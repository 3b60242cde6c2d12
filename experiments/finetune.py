"""Cut a run's network and train what is left for a few epochs, alone or with the whole as teacher.

  python -m experiments.finetune --workdir=runs/demo
  python -m experiments.finetune --workdir=runs/demo --blocks=3 --distillation=0.5

The cut is that of experiments.prune: `--blocks`, or the depth that it recorded, or the depth rule.
The smaller network is trained on the run's own data with the run's own settings, but for the flags
below: without stage cost, at a tenth of the learning rate, and in the last third of the epochs at a
tenth of that. With `--distillation` it learns from the whole network's outputs too. Writes a run
like that of experiments.train to <workdir>/finetuned/ or <workdir>/finetuned_distilled/, with the
accuracies before and after in finetuning.json; the same command continues a run that was stopped.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ocresnet.plots.runs import PRUNING, kept_blocks
from ocresnet.stage_cost.pruning import prune
from ocresnet.systems.architecture import residual
from ocresnet.systems.network import Network
from ocresnet.training.config import TrainingConfig
from ocresnet.training.finetuning import finetuning_config
from ocresnet.training.fit import fit

from .common import command_line, reports
from .common.flag_kinds import FlagValues, Section
from .common.hosts import HostFlags, is_first
from .common.runs import FinishedRun, FinishedRunFlags
from .prune import DepthFlags, depth_by_rule

FINETUNED = "finetuned"
FINETUNING = "finetuning.json"


class Flags:
    """Which run, how deep, and how it is trained on."""

    def __init__(self, values: FlagValues) -> None:
        self.run = FinishedRunFlags(values)
        self._output = Section(values, "Run").text(
            "output",
            "Folder of the new run. Default: finetuned or finetuned_distilled in workdir.",
        )
        self.depth = DepthFlags(values)
        section = Section(values, "Training")
        self._epochs = section.whole("epochs", "Passes over the training set.", 5)
        self._learning_rate = section.number(
            "learning_rate",
            "Of the run's optimizer, before the schedule. Default: a tenth of the run's.",
        )
        self._distillation = section.number(
            "distillation", "Weight of the whole network's outputs in the loss, 0 to 1.", 0.0
        )
        self._temperature = section.number(
            "temperature",
            "Of the softmax that distillation compares.",
            TrainingConfig.temperature,
        )
        self.hosts = HostFlags(values)

    def config(self, training: TrainingConfig) -> TrainingConfig:
        """The run's training configuration, with what was given."""
        learning_rate = self._learning_rate.value
        if learning_rate is None:
            learning_rate = training.optimizer.learning_rate / 10
        return finetuning_config(
            training,
            epochs=self._epochs.value,
            learning_rate=learning_rate,
            distillation=self._distillation.value,
            temperature=self._temperature.value,
        )

    def output(self, workdir: Path) -> Path:
        """Where the new run lies."""
        name = f"{FINETUNED}_distilled" if self._distillation.value > 0 else FINETUNED
        return Path(self._output.value or workdir / name)


def accuracies(network: Network, run: FinishedRun) -> dict[str, Any]:
    """Blocks, and accuracy on the validation set (if there is one) and the test set."""
    return {
        "blocks": residual(network.architecture).depth,
        **{
            part: run.measure(network, part, own_output=True).accuracies[-1]
            for part in run.data.parts[1:]
        },
    }


def accuracy_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The accuracies as a Markdown table, in percent."""
    parts = [name for name in next(iter(measured.values())) if name != "blocks"]
    return reports.markdown_table(
        ["network", "blocks", *(f"{part} accuracy (%)" for part in parts)],
        [
            [name, row["blocks"], *(f"{100 * row[part]:.2f}" for part in parts)]
            for name, row in measured.items()
        ],
    )


def chosen_depth(run: FinishedRun, flags: DepthFlags) -> int:
    """The depth that is given, or that pruning recorded, or that the rule chooses."""
    blocks = flags.blocks
    if blocks is None and not flags.rule_is_wanted:
        blocks = kept_blocks(run.workdir / PRUNING)
    return depth_by_rule(run, flags)[0] if blocks is None else blocks


def finetune(flags: Flags) -> None:
    """Cut, train on, and print the accuracies of the whole network, the cut and the trained one."""
    flags.depth.check()
    flags.hosts.start()
    run = flags.run.load()
    residual(run.network.architecture, "cutting a network")
    config, output = flags.config(run.training), flags.output(run.workdir)
    small = prune(run.network, chosen_depth(run, flags.depth))
    # The data as it was loaded: `fit` holds out the same validation set as in the run.
    result = fit(
        small.architecture,
        config,
        run.unsplit_data,
        workdir=output,
        devices=flags.hosts.devices(),
        initial=small,
        teacher=run.network if config.distillation > 0 else None,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    measured = {
        "whole": accuracies(run.network, run),
        "cut": accuracies(small, run),
        "fine-tuned": accuracies(result.network, run),
    }
    if is_first():
        reports.write(output / FINETUNING, measured)
        print(accuracy_table(measured))
        print(f"wrote {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune as the arguments say; returns the exit status."""
    return command_line.run(finetune, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
