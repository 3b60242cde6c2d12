"""DDPNOpt's table: small networks, every optimizer, many seeds, beside the paper's numbers.

  python -m experiments.optimizers.ddpnopt_table --network=digits_fcn \
      --output=results/ddpnopt_table/digits_fcn

The learning rate of each optimizer is the one of three with the lowest training loss (mean over the
seeds); the test set takes no part in the choice. It is constant over the run. OCNOpt stands there
in the papers' forms, and as it comes, at its own rate: constant too, and with its cosine schedule.
Writes <output>.json and <output>.md, and .jsonl as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ocresnet.training.optimizers import OCNOpt, Optimizer

from ..common import command_line
from ..common.flag_kinds import FlagValues
from ..common.reports import markdown_table
from .flags import StudyFlags, spread
from .methods import Base, make_method
from .runs import measure_rates
from .tasks import Task

REFRESH = (20, 200)

LEARNING_RATES = {
    "sgd": [0.03, 0.1, 0.3],
    "sgd with momentum": [0.01, 0.03, 0.1],
    "rmsprop": [3e-4, 1e-3, 3e-3],
    "adam": [3e-4, 1e-3, 3e-3],
    "ekfac": [3e-3, 1e-2, 3e-2],
    "as it comes": [OCNOpt().learning_rate],
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


def methods(batch_size: int) -> dict[str, tuple[str, Optimizer]]:
    """{name: (whose learning rates, method)}."""
    compared = {
        "sgd with momentum": ("sgd with momentum", make_method("sgd", momentum=0.9)),
        "rmsprop": ("rmsprop", make_method("rmsprop")),
        "adam": ("adam", make_method("adam")),
        "ekfac": ("ekfac", make_method("ekfac", refresh=REFRESH)),
    }
    bases: list[Base] = ["sgd", "rmsprop", "ekfac"]
    for base in bases:
        make = partial(make_method, base, refresh=REFRESH)
        compared[f"OCNOpt stacked, {base}"] = (base, make("stacked"))
        joint = make("joint", rollout="linear", groups=8)
        compared[f"OCNOpt joint 8 linear, {base}"] = (base, joint)
        per_sample = make("per_sample", beta=1 / batch_size)
        compared[f"OCNOpt per sample, {base}"] = (base, per_sample)
    constant = OCNOpt(schedule="constant")
    compared["OCNOpt, as it comes, constant rate"] = ("as it comes", constant)
    compared["OCNOpt, as it comes"] = ("as it comes", OCNOpt())
    return compared


class Flags(StudyFlags):
    """The study."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, seeds=10, least_seeds=2)


def measure(task: Task, method: Optimizer, rates: Sequence[float], flags: Flags) -> dict[str, Any]:
    """Accuracy and training loss over learning rates and seeds, and the rate that is chosen."""
    row = measure_rates(task, method, rates, method.weight_decay, flags)
    losses = np.nan_to_num(row["train_loss"].mean(-1), nan=np.inf)
    return {**row, "chosen": rates[int(np.argmin(losses))]}


def table(network: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, with the paper's numbers where it has the method."""
    cells: list[list[object]] = []
    for row in rows:
        chosen = row["learning_rates"].index(row["chosen"])
        printed = PAPER.get(network, {}).get(row["method"])
        cells.append(
            [
                row["method"],
                f"{row['chosen']:g}",
                spread(row["accuracy"][chosen]),
                f"{np.mean(row['train_loss'][chosen]):.4f}",
                printed and f"{printed:.2f}",
            ]
        )
    if network in PAPER_DDPNOPT:
        published = f"{PAPER_DDPNOPT[network]:.2f}"
        cells.append(["DDPNOpt, as published", None, None, None, published])
    columns = [network, "learning rate", "test accuracy (%)", "training loss", "paper (%)"]
    return markdown_table(columns, cells)


def study(flags: Flags) -> None:
    """Run every method at its learning rates, and write the table."""
    task = flags.task()
    found = flags.study()
    for name, (rates_of, method) in flags.chosen(methods(flags.batch_size)).items():
        rates = LEARNING_RATES[rates_of]
        row = found.row({"method": name}, partial(measure, task, method, rates, flags))
        print(name, np.round(np.mean(row["accuracy"], axis=-1), 2), flush=True)
    text = table(flags.network, found.rows)
    print(text)
    found.write(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
