"""What each half of the feedback does: off, value correction only, or full.

  python -m experiments.feedback_ablation --network=mnist_fcn --data=mnist.npz --output=results/...

Q_theta,x = 0 removes two things: the correction of the value function in the backward recursion,
and the feedback in the second forward pass. This separates them, on three curvatures, in the
stacked and the per-sample form, at a good learning rate of the base optimizer and at ten times
that. Writes <output>.json and <output>.md.
"""

from dataclasses import replace
from typing import cast

from absl import flags

from experiments import command_line, optimizer_flags
from experiments.optimizer_runs import Base, Method, describe, make_run, run_grid
from experiments.optimizer_tasks import NETWORKS
from ocresnet.control.settings import Feedback

BASES = flags.DEFINE_multi_enum(
    "base", ["sgd", "rmsprop", "ekfac"], ["sgd", "rmsprop", "ekfac"], "Curvatures."
)
flags.set_default(optimizer_flags.NETWORK, "mnist_fcn")
flags.set_default(optimizer_flags.EPOCHS, 1)
flags.set_default(optimizer_flags.SEEDS, 5)

GROUPS = {"What": [*optimizer_flags.WHAT, BASES], "How": optimizer_flags.HOW}

REFRESH = (20, 200)

GOOD_LEARNING_RATE: dict[Base, float] = {"sgd": 0.1, "rmsprop": 1e-3, "ekfac": 1e-2}


def methods(base: Base, batch_size: int) -> dict[str, Method]:
    """Off, and the two halves of both forms."""
    compared = {"off": Method(base, refresh=REFRESH)}
    forms: list[tuple[Feedback, float]] = [("stacked", 1.0), ("per_sample", 1 / batch_size)]
    for feedback, beta in forms:
        full = Method(base, feedback, beta=beta, refresh=REFRESH)
        compared[f"{feedback}: value correction only"] = replace(full, forward_feedback=False)
        compared[f"{feedback}: forward feedback only"] = replace(full, value_update="none")
        compared[f"{feedback}: full"] = full
    return compared


def main() -> None:
    task = optimizer_flags.task()
    batch_size = optimizer_flags.BATCH_SIZE.value
    together = NETWORKS[optimizer_flags.NETWORK.value].together
    rows = []
    lines = [
        "| curvature | learning rate | feedback | test accuracy (%) | training loss |",
        "|---|---:|---|---:|---:|",
    ]
    for base in cast(list[Base], BASES.value):
        rates = [GOOD_LEARNING_RATE[base], 10 * GOOD_LEARNING_RATE[base]]
        results = {}
        for name, method in optimizer_flags.chosen(methods(base, batch_size)).items():
            run = make_run(task, method, optimizer_flags.EPOCHS.value, batch_size)
            result = run_grid(task, run, rates, [0.0], range(optimizer_flags.SEEDS.value), together)
            results[name] = result
            rows.append(
                {
                    "base": base,
                    "method": name,
                    "settings": describe(method),
                    "learning_rates": rates,
                    "accuracy": result.accuracy[0],
                    "train_loss": result.train_loss[0],
                }
            )
        for index, rate in enumerate(rates):
            for name, result in results.items():
                accuracy, loss = result.accuracy[0, index], result.train_loss[0, index]
                spread = f"{accuracy.mean():.2f} ± {accuracy.std(ddof=1):.2f}"
                lines.append(f"| {base} | {rate:g} | {name} | {spread} | {loss.mean():.4f} |")
                print(lines[-1], flush=True)
    optimizer_flags.write(rows, lines)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
