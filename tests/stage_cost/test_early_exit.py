"""Early exits against choosing the exit from all logits afterwards."""

from dataclasses import replace

import numpy as np
import pytest

import ocresnet.stage_cost.early_exit as early_exit
from ocresnet.stage_cost.calibration import calibrate_confidence, exit_costs
from ocresnet.stage_cost.early_exit import NEVER, predict
from ocresnet.stage_cost.trajectory import logits_over_depth
from ocresnet.systems import counts
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, random_images, random_variables

SAMPLES = 37


@pytest.fixture(params=[("homogeneous", "shared"), ("standard", "separate")], ids=str)
def network(request) -> Network:
    name, exits = request.param
    config = replace(SMALL[name], exits=exits)
    return Network(config, *random_variables(config))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def first_sure_exit(logits, confidence):
    sure = softmax(logits).max(-1) >= confidence
    sure[-1] = True
    return sure.argmax(0)


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_every_sample_leaves_at_its_first_sure_exit(network, quantile, batch_size):
    images = random_images(network.architecture, batch=SAMPLES)
    logits = logits_over_depth(network, images)
    confidences = np.sort(softmax(logits).max(-1).ravel())
    # Between two values, so that rounding cannot decide.
    index = int(quantile * len(confidences))
    confidence = float((confidences[index] + confidences[index + 1]) / 2)
    result = predict(network, images, confidence=confidence, batch_size=batch_size)
    exits = first_sure_exit(logits, confidence)
    chosen = logits[exits, np.arange(SAMPLES)]
    np.testing.assert_array_equal(result.blocks, exits)
    np.testing.assert_array_equal(result.labels, chosen.argmax(-1))
    np.testing.assert_allclose(result.confidences, softmax(chosen).max(-1), rtol=1e-4)


def test_blocks_are_really_not_computed_for_those_that_left(network, monkeypatch):
    rows = []
    advance = early_exit._advance

    def counting(config, position, variables, index, state):
        rows.append(len(state))
        return advance(config, position, variables, index, state)

    monkeypatch.setattr(early_exit, "_advance", counting)
    images = random_images(network.architecture, batch=32)
    depth = network.architecture.depth
    predict(network, images, confidence=NEVER, batch_size=32)
    assert rows == [32] * (depth + 1)
    rows.clear()
    result = predict(network, images, confidence=1e-6, batch_size=32)
    assert rows == [] and (result.blocks == 0).all()
    logits = logits_over_depth(network, images)
    confidence = float(np.median(softmax(logits[0]).max(-1)))
    predict(network, images, confidence=confidence, batch_size=32)
    assert rows[0] == 16 and sum(rows) <= 16 * (depth + 1)


def test_without_confidence_it_is_the_networks_own_output(network):
    images = random_images(network.architecture, batch=SAMPLES)
    logits = logits_over_depth(network, images)[-1]
    for result in (predict(network, images), predict(network, images, confidence=NEVER)):
        np.testing.assert_array_equal(result.labels, logits.argmax(-1))
        assert (result.blocks == network.architecture.depth).all()


def test_nonsense_is_refused(network):
    images = random_images(network.architecture, batch=2)
    with pytest.raises(ValueError, match="confidence is 0"):
        predict(network, images, confidence=0)
    with pytest.raises(ValueError, match="no images"):
        predict(network, images[:0])
    with pytest.raises(ValueError, match="batch_size is -3"):
        predict(network, images, confidence=0.5, batch_size=-3)
    with pytest.raises(ValueError, match="this network needs"):
        predict(network, images[:, :-1], confidence=0.5)
    plain = replace(network, architecture=replace(network.architecture, exits="none"))
    with pytest.raises(ValueError, match="no exits to leave at"):
        predict(plain, images, confidence=0.5)


# Calibration


def test_exit_costs_count_stem_blocks_and_heads():
    config = SMALL["standard"]
    cost = counts.multiply_adds(config)
    costs = exit_costs(config) * cost.total
    np.testing.assert_allclose(costs[0], cost.stem + cost.exits[0])
    np.testing.assert_allclose(costs[2], cost.stem + cost.blocks[:2].sum() + cost.exits[:3].sum())
    np.testing.assert_allclose(
        costs[-1], cost.stem + cost.blocks.sum() + cost.exits.sum() + cost.output_block
    )


@pytest.fixture
def calibration_data():
    """Logits that grow surer and more often right with depth."""
    config = SMALL["homogeneous"]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    signal = 0.8 * np.arange(1, config.depth + 2)[:, None, None] * np.eye(3)[labels]
    return config, signal + rng.normal(size=signal.shape), labels


def test_wanted_accuracy_is_reached_at_the_least_cost(calibration_data):
    config, logits, labels = calibration_data
    whole = np.mean(logits[-1].argmax(-1) == labels)
    wanted = whole - 0.02
    choice = calibrate_confidence(config, logits, labels, accuracy=wanted)
    exits = first_sure_exit(logits, choice.confidence)
    accuracy = np.mean(logits[exits, np.arange(400)].argmax(-1) == labels)
    np.testing.assert_allclose(choice.accuracy, accuracy)
    np.testing.assert_allclose(choice.cost, exit_costs(config)[exits].mean())
    assert accuracy >= wanted and choice.cost < 0.8
    for lower in np.linspace(0.3, choice.confidence - 1e-3, 20):
        exits = first_sure_exit(logits, lower)
        cost = exit_costs(config)[exits].mean()
        accuracy = np.mean(logits[exits, np.arange(400)].argmax(-1) == labels)
        assert accuracy < wanted or cost >= choice.cost - 1e-3


def test_budget_is_kept_and_more_of_it_is_not_worse(calibration_data):
    config, logits, labels = calibration_data
    choices = [
        calibrate_confidence(config, logits, labels, budget=budget) for budget in (0.3, 0.6, 1.1)
    ]
    for choice, budget in zip(choices, (0.3, 0.6, 1.1), strict=True):
        assert choice.cost <= budget
    assert choices[0].accuracy < choices[1].accuracy <= choices[2].accuracy


def test_a_network_without_blocks_has_one_way_out():
    config = ResNetConfig.homogeneous(blocks=0, filters=4, image_shape=(4, 4, 1), classes=3)
    logits = np.random.default_rng(0).normal(size=(1, 20, 3))
    choice = calibrate_confidence(config, logits, np.zeros(20, int), budget=1.0)
    assert choice.confidence == NEVER and choice.cost == 1.0


def test_wishes_that_cannot_be_granted_are_refused(calibration_data):
    config, logits, labels = calibration_data
    with pytest.raises(ValueError, match="no threshold reaches accuracy 1.5: the best is"):
        calibrate_confidence(config, logits, labels, accuracy=1.5)
    with pytest.raises(ValueError, match="no threshold meets a budget of 0.0"):
        calibrate_confidence(config, logits, labels, budget=0.0)
    with pytest.raises(ValueError, match="not both"):
        calibrate_confidence(config, logits, labels, accuracy=0.5, budget=0.5)
    with pytest.raises(ValueError, match="logits of 2 outputs"):
        calibrate_confidence(config, logits[:2], labels, budget=0.5)
