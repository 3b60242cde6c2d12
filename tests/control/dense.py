"""What the tests of control need beyond `reference.py`: other forms of the recursion, Jacobians as
matrices, costs of single samples, linear rollouts.

Notation: that of `ocresnet/control/reference.py`, and
    J_i      cost of sample i;  J = sum_i weight_i J_i, a function of the last state
    A        M / eta

    Q_theta_theta = A + f_theta^T V_xx' f_theta  (exact),  A  (clipped, none)
    V_x = Q_x + Q_theta_x^T k,   V_xx = Q_xx + Q_theta_x^T K  (exact, clipped),   Q_x, Q_xx  (none)
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ocresnet.control.reference import Value, decide, make_chain
from ocresnet.costs import cross_entropy
from ocresnet.problem import Problem
from ocresnet.systems.system import System, Variables
from tests.quick import quick_jit

Matrices = list[np.ndarray]
Batch = tuple[jax.Array, jax.Array]


class Chain(NamedTuple):
    """A problem as stages on flat vectors, linearised.

    Attributes:
      steps: f_k, of (theta_k, x_k).
      controls: theta_k.
      states: x_0 ... x_K.
      jacobians: (f_theta, f_x) of every stage.
      owners: for every state, the sample that each of its entries belongs to (-1: all samples).
      gradient, hessian: weight of every sample -> derivatives of J with respect to x_K.
    """

    steps: list[Callable]
    controls: Matrices
    states: Matrices
    jacobians: list[tuple[np.ndarray, np.ndarray]]
    owners: Matrices
    gradient: Callable
    hessian: Callable


def split(system: System, tree: Any) -> Matrices:
    """A tree like the parameters as one flat vector a stage."""
    return [np.asarray(ravel_pytree(part)[0]) for part in _parts(system, tree)]


def _parts(system: System, tree: Any) -> list[Any]:
    parts = [{name: tree[name] for name in system.shared}] if system.shared else []
    for run in system.runs:
        for i, segment in product(range(run[0].stages), run):
            own = tree.get(segment.name, {})
            if segment.stacked:
                own = jax.tree.map(lambda leaf, i=i: leaf[i], own)
            parts.append(own)
    return parts


def chain(problem: Problem, params: Any, batch: Batch) -> Chain:
    """The stages of a problem around the parameters."""
    flat = make_chain(problem, Variables(params, {}), batch[0])
    jacobians = [
        jax.tree.map(np.asarray, quick_jit(jax.jacobian(f, argnums=(0, 1)))(theta, x))
        for f, theta, x in zip(flat.functions, flat.controls, flat.states[:-1], strict=True)
    ]
    x, labels = flat.states[-1], batch[1]

    def cost(x, weights):
        last = flat.forms[-1](x)
        y = jnp.stack([*last["read"], last["x"]])
        target = jax.nn.one_hot(labels, y.shape[-1], dtype=y.dtype)
        if problem.cost is cross_entropy:
            costs = jax.nn.logsumexp(y, axis=-1) - jnp.sum(target * y, axis=-1)
        else:
            costs = jnp.sum((y - target) ** 2, axis=-1) / 2
        importance = jnp.asarray([*problem.stage_costs.tolist(), 1.0])
        return importance @ costs @ weights

    gradient, hessian = quick_jit(jax.grad(cost)), quick_jit(jax.hessian(cost))
    return Chain(
        steps=[quick_jit(f) for f in flat.functions],
        controls=[np.asarray(theta) for theta in flat.controls],
        states=[np.asarray(x) for x in flat.states],
        jacobians=jacobians,
        owners=[_owners(form(x)) for form, x in zip(flat.forms, flat.states, strict=True)],
        gradient=lambda weights: np.asarray(gradient(x, weights)),
        hessian=lambda weights: np.asarray(hessian(x, weights)),
    )


def _owners(state: Any) -> np.ndarray:
    def of_samples(leaf):
        samples = jnp.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.broadcast_to(samples, leaf.shape)

    owners = {
        "x": jax.tree.map(of_samples, state["x"]),
        "read": tuple(of_samples(leaf) for leaf in state["read"]),
        "shared": jax.tree.map(lambda leaf: jnp.full(leaf.shape, -1), state["shared"]),
    }
    return np.asarray(ravel_pytree(owners)[0])


class Solution(NamedTuple):
    """Policies (k, K) of every stage, and (V_x, V_xx) of every state."""

    policies: list[tuple[np.ndarray, np.ndarray]]
    values: list[tuple[np.ndarray, np.ndarray]]


def terminal(
    problem: Chain, batch: int, beta: float, factor: str = "gradient", groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """V_x and V_xx of the last state: J is the mean over the batch, V_xx is beta times its Hessian
    ("exact") or the mean over groups of the outer products of their gradients ("gradient")."""
    weights = np.repeat(np.eye(groups), batch // groups, axis=1) * groups / batch
    gradients = np.stack([problem.gradient(jnp.asarray(row)) for row in weights])
    if factor == "exact":
        curvature = problem.hessian(jnp.full(batch, 1 / batch))
    else:
        curvature = gradients.T @ gradients / groups
    return gradients.mean(axis=0), beta * curvature


def bellman(
    jacobians: list[tuple[np.ndarray, np.ndarray]],
    value: tuple[np.ndarray, np.ndarray],
    curvature: Matrices,
    value_update: str = "exact",
    drift: Matrices | None = None,
    players: Matrices | None = None,
) -> Solution:
    """Solve the Bellman equation backward from (V_x, V_xx) of the last state; `curvature` is A, and
    drift and players (of a Nash equilibrium) are known to "exact" alone."""
    policies, values = [], [value]
    drift = [np.zeros(len(A)) for A in curvature] if drift is None else drift
    for k in reversed(range(len(jacobians))):
        (f_theta, f_x), A, s = jacobians[k], curvature[k], drift[k]
        V_x, V_xx = values[-1]
        if value_update == "exact":
            divided = None if players is None else players[k]
            policy, value = exact_decision(f_theta, f_x, Value(V_x, V_xx), A, s, divided)
        else:
            Q_theta, Q_theta_x = f_theta.T @ V_x, f_theta.T @ V_xx @ f_x
            policy = -np.linalg.solve(A, Q_theta), -np.linalg.solve(A, Q_theta_x)
            value = f_x.T @ V_x, f_x.T @ V_xx @ f_x
            if value_update == "clipped":
                k, K = policy
                value = value[0] + Q_theta_x.T @ k, value[1] + Q_theta_x.T @ K
        policies.append(tuple(map(np.asarray, policy)))
        values.append(tuple(map(np.asarray, value)))
    return Solution(policies[::-1], values[::-1])


@jax.jit
def exact_decision(f_theta, f_x, value, curvature, drift, players=None):
    """That of the reference, for linear dynamics."""
    start = jnp.zeros(f_theta.shape[1]), jnp.zeros(f_x.shape[1])

    def f(theta, x):
        return f_theta @ theta + f_x @ x

    return decide(f, *start, value, curvature, drift, players)


def walk(problem: Chain, decide: Callable[[int, np.ndarray], np.ndarray], rollout: str) -> Matrices:
    """Let `decide(stage, dx)` move the controls along the "nonlinear" or "linear" dynamics."""
    dx, changes = np.zeros_like(problem.states[0]), []
    for stage, step in enumerate(problem.steps):
        changes.append(decide(stage, dx))
        if rollout == "linear":
            f_theta, f_x = problem.jacobians[stage]
            dx = f_theta @ changes[-1] + f_x @ dx
        else:
            new = step(problem.controls[stage] + changes[-1], problem.states[stage] + dx)
            dx = np.asarray(new) - problem.states[stage + 1]
    return changes


def total_jacobian(jacobians: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """d x_K / d (theta_0 ... theta_{K-1})."""
    blocks, rest = [], np.eye(len(jacobians[-1][1]))
    for f_theta, f_x in reversed(jacobians):
        blocks.append(rest @ f_theta)
        rest = rest @ f_x
    return np.concatenate(blocks[::-1], axis=1)
