"""The Bellman recursion, backward over the stages, in the coordinates of its low-rank factor.

Notation
    x_k, theta_k    state and control of stage k = 0 ... K-1;  x_{k+1} = f_k(x_k, theta_k)
    V_k(x)          value function: optimal cost-to-go from state x of stage k
    M_k / eta       curvature of the control, over the learning rate
    s_k, u_k        change of the control: s_k happens anyway (momentum, weight decay), u_k is
                    decided;  d theta_k = s_k + u_k
    g_k             gradient of the cost for theta_k
    kappa           weight of the terminal curvature
    v               a factor of it: V_xx,K = kappa sum_f v_f v_f^T  (f = 1 ... F)
    lambda_k, G_k   costates: the gradient and the F factors, pulled back to x_k
    P_k             the factors pulled back to theta_k, one column each
    p_k             P_k^T s_k, what the drift does to the factors
    omega_k         coordinates of a vector in the columns of the problem
    N_k             [F, F], symmetric, eigenvalues in (0, 1] (of `joint_minimum`)

With the second derivatives of f dropped (Gauss-Newton), V_xx = kappa N' applied to G' at stage k+1
gives Q_theta,x = kappa P N' G^T and Q_theta,theta = M / eta + kappa P N' P^T. Everything that the
recursion needs of a stage is therefore its Gram matrix  Gamma_k = eta C_k^T M_k^-1 C_k,  where the
columns C_k are (g_k, P_k), or P_k alone if the gradient lies in its span:

    S     = (I + kappa N' Gamma_PP)^-1                   (Woodbury)
    omega = omega' + [S kappa N' (p - Gamma_P omega')]_P
    N     = S N'
    V_x   = C omega
    policy:  u(dx) = -eta M^-1 C (omega + [kappa N G^T dx]_P)

Seen from a stage, its own drift is a deviation like those that come from before: p adds to G^T dx.
The players of a stage (`Segment.players`) have a Gram matrix each, Gamma_n = eta C_n^T (M^-1 C)_n.
`joint_minimum` decides for all of them at once; it needs no more than their sum, and M may couple
the players. What a stage decides, and what that leaves of the value function, is one function, a
`Decision`: another one makes another game of it (`games.py`), where M is block diagonal over the
players.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class Value(NamedTuple):
    """V_x = C weights, V_xx = kappa G gains G^T of a state.

    Attributes:
      weights: omega, [C].
      gains: N, [F, F].
    """

    weights: Array
    gains: Array


class Policy(NamedTuple):
    """u(dx) = -eta M^-1 C (weights + [kappa gains G^T dx]_P), for every player.

    Attributes:
      weights: [players, C]; of all stages [stages, players, C].
      gains: [players, F, F], symmetric, at least 0; of all [stages, players, F, F].
    """

    weights: Array
    gains: Array


Decision = Callable[[Value, Array, Array, float | Array], tuple[Policy, Value]]
"""What the players of a stage decide.

(value of the state after the stage, Gamma of every player [players, C, C], p = P^T s of all of them
together [F], kappa) -> (policy of the stage, value of the state before it).

F is the size of `value.gains`; the factors are the last F of the C columns.
"""


def joint_minimum(
    value: Value, gram: Array, drift: Array, kappa: float | Array
) -> tuple[Policy, Value]:
    """All players as one: the minimum of Q over the stage's whole control (a `Decision`)."""
    weights, gains = value
    factors = gains.shape[0]
    first = weights.shape[0] - factors
    own = jnp.sum(gram, axis=0)[first:]
    right = weights[first:] + kappa * gains @ (drift - own[:, :first] @ weights[:first])
    solved, gains = _shrunk(right, gains, kappa * own[:, first:])
    value = Value(jnp.concatenate([weights[:first], solved]), gains)
    return _for_all(value, gram), value


def clipped(value: Value, gram: Array, drift: Array, kappa: float | Array) -> tuple[Policy, Value]:
    """The papers' form: M / eta stands for Q_theta,theta in the value update too, and what would
    become negative is clipped at zero (a `Decision`, for one factor)."""
    total = jnp.sum(gram, axis=0)
    own = total[-1, -1]
    weights = value.weights.at[-1].add(kappa * value.gains[0, 0] * drift[0])
    gain = jnp.minimum(kappa * value.gains[0, 0] * own, 1.0)
    along = total[-1] @ weights / jnp.where(own > 0, own, 1.0)
    before = Value(weights.at[-1].add(-gain * along), (1 - gain) * value.gains)
    return _for_all(Value(weights, value.gains), gram), before


def value_recursion(
    gram: Array, drift: Array, last: Value, kappa: float | Array, decide: Decision = joint_minimum
) -> Policy:
    """Solve the Bellman equation backward from the last stage.

    Args:
      gram: Gamma_k, [stages, players, C, C].
      drift: p_k, [stages, F].
      last: value of the last state: coordinates of the gradient in the columns, and I.
      kappa: weight of the terminal curvature in the value function.
      decide: what a stage decides.

    Returns:
      The policy of every stage.
    """

    def stage(value: Value, given: tuple[Array, Array]) -> tuple[Value, Policy]:
        policy, value = decide(value, *given, kappa)
        return value, policy

    unroll = _unroll(gram.shape[0], drift.shape[-1])
    _, policy = lax.scan(stage, last, (gram, drift), reverse=True, unroll=unroll)
    return policy


def applied_weights(policy: Policy, deviation: Array, kappa: float | Array) -> Array:
    """The policy of a stage for a deviation of its state: weights + [kappa gains epsilon]_P.

    Args:
      policy: of the stage.
      deviation: epsilon = G^T dx, [F]: the change of every factor that earlier stages caused.
      kappa: weight of the terminal curvature in the feedback.

    Returns:
      Coordinates of the players' updates in the columns, [players, C].
    """
    weights, gains = policy
    first = weights.shape[-1] - gains.shape[-1]
    return weights.at[:, first:].add(kappa * (gains @ deviation))


def linear_rollout(
    policy: Policy, gram: Array, drift: Array, kappa: float | Array
) -> tuple[Array, Array]:
    """The policy applied along the linearised dynamics, in closed form.

    As G_{k+1}^T dx_{k+1} = G_k^T dx_k + P_k^T d theta_k, the deviations need no states:
    epsilon_{k+1} = epsilon_k + p_k - Gamma_P,k (applied weights)_k.

    Returns:
      The applied weights of every stage, [stages, players, C], and its deviation, [stages, F].
    """
    factors = drift.shape[-1]

    def step(
        deviation: Array, stage: tuple[Policy, Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        own, gram, drift = stage
        weights = applied_weights(own, deviation, kappa)
        moved = drift - jnp.einsum("nfc,nc->f", gram[:, -factors:], weights)
        return deviation + moved, (weights, deviation)

    start = jnp.zeros(factors, gram.dtype)
    unroll = _unroll(gram.shape[0], factors)
    return lax.scan(step, start, (policy, gram, drift), unroll=unroll)[1]


def _for_all(value: Value, gram: Array) -> Policy:
    """The same policy for every player."""
    return Policy(*(jnp.broadcast_to(leaf, (gram.shape[0], *leaf.shape)) for leaf in value))


def _unroll(stages: int, factors: int) -> int:
    """Loop or not: a stage of one factor is a few scalar operations, cheaper than a loop's turn."""
    return stages if factors == 1 and stages <= 64 else 1


def _shrunk(right: Array, gains: Array, gram: Array) -> tuple[Array, Array]:
    """S right and S N, where S = (I + N Gamma)^-1.

    Gamma can be as ill-conditioned as its factors are alike, and as large as eta is. So the system
    is made symmetric: with the root R of N, S N = R (I + R Gamma R)^-1 R and S = S N N^-1, whose
    eigenvalues are known to be at least 1, and at least 0, whatever rounding makes of them.

    Args:
      right: [F].
      gains: N, [F, F].
      gram: kappa Gamma, [F, F].
    """
    if len(right) == 1:
        shrink = 1 + gains[0] * gram[0]
        return right / shrink, gains / shrink
    values, vectors = _eigh(gains, jnp.max(jnp.abs(gains)))
    roots = jnp.sqrt(jnp.maximum(values, jnp.finfo(gram.dtype).eps * jnp.max(values)))
    # In the eigenvectors of N, where its root is diagonal.
    inside = roots[:, None] * (vectors.T @ gram @ vectors) * roots
    more, axes = _eigh(inside, 1.0)  # beside the I that is added
    basis = roots[:, None] * axes / jnp.sqrt(1 + jnp.maximum(more, 0))
    shrunk = basis @ basis.T
    gains = vectors @ shrunk @ vectors.T
    return vectors @ (shrunk @ (vectors.T @ right / roots**2)), (gains + gains.T) / 2


def _eigh(matrix: Array, scale: float | Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a symmetric matrix, without what is nothing beside `scale`.

    Groups whose cost is almost zero have products down to the smallest numbers there are, and
    LAPACK may then give up, and return NaN.
    """
    symmetric = (matrix + matrix.T) / 2
    nothing = jnp.abs(symmetric) < scale * jnp.finfo(matrix.dtype).eps ** 2
    values, vectors = jnp.linalg.eigh(jnp.where(nothing, 0, symmetric))
    return values, vectors
