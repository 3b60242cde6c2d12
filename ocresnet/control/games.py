"""What the players of a stage decide: the joint minimum, or each for itself.

Notation: that of `value.py`, for the players n of one stage, and
    Gamma_n    Gram matrix of player n, [C, C];  Gamma_n,PP its part for the factors, [F, F]
    epsilon    deviation of the factors before the stage, [F];  epsilon' after it
    c, c'      changes of all columns before and after; epsilon and epsilon' are their P parts
    a_n        coordinates of player n's move:  u_n = -eta M_n^-1 C_n a_n
    Q          what the moves leave:  omega'^T c' + kappa/2 epsilon'^T N' epsilon'
               + 1/2 sum_n a_n^T Gamma_n a_n,   c' = c + C^T s - sum_n Gamma_n a_n

Players share the one cost Q. **Cooperative**: they minimise it together (`value.joint_minimum`).
**Nash**: each minimises it alone, the others held at their nominal controls; what changes anyway
(s) it knows of all of them:

    S_n     = (I + kappa N' Gamma_n,PP)^-1,   N_n = S_n N'
    omega_n = omega' + [S_n kappa N' (p - Gamma_n,P omega')]_P
    a_n     = omega_n + [kappa N_n epsilon]_P

That is the feedback Nash equilibrium of the papers: the best response of each to what the others
have done so far. It is not one of players who know each other's moves. As they share one cost that
is convex, no player could gain alone there either: it is the joint minimum, a cooperative decision.

As nobody counts on the others, together they overshoot. The value function is the true cost-to-go
of Q under the policies of all of them:

    A        = I - kappa sum_n Gamma_n,PP N_n,    b = p - sum_n Gamma_n,P omega_n
    epsilon' = A epsilon + b
    N        = A^T N' A + kappa sum_n N_n Gamma_n,PP N_n
    omega    = omega' + [kappa A^T N' b + kappa sum_n N_n Gamma_n,P (omega_n - omega')]_P

What one player leaves is that of `value.py`, N = S N' <= N'. Several leave more than their joint
minimum would, and where eta is large even more than N': with n players of Gamma_n -> infinity N
approaches (n - 1)^2 N'. Where the gradient is the only factor, player n takes the share
omega_n / omega' of the base optimizer's step, which is

    1 / (1 + kappa N' Gamma_n)  (Nash),   1 / (1 + kappa N' sum_m Gamma_m)  (cooperative),

so that the decrease which Nash players predict for a stage may exceed 1 / beta; that of cooperative
ones never does.
"""

import jax
import jax.numpy as jnp

from ocresnet.control.value import Policy, Value, joint_minimum

Array = jax.Array


def nash(value: Value, gram: Array, drift: Array, kappa: float | Array) -> tuple[Policy, Value]:
    """Every player minimises Q alone, the others held at their nominal controls (a `Decision`).

    Of M it needs that it is block diagonal over the players.
    """
    weights, gains = value
    factors = gains.shape[0]
    first = weights.shape[0] - factors

    def alone(own: Array) -> Policy:
        policy, _ = joint_minimum(value, own[None], drift, kappa)
        return Policy(policy.weights[0], policy.gains[0])

    policy = jax.vmap(alone)(gram)
    of_factors = gram[:, first:]
    responses = jnp.einsum("nfg,ngh->nfh", of_factors[:, :, first:], policy.gains)
    A = jnp.eye(factors, dtype=gram.dtype) - kappa * jnp.sum(responses, axis=0)
    b = drift - jnp.einsum("nfc,nc->f", of_factors, policy.weights)
    own = jnp.einsum("nfg,nfh->gh", policy.gains, responses)
    along = jnp.einsum("nfg,nfc,nc->g", policy.gains, of_factors, policy.weights - weights)
    left = A.T @ gains @ A + kappa * own
    return policy, Value(
        weights.at[first:].add(kappa * (A.T @ gains @ b + along)), (left + left.T) / 2
    )
