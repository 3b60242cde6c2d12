"""Taps on a grid of times: what they record is a mean over time."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.continuous.time_grid import has_dynamics, on_grid
from ocresnet.problem import objective
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.taps import Tap
from tests.continuous.test_snopt import (
    BACKSOLVE,
    DIRECT,
    FIXED,
    LABELS,
    LAYERS,
    matrix,
    problem_of,
    recorded,
    setting,
)
from tests.quick import quick_jit

CONVOLUTIONAL = replace(
    FIXED, vector_field="convolutional", strides=(2,), image_shape=(5, 4, 1), steps=6
)


def outer(arrays, reading):
    return jnp.einsum("bli,blo->io", *reading.rows())


@pytest.mark.parametrize(
    ("architecture", "cost"),
    [(FIXED, 0.0), (FIXED, 0.7), (CONVOLUTIONAL, 0.4), (DIRECT, 0.0), (BACKSOLVE, 0.0)],
    ids=["fixed", "exits", "convolutional", "direct", "backsolve"],
)
def test_what_is_recorded_is_an_integral_over_time(architecture, cost):
    """The mean over t of z delta^T is the gradient, also where exits on the way cost something; its
    error falls with the square of the grid, and outside of the equation there is none."""
    with jax.enable_x64(True):
        problem = problem_of(architecture, cost)
        params, batch = setting(architecture)
        gradient = quick_jit(jax.grad(lambda own: objective(problem, own, {}, *batch)))(params)
        errors = []
        for grid in (architecture.depth * 4, architecture.depth * 8):
            shapes = {path: node_of(gradient, path) for path in (*LAYERS, "head/dense")}
            recording = {
                path: Tap(jnp.zeros(matrix(node).shape), outer) for path, node in shapes.items()
            }
            found = recorded(problem, params, batch, grid, recording)
            for path, node in shapes.items():
                error = found[path].arrays / len(LABELS) - matrix(node)
                errors.append(np.abs(error).max() / np.abs(matrix(node)).max())
    coarse, fine = errors[:3], errors[3:]
    assert max(coarse[2], fine[2]) < 1e-6  # a solve in parts is that of the whole
    if architecture.adaptive is None:
        # Its own gradient is that of its steps; the rest is the quadrature's error.
        assert max(fine[:2]) < 2e-3
    for layer in range(2):
        assert coarse[layer] / fine[layer] == pytest.approx(4, rel=0.2)


def node_of(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_other_segments_stay_as_they_are():
    system = FIXED.system()
    changed = [
        own.name
        for own, before in zip(on_grid(system, 3).segments, system.segments, strict=True)
        if own is not before
    ]
    assert changed == ["ode"] and has_dynamics(system)
    assert not has_dynamics(MLPConfig(image_shape=(2, 2, 1)).system())
