"""The Bellman recursion in full matrices: slow, dense, and what the fast code is tested against.

Notation (every vector flat)
    x_k      state: all that crosses from the stages before k to the later ones: activations of the
             whole batch, outputs read so far, shared parameters
    theta_k  control; where there are shared parameters the first stage decides them
    f_k      x_{k+1} = f_k(x_k, theta_k); its second derivatives are dropped (Gauss-Newton)
    J        cost, a function of the last state
    M_k      curvature of the control, eta the learning rate
    s_k      change of the control that happens anyway (momentum, weight decay)
    V_k(x)   value function of stage k, to second order in dx = x - x_k;  V' that of stage k + 1
    Q_k      what a change u of the control leaves:
             Q(dx, u) = V'(f_x dx + f_theta (s + u)) + 1/2 u^T (M / eta) u

    Q_x  = f_x^T (V_x' + V_xx' f_theta s)         Q_theta  = f_theta^T (V_x' + V_xx' f_theta s)
    Q_xx = f_x^T V_xx' f_x                        Q_theta_x = f_theta^T V_xx' f_x
    Q_theta_theta = M / eta + f_theta^T V_xx' f_theta
    u(dx) = k + K dx,   k = -D^-1 Q_theta,   K = -D^-1 Q_theta_x,   D = Q_theta_theta
    V_x  = Q_x + Q_theta_x^T k + K^T (Q_theta + Q_theta_theta k)
    V_xx = Q_xx + Q_theta_x^T K + K^T (Q_theta_x + Q_theta_theta K)

V is what any policy leaves; that of the minimum makes the brackets vanish. Where the control is
divided among players who each minimise Q alone, the others held at u = 0 (a Nash equilibrium,
`games.py`), D is Q_theta_theta without the blocks between players.

The fast code never forms any of these: V_xx = kappa G N G^T has low rank (`value.py`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ocresnet.costs import Factor
from ocresnet.problem import Problem, objective_of_outputs
from ocresnet.systems import fold as folds
from ocresnet.systems.fold import advance
from ocresnet.systems.system import PyTree, Segment, Stage, Variables

Array = jax.Array


class Chain(NamedTuple):
    """A problem as stages on flat vectors.

    Attributes:
      functions: f_k, of (theta_k, x_k).
      controls: theta_k, and `shapes` that turn them into the parameters of the stage.
      states: x_0 ... x_K, and `forms` that turn them into trees `x`, `read`, `shared`.
    """

    functions: list[Callable[[Array, Array], Array]]
    controls: list[Array]
    shapes: list[Callable[[Array], PyTree]]
    states: list[Array]
    forms: list[Callable[[Array], PyTree]]


class Value(NamedTuple):
    """V_x [n] and V_xx [n, n] of a state of n numbers."""

    x: Array
    xx: Array


class Policy(NamedTuple):
    """u(dx) = k + K dx: [m] and [m, n] for a control of m numbers."""

    k: Array
    K: Array


def decide(
    f: Callable[[Array, Array], Array],
    theta: Array,
    x: Array,
    after: Value,
    curvature: Array,
    drift: Array,
    players: Array | None = None,
) -> tuple[Policy, Value]:
    """The minimum of Q_k, or that of every player alone, and what it leaves: V_k.

    Args:
      f, theta, x: of the stage.
      after: V_k+1.
      curvature: M_k / eta.
      drift: s_k.
      players: whose each number of the control is, [m]; None: they minimise Q_k together.
    """
    _, pull_back = jax.vjp(f, theta, x)

    def push_forward(d_theta: Array, d_x: Array) -> Array:
        return jax.jvp(f, (theta, x), (d_theta, d_x))[1]

    def second_order(d_theta: Array, d_x: Array) -> tuple[Array, Array]:
        """The change of (Q_theta, Q_x) along a change of (theta, x)."""
        return pull_back(after.xx @ push_forward(d_theta, d_x))

    no_theta, no_x = jnp.zeros_like(theta), jnp.zeros_like(x)
    moved = push_forward(drift, no_x)
    Q_theta, Q_x = pull_back(after.x + after.xx @ moved)
    units = jnp.eye(theta.size, dtype=theta.dtype), jnp.eye(x.size, dtype=x.dtype)
    gauss_newton, Q_theta_x = jax.vmap(second_order, (0, None))(units[0], no_x)
    _, Q_xx = jax.vmap(second_order, (None, 0))(no_theta, units[1])
    Q_theta_theta = curvature + gauss_newton

    decided = Q_theta_theta
    if players is not None:
        decided = jnp.where(players[:, None] == players, Q_theta_theta, 0)
    k = -jnp.linalg.solve(decided, Q_theta)
    K = -jnp.linalg.solve(decided, Q_theta_x)
    V_x = Q_x + Q_theta_x.T @ k + K.T @ (Q_theta + Q_theta_theta @ k)
    V_xx = Q_xx + Q_theta_x.T @ K + K.T @ (Q_theta_x + Q_theta_theta @ K)
    return Policy(k, K), Value(V_x, V_xx)


def bellman(
    chain: Chain,
    last: Value,
    curvature: Sequence[Array],
    drift: Sequence[Array],
    players: Sequence[Array] | None = None,
) -> tuple[list[Policy], list[Value]]:
    """Solve the Bellman equation backward from the last state.

    Args:
      chain: the stages.
      last: V_x and V_xx of the last state.
      curvature: M_k / eta of every stage, [m, m].
      drift: s_k of every stage, [m].
      players: whose each number of every stage's control is, [m]; None: they play together.

    Returns:
      The policies of all stages, and the values of all states.
    """
    policies: list[Policy] = []
    values = [last]
    for k in reversed(range(len(chain.functions))):
        stage = chain.functions[k], chain.controls[k], chain.states[k]
        divided = None if players is None else players[k]
        policy, value = decide(*stage, values[0], curvature[k], drift[k], divided)
        policies.insert(0, policy)
        values.insert(0, value)
    return policies, values


def roll_out(chain: Chain, policies: Sequence[Policy], drift: Sequence[Array]) -> list[Array]:
    """d theta_k = s_k + k + K dx_k along the new trajectory."""
    x, changes = chain.states[0], []
    for k, (f, policy) in enumerate(zip(chain.functions, policies, strict=True)):
        changes.append(drift[k] + policy.k + policy.K @ (x - chain.states[k]))
        x = f(chain.controls[k] + changes[-1], x)
    return changes


def terminal(
    problem: Problem,
    chain: Chain,
    targets: PyTree,
    beta: float,
    factor: Factor = "gradient",
    groups: int = 1,
    sizes: Sequence[float] | Array | None = None,
) -> Value:
    """V_x and V_xx of the last state.

    V_x is the gradient of J, the mean over the batch. V_xx is beta times its Hessian ("exact"), or
    times the mean over equal groups of the batch of the outer products of their own gradients, each
    times the size that the group has in `sizes` (None: 1; `region.py`).
    """
    batch = jax.tree.leaves(targets)[0].shape[0]

    def cost(x: Array, samples: slice) -> Array:
        state = chain.forms[-1](x)
        outputs = jnp.stack([*state["read"], state["x"]])[:, samples]
        return objective_of_outputs(problem, outputs, jax.tree.map(lambda t: t[samples], targets))

    parts = [slice(start, start + batch // groups) for start in range(0, batch, batch // groups)]
    gradients = jnp.stack([jax.grad(cost)(chain.states[-1], part) for part in parts])
    if factor == "exact":
        curvature = jax.hessian(cost)(chain.states[-1], slice(None))
    else:
        scale = jnp.ones(groups) if sizes is None else jnp.asarray(sizes)
        curvature = gradients.T @ (scale[:, None] * gradients) / groups
    return Value(jnp.mean(gradients, axis=0), beta * curvature)


def make_chain(problem: Problem, variables: Variables, inputs: PyTree) -> Chain:
    """The stages of a problem around its parameters, on flat vectors."""
    system = problem.system

    def decide_shared(theta: PyTree, state: PyTree) -> PyTree:
        return {**state, "shared": theta}

    def transition(segment: Segment, stage: Stage, theta: PyTree, state: PyTree) -> PyTree:
        stage = stage._replace(params=theta, shared=state["shared"], train=True)
        outputs, x, _ = advance(system, segment, stage, state["x"])
        read = state["read"] if outputs is None else (*state["read"], *outputs)
        return {"x": x, "read": read, "shared": state["shared"]}

    stages = []
    if system.shared:
        stages.append((decide_shared, folds.shared_parameters(system, variables.params)))
    of_segments = folds.stages(system, variables)
    for run in system.runs:
        for index, segment in product(range(run[0].stages), run):
            stage = of_segments[segment.name]
            if segment.stacked:
                stage = jax.tree.map(lambda leaf, i=index: leaf[i], stage)
            stages.append((partial(transition, segment, stage), stage.params))

    state = {"x": system.initial_state(inputs), "read": (), "shared": {}}
    x, form = ravel_pytree(state)
    chain = Chain([], [], [], [x], [form])
    for function, params in stages:
        theta, shape = ravel_pytree(params)

        def flat(theta, x, function=function, shape=shape, form=form):
            return ravel_pytree(function(shape(theta), form(x)))[0]

        state = function(params, form(x))
        x, form = ravel_pytree(state)
        chain.functions.append(flat)
        chain.controls.append(theta)
        chain.shapes.append(shape)
        chain.states.append(x)
        chain.forms.append(form)
    return chain
