"""Training loss over steps and seconds: OCNOpt against SGD with the stage-cost paper's schedule.

  python -m experiments.optimizer_curves --network=mnist_resnet_stage_cost --data=mnist.npz \\
      --output=results/optimizer_curves/mnist_stage_cost

SGD has momentum 0.9, learning rate 0.1, divided by ten after a half and three
quarters of the run, as the paper's schedule divides it, and weight decay 1e-4 (decoupled); OCNOpt
has the same where its base is SGD.
Seconds are of training alone, without compilation and evaluation. Writes <output>.json, .md, .png.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import command_line, optimizer_flags
from experiments.optimizer_runs import Method, describe, evaluate, make_run
from ocresnet import plots

PARTS = flags.DEFINE_integer("parts", 20, "Points of a curve.", lower_bound=1)
flags.set_default(optimizer_flags.NETWORK, "mnist_resnet_stage_cost")
flags.set_default(optimizer_flags.EPOCHS, 2)
flags.set_default(optimizer_flags.BATCH_SIZE, 128)
flags.set_default(optimizer_flags.SEEDS, 1)

GROUPS = {"What": optimizer_flags.WHAT, "How": [PARTS, *optimizer_flags.HOW]}

REFRESH = (20, 100)

METHODS: dict[str, tuple[float, Method]] = {
    "SGD, momentum": (0.1, Method("sgd", momentum=0.9)),
    "OCNOpt identity, stacked": (0.1, Method("sgd", "stacked", momentum=0.9)),
    "OCNOpt identity, joint 4": (
        0.1,
        Method("sgd", "joint", "linear", groups=4, momentum=0.9),
    ),
    "SGD, momentum, rate x 10": (1.0, Method("sgd", momentum=0.9)),
    "OCNOpt identity, stacked, rate x 10": (1.0, Method("sgd", "stacked", momentum=0.9)),
    "EKFAC": (0.03, Method("ekfac", refresh=REFRESH)),
    "OCNOpt EKFAC, stacked": (0.03, Method("ekfac", "stacked", refresh=REFRESH)),
    "OCNOpt EKFAC, joint 4": (0.03, Method("ekfac", "joint", "linear", groups=4, refresh=REFRESH)),
}


def main() -> None:
    task = optimizer_flags.task()
    epochs, batch_size = optimizer_flags.EPOCHS.value, optimizer_flags.BATCH_SIZE.value
    steps = epochs * (len(task.train_labels) // batch_size)
    length = steps // PARTS.value
    if length == 0:
        raise ValueError(f"{PARTS.value} parts need at least as many steps; there are {steps}.")
    schedule = optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1, 3 * steps // 4: 0.1})
    decay = jnp.asarray(1e-4)
    accuracy_of = jax.jit(
        lambda variables: evaluate(task, variables, task.test_images, task.test_labels)[0]
    )
    rows = []
    lines = [
        "| method | final training loss | test accuracy (%) | ms a step |",
        "|---|---:|---:|---:|",
    ]
    for name, (rate, method) in optimizer_flags.chosen(METHODS).items():
        run = make_run(task, method, epochs, batch_size, schedule)
        start, advance = jax.jit(run.start), jax.jit(run.advance)
        learning_rate = jnp.asarray(rate)
        losses, seconds, accuracies = [], [], []
        for seed in range(optimizer_flags.SEEDS.value):
            state, order = start(learning_rate, decay, jnp.asarray(seed))
            order = order[: PARTS.value * length].reshape(PARTS.value, length, -1)
            if seed == 0:
                jax.block_until_ready(advance(state, learning_rate, decay, order[0]))
            curve, times = [], []
            for part in order:
                before = time.perf_counter()
                state, loss = jax.block_until_ready(advance(state, learning_rate, decay, part))
                times.append(time.perf_counter() - before)
                curve.append(float(loss))
            losses.append(curve)
            seconds.append(np.cumsum(times))
            accuracies.append(float(accuracy_of(state[0])))
        row = {
            "method": name,
            "settings": describe(method),
            "learning_rate": rate,
            "steps": [length * (index + 1) for index in range(PARTS.value)],
            "seconds": np.mean(seconds, axis=0),
            "losses": np.mean(losses, axis=0),
            "losses_of_seeds": losses,
            "accuracy": accuracies,
        }
        rows.append(row)
        step = 1e3 * row["seconds"][-1] / row["steps"][-1]
        lines.append(
            f"| {name} | {row['losses'][-1]:.4f} | {np.mean(accuracies):.2f} | {step:.1f} |"
        )
        print(lines[-1], flush=True)
    figure = optimizer_flags.write(rows, lines)
    if figure:
        plots.draw_losses(rows).savefig(figure, dpi=150)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
