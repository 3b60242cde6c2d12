"""Learning from another network's outputs (Hinton, Vinyals, Dean, *Distilling the Knowledge in a
Neural Network*, 2015).

Notation: z, v the logits of student and teacher, T the temperature, w the weight of the teacher.

    loss = (1 - w) L(z, label) + w T^2 KL(softmax(v / T) || softmax(z / T))
"""

import jax
import jax.numpy as jnp

from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import ResNetConfig
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


def check_teacher(network: ResNetConfig, config: TrainingConfig, teacher: Network | None) -> None:
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
        ours, its = getattr(network, name), getattr(teacher.config, name)
        if ours != its:
            raise ValueError(
                f"the teacher has {what} {its}, but the network to train has {what} {ours}."
            )
