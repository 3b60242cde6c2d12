"""Cut a run's network and train what is left for a few epochs, alone or with the whole as teacher.

  python -m experiments.finetune --workdir=runs/demo
  python -m experiments.finetune --workdir=runs/demo --blocks=3 --distillation=0.5

The cut is that of experiments.prune: `--blocks`, or the depth that it recorded, or the depth rule.
The smaller network is trained on the run's own data with the run's own settings, but for the flags
below: without stage cost, at the given learning rate and in the last third of the epochs at a tenth
of it. With `--distillation` it learns from the whole network's outputs too. Writes a run like that
of experiments.train to <workdir>/finetuned/ or <workdir>/finetuned_distilled/, with the accuracies
before and after in finetuning.json; the same command continues a run that was stopped.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line, prune, runs
from ocresnet import plots
from ocresnet.stage_cost.pruning import prune as cut_to
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.network import Network
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.finetuning import finetuning_config
from ocresnet.training.fit import Run, fit

EPOCHS = flags.DEFINE_integer("epochs", 5, "Passes over the training set.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "Of SGD, before the schedule.")
DISTILLATION = flags.DEFINE_float(
    "distillation", 0.0, "Weight of the whole network's outputs in the loss, 0 to 1."
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", TrainingConfig.temperature, "Of the softmax that distillation compares."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the new run. Default: finetuned or finetuned_distilled in workdir."
)

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "Run": [*runs.FLAGS, OUTPUT],
    "Depth": [prune.BLOCKS, prune.TOLERANCE],
    "Training": [EPOCHS, LEARNING_RATE, DISTILLATION, TEMPERATURE],
}

FINETUNED = "finetuned"
FINETUNING = "finetuning.json"


def finetune_run(run: runs.FinishedRun, blocks: int, config: TrainingConfig, output: Path) -> Run:
    """Cut, train on, and print the accuracies of the whole network, the cut and the trained one."""
    small = cut_to(run.network, blocks)
    # The data as it was loaded: `fit` holds out the same validation set as in the run.
    result = fit(
        small.config,
        config,
        run.unsplit_data,
        workdir=output,
        initial=small,
        teacher=run.network if config.distillation > 0 else None,
    )
    if result.interrupted:
        return result
    measured = {
        "whole": accuracies(run.network, run),
        "cut": accuracies(small, run),
        "fine-tuned": accuracies(result.network, run),
    }
    records.write_json(output / FINETUNING, measured)
    print(accuracy_table(measured))
    print(f"wrote {output}")
    return result


def accuracies(network: Network, run: runs.FinishedRun) -> dict[str, Any]:
    """Blocks, and accuracy on the validation set (if there is one) and the test set."""
    own_output = replace(network, config=replace(network.config, exits="none"))
    return {
        "blocks": network.config.depth,
        **{
            part: trajectory(
                own_output,
                run.data.images(part),
                run.data.labels(part),
                execution=run.training.execution,
            ).accuracies[-1]
            for part in run.data.parts[1:]
        },
    }


def accuracy_table(measured: dict[str, dict[str, Any]]) -> str:
    """The accuracies as a Markdown table, in percent."""
    parts = [name for name in next(iter(measured.values())) if name != "blocks"]
    lines = [
        "| network | blocks | " + " | ".join(f"{part} accuracy (%)" for part in parts) + " |",
        "|---|---:|" + "---:|" * len(parts),
    ]
    for name, row in measured.items():
        cells = " | ".join(f"{100 * row[part]:.2f}" for part in parts)
        lines.append(f"| {name} | {row['blocks']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    if prune.BLOCKS.present and prune.TOLERANCE.present:
        raise ValueError("give either --blocks or --tolerance, and not both.")
    run = runs.run_of_flags()
    config = finetuning_config(
        run.training,
        epochs=EPOCHS.value,
        learning_rate=LEARNING_RATE.value,
        distillation=DISTILLATION.value,
        temperature=TEMPERATURE.value,
    )
    blocks = prune.BLOCKS.value
    if blocks is None and not prune.TOLERANCE.present:
        blocks = plots.kept_blocks(run.workdir / plots.PRUNING)
    if blocks is None:
        blocks, _ = prune.depth_by_rule(run, prune.TOLERANCE.value)
    folder = FINETUNED if config.distillation == 0 else f"{FINETUNED}_distilled"
    finetune_run(run, blocks, config, Path(OUTPUT.value or run.workdir / folder))


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
