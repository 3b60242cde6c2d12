"""SNOpt as an optax transformation: second-order control of Neural ODEs (Liu et al. 2021).

Notation (a sample's cost L of x(T), dx/dt = F(theta, t, x); A, G, m, D as in
`control/curvature/kronecker.py`)
    Q_uu    second derivative of L with respect to theta, Gauss-Newton (`second_order.py`):
            sum_i p_i p_i^T, where p_i is the integral of F_theta^T r_i, dr_i/dt = -F_x^T r_i, and
            r_i(T) r_i(T)^T sum up to the terminal curvature
    z, h    input and output of a layer of F;   delta_i = T F_h^T r_i

    Q_uu  ~  (int z z^T dt) (x) (int (F_h^T r_i) (F_h^T r_i)^T dt)  =  A (x) G
    A = mean over t of z z^T,   G = mean over t of the sum over i of delta_i delta_i^T
    d theta = -eta U_A [ (U_A^T D U_G) / (m + damping) ] U_G^T

The parameters are the same at all times: there is no feedback between layers, and SNOpt is a
curvature of the gradient. With the gradient as the only factor, r is the adjoint and nothing but it
has to be solved for. Layers outside of the differential equation get the same formula, with what
they read once for the mean over time: the "full preconditioning" of the paper's image experiments.

A and G are means over a grid of times (`time_grid.py`), from a forward and a backward pass of their
own every so many updates. EKFAC alone would take every evaluation of F for a location, as if
gradients at different times were independent: T^2 / N for N of them, where this is T^2. In between,
m follows the gradients as in EKFAC. The gradient itself is never touched.
"""

from dataclasses import replace
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.continuous.time_grid import has_dynamics, on_grid
from ocresnet.control.checks import check_batch, check_params, check_problem
from ocresnet.control.curvature import ekfac, require
from ocresnet.control.curvature.protocol import Curvature, CurvatureState, Statistics, first_samples
from ocresnet.control.linearize import output_factors
from ocresnet.costs import Factor
from ocresnet.problem import Problem, objective_of_outputs, run
from ocresnet.systems import taps
from ocresnet.systems.architecture import require_one_of
from ocresnet.systems.system import PyTree, System

Array = jax.Array


class SNOptState(NamedTuple):
    """Attributes:
    curvature: the factors A and G, their eigenvectors, and m.
    """

    curvature: CurvatureState


def scale_by_snopt(
    system: System | Problem,
    *,
    grid: int = 10,
    damping: float = 0.05,
    decay: float = 0.75,
    refresh_every: int = 100,
    factor: Factor = "gradient",
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by M^-1 g, the direction of SNOpt.

    Arguments, the arguments of `update` and errors are those of `snopt`.
    """
    problem = check_problem(system)
    curvature = curvature_on_grid(grid, damping, decay, refresh_every, factor)
    check_has(problem, factor)
    observed = replace(problem, system=on_grid(problem.system, grid))

    def init(params: PyTree) -> SNOptState:
        check_params(problem.system, params, needs_all=True)
        return SNOptState(curvature.init(problem.system, params))

    def update(
        gradients: PyTree,
        state: SNOptState,
        params: PyTree | None = None,
        *,
        batch: tuple[PyTree, PyTree] | None = None,
        batch_stats: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SNOptState]:
        del extra_args
        if batch is None or params is None:
            missing = "batch=(inputs, targets)" if batch is None else "the parameters"
            raise ValueError(
                f"snopt needs {missing}: call update(gradients, state, params, batch=(inputs, "
                "targets))."
            )
        samples = check_batch(batch)
        key = jax.random.fold_in(jax.random.key(seed), state.curvature.steps)
        if axis_name is not None:
            samples *= lax.axis_size(axis_name)
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        statistics = statistics_on_grid(
            observed, params, batch_stats or {}, batch, factor, key, axis_name
        )
        curvature_state = curvature.update(state.curvature, gradients, samples, statistics)
        return curvature.solve(curvature_state.entries, gradients), SNOptState(curvature_state)

    return optax.GradientTransformationExtraArgs(init, update)


def snopt(
    system: System | Problem,
    learning_rate: float | Array | optax.Schedule,
    *,
    grid: int = 10,
    damping: float = 0.05,
    decay: float = 0.75,
    refresh_every: int = 100,
    factor: Factor = "gradient",
    momentum: float | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """SNOpt: d theta = -eta M^-1 g, with M = A (x) G of a Neural ODE in continuous time.

    Args:
      system: a network with a differential equation (`Segment.dynamics`), as `NeuralODEConfig`
        makes it, or a `Problem` where its cost is not the cross-entropy of its last output.
      learning_rate: eta, or a schedule of it over updates.
      grid: into how many equal parts, at least, the time is divided where A and G are measured; a
        solver of equal steps is measured at all of them, and in between where they are fewer.
      damping: epsilon, added to the second moments m.
      decay: of the moving averages of m, and of A and G from refresh to refresh.
      refresh_every: updates between two refreshes of A, G and their eigenvectors.
      factor: of the terminal curvature: "gradient" (the paper's), "sampled" or "exact" (`costs.py`;
        as many backward passes a refresh as there are classes).
      momentum: decay of the accumulated directions, as in `optax.trace`; None: none.
      weight_decay: lambda; lambda theta is added to the direction before momentum, as in the
        paper's code.
      weight_decay_mask: which parameters decay, as in `optax.add_decayed_weights`.
      axis_name: the mapped axis over devices; gradients come as means over it.
      seed: of the factor "sampled".

    Returns:
      A transformation; its `update` needs `batch=(inputs, targets)`.

    Raises:
      ValueError: for impossible choices, and for a system without a differential equation; in
        `init` for parameters that do not fit it; in `update` for a missing `batch`.

    Example:
      >>> tx = snopt(architecture.system(), 0.02)
      >>> updates, state = tx.update(gradients, state, params, batch=(images, labels))
    """
    transformations = [
        scale_by_snopt(
            system,
            grid=grid,
            damping=damping,
            decay=decay,
            refresh_every=refresh_every,
            factor=factor,
            axis_name=axis_name,
            seed=seed,
        )
    ]
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        transformations.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    if momentum:
        transformations.append(optax.trace(momentum))
    return optax.chain(*transformations, optax.scale_by_learning_rate(learning_rate))


def curvature_on_grid(
    grid: int, damping: float, decay: float, refresh_every: int, factor: Factor
) -> Curvature:
    """M of these choices, which `snopt` describes.

    Raises:
      ValueError: for an impossible one, saying what is allowed.
    """
    for name, value in (("grid", grid), ("refresh_every", refresh_every)):
        require(name, value, type(value) is int and value >= 1, "a whole number, at least 1")
    require_one_of("factor", factor, get_args(Factor))
    return ekfac(
        damping, decay, factor_every=refresh_every, factor_samples=None, eigen_every=refresh_every
    )


def check_has(problem: Problem, factor: Factor) -> None:
    """Refuse a problem whose system has no differential equation, or whose cost no such factor.

    Raises:
      ValueError: saying what to choose instead.
    """
    if not has_dynamics(problem.system):
        raise ValueError(
            "SNOpt needs a differential equation, and this network declares none "
            "(`Segment.dynamics`): choose ekfac, or a Neural ODE."
        )
    if factor != "gradient" and getattr(problem.cost, factor) is None:
        raise ValueError(f"factor is {factor!r}, which the loss does not have: choose 'gradient'.")


def statistics_on_grid(
    observed: Problem,
    params: PyTree,
    batch_stats: PyTree,
    batch: tuple[PyTree, PyTree],
    factor: Factor,
    key: Array,
    axis_name: str | None = None,
) -> Statistics:
    """What taps record of a backward pass for every factor of the terminal curvature.

    Args:
      observed: a problem whose system is `on_grid`.
      params, batch_stats: of the network.
      batch: inputs and targets.
      factor: which; a tap's rule is given sqrt(factors) delta, and the mean is taken over factors.
      key: of random factors.
      axis_name: the mapped axis over devices, whose records are summed.
    """

    def statistics(recording: PyTree, most: int | None) -> PyTree:
        (inputs, targets), share = first_samples(batch, most)
        samples = len(jax.tree.leaves(targets)[0])

        def outputs_of(recording: PyTree) -> Array:
            tapped = taps.merge(params, recording)
            return run(observed, tapped, batch_stats, inputs).all_outputs()

        outputs, pull_back = jax.vjp(outputs_of, recording)
        if factor == "gradient":
            # Of the sum of the samples' costs: every sample's own.
            own = jax.grad(lambda y: samples * objective_of_outputs(observed, y, targets))(outputs)
            recorded = pull_back(own)[0]
        else:
            factors = samples**0.5 * output_factors(observed, outputs, factor, key)
            each = lax.map(lambda own: pull_back(len(factors) ** 0.5 * own)[0], factors)
            recorded = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        recorded = jax.tree.map(lambda leaf: share * leaf, recorded)
        return recorded if axis_name is None else lax.psum(recorded, axis_name)

    return statistics
