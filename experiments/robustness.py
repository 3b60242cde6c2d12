"""How far the learning rate can be off: accuracy over learning rates and weight decays.

  python -m experiments.robustness --network=digits_fcn --output=results/robustness/digits_fcn

For every method, the accuracy on the test set after training with each learning rate of a grid of
half decades, and the measure: how many decades of learning rate stay within one point of the best
that the method reaches. SGD (also with the gradient clipped to norm 1), RMSprop, Adam and EKFAC
against OCNOpt on each of their curvatures in every form of feedback. "stacked linear" is the
control without any feedback pass: the base step divided by 1 + beta T. Writes <output>.json, .md
and .png.
"""

from typing import cast

import numpy as np
import optax
from absl import flags

from experiments import command_line, optimizer_flags
from experiments.optimizer_runs import (
    Base,
    Method,
    decades_within,
    describe,
    make_run,
    run_grid,
)
from experiments.optimizer_tasks import NETWORKS
from ocresnet import plots

DECAYS = flags.DEFINE_multi_float("weight_decay", [0.0], "Decoupled weight decays.")
BASES = flags.DEFINE_multi_enum(
    "base", ["sgd", "rmsprop", "ekfac", "adam"], ["sgd", "rmsprop", "ekfac", "adam"], "Optimizers."
)
MOMENTUM = flags.DEFINE_float("momentum", 0.0, "Of SGD and everything on top of it.")
SCHEDULE = flags.DEFINE_enum(
    "schedule", "constant", ["constant", "cosine"], "Of the learning rate; cosine falls to zero."
)
PER_SAMPLE = flags.DEFINE_boolean("per_sample", True, "Also per-sample feedback (no batch norm).")

GROUPS = {
    "What": [*optimizer_flags.WHAT, BASES, MOMENTUM, PER_SAMPLE],
    "How": [DECAYS, SCHEDULE, *optimizer_flags.HOW],
}

LEARNING_RATES: dict[str, list[float]] = {
    "sgd": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
    "rmsprop": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "adam": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "ekfac": [3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0],
}


def methods(base: Base, batch_size: int) -> dict[str, Method]:
    """Everything that is compared on one base optimizer."""
    momentum = MOMENTUM.value if base == "sgd" else 0.0
    compared = {"no feedback": Method(base, momentum=momentum)}
    if base == "adam":
        return compared
    if base == "sgd":
        compared["no feedback, clipped"] = Method(base, momentum=momentum, clip=1.0)
    compared["joint 8 linear"] = Method(base, "joint", "linear", groups=8, momentum=momentum)
    compared["joint 8 nonlinear"] = Method(base, "joint", groups=8, momentum=momentum)
    if base == "sgd":
        name = f"joint {batch_size} linear (Levenberg-Marquardt)"
        compared[name] = Method(base, "joint", "linear", groups=batch_size, momentum=momentum)
    compared["stacked linear (scaling only)"] = Method(base, "stacked", "linear", momentum=momentum)
    compared["stacked nonlinear"] = Method(base, "stacked", momentum=momentum)
    compared["stacked, value correction only"] = Method(
        base, "stacked", forward_feedback=False, momentum=momentum
    )
    if PER_SAMPLE.value:
        beta = 1 / batch_size
        compared["per sample, beta 1"] = Method(base, "per_sample", momentum=momentum)
        compared["per sample, beta 1/B"] = Method(base, "per_sample", beta=beta, momentum=momentum)
        compared["per sample, as in the papers"] = Method(
            base,
            "per_sample",
            beta=beta,
            value_beta=beta**2,
            value_update="clipped",
            momentum=momentum,
        )
    return compared


def main() -> None:
    task = optimizer_flags.task()
    together = NETWORKS[optimizer_flags.NETWORK.value].together
    batch_size, epochs = optimizer_flags.BATCH_SIZE.value, optimizer_flags.EPOCHS.value
    schedule = None
    if SCHEDULE.value == "cosine":
        steps = epochs * (len(task.train_labels) // batch_size)
        schedule = optax.cosine_decay_schedule(1.0, steps)
    rows = []
    for base in cast(list[Base], BASES.value):
        rates = LEARNING_RATES[base]
        for name, method in optimizer_flags.chosen(methods(base, batch_size)).items():
            run = make_run(task, method, epochs, batch_size, schedule)
            result = run_grid(
                task, run, rates, DECAYS.value, range(optimizer_flags.SEEDS.value), together
            )
            for index, decay in enumerate(DECAYS.value):
                mean = result.accuracy[index].mean(axis=-1)
                row = {
                    "base": base,
                    "method": name,
                    "settings": describe(method),
                    "weight_decay": decay,
                    "learning_rates": rates,
                    "accuracy": result.accuracy[index],
                    "train_loss": result.train_loss[index],
                    "best": mean.max(),
                    "decades": decades_within(rates, mean, mean.max()),
                }
                rows.append(row)
                print(f"{base:8} {name:32} wd {decay:g}: {np.round(mean, 1)} {row['decades']:.1f}")
    figure = optimizer_flags.write(
        rows, table(rows), momentum=MOMENTUM.value, schedule=SCHEDULE.value
    )
    if figure:
        undecayed = [row for row in rows if row["weight_decay"] == DECAYS.value[0]]
        plots.draw_learning_rates(undecayed).savefig(figure, dpi=150)


def table(rows: list[dict]) -> list[str]:
    """Mean accuracies as Markdown, a part for each base."""
    lines = []
    for base in cast(list[Base], BASES.value):
        rates = LEARNING_RATES[base]
        lines += [
            "",
            f"| {base}, learning rate | "
            + " | ".join(f"{rate:g}" for rate in rates)
            + " | best | decades |",
            "|---|" + "---:|" * (len(rates) + 2),
        ]
        for row in rows:
            if row["base"] != base:
                continue
            decay = f", weight decay {row['weight_decay']:g}" if row["weight_decay"] else ""
            mean, best, decades = row["accuracy"].mean(-1), row["best"], row["decades"]
            cells = " | ".join(f"{value:.1f}" for value in mean)
            lines.append(f"| {row['method']}{decay} | {cells} | {best:.1f} | {decades:.1f} |")
    return lines[1:]


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
