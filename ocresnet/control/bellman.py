"""The Bellman recursion, backward over the stages, in the coordinates of its low-rank factor.

Notation
    x_k, theta_k    state and control of stage k = 0 ... K-1;  x_{k+1} = f_k(x_k, theta_k)
    V_k(x)          value function: optimal cost-to-go from state x of stage k
    M_k / eta       curvature of the control, over the learning rate
    g_k             gradient of the cost for theta_k
    kappa           weight of the terminal curvature
    v               a factor of it: V_xx,K = kappa sum_f v_f v_f^T  (f = 1 ... F)
    lambda_k, G_k   costates: the gradient and the F factors, pulled back to x_k
    P_k             the factors pulled back to theta_k, one column each
    omega_k         coordinates of a vector in the columns of the problem
    N_k             [F, F], symmetric, eigenvalues in (0, 1]

With the second derivatives of f dropped (Gauss-Newton), V_xx = kappa N' applied to G' at stage k+1
gives Q_theta,x = kappa P N' G^T and Q_theta,theta = M / eta + kappa P N' P^T. Everything that the
recursion needs of a stage is therefore its Gram matrix  Gamma_k = eta C_k^T M_k^-1 C_k,  where the
columns C_k are (g_k, P_k), or P_k alone if the gradient lies in its span:

    S   = (I + kappa N' Gamma_PP)^-1                   "exact"  (Woodbury)
    V_x = C omega,  omega = omega' - [S kappa N' Gamma_P omega']_P
    N   = S N'
    policy:  d theta(dx) = -eta M^-1 C (omega + [kappa N G^T dx]_P)

"clipped", the papers' form, substitutes M / eta for Q_theta,theta in the value update too; what
would become negative is clipped at zero. It is defined for one factor. "none" leaves the value
function as it is: no value correction.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

ValueUpdate = Literal["exact", "clipped", "none"]


class Policy(NamedTuple):
    """d theta_k(dx) = -eta M_k^-1 C_k (weights_k + [kappa gains_k epsilon_k]_P), where
    epsilon_k = G_k^T dx_k.

    Attributes:
      weights: [K, C].
      gains: [K, F, F], symmetric, eigenvalues in [0, 1].
    """

    weights: Array
    gains: Array


def value_recursion(
    gram: Array, weights: Array, factors: int, kappa: float | Array, value_update: ValueUpdate
) -> Policy:
    """Solve the Bellman equation backward from the last stage.

    Args:
      gram: Gamma_k, [K, C, C].
      weights: coordinates of the gradient in the columns, [C].
      factors: F, how many of the columns, the last ones, are factors: C or C - 1.
      kappa: weight of the terminal curvature in the value function.
      value_update: see the notation.

    Returns:
      The policy of every stage.
    """
    first = weights.shape[0] - factors

    def exact(value: tuple[Array, Array], gram: Array) -> tuple[tuple[Array, Array], Policy]:
        omega, N = value
        scaled = kappa * N
        system = jnp.eye(factors, dtype=gram.dtype) + scaled @ gram[first:, first:]
        if first == 0:
            solved = _solve(system, jnp.concatenate([omega[:, None], N], axis=1))
            omega = solved[:, 0]
        else:
            moved = scaled @ gram[first:, 0] - omega[first:]
            solved = _solve(system, jnp.concatenate([moved[:, None], N], axis=1))
            omega = omega.at[first:].set(-solved[:, 0])
        N = solved[:, 1:]
        N = (N + N.T) / 2
        return (omega, N), Policy(omega, N)

    def clipped(value: tuple[Array, Array], gram: Array) -> tuple[tuple[Array, Array], Policy]:
        omega, N = value
        own = gram[-1, -1]
        gain = jnp.minimum(kappa * N[0, 0] * own, 1.0)
        along = gram[-1] @ omega / jnp.where(own > 0, own, 1.0)
        return (omega.at[-1].add(-gain * along), (1 - gain) * N), Policy(omega, N)

    identity = jnp.eye(factors, dtype=gram.dtype)
    if value_update == "none":
        stages = gram.shape[0]
        return Policy(
            jnp.broadcast_to(weights, (stages, *weights.shape)),
            jnp.broadcast_to(identity, (stages, factors, factors)),
        )
    step = exact if value_update == "exact" else clipped
    _, policy = lax.scan(
        step, (weights, identity), gram, reverse=True, unroll=_unroll(gram.shape[0], factors)
    )
    return policy


def applied_weights(
    policy: Policy, deviation: Array, kappa: float | Array, stage: int | None = None
) -> Array:
    """The policy for a deviation of the state: omega + [kappa N epsilon]_P.

    Args:
      policy: of all stages, or of one if `stage` is None.
      deviation: epsilon = G^T dx, [F]: the change of every factor that earlier stages caused.
      kappa: weight of the terminal curvature in the feedback.
      stage: index of the stage, or None if `policy` is that of one stage.

    Returns:
      Coordinates of the update in the columns, [C].
    """
    weights, gains = (leaf if stage is None else leaf[stage] for leaf in policy)
    factors = gains.shape[0]
    feedback = kappa * (gains @ deviation)
    return weights.at[weights.shape[0] - factors :].add(feedback)


def linear_rollout(policy: Policy, gram: Array, kappa: float | Array) -> Array:
    """The policy applied along the linearised dynamics, in closed form.

    As G_{k+1}^T dx_{k+1} = G_k^T dx_k + P_k^T d theta_k, the deviations need no states:
    epsilon_{k+1} = epsilon_k - Gamma_P,k (applied weights)_k.

    Returns:
      The applied weights of every stage, [K, C].
    """
    factors = policy.gains.shape[-1]

    def step(deviation: Array, stage: tuple[Policy, Array]) -> tuple[Array, Array]:
        own, gram = stage
        weights = applied_weights(own, deviation, kappa)
        return deviation - gram[-factors:] @ weights, weights

    start = jnp.zeros(factors, gram.dtype)
    _, weights = lax.scan(step, start, (policy, gram), unroll=_unroll(gram.shape[0], factors))
    return weights


def _unroll(stages: int, factors: int) -> int:
    """Loop or not: a stage of one factor is a few scalar operations, cheaper than a loop's turn."""
    return stages if factors == 1 and stages <= 64 else 1


def _solve(matrix: Array, right: Array) -> Array:
    """matrix^-1 right; a division where there is one unknown."""
    if matrix.shape[0] == 1:
        return right / matrix
    return jnp.linalg.solve(matrix, right)
