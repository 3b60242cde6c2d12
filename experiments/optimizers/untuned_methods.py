"""What the study of untuned optimizers compares: methods with their learning rates, and tasks with
their length and target.

Every method has a cosine schedule over the run (schedule-free AdamW a constant rate) and no weight
decay.
"""

from typing import NamedTuple

from ocresnet.training.optimizers import (
    SGD,
    AdamW,
    DoWG,
    MoMo,
    MoMoAdam,
    Muon,
    Optimizer,
    PolyakSGD,
    Prodigy,
    RMSprop,
    ScheduleFreeAdamW,
)

from .methods import make_method


class Method(NamedTuple):
    """An optimizer, and the learning rates that it is trained with.

    Attributes:
      optimizer: at its default, or the usual learning rate.
      below, above: decades of a grid around that rate; the grid has steps of half a decade.
      tuned: whether it is compared at the best rate of its grid, or at its default.
    """

    optimizer: Optimizer
    below: int = 0
    above: int = 0
    tuned: bool = False

    @property
    def factors(self) -> list[float]:
        """Of the usual learning rate, on the grid."""
        halves = range(-2 * self.below, 2 * self.above + 1)
        return [float(f"{10 ** (half / 2):.3g}") for half in halves]

    @property
    def learning_rates(self) -> list[float]:
        """The grid."""
        return [float(f"{self.optimizer.learning_rate * factor:.3g}") for factor in self.factors]

    def within(self, decades: int | None) -> "Method":
        """With at most so many decades on either side; None: as it is."""
        if decades is None:
            return self
        return self._replace(below=min(self.below, decades), above=min(self.above, decades))


_sgd = SGD(learning_rate=0.1, schedule="cosine", weight_decay=0.0)
_ekfac = make_method("ekfac", learning_rate=0.01, schedule="cosine")

TUNED: dict[str, Method] = {
    name: Method(optimizer, below=2, above=2, tuned=True)
    for name, optimizer in {
        "SGD, momentum": _sgd,
        "AdamW": AdamW(learning_rate=1e-3, weight_decay=0.0),
        "RMSprop": RMSprop(learning_rate=1e-3),
        "Muon": Muon(learning_rate=1e-2),
        "EKFAC": _ekfac,
    }.items()
}

UNTUNED: dict[str, Method] = {
    "MoMo": Method(MoMo()),
    "MoMo-Adam": Method(MoMoAdam()),
    "Prodigy": Method(Prodigy()),
    "DoWG": Method(DoWG()),
    "schedule-free AdamW": Method(ScheduleFreeAdamW()),
    "Polyak": Method(PolyakSGD()),
}

OCNOPT: dict[str, Method] = {
    "OCNOpt EKFAC, stacked linear": Method(
        make_method("ekfac", "stacked", rollout="linear", learning_rate=0.01, schedule="cosine"),
        below=3,
        above=5,
        tuned=True,
    ),
}
"""The forms of OCNOpt, from 10^-3 to 10^5 times the usual rate: here every region and curvature has
its line. One that has a default is compared at that (`tuned=False`), and its grid is drawn."""

METHODS = {**TUNED, **UNTUNED, **OCNOPT}


class Setting(NamedTuple):
    """How a task is run.

    Attributes:
      epochs: passes over the training set.
      batch_size: samples a step.
      seeds: runs of each learning rate.
      target: test accuracy in percent whose steps and seconds are counted.
      samples: train on the first so many; None: on all.
    """

    epochs: int
    batch_size: int
    seeds: int
    target: float
    samples: int | None = None


TASKS: dict[str, Setting] = {
    "wine_fcn": Setting(60, 16, seeds=10, target=95.0),
    "digits_fcn": Setting(40, 32, seeds=10, target=90.0),
    "digits_cnn": Setting(40, 32, seeds=10, target=92.0),
    "digits_resnet": Setting(40, 32, seeds=5, target=93.0),
    "mnist_fcn": Setting(15, 128, seeds=3, target=95.0),
    "mnist_cnn": Setting(10, 128, seeds=3, target=98.5),
    "cifar10_cnn": Setting(40, 128, seeds=3, target=50.0, samples=10_000),
    "mnist_resnet_plain": Setting(5, 128, seeds=3, target=98.5),
    "mnist_resnet_stage_cost": Setting(5, 128, seeds=3, target=98.5),
}
"""By the names of `tasks.NETWORKS`. The targets are fixed: they are not chosen by what is found."""
