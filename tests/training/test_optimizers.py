"""Configurations of optimizers: what they build, against numpy and optax, what they refuse."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.linearize import Keep
from ocresnet.problem import Problem
from ocresnet.systems.system import Segment, System
from ocresnet.training import optimizers
from ocresnet.training.optimizers import (
    EKFAC,
    KFAC,
    OPTIMIZERS,
    SGD,
    AdamW,
    OCNOpt,
    Optimizer,
    RMSprop,
)

STEPS = 2  # an epoch


def params():
    return {
        "stem": jnp.array([1.0, -2.0]),
        "blocks": {"residual": jnp.array([0.5]), "exit": jnp.array([3.0])},
    }


def gradients():
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params())
        for _ in range(4)
    ]


def problem(stage_cost: float = 0.0) -> Problem:
    segment = Segment("blocks", lambda stage, state: (state, {}), lambda stage, state: (state, {}))
    return Problem(System((segment,)), stage_cost=stage_cost)


def trained(optimizer: optax.GradientTransformation):
    """The parameters after a step with each gradient."""
    state, ours = optimizer.init(params()), params()
    for gradient in gradients():
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    return ours


def built(optimizer: Optimizer, stage_cost: float = 0.0) -> optax.GradientTransformation:
    return optimizer.build(problem(stage_cost), optimizer.schedule_over(2, STEPS))


def assert_close(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("decay_on", ["all", "residual_branches"])
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_sgd_has_momentum_coupled_decay_clipping_and_head_rates(decay_on, clip):
    optimizer = SGD(
        weight_decay=0.3,
        weight_decay_on=decay_on,
        gradient_clip=clip,
        learning_rate=0.1,
        milestones=(1,),
    )
    theirs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params())
    velocity = jax.tree.map(np.zeros_like, theirs)
    decays = {"stem": decay_on == "all", "residual": True, "exit": decay_on == "all"}
    for step, gradient in enumerate(gradients()):
        leaves = jax.tree.leaves(gradient)
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves))
        scale = min(1, clip / norm) if clip else 1.0
        rate = 0.1 if step < 2 else 0.01
        for name in ("stem", "residual", "exit"):
            weights, speeds, slopes = (
                tree if name == "stem" else tree["blocks"] for tree in (theirs, velocity, gradient)
            )
            # Separate exit heads move as the output block does, and decay as it does.
            factor = 1 / 0.25 if name == "exit" else 1.0
            slope = factor * scale * np.asarray(slopes[name])
            speeds[name] = 0.9 * speeds[name] + slope + 0.3 * decays[name] * weights[name]
            weights[name] = weights[name] - rate * speeds[name]
    assert_close(trained(built(optimizer, stage_cost=0.25)), theirs)


def test_nesterov_is_optaxs():
    optimizer = SGD(schedule="constant", weight_decay=0.0, nesterov=True)
    assert_close(trained(built(optimizer)), trained(optax.sgd(0.1, 0.9, nesterov=True)))


def test_adamw_is_optaxs():
    optimizer = AdamW(
        learning_rate=0.02,
        schedule="constant",
        weight_decay=0.3,
        weight_decay_on="residual_branches",
        decay_of_mean=0.8,
        decay_of_square=0.95,
        epsilon=1e-3,
        gradient_clip=0.5,
    )
    mask = {"stem": False, "blocks": {"residual": True, "exit": False}}
    wanted = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(0.02, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3, mask=mask),
    )
    assert_close(trained(built(optimizer)), trained(wanted))


def test_rmsprop_divides_by_the_root_and_decays_apart():
    optimizer = RMSprop(
        learning_rate=0.02,
        schedule="constant",
        weight_decay=0.3,
        decay_of_square=0.9,
        epsilon=0.1,
        momentum=0.5,
    )
    theirs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params())
    squares = jax.tree.map(np.zeros_like, theirs)
    velocity = jax.tree.map(np.zeros_like, theirs)
    for gradient in gradients():
        squares = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * np.square(g), squares, gradient)
        velocity = jax.tree.map(
            lambda v, s, g: 0.5 * v + g / (np.sqrt(s) + 0.1), velocity, squares, gradient
        )
        theirs = jax.tree.map(lambda w, v: w - 0.02 * (v + 0.3 * w), theirs, velocity)
    assert_close(trained(built(optimizer)), theirs)


@pytest.mark.parametrize("kind", [SGD, AdamW, RMSprop])
def test_rate_and_decay_can_be_traced(kind):
    optimizer = kind(learning_rate=0.02, weight_decay=0.3)

    @jax.jit
    def traced(learning_rate, weight_decay):
        schedule = optimizer.schedule_over(2, STEPS, learning_rate)
        return trained(optimizer.build(problem(), schedule, weight_decay=weight_decay))

    assert_close(traced(0.02, 0.3), trained(built(optimizer)))
    undecayed = kind(learning_rate=0.04, weight_decay=0.0)
    assert_close(traced(0.04, 0.0), trained(built(undecayed)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_descriptions_survive_json(name):
    optimizer = OPTIMIZERS[name](learning_rate=0.03, milestones=(2, 5), weight_decay=0.2)
    described = json.loads(json.dumps(optimizers.describe(optimizer)))
    assert described["name"] == name
    assert optimizers.from_description(described) == optimizer


def test_an_optimizer_from_outside_is_registered(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Own(SGD):
        """Another one."""

    monkeypatch.setattr(optimizers, "OPTIMIZERS", dict(OPTIMIZERS))
    with pytest.raises(ValueError, match="Own is no known optimizer: call .*register"):
        optimizers.describe(Own())
    optimizers.register("own", Own)
    assert optimizers.from_description(optimizers.describe(Own())) == Own()
    with pytest.raises(ValueError, match="already an optimizer 'sgd'|optimizer 'sgd' already"):
        optimizers.register("sgd", Own)


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 0.0, "a positive number"),
        ("learning_rate", float("nan"), "a positive number"),
        ("learning_rate", "0.1", "a positive number"),
        ("schedule", "step", "one of constant, milestones, cosine"),
        ("decay_factor", 0, "a positive number"),
        ("warmup_epochs", -1, "at least 0"),
        ("gradient_clip", -1.0, "at least 0"),
        ("weight_decay", -1e-4, "at least 0"),
        ("weight_decay", float("inf"), "at least 0"),
        ("weight_decay", None, "at least 0"),
        ("weight_decay_on", "biases", "all, residual_branches"),
        ("milestones", (5, 3), "increasing"),
        ("milestones", (5, 5), "increasing"),
        ("milestones", (0,), "of at least 1"),
        ("milestones", (1.5,), "whole numbers of epochs"),
        ("milestones", (0.5, 3), "either shares"),
        ("milestones", 3, "a tuple"),
        ("milestones", ("3",), "increasing, and either shares"),
    ],
)
def test_impossible_values_are_refused(kind, name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (SGD, "momentum", 1.0, r"in \[0, 1\)"),
        (SGD, "nesterov", 1, "True or False"),
        (AdamW, "decay_of_mean", 1.0, r"in \[0, 1\)"),
        (AdamW, "decay_of_square", -0.1, r"in \[0, 1\)"),
        (AdamW, "epsilon", 0.0, "positive"),
        (RMSprop, "decay_of_square", 1.0, r"in \[0, 1\)"),
        (RMSprop, "epsilon", 0.0, "positive"),
        (RMSprop, "momentum", 1.0, r"in \[0, 1\)"),
    ],
)
def test_impossible_values_of_one_are_refused(kind, name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        kind(**{name: value})


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum is 0.0, but must be above 0 with nesterov"):
        SGD(momentum=0.0, nesterov=True)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (EKFAC, {"momentum": 1.0}, r"momentum is 1.0, but must be a number in \[0, 1\)"),
        (EKFAC, {"damping": 0.0}, "damping is 0.0, but must be positive"),
        (EKFAC, {"damping": "0.1"}, "damping is '0.1', but must be a number"),
        (EKFAC, {"moments": "sample"}, "one of batch, per_example"),
        (KFAC, {"eigen_every": 0}, "a whole number, at least 1"),
        (KFAC, {"epsilon": 1e-3}, "curvature 'kfac' has no such setting: it has damping, decay"),
        (OCNOpt, {"curvature": "identity", "decay": 0.9}, "it has no settings"),
        (OCNOpt, {"curvature": "fisher"}, "one of identity, diagonal, kfac, ekfac"),
        (OCNOpt, {"feedback": "all"}, "one of none, per_sample, stacked, joint"),
        (OCNOpt, {"rollout": "curved"}, "one of linear, nonlinear"),
        (OCNOpt, {"factor": "random"}, "one of gradient, sampled, exact"),
        (OCNOpt, {"value_update": len}, "one of exact, clipped"),
        (OCNOpt, {"beta": None}, "a number, at least 0"),
        (OCNOpt, {"value_beta": -1}, "a number, at least 0"),
        (OCNOpt, {"groups": 4}, "only feedback 'joint' divides the batch into groups"),
        (OCNOpt, {"feedback": "joint", "groups": 0}, "a whole number, at least 1"),
        (OCNOpt, {"region": "round"}, "one of fixed, square, smaller, measured"),
        (OCNOpt, {"factor": "exact", "region": "square"}, "it must be 'fixed'"),
        (OCNOpt, {"lower_bound": "0"}, "lower_bound is '0', but must be a number"),
        (OCNOpt, {"rollout": "linear", "gradient_clip": 1.0}, "takes a clipped one for a longer"),
    ],
)
def test_impossible_choices_of_second_order_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_groups_are_those_of_the_whole_batch():
    """On several devices each keeps its share of them."""
    joint = OCNOpt(feedback="joint", groups=8)
    assert [joint.keep_on(devices).groups for devices in (1, 2, 8)] == [8, 4, 1]
    assert SGD().keep_on(1) == EKFAC().keep_on(1) == Keep()
    assert OCNOpt().keep_on(1) == Keep()
    assert OCNOpt(rollout="nonlinear").keep_on(1) == Keep(trajectory=True)
