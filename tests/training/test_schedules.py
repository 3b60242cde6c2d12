"""Schedules of the learning rate, step by step."""

import numpy as np
import pytest

from ocresnet.training.schedules import make_schedule

EPOCHS, STEPS = 4, 10


def rates(name, count=40, **kwargs):
    schedule = make_schedule(name, 0.1, epochs=EPOCHS, steps_per_epoch=STEPS, **kwargs)
    return [float(schedule(step)) for step in range(count)]


@pytest.mark.parametrize("milestones", [(2, 3), (0.5, 0.75)])
def test_the_rate_falls_after_milestones_in_epochs_or_shares_of_them(milestones):
    wanted = [0.1] * 20 + [0.02] * 10 + [0.004] * 10
    got = rates("milestones", milestones=milestones, decay_factor=0.2)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_milestones_that_fall_on_one_step_both_count():
    schedule = make_schedule(
        "milestones", 1.0, epochs=1, steps_per_epoch=3, milestones=(0.3, 0.35), decay_factor=0.1
    )
    np.testing.assert_allclose([schedule(step) for step in range(3)], [1, 0.01, 0.01], rtol=1e-6)


def test_a_constant_rate():
    np.testing.assert_allclose(rates("constant"), [0.1] * 40, rtol=1e-6)


def test_the_cosine_ends_with_the_last_epoch():
    wanted = 0.05 * (1 + np.cos(np.pi * np.arange(41) / 40))
    np.testing.assert_allclose(rates("cosine", 41), wanted, atol=1e-7)


@pytest.mark.parametrize("name", ["constant", "milestones", "cosine"])
def test_warm_up_rises_linearly_to_the_full_rate(name):
    full = rates(name)
    wanted = np.minimum(np.arange(1, 41) / 5, 1) * full
    np.testing.assert_allclose(rates(name, warmup_epochs=0.4), wanted, rtol=1e-5, atol=1e-8)
