"""The Bellman recursion with full matrices, for networks small enough: what the tests compare to.

Notation (every vector flat, every Jacobian and Hessian a full matrix)
    x_k      state: all that crosses from the stages before k to the later ones: activations of the
             whole batch, outputs read so far, shared parameters
    theta_k  control; where there are shared parameters the first stage decides them
    f_k      x_{k+1} = f_k(x_k, theta_k), with Jacobians f_theta and f_x
    J_i      cost of sample i;  J = sum_i weight_i J_i, a function of the last state
    A        M / eta

    Q_x = f_x^T V_x'                  Q_theta = f_theta^T V_x'
    Q_xx = f_x^T V_xx' f_x            Q_theta,x = f_theta^T V_xx' f_x
    Q_theta,theta = A + f_theta^T V_xx' f_theta  (exact),  A  (clipped, none)
    d theta = k + K dx,   k = -Q_theta,theta^-1 Q_theta,   K = -Q_theta,theta^-1 Q_theta,x
    V_x = Q_x + Q_x,theta k,   V_xx = Q_xx + Q_x,theta K  (exact, clipped),   Q_x, Q_xx  (none)
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ocresnet.costs import cross_entropy
from ocresnet.problem import Problem
from ocresnet.systems.system import Stage, System


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the compiler's options that this version of it has."""
    known = {}
    for name, value in options.items():
        with suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value})()
            known[name] = value
    return known


QUICK = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
quick_jit = partial(jax.jit, compiler_options=QUICK)
"""`jax.jit` for what is run once or twice: it compiles in a fifth of the time."""

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
    for segment in system.segments:
        own = tree.get(segment.name, {})
        if not segment.stacked:
            parts.append(own)
        else:
            parts += [jax.tree.map(lambda leaf, i=i: leaf[i], own) for i in range(segment.length)]
    return parts


def chain(problem: Problem, params: Any, batch: Batch) -> Chain:
    """The stages of a problem around the parameters."""
    system, (inputs, labels) = problem.system, batch

    def decide_shared(theta, state):
        return {**state, "shared": theta}

    def transition(segment, time, theta, state):
        x, read, shared = state["x"], state["read"], state["shared"]
        for own_time in range(segment.transitions) if segment.tied else [time]:
            stage = Stage(theta, {}, jnp.asarray(own_time), shared, True)
            if segment.output is not None:
                read = (*read, segment.output(stage, x)[0])
            x = segment.transition(stage, x)[0]
        return {"x": x, "read": read, "shared": shared}

    functions: list[Callable] = [decide_shared] if system.shared else []
    for segment in system.segments:
        functions += [partial(transition, segment, time) for time in range(segment.stages)]

    state = {"x": system.initial_state(inputs), "read": (), "shared": {}}
    result = Chain([], [], [], [], [], len, len)
    for function, part in [*zip(functions, _parts(system, params), strict=True), (None, None)]:
        x, unravel = ravel_pytree(state)
        result.states.append(np.asarray(x))
        result.owners.append(_owners(state))
        if function is None:
            break
        theta, unravel_theta = ravel_pytree(part)

        def step(theta, x, function=function, unravel=unravel, unravel_theta=unravel_theta):
            return ravel_pytree(function(unravel_theta(theta), unravel(x)))[0]

        jacobians = quick_jit(jax.jacobian(step, argnums=(0, 1)))(theta, x)
        result.steps.append(quick_jit(step))
        result.controls.append(np.asarray(theta))
        result.jacobians.append(jax.tree.map(np.asarray, jacobians))
        state = quick_jit(function)(part, state)

    def cost(x, weights):
        last = unravel(x)
        y = jnp.stack([*last["read"], last["x"]])
        target = jax.nn.one_hot(labels, y.shape[-1], dtype=y.dtype)
        if problem.cost is cross_entropy:
            costs = jax.nn.logsumexp(y, axis=-1) - jnp.sum(target * y, axis=-1)
        else:
            costs = jnp.sum((y - target) ** 2, axis=-1) / 2
        importance = jnp.asarray([*problem.stage_costs.tolist(), 1.0])
        return importance @ costs @ weights

    gradient, hessian = quick_jit(jax.grad(cost)), quick_jit(jax.hessian(cost))
    return result._replace(
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
) -> Solution:
    """Solve the Bellman equation backward from (V_x, V_xx) of the last state; `curvature` is A."""
    policies, values = [], [value]
    for (f_theta, f_x), A in zip(reversed(jacobians), reversed(curvature), strict=True):
        V_x, V_xx = values[-1]
        Q_theta, Q_theta_x = f_theta.T @ V_x, f_theta.T @ V_xx @ f_x
        Q_theta_theta = A + f_theta.T @ V_xx @ f_theta if value_update == "exact" else A
        k, K = -np.linalg.solve(Q_theta_theta, Q_theta), -np.linalg.solve(Q_theta_theta, Q_theta_x)
        V_x, V_xx = f_x.T @ V_x, f_x.T @ V_xx @ f_x
        if value_update != "none":
            V_x, V_xx = V_x + Q_theta_x.T @ k, V_xx + Q_theta_x.T @ K
        policies.append((k, K))
        values.append((V_x, V_xx))
    return Solution(policies[::-1], values[::-1])


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
