"""Predictions of series: any number of rows, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ocresnet.continuous.series import predictions
from ocresnet.data.oscillators import Generator
from ocresnet.data.time_series import packed
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.mlp import MLPConfig
from tests.conftest import apply, random_network

SERIES = Generator(rows=6, horizon=3.0, forecast=2).draw(5, 0).series
NETWORK = random_network(
    GRUODEConfig(
        task="prediction",
        width=4,
        field_layers=2,
        solver="midpoint",
        steps=1,
        image_shape=(6, 2, 3),
        pixel_mean=(0.0, 0.2, 0.0),
        pixel_deviation=(1.0, 1.4, 1.0),
    )
)


def test_predictions_are_the_networks_outputs():
    outputs, _ = apply(NETWORK.architecture, NETWORK.variables, packed(SERIES))
    wanted = np.asarray(outputs[0]).reshape(5, 6, 2)
    got = predictions(NETWORK, SERIES, batch_size=2)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_rows_between_ask_for_more_and_change_little():
    """Nothing but the steps of the solver, each of which is shorter."""
    fine = NETWORK.architecture
    fine = replace(fine, solver="rk4", steps=8)
    network = type(NETWORK)(fine, *NETWORK.variables)
    between = (SERIES.times[:, 2:3] + SERIES.times[:, 3:4]) / 2
    more = SERIES._replace(
        times=np.concatenate([SERIES.times[:, :3], between, SERIES.times[:, 3:]], axis=1),
        values=np.insert(SERIES.values, 3, np.nan, axis=1),
        masks=np.insert(SERIES.masks, 3, False, axis=1),
    )
    got, wanted = predictions(network, more), predictions(network, SERIES)
    np.testing.assert_allclose(np.delete(got, 3, axis=1), wanted, rtol=1e-4, atol=1e-5)


def test_what_predicts_nothing_is_refused():
    classifier = replace(NETWORK.architecture, task="classification")
    for network in (random_network(classifier), random_network(MLPConfig((3,)))):
        with pytest.raises(ValueError, match="but the network is a .* that has none"):
            predictions(network, SERIES)
    with pytest.raises(ValueError, match="series 0 is wrong: times must increase"):
        predictions(NETWORK, SERIES._replace(times=SERIES.times[:, ::-1]))
    one = SERIES._replace(values=SERIES.values[..., :1], masks=SERIES.masks[..., :1])
    with pytest.raises(ValueError, match=r"images have shape \(5, 6, 1, 3\), but this network"):
        predictions(NETWORK, one)
    adaptive = random_network(
        replace(NETWORK.architecture, solver="dopri5", steps=None, max_steps=1, rtol=1e-6)
    )
    with pytest.raises(ValueError, match="an output of the network is not finite: a solve of its"):
        predictions(adaptive, SERIES)
    with pytest.raises(ValueError, match="a GRUODEConfig tells no classes apart: ocresnet.contin"):
        trajectory(NETWORK, packed(SERIES), np.zeros(5, int))
