"""Every depth tool on families that are chains of equal blocks, against these in numpy."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.export import export_network, load_exported
from ocresnet.stage_cost.block_scores import CRITERIA, ScoringData, switch_off
from ocresnet.stage_cost.calibration import calibrate_confidence
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.embedding import embed
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.pruning import prune, recommend_depth, report
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.stage_cost.surgery import greedy_removal_order, removal_curve, remove_blocks
from ocresnet.stage_cost.trajectory import logits_over_depth, parameter_norms, trajectory
from ocresnet.systems import network as networks
from ocresnet.systems.blocks import blocks
from ocresnet.systems.network import Network
from tests.conftest import random_images, random_network
from tests.stage_cost.families import RESIDUAL_MLP, TRANSFORMER, shapes

SAMPLES = 24
IMAGES = random_images(RESIDUAL_MLP, batch=SAMPLES)
LABELS = np.arange(SAMPLES) % 3


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def norm(params, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def stem(params):
    """x_0 of all images, [samples, width] or [samples, tokens, width]."""
    if "positions" not in params:
        return dense(params, IMAGES.reshape(SAMPLES, -1).astype(np.float64))
    pixels = IMAGES.reshape(SAMPLES, -1, 1).astype(np.float64)
    return dense(params["embedding"], pixels) + params["positions"]


def branch_of(branch, x):
    """F_k(x)."""
    if "attention" not in branch:
        return dense(
            branch["dense_2"], np.maximum(dense(branch["dense_1"], norm(branch["norm"], x)), 0)
        )
    attended = attend(branch["attention"], norm(branch["norm_1"], x))
    inner = dense(branch["dense_1"], norm(branch["norm_2"], x + attended))
    gelu = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return attended + dense(branch["dense_2"], gelu)


def attend(params, x):
    """Head by head."""
    query, key, value = (dense(params[name], x) for name in ("query", "key", "value"))
    features = x.shape[-1] // TRANSFORMER.heads
    heads = []
    for start in range(0, x.shape[-1], features):
        q, k, v = (part[..., start : start + features] for part in (query, key, value))
        weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(features))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return dense(params["out"], np.concatenate(heads, -1))


def read(head, x):
    return dense(head["dense"], norm(head["norm"], x if x.ndim == 2 else x.mean(1)))


def states_and_outputs(network: Network, gates=None) -> tuple[np.ndarray, np.ndarray]:
    """x_k, [blocks + 1, samples, numbers], and logits, [blocks + 1, samples, classes]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params)
    own = [
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), block.params)
        for block in blocks(network)
    ]
    x = stem(params["stem"])
    states, outputs = [], []
    for index, block in enumerate(own):
        head = block["exit"] if network.architecture.exits == "separate" else params["head"]
        states.append(x)
        outputs.append(read(head, x))
        gate = 1 if gates is None else gates[index]
        x = x + gate * branch_of(block["residual"], x)
    states.append(x)
    outputs.append(read(params["head"], x))
    return np.array(states).reshape(len(states), SAMPLES, -1), np.array(outputs)


def losses_of(logits):
    right = logits[:, np.arange(SAMPLES), LABELS]
    return (np.log(np.exp(logits).sum(-1)) - right).mean(-1)


def check(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(
    params=[
        (RESIDUAL_MLP, "shared"),
        (RESIDUAL_MLP, "separate"),
        (TRANSFORMER, "shared"),
        (TRANSFORMER, "separate"),
    ],
    ids=lambda param: f"{type(param[0]).__name__}, {param[1]}",
    scope="module",
)
def network(request) -> Network:
    architecture, exits = request.param
    return random_network(replace(architecture, exits=exits))


def test_what_is_measured_over_depth(network):
    states, logits = states_and_outputs(network)
    measured = trajectory(network, IMAGES, LABELS, batch_size=10)
    check(measured.losses, losses_of(logits))
    check(measured.accuracies, (logits.argmax(-1) == LABELS).mean(-1))
    check(measured.output_residuals, np.linalg.norm(np.diff(logits, axis=0), axis=-1).mean(-1))
    check(logits_over_depth(network, IMAGES), logits)
    changes = np.diff(states, axis=0)
    norms, before = np.linalg.norm(changes, axis=-1), np.linalg.norm(states[:-1], axis=-1)
    cosines = (changes * states[:-1]).sum(-1) / norms / before
    wanted = [norms.mean(-1), (norms / before).mean(-1), cosines.mean(-1)]
    check(state_changes(network, IMAGES, batch_size=10), wanted)
    squares = [
        sum(np.sum(leaf**2.0) for leaf in jax.tree.leaves(block.params["residual"]))
        for block in blocks(network)
    ]
    check(parameter_norms(network.architecture, network.params), np.sqrt(squares))


def test_choosing_a_depth_and_cutting_there(network, tmp_path):
    _, logits = states_and_outputs(network)
    depth = recommend_depth(trajectory(network, IMAGES, LABELS), tolerance=40)
    assert 0 <= depth <= 4
    for kept in {0, depth, 2, 4}:
        small = prune(network, kept)
        assert small.architecture.depth == kept
        own = logits_over_depth(small, IMAGES)
        check(own[-1], logits[kept])
        assert len(own) == (kept + 1 if network.architecture.exits == "shared" else 1)
        networks.save(small, tmp_path / f"{kept}")
        loaded = networks.load(tmp_path / f"{kept}")
        assert loaded.architecture == small.architecture
        check(logits_over_depth(loaded, IMAGES), own)
    assert report(small, IMAGES, LABELS).blocks == kept
    deep = embed(network, replace(network.architecture, blocks=6))
    again = logits_over_depth(deep, IMAGES)
    check(again, [*logits, logits[-1], logits[-1]])


def test_removing_any_blocks(network):
    gates = np.array([1, 0, 1, 0])
    _, logits = states_and_outputs(network, gates)
    small = remove_blocks(network, {1, 3})
    fresh = jax.eval_shape(lambda: small.architecture.init(jax.random.key(0)))
    assert shapes(small.variables) == shapes(fresh)
    check(logits_over_depth(small, IMAGES), logits[[0, 2, 4]])
    check(logits_over_depth(switch_off(network, {1, 3}), IMAGES), logits)


def test_the_order_of_removal(network):
    data = ScoringData(IMAGES, LABELS, batch_size=10, statistics_images=IMAGES)
    order = greedy_removal_order(network, CRITERIA["loss_increase"], data)
    removed: list[int] = []
    own_losses = [losses_of(states_and_outputs(network)[1])[-1]]
    for chosen in order:
        losses = {
            block: losses_of(states_and_outputs(network, gates_without([*removed, block]))[1])[-1]
            for block in range(4)
            if block not in removed
        }
        assert chosen == min(losses, key=losses.__getitem__)
        own_losses.append(losses[chosen])
        removed.append(chosen)
    check(removal_curve(network, order, data).losses, own_losses)
    scores = CRITERIA["taylor"](network, data, ())
    step, wanted = 1e-5, []
    for direction in np.eye(4):
        low, high = (
            own_losses_of_samples(network, 1 + sign * step * direction) for sign in (-1, 1)
        )
        wanted.append(np.abs((high - low) / (2 * step)).mean())
    check(scores, wanted)


def gates_without(removed):
    return np.array([block not in removed for block in range(4)], float)


def own_losses_of_samples(network, gates):
    logits = states_and_outputs(network, gates)[1][-1]
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(SAMPLES), LABELS]


def test_leaving_early(network):
    _, logits = states_and_outputs(network)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    calibration = calibrate_confidence(network.architecture, logits, LABELS, budget=0.8)
    confidence = calibration.confidence - 1e-4  # so that rounding cannot decide
    sure = chances.max(-1) >= confidence
    sure[-1] = True
    exits = sure.argmax(0)
    assert len(set(exits)) > 1
    result = predict(network, IMAGES, confidence=confidence, batch_size=10)
    np.testing.assert_array_equal(result.blocks, exits)
    np.testing.assert_array_equal(result.labels, logits[exits, np.arange(SAMPLES)].argmax(-1))
    check(result.confidences, chances.max(-1)[exits, np.arange(SAMPLES)])


def test_without_batch_statistics_there_is_nothing_to_gather(network):
    assert recalibrate(network, IMAGES) is network
    plain = network.replace(architecture=replace(network.architecture, exits="none"))
    with_exits = calibrate_exits(random_network(plain.architecture), IMAGES)
    assert with_exits.architecture.exits == "shared" and with_exits.batch_stats == {}
    check(logits_over_depth(with_exits, IMAGES), states_and_outputs(with_exits)[1])


def test_handing_it_on(network, tmp_path):
    _, logits = states_and_outputs(network)
    small = remove_blocks(prune(network, 3), [0])
    export_network(small, tmp_path / "small", platforms=["cpu"])
    outputs = load_exported(tmp_path / "small")(IMAGES)
    check(outputs, logits_over_depth(small, IMAGES)[-1])
    export_network(network, tmp_path / "all", exits=True, platforms=["cpu"])
    check(load_exported(tmp_path / "all")(IMAGES), logits)
