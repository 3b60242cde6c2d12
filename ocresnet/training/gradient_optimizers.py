"""Optimizers that take the gradient alone, as optax has them."""

from dataclasses import dataclass

import numpy as np
import optax

from ocresnet.stage_cost.masks import separate_exit_mask
from ocresnet.training.checks import require, require_positive, require_share
from ocresnet.training.optimizer import Given, Optimizer
from ocresnet.training.schedules import ScheduleName


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; the defaults are the stage-cost paper's (A.1).

    Weight decay is coupled: the gradient of lambda/2 ||w||^2 is added before momentum. A separate
    exit head sees its loss only through gamma L(yhat_k). The paper gives it the learning rate
    alpha/gamma, so that it moves as the output block does (A.1); here its gradient is divided by
    gamma, which is the same but for weight decay: that stays alpha lambda, as the output block's.

    Attributes:
      momentum: decay of the accumulated gradients, in [0, 1).
      nesterov: Nesterov's form of momentum.
    """

    weight_decay: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("momentum", self.momentum)
        require("nesterov", self.nesterov, isinstance(self.nesterov, bool), "True or False")
        if self.nesterov:
            require("momentum", self.momentum, self.momentum > 0, "above 0 with nesterov")

    def transformation(self, given: Given) -> optax.GradientTransformation:
        descent = optax.sgd(given.schedule, momentum=self.momentum or None, nesterov=self.nesterov)
        # All gamma_k are the same wherever there are separate heads: `fit` sees to it.
        gamma = float(np.max(given.problem.stage_cost, initial=0.0)) or 1.0
        heads = optax.masked(optax.scale(1 / gamma), separate_exit_mask)
        return optax.chain(heads, self.add_decay(given.weight_decay), descent)


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
      decay_of_mean: of the moving average of the gradient.
      decay_of_square: of the moving average of the gradient's square.
      epsilon: added to the root of the mean square.
    """

    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    weight_decay: float = 1e-4
    decay_of_mean: float = 0.9
    decay_of_square: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("decay_of_mean", self.decay_of_mean)
        require_share("decay_of_square", self.decay_of_square)
        require_positive("epsilon", self.epsilon)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return optax.adamw(
            given.schedule,
            b1=self.decay_of_mean,
            b2=self.decay_of_square,
            eps=self.epsilon,
            weight_decay=given.weight_decay,
            mask=self.decay_mask,
        )


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """The gradient over the root of its mean square (Tieleman and Hinton 2012), with decoupled
    weight decay.

    Attributes:
      decay_of_square: of the moving average of the gradient's square.
      epsilon: added to the root of the mean square.
      momentum: decay of the accumulated updates, in [0, 1).
    """

    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    decay_of_square: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("decay_of_square", self.decay_of_square)
        require_positive("epsilon", self.epsilon)
        require_share("momentum", self.momentum)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_rms(self.decay_of_square, self.epsilon, eps_in_sqrt=False),
            optax.trace(self.momentum) if self.momentum else optax.identity(),
            self.add_decay(given.weight_decay),
            optax.scale_by_learning_rate(given.schedule),
        )
