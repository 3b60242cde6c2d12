"""Learning from another network's outputs (Hinton, Vinyals, Dean, *Distilling the Knowledge in a
Neural Network*, 2015).

Notation: z, v the logits of student and teacher, T the temperature, w the weight of the teacher.

    loss = (1 - w) L(z, label) + w T^2 KL(softmax(v / T) || softmax(z / T))

The second part has the Hessian of the cross-entropy at z / T, whatever v is.
"""

from functools import cache

import jax
import jax.numpy as jnp

from ocresnet.costs import Cost, cross_entropy
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.network import Network
from ocresnet.training.config import TrainingConfig

Array = jax.Array


def distillation_loss(logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """T^2 KL(softmax(v / T) || softmax(z / T)) of every sample, in nats.

    The factor T^2 keeps the size of the gradient: for large T it is that of half the squared
    distance of centred logits, over the number of classes.

    Args:
      logits: of the student, z, [..., classes].
      teacher_logits: v, [..., classes]; leading axes are broadcast.
      temperature: T > 0.

    Returns:
      The divergences, [...].
    """
    log_student = jax.nn.log_softmax(logits / temperature)
    log_teacher = jax.nn.log_softmax(teacher_logits / temperature)
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return temperature**2 * divergence


@cache
def distillation_cost(cost: Cost, weight: float, temperature: float) -> Cost:
    """The cost with a teacher: its targets are (labels, the teacher's logits).

    Args:
      cost: L, of logits and labels.
      weight: w in [0, 1].
      temperature: T > 0.

    Returns:
      A cost that has the factors of its curvature that L has; the same one for the same arguments.
    """
    scale_of_loss, scale_of_teacher = (1 - weight) ** 0.5, weight**0.5

    def value(logits: Array, targets: tuple[Array, Array]) -> Array:
        labels, teacher_logits = targets
        divergence = distillation_loss(logits, teacher_logits, temperature)
        return (1 - weight) * cost.value(logits, labels) + weight * divergence

    def exact(logits: Array) -> Array:
        assert cost.exact is not None and cross_entropy.exact is not None
        columns = scale_of_loss * cost.exact(logits)
        others = scale_of_teacher * cross_entropy.exact(logits / temperature)
        return jnp.concatenate([columns, others])

    def sampled(key: Array, logits: Array) -> Array:
        assert cost.sampled is not None and cross_entropy.sampled is not None
        # The two are independent, each with mean 0: their products vanish on average.
        first, second = jax.random.split(key)
        column = scale_of_loss * cost.sampled(first, logits)
        return column + scale_of_teacher * cross_entropy.sampled(second, logits / temperature)

    def lower_bound(classes: int) -> float:
        assert cost.lower_bound is not None
        return (1 - weight) * cost.lower_bound(classes)

    return Cost(
        value,
        exact if cost.exact is not None else None,
        sampled if cost.sampled is not None else None,
        lower_bound if cost.lower_bound is not None else None,
    )


def check_teacher(
    architecture: Architecture, config: TrainingConfig, teacher: Network | None
) -> None:
    """Refuse a teacher that the network cannot learn from, or that would be ignored.

    Raises:
      ValueError: saying what does not fit.
    """
    if teacher is None:
        if config.distillation > 0:
            raise ValueError(
                f"distillation is {config.distillation}, but there is no teacher: give fit one, or "
                "set distillation to 0."
            )
        return
    if config.distillation == 0:
        raise ValueError(
            "there is a teacher, but distillation is 0, which would ignore it: set distillation to "
            "its weight, above 0 and at most 1."
        )
    for name, what in (("classes", "classes"), ("image_shape", "images of shape")):
        ours, its = getattr(architecture, name), getattr(teacher.architecture, name)
        if ours != its:
            raise ValueError(
                f"the teacher has {what} {its}, but the network to train has {what} {ours}."
            )
