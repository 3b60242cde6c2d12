"""What the study of untuned optimizers compares: methods with their learning rates, and tasks with
their length and target.

Every method has a cosine schedule over the run (schedule-free AdamW a constant rate) and no weight
decay, but for OCNOpt's own and that of `--weight_decay`.
"""

from typing import Any, NamedTuple

from ocresnet.training.optimizers import (
    SGD,
    AdamW,
    DoWG,
    MoMo,
    MoMoAdam,
    Muon,
    OCNOpt,
    Optimizer,
    PolyakSGD,
    Prodigy,
    RMSprop,
    ScheduleFreeAdamW,
)

from .methods import Base, make_method


class Method(NamedTuple):
    """An optimizer, and the learning rates that it is trained with.

    Attributes:
      optimizer: at its default, or the usual learning rate.
      below, above: decades of a grid around that rate.
      tuned: whether it is compared at the best rate of its grid, or at its default.
      a_decade: learning rates of the grid in a decade.
    """

    optimizer: Optimizer
    below: int = 0
    above: int = 0
    tuned: bool = False
    a_decade: int = 2

    @property
    def factors(self) -> list[float]:
        """Of the usual learning rate, on the grid."""
        exponents = range(-self.a_decade * self.below, self.a_decade * self.above + 1)
        return [float(f"{10 ** (exponent / self.a_decade):.3g}") for exponent in exponents]

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
    name: Method(optimizer, below=3, above=5)
    for name, optimizer in {
        "OCNOpt, as it comes": OCNOpt(),
        "OCNOpt, region measured": OCNOpt(region="measured"),
        "OCNOpt, smaller region": OCNOpt(region="smaller"),
        "OCNOpt, second forward pass": OCNOpt(region="smaller", rollout="nonlinear"),
        "OCNOpt, region of the papers": OCNOpt(region="fixed"),
        "OCNOpt, square": OCNOpt(region="square"),
        "OCNOpt, diagonal": OCNOpt(curvature="diagonal", momentum=0.9, region="smaller"),
        "OCNOpt, identity": OCNOpt(curvature="identity", momentum=0.9, region="smaller"),
    }.items()
}
"""The forms of OCNOpt from 10^-3 to 10^5 times the learning rate that they come with. As it comes,
the region is measured, and with batch norm the smaller one."""

_BASES: dict[str, tuple[Base, float]] = {
    "identity": ("sgd", 0.1),
    "diagonal": ("rmsprop", 1e-3),
    "EKFAC": ("ekfac", 0.01),
}

_PLAYED: dict[str, dict[str, Any]] = {
    "stacked, cooperative": {"feedback": "stacked"},
    "stacked, Nash": {"feedback": "stacked", "equilibrium": "nash"},
    "per sample, cooperative": {"feedback": "per_sample"},
    "per sample, Nash": {"feedback": "per_sample", "equilibrium": "nash"},
}

GAMES: dict[str, Method] = {
    f"OCNOpt {curvature}, {form}": Method(
        make_method(base, learning_rate=rate, schedule="cosine", **fields), above=2, tuned=True
    )
    for curvature, (base, rate) in _BASES.items()
    for form, fields in _PLAYED.items()
}
"""The papers' forms where the stages of a network have several players, who play together or each
for himself; elsewhere both are the same. Tuned, but not among the tuned that others are compared
with."""

METHODS = {**TUNED, **UNTUNED, **OCNOPT, **GAMES}


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
    "digits_fcn": Setting(40, 32, seeds=5, target=90.0),
    "digits_cnn": Setting(40, 32, seeds=5, target=92.0),
    "digits_resnet": Setting(20, 32, seeds=3, target=93.0),
    "digits_resnet_stage_cost": Setting(20, 32, seeds=3, target=93.0),
    "digits_inception": Setting(40, 32, seeds=3, target=90.0),
    "digits_transformer": Setting(20, 32, seeds=3, target=88.0),
    "mnist_narrow_inception": Setting(10, 128, seeds=3, target=97.0, samples=5_000),
    "cifar10_narrow_inception": Setting(20, 128, seeds=3, target=45.0, samples=5_000),
    "mnist_fcn": Setting(15, 128, seeds=3, target=95.0, samples=10_000),
    "mnist_cnn": Setting(10, 128, seeds=3, target=97.0, samples=10_000),
    "cifar10_cnn": Setting(10, 128, seeds=3, target=50.0, samples=10_000),
    "mnist_resnet_plain": Setting(5, 128, seeds=3, target=98.5),
    "mnist_resnet_stage_cost": Setting(5, 128, seeds=3, target=98.5),
}
"""By the names of `tasks.NETWORKS`. The targets are fixed: they are not chosen by what is found."""
