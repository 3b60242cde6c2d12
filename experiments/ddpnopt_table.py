"""DDPNOpt's table: small networks, every optimizer, many seeds, beside the paper's numbers.

  python -m experiments.ddpnopt_table --network=digits_fcn --output=results/ddpnopt_table/digits_fcn

The learning rate of each optimizer is the one of three with the lowest training loss (mean over the
seeds); the test set takes no part in the choice. Writes <output>.json and <output>.md.
"""

import numpy as np
from absl import flags

from experiments import command_line, optimizer_flags
from experiments.optimizer_runs import Base, Method, describe, make_run, run_grid
from experiments.optimizer_tasks import NETWORKS

flags.set_default(optimizer_flags.SEEDS, 10)

GROUPS = {"What": optimizer_flags.WHAT, "How": optimizer_flags.HOW}

REFRESH = (20, 200)

LEARNING_RATES = {
    "sgd": [0.03, 0.1, 0.3],
    "sgd with momentum": [0.01, 0.03, 0.1],
    "rmsprop": [3e-4, 1e-3, 3e-3],
    "adam": [3e-4, 1e-3, 3e-3],
    "ekfac": [3e-3, 1e-2, 3e-2],
}

PAPER = {
    "wine_fcn": {"sgd with momentum": 94.35, "rmsprop": 98.10, "adam": 98.13, "ekfac": 94.60},
    "digits_fcn": {"sgd with momentum": 95.36, "rmsprop": 94.33, "adam": 94.98, "ekfac": 95.24},
    "mnist_fcn": {"sgd with momentum": 92.65, "rmsprop": 91.89, "adam": 92.54, "ekfac": 92.73},
    "mnist_cnn": {"sgd with momentum": 97.94, "rmsprop": 98.05, "adam": 98.04, "ekfac": 98.02},
    "cifar10_cnn": {"sgd with momentum": 71.26, "rmsprop": 70.52, "adam": 70.04, "ekfac": 71.85},
}
"""DDPNOpt (ICLR 2021), Table 3, by base optimizer."""

PAPER_DDPNOPT = {
    "wine_fcn": 98.18,
    "digits_fcn": 95.13,
    "mnist_fcn": 93.30,
    "mnist_cnn": 98.09,
    "cifar10_cnn": 71.92,
}
"""Its own row: the diagonal for the dense networks, EKFAC for the convolutional ones."""


def methods(batch_size: int) -> dict[str, tuple[str, Method]]:
    """{name: (whose learning rates, method)}."""
    compared = {
        "sgd with momentum": ("sgd with momentum", Method("sgd", momentum=0.9)),
        "rmsprop": ("rmsprop", Method("rmsprop")),
        "adam": ("adam", Method("adam")),
        "ekfac": ("ekfac", Method("ekfac", refresh=REFRESH)),
    }
    bases: list[Base] = ["sgd", "rmsprop", "ekfac"]
    for base in bases:
        compared[f"OCNOpt stacked, {base}"] = (base, Method(base, "stacked", refresh=REFRESH))
        compared[f"OCNOpt joint 8 linear, {base}"] = (
            base,
            Method(base, "joint", "linear", groups=8, refresh=REFRESH),
        )
        compared[f"OCNOpt per sample, {base}"] = (
            base,
            Method(base, "per_sample", beta=1 / batch_size, refresh=REFRESH),
        )
    return compared


def main() -> None:
    task = optimizer_flags.task()
    network, batch_size = optimizer_flags.NETWORK.value, optimizer_flags.BATCH_SIZE.value
    together = NETWORKS[network].together
    paper = PAPER.get(network, {})
    rows = []
    lines = [
        f"| {network} | learning rate | test accuracy (%) | training loss | paper (%) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (rates_of, method) in optimizer_flags.chosen(methods(batch_size)).items():
        rates = LEARNING_RATES[rates_of]
        run = make_run(task, method, optimizer_flags.EPOCHS.value, batch_size)
        result = run_grid(task, run, rates, [0.0], range(optimizer_flags.SEEDS.value), together)
        losses = np.nan_to_num(result.train_loss[0].mean(-1), nan=np.inf)
        chosen = int(np.argmin(losses))
        accuracy = result.accuracy[0, chosen]
        printed = f"{paper[name]:.2f}" if name in paper else ""
        lines.append(
            f"| {name} | {rates[chosen]:g} | {accuracy.mean():.2f} ± {accuracy.std(ddof=1):.2f} | "
            f"{losses[chosen]:.4f} | {printed} |"
        )
        print(lines[-1], flush=True)
        rows.append(
            {
                "method": name,
                "settings": describe(method),
                "learning_rates": rates,
                "chosen": rates[chosen],
                "accuracy": result.accuracy[0],
                "train_loss": result.train_loss[0],
            }
        )
    if network in PAPER_DDPNOPT:
        lines.append(f"| DDPNOpt, as published | | | | {PAPER_DDPNOPT[network]:.2f} |")
    optimizer_flags.write(rows, lines)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
