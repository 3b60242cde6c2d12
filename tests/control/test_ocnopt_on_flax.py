"""Systems of Flax modules under ocnopt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from ocresnet.control.curvature import diagonal, ekfac, identity
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective
from ocresnet.systems.from_flax import from_flax

IMAGES = jax.random.normal(jax.random.key(7), (6, 5, 5, 2))
LABELS = jnp.arange(6) % 3


def flatten(x):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("curvature", [identity(), diagonal(), ekfac()])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_ocnopt_trains_them(kind, curvature):
    if kind == "nnx":
        rngs = nnx.Rngs(0)
        modules = [
            nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            flatten,
            nnx.Dropout(0.2, rngs=rngs),
            nnx.Linear(36, 3, rngs=rngs),
        ]
    else:
        convolution, norm = linen.Conv(4, (3, 3), strides=2), linen.BatchNorm()
        modules = [convolution, norm, flatten, linen.Dropout(0.2), linen.Dense(3)]
    system, (params, stats) = from_flax(modules, IMAGES, key=jax.random.key(1))
    problem = Problem(system)
    optimizer = ocnopt(problem, 0.01, curvature=curvature, feedback="stacked", rollout="nonlinear")

    def cost(params):
        return objective(problem, params, stats, IMAGES, LABELS)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(cost)(params)
        batch = (IMAGES, LABELS)
        updates, state = optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)
        return value, optax.apply_updates(params, updates), state

    value, new, state = step(params, optimizer.init(params))
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert np.all(np.isfinite(state[0].info.weights))
    assert cost(new) < value
