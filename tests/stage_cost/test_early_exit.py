"""Early exits against choosing the exit from all logits afterwards."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import ocresnet.stage_cost.early_exit as early_exit
from ocresnet.stage_cost.calibration import calibrate_confidence, exit_costs
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.trajectory import logits_over_depth, trajectory
from ocresnet.systems import counts
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, random_images, random_network
from tests.stage_cost.families import FAMILIES, MLP, RESIDUAL_MLP, PairOfStates

SAMPLES = 37


CASES = [("homogeneous", "shared"), ("standard", "separate"), ("residual_mlp", "separate")]
CASES.append(("transformer", "shared"))


@pytest.fixture(params=CASES, ids=str)
def network(request) -> Network:
    name, exits = request.param
    return random_network(replace(FAMILIES[name], exits=exits))


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

    def counting(*arguments):
        rows.append(len(arguments[-1]))
        return advance(*arguments)

    monkeypatch.setattr(early_exit, "_advance", counting)
    images = random_images(network.architecture, batch=32)
    depth = network.architecture.depth
    predict(network, images, confidence=1.0, batch_size=32)
    assert rows == [32] * (depth + 2)  # with stem and output block
    rows.clear()
    result = predict(network, images, confidence=1e-6, batch_size=32)
    assert rows == [32] and (result.blocks == 0).all()
    logits = logits_over_depth(network, images)
    confidence = float(np.median(softmax(logits[0]).max(-1)))
    rows.clear()
    predict(network, images, confidence=confidence, batch_size=32)
    assert rows[:2] == [32, 16] and sum(rows[1:]) <= 16 * (depth + 1)


def test_without_confidence_it_is_the_networks_own_output(network):
    images = random_images(network.architecture, batch=SAMPLES)
    logits = logits_over_depth(network, images)[-1]
    for result in (predict(network, images), predict(network, images, confidence=1.0)):
        np.testing.assert_array_equal(result.labels, logits.argmax(-1))
        assert (result.blocks == network.architecture.depth).all()


def test_the_state_can_be_any_tree():
    plain = random_network(RESIDUAL_MLP)
    paired = plain.replace(architecture=PairOfStates(**vars(RESIDUAL_MLP)))
    images = random_images(RESIDUAL_MLP, batch=SAMPLES)
    confidence = float(np.median(softmax(logits_over_depth(plain, images)).max(-1)))
    got, wanted = (predict(one, images, confidence=confidence) for one in (paired, plain))
    assert len(set(wanted.blocks)) > 1
    for values, expected in zip(got, wanted, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_network_without_residual_blocks_answers_with_its_own_output():
    network = random_network(MLP)
    images = random_images(MLP, batch=5)
    result = predict(network, images, batch_size=2)
    np.testing.assert_array_equal(result.labels, logits_over_depth(network, images)[-1].argmax(-1))
    assert (result.blocks == 0).all()
    with pytest.raises(ValueError, match="needs residual blocks, and a MLPConfig has none"):
        predict(network, images, confidence=0.5)


def test_nonsense_is_refused(network):
    images = random_images(network.architecture, batch=2)
    for confidence in (0, 95, 1.01, float("nan"), -0.5):
        with pytest.raises(ValueError, match=f"confidence is {confidence}, .* share in .0, 1."):
            predict(network, images, confidence=confidence)
    with pytest.raises(ValueError, match="network is a ndarray, but must be a Network"):
        predict(images, network)
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
        calibrate_confidence(config, logits, labels, budget=budget) for budget in (0.3, 0.6, 1.0)
    ]
    for choice, budget in zip(choices, (0.3, 0.6, 1.0), strict=True):
        assert choice.cost <= budget
    assert choices[0].accuracy < choices[1].accuracy <= choices[2].accuracy


def test_no_early_exit_is_a_choice_too():
    """The last output alone is right: only the whole network, without its exits, will do."""
    config = SMALL["homogeneous"]
    labels = np.zeros(6, int)
    logits = np.repeat(np.array([[[0.0, 3.0, 0.0]]]), config.depth + 1, axis=0).repeat(6, axis=1)
    logits[-1] = [1.0, 0.0, 0.0]
    for wish in ({"accuracy": 1.0}, {"budget": 1.0}):
        choice = calibrate_confidence(config, logits, labels, **wish)
        assert choice == (None, 1.0, 1.0)


def test_a_network_without_blocks_has_one_way_out():
    config = ResNetConfig.homogeneous(blocks=0, filters=4, image_shape=(4, 4, 1), classes=3)
    logits = np.random.default_rng(0).normal(size=(1, 20, 3))
    choice = calibrate_confidence(config, logits, np.zeros(20, int), budget=1.0)
    assert choice.confidence is None and choice.cost == 1.0
    assert choice.accuracy == np.mean(logits[0].argmax(-1) == 0)


def test_wishes_that_cannot_be_granted_are_refused(calibration_data):
    config, logits, labels = calibration_data
    with pytest.raises(ValueError, match="no threshold reaches accuracy 1.0: the best is"):
        calibrate_confidence(config, logits, labels, accuracy=1.0)
    with pytest.raises(ValueError, match="no threshold meets a budget of 0.001"):
        calibrate_confidence(config, logits, labels, budget=0.001)
    for name, share in (("accuracy", 91), ("accuracy", 1.5), ("budget", 20), ("budget", 0.0)):
        with pytest.raises(ValueError, match=f"{name} is {share}, but must be a share in"):
            calibrate_confidence(config, logits, labels, **{name: share})
    with pytest.raises(ValueError, match=r"logits have shape \(400,\), but must be \[outputs"):
        calibrate_confidence(config, labels, logits, budget=0.5)
    with pytest.raises(ValueError, match="labels have shape .* one-hot labels"):
        calibrate_confidence(config, logits, np.eye(3)[labels], budget=0.5)
    with pytest.raises(ValueError, match="needs residual blocks, and a MLPConfig has none"):
        calibrate_confidence(MLP, logits, labels, budget=0.5)
    with pytest.raises(ValueError, match="not both"):
        calibrate_confidence(config, logits, labels, accuracy=0.5, budget=0.5)
    with pytest.raises(ValueError, match="logits of 2 outputs"):
        calibrate_confidence(config, logits[:2], labels, budget=0.5)


def test_images_in_other_units_than_in_training_are_warned_of():
    """Trained on 0 ... 255: images in [0, 1] would be answered confidently and wrongly."""
    config = replace(SMALL["homogeneous"], pixel_mean=(85.0,), pixel_deviation=(60.0,))
    network = random_network(config)
    images = np.random.default_rng(0).integers(0, 256, (4, *config.image_shape)).astype(np.float32)
    with pytest.warns(UserWarning, match="pixels go from .* units of the training images") as seen:
        predict(network, images / 255)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="pixels go from"):
        trajectory(network, images / 255, np.zeros(4, int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(network, images)
