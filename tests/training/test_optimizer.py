"""The optimizer against SGD written out in numpy, and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizer import learning_rate_schedule, paper_optimizer

STEPS = 10


def params():
    return {
        "stem": jnp.array([1.0, -2.0]),
        "stage_0": {"residual": jnp.array([0.5]), "exit": jnp.array([3.0])},
    }


def gradients():
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params())
        for _ in range(4)
    ]


@pytest.mark.parametrize("decay_on", ["all", "residual_branches"])
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_is_sgd_with_momentum_coupled_decay_clipping_and_head_rates(decay_on, clip):
    config = TrainingConfig(
        weight_decay=0.3,
        weight_decay_on=decay_on,
        gradient_clip=clip,
        stage_cost=0.25,
        learning_rate=0.1,
        milestones=(1,),
    )
    optimizer = paper_optimizer(config, params(), steps_per_epoch=2)
    state, ours = optimizer.init(params()), params()
    theirs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params())
    velocity = jax.tree.map(np.zeros_like, theirs)
    decays = {"stem": decay_on == "all", "residual": True, "exit": decay_on == "all"}
    for step, gradient in enumerate(gradients()):
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

        leaves = jax.tree.leaves(gradient)
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves))
        scale = min(1, clip / norm) if clip else 1.0
        rate = 0.1 if step < 2 else 0.01
        for name, (tree, key) in {
            "stem": ((theirs, velocity, gradient), "stem"),
            "residual": (
                tuple(t["stage_0"] for t in (theirs, velocity, gradient)),
                "residual",
            ),
            "exit": (tuple(t["stage_0"] for t in (theirs, velocity, gradient)), "exit"),
        }.items():
            weights, speeds, slopes = tree
            decayed = scale * np.asarray(slopes[key]) + 0.3 * decays[name] * weights[key]
            speeds[key] = 0.9 * speeds[key] + decayed
            # alpha / gamma for separate exit heads
            factor = 1 / 0.25 if name == "exit" else 1.0
            weights[key] = weights[key] - rate * factor * speeds[key]
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_learning_rate_falls_after_the_milestones():
    schedule = learning_rate_schedule(TrainingConfig(milestones=(2, 3)), STEPS)
    rates = [float(schedule(step)) for step in range(40)]
    np.testing.assert_allclose(rates, [0.1] * 20 + [0.01] * 10 + [0.001] * 10, rtol=1e-6)


def test_warm_up_rises_linearly_to_the_full_rate():
    schedule = learning_rate_schedule(TrainingConfig(warmup_epochs=0.4, milestones=()), STEPS)
    rates = [float(schedule(step)) for step in range(7)]
    np.testing.assert_allclose(rates, 0.1 * np.minimum(np.arange(1, 8) / 5, 1), rtol=1e-5)
