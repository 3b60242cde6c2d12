"""The optimizers by name: where a new one is listed.

A run's configuration and the flag `--optimizer` name one; `register` adds one from outside this
package.
"""

from dataclasses import asdict
from typing import Any

from ocresnet.training.adaptive_optimizers import (
    DoWG,
    MoMo,
    MoMoAdam,
    Muon,
    PolyakSGD,
    Prodigy,
    ScheduleFreeAdamW,
)
from ocresnet.training.continuous_optimizers import SNOpt
from ocresnet.training.control_optimizers import EKFAC, KFAC, OCNOpt
from ocresnet.training.gradient_optimizers import SGD, AdamW, RMSprop
from ocresnet.training.optimizer import Optimizer

__all__ = [
    "EKFAC",
    "KFAC",
    "OPTIMIZERS",
    "SGD",
    "AdamW",
    "DoWG",
    "MoMo",
    "MoMoAdam",
    "Muon",
    "OCNOpt",
    "Optimizer",
    "PolyakSGD",
    "Prodigy",
    "RMSprop",
    "SNOpt",
    "ScheduleFreeAdamW",
    "describe",
    "from_description",
    "register",
]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "muon": Muon,
    "momo": MoMo,
    "momo_adam": MoMoAdam,
    "prodigy": Prodigy,
    "dowg": DoWG,
    "schedule_free_adamw": ScheduleFreeAdamW,
    "polyak_sgd": PolyakSGD,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "ocnopt": OCNOpt,
    "snopt": SNOpt,
}


def register(name: str, optimizer: type[Optimizer]) -> None:
    """Add an optimizer.

    Raises:
      ValueError: if another one has that name.
    """
    if OPTIMIZERS.setdefault(name, optimizer) is not optimizer:
        raise ValueError(f"there is an optimizer {name!r} already: choose another name.")


def describe(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer as JSON values: its fields, and its name.

    Raises:
      ValueError: for one that is not registered.
    """
    for name, kind in OPTIMIZERS.items():
        if type(optimizer) is kind:
            return {"name": name, **asdict(optimizer)}
    raise ValueError(
        f"{type(optimizer).__name__} is no known optimizer: call "
        "ocresnet.training.optimizers.register first."
    )


def from_description(described: Any) -> Optimizer:
    """Undo `describe`.

    Raises:
      ValueError: for what `describe` has not made, or impossible values.
    """
    if not isinstance(described, dict) or described.get("name") not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"an optimizer must be described with its name, one of {known}.")
    fields = {name: value for name, value in described.items() if name != "name"}
    try:
        return OPTIMIZERS[described["name"]](**fields)
    except TypeError as error:
        raise ValueError(f"the description of an optimizer is wrong: {error}") from error
