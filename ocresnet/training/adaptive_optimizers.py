"""Optimizers that orthogonalise their steps or find their own length, as optax has them.

All but Muon are meant to be used as they are: their defaults are the published ones. What
`learning_rate` is differs, and the schedule always multiplies it:
    Muon, ScheduleFreeAdamW     the size of a step, as in AdamW
    MoMo, MoMoAdam              the largest that a step may be; the loss says how much less it is
    Prodigy, DoWG, PolyakSGD    a factor on a length that is found: 1

Weight decay is decoupled: parameters shrink by `learning_rate` times the schedule times lambda.
MoMo and MoMoAdam have it in their model of the loss, and Prodigy shrinks by the length that it
found.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ocresnet.continuous.trained_horizon import free_segments
from ocresnet.control.curvature.kronecker_layers import shapes
from ocresnet.problem import Problem
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.system import PyTree, Variables
from ocresnet.training.checks import is_number, require, require_positive, require_share
from ocresnet.training.optimizer import Given, Optimizer
from ocresnet.training.schedules import ScheduleName


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum made orthogonal, kernel by kernel (Jordan 2024), and AdamW for everything else.

    Kernels are those of the layers that the system declares: each of a stack for itself, a
    convolution as a matrix [height width in, out]. Steps are scaled as Liu et al. (2025) do, to the
    size of AdamW's, so that one learning rate serves both parts.

    Attributes:
      momentum: decay of the accumulated gradients, in [0, 1).
    """

    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("momentum", self.momentum)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        # Rate -1 keeps the gradient's direction: decay and schedule follow, for all parameters
        # alike (optax's own decay knows no mask for the part of AdamW).
        orthogonal = contrib.muon(
            -1.0,
            beta=self.momentum,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=partial(matrix_dimensions, given.problem),
        )
        return optax.chain(
            orthogonal,
            self.add_decay(given.weight_decay),
            optax.scale_by_learning_rate(given.schedule),
        )

    def check(
        self,
        architecture: Architecture,
        problem: Problem,
        variables: Variables,
        devices: int,
        samples: int,
    ) -> None:
        super().check(architecture, problem, variables, devices, samples)
        if not shapes(problem.system, variables.params, "separate"):
            raise ValueError(
                "muon makes the kernels of declared layers orthogonal, and this network declares "
                "none: choose adamw."
            )


def matrix_dimensions(problem: Problem, params: PyTree) -> PyTree:
    """Which axes of each array are a matrix, as `optax.contrib.muon` takes it.

    Args:
      problem: whose system declares its layers.
      params: the network's, or a part of them.

    Returns:
      A tree like `params`: for the kernel of a declared layer the axes that it sums over (all but
      the last, and but the first of a stack) and the last one; None for all other arrays.
    """
    layers = shapes(problem.system, params, "separate")

    def dimensions(path: tuple, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        *layer, name = (part.key for part in path)
        declared = layers.get("/".join(layer))
        if declared is None or name != "kernel":
            return None
        first, last = int(declared.length is not None), leaf.ndim - 1
        return contrib.MuonDimensionNumbers(tuple(range(first, last)), (last,))

    return jax.tree.map_with_path(dimensions, params)


@dataclass(frozen=True, kw_only=True)
class MoMo(Optimizer):
    """SGD with momentum whose step is the smaller one of the learning rate and Polyak's, for an
    averaged model of the loss (Schaipp et al. 2023).

    Attributes:
      momentum: decay of the averages of gradient and loss, in [0, 1).
      lower_bound: of the loss.
    """

    learning_rate: float = 1.0
    schedule: ScheduleName = "cosine"
    momentum: float = 0.9
    lower_bound: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("momentum", self.momentum)
        require("lower_bound", self.lower_bound, is_number(self.lower_bound), "a number")
        _require_whole_gradient(self)
        _require_decay_on_all(self)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return contrib.momo(
            given.schedule,
            beta=self.momentum,
            lower_bound=self.lower_bound,
            weight_decay=given.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class MoMoAdam(Optimizer):
    """MoMo in the metric of Adam (Schaipp et al. 2023).

    Attributes:
      decay_of_mean: of the moving averages of gradient and loss.
      decay_of_square: of the moving average of the gradient's square.
      epsilon: added to the root of the mean square.
      lower_bound: of the loss.
    """

    learning_rate: float = 1e-2
    schedule: ScheduleName = "cosine"
    decay_of_mean: float = 0.9
    decay_of_square: float = 0.999
    epsilon: float = 1e-8
    lower_bound: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("decay_of_mean", self.decay_of_mean)
        require_share("decay_of_square", self.decay_of_square)
        require_positive("epsilon", self.epsilon)
        require("lower_bound", self.lower_bound, is_number(self.lower_bound), "a number")
        _require_whole_gradient(self)
        _require_decay_on_all(self)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return contrib.momo_adam(
            given.schedule,
            b1=self.decay_of_mean,
            b2=self.decay_of_square,
            eps=self.epsilon,
            lower_bound=self.lower_bound,
            weight_decay=given.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class Prodigy(Optimizer):
    """Adam at a learning rate that grows with the distance gone (Mishchenko and Defazio 2023).

    Attributes:
      decay_of_mean: of the moving average of the gradient.
      decay_of_square: of the moving average of the gradient's square.
      epsilon: added to the root of the mean square, times the length that was found.
    """

    learning_rate: float = 1.0
    schedule: ScheduleName = "cosine"
    decay_of_mean: float = 0.9
    decay_of_square: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("decay_of_mean", self.decay_of_mean)
        require_share("decay_of_square", self.decay_of_square)
        require_positive("epsilon", self.epsilon)
        _require_decay_on_all(self)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return contrib.prodigy(
            given.schedule,
            betas=(self.decay_of_mean, self.decay_of_square),
            eps=self.epsilon,
            weight_decay=given.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class DoWG(Optimizer):
    """Gradient descent by the distance gone over the weighted gradients (Khaled et al. 2023).

    Attributes:
      epsilon: the first guess of the squared distance, and added to the root of the gradients' sum.
    """

    learning_rate: float = 1.0
    schedule: ScheduleName = "cosine"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("epsilon", self.epsilon)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        # Rate -1 again: the decay of `contrib.dowg` is coupled, and its sum of gradients counts it.
        return optax.chain(
            contrib.dowg(-1.0, eps=self.epsilon),
            self.add_decay(given.weight_decay),
            optax.scale_by_learning_rate(given.schedule),
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(Optimizer):
    """AdamW at a constant rate whose iterates are averaged on the way (Defazio et al. 2024).

    Gradients are taken between the last iterate and the average; what is evaluated and kept is the
    average. Batch statistics stay those of the places where gradients were taken.

    Attributes:
      interpolation: share of the average where gradients are taken, in (0, 1).
      decay_of_square: of the moving average of the gradient's square.
      epsilon: added to the root of the mean square.
    """

    learning_rate: float = 2.5e-3
    schedule: ScheduleName = "constant"
    interpolation: float = 0.9
    decay_of_square: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = is_number(self.interpolation) and 0 < self.interpolation < 1
        require("interpolation", self.interpolation, inside, "a number in (0, 1)")
        require_share("decay_of_square", self.decay_of_square)
        require_positive("epsilon", self.epsilon)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        # `contrib.schedule_free_adamw` is this without a mask of the decay.
        adamw_without_mean = optax.chain(
            optax.scale_by_rms(
                self.decay_of_square, self.epsilon, eps_in_sqrt=False, bias_correction=True
            ),
            self.add_decay(given.weight_decay),
            optax.scale_by_learning_rate(given.schedule),
        )
        return contrib.schedule_free(adamw_without_mean, given.schedule, b1=self.interpolation)

    def check(
        self,
        architecture: Architecture,
        problem: Problem,
        variables: Variables,
        devices: int,
        samples: int,
    ) -> None:
        super().check(architecture, problem, variables, devices, samples)
        if free_segments(problem.system):
            raise ValueError(
                "schedule_free_adamw evaluates averages of the parameters, and a free horizon "
                "moves by a rule of its own: choose adamw or snopt, or a horizon that is not free."
            )


def evaluation_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The parameters that a state of training is evaluated with.

    Args:
      params: those that the next gradient is taken at.
      opt_state: of any optimizer.

    Returns:
      The average of a schedule-free optimizer of all parameters; `params` of every other.
    """

    def is_schedule_free(node: PyTree) -> bool:
        return isinstance(node, contrib.ScheduleFreeState)

    count = len(jax.tree.leaves(params))
    for node in jax.tree.leaves(opt_state, is_leaf=is_schedule_free):
        # One of a part of the parameters (optax.masked, optax.partition) has fewer.
        if is_schedule_free(node) and len(jax.tree.leaves(node.z)) == count:
            # Arrays that were read from disk are numpy's, whose scalars would round otherwise.
            return contrib.schedule_free_eval_params(jax.tree.map(jnp.asarray, node), params)
    return params


@dataclass(frozen=True, kw_only=True)
class PolyakSGD(Optimizer):
    """Gradient descent by the loss over the squared norm of the gradient, bounded (Loizou et al.
    2021).

    Attributes:
      largest_step: bound of that length, before `learning_rate` multiplies it.
      lower_bound: of the loss.
    """

    learning_rate: float = 1.0
    schedule: ScheduleName = "cosine"
    largest_step: float = 1.0
    lower_bound: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("largest_step", self.largest_step)
        require("lower_bound", self.lower_bound, is_number(self.lower_bound), "a number")
        _require_whole_gradient(self)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        # `optax.polyak_sgd` scales the gradient first: half of it would have steps twice as long.
        return optax.chain(
            optax.scale_by_polyak(self.lower_bound, self.largest_step, variant="sps+"),
            self.add_decay(given.weight_decay),
            optax.scale_by_learning_rate(given.schedule),
        )


def _require_whole_gradient(optimizer: Optimizer) -> None:
    """Refuse clipping where the gradient's norm says how far it is to the lowest loss."""
    require(
        "gradient_clip",
        optimizer.gradient_clip,
        optimizer.gradient_clip == 0,
        "0: this optimizer divides the loss by the gradient's norm, and a clipped one would make "
        "its steps longer",
    )


def _require_decay_on_all(optimizer: Optimizer) -> None:
    """Refuse a choice of parameters that the decay inside the optimizer does not know."""
    require(
        "weight_decay_on",
        optimizer.weight_decay_on,
        optimizer.weight_decay_on == "all",
        "'all': the weight decay of this optimizer knows no other",
    )
