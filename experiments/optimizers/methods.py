"""The optimizers that are compared: a base, alone or with OCNOpt's feedback on its curvature."""

from dataclasses import replace
from typing import Any, Literal

from ocresnet.control.settings import Feedback
from ocresnet.training import optimizers
from ocresnet.training.optimizers import EKFAC, SGD, AdamW, OCNOpt, Optimizer, RMSprop

Base = Literal["sgd", "rmsprop", "adam", "ekfac"]

ALONE: dict[Base, Optimizer] = {
    "sgd": SGD(schedule="constant", momentum=0.0, weight_decay=0.0),
    "rmsprop": RMSprop(schedule="constant"),
    "adam": AdamW(schedule="constant", weight_decay=0.0),
    "ekfac": EKFAC(schedule="constant", momentum=0.0),
}

_papers = OCNOpt(schedule="constant", weight_decay=0.0, region="fixed", rollout="nonlinear")
WITH_FEEDBACK: dict[Base, Optimizer] = {
    "sgd": replace(_papers, curvature="identity"),
    "rmsprop": replace(_papers, curvature="diagonal"),
    "ekfac": replace(_papers, curvature="ekfac"),
}


def make_method(
    base: Base,
    feedback: Feedback = "none",
    *,
    refresh: tuple[int, int] = (5, 20),
    **fields: Any,
) -> Optimizer:
    """An optimizer without momentum and weight decay, at a constant learning rate, unless its
    fields say otherwise, and with the papers' region (`region="fixed"`) and second forward pass
    (`rollout="nonlinear"`) where there is feedback.

    Args:
      base: which; "adam" has no curvature that feedback could be put on.
      feedback: "none" is the base alone.
      refresh: updates between two estimates of EKFAC's factors, and of its eigenvectors.
      fields: others of the optimizer's configuration.
    """
    if base == "ekfac":
        fields = {"factor_every": refresh[0], "eigen_every": refresh[1], **fields}
    if feedback == "none":
        return replace(ALONE[base], **fields)
    return replace(WITH_FEEDBACK[base], **{"feedback": feedback, **fields})


def describe(method: Optimizer) -> dict[str, Any]:
    """The optimizer's name, and its fields that are not at their defaults."""
    defaults = optimizers.describe(type(method)())
    return {
        name: value
        for name, value in optimizers.describe(method).items()
        if name == "name" or value != defaults[name]
    }
