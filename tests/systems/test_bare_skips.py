"""Stages that open with their skip connection alone: Lemma 1, and all that walks over blocks."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.calibration import exit_costs
from ocresnet.stage_cost.early_exit import NEVER, predict
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.trajectory import logits_over_depth, parameter_norms
from ocresnet.systems import counts, resnet
from ocresnet.systems import network as networks
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, apply, random_images, random_variables

WHOLE = SMALL["standard"]  # two blocks in each of three stages

REMOVED = {
    "opening": ((2,), (2, 1, 2), (1,)),
    "both_openings": ((2, 4), (2, 1, 1), (1, 2)),
    "middle_stage": ((2, 3), (2, 0, 2), (1,)),
    "middle_stage_and_last_opening": ((2, 3, 4), (2, 0, 1), (1, 2)),
    "first_stage": ((0, 1), (0, 2, 2), ()),
    "first_two_stages": ((0, 1, 2, 3), (0, 0, 2), (1,)),
}
"""Which of the blocks 0 ... 5 are removed, and `blocks` and `bare_stages` of what is left."""


def block_lengths(config):
    return [(segment.name, segment.length) for segment in resnet.block_segments(config)]


def zero_branches(params, removed):
    """The whole network's parameters, with w_F,k = 0 for the removed blocks."""
    params, block = dict(params), 0
    for name, length in block_lengths(WHOLE):
        keep = np.array([block + index not in removed for index in range(length)])
        residual = jax.tree.map(
            lambda leaf, name=name, keep=keep: (
                leaf
                * (keep[0] if "transition" in name else keep.reshape(-1, *[1] * (leaf.ndim - 1)))
            ),
            params[name]["residual"],
        )
        params[name] = {**params[name], "residual": residual}
        block += length
    return params


def without(tree, removed):
    """A tree of the whole network, without the entries of the removed blocks."""
    tree, block = dict(tree), 0
    for name, length in block_lengths(WHOLE):
        rows = [index for index in range(length) if block + index not in removed]
        entry = tree.pop(name)
        if rows:
            keep = np.array(rows)
            tree[name] = (
                entry
                if "transition" in name
                else jax.tree.map(lambda leaf, keep=keep: leaf[keep], entry)
            )
        block += length
    return tree


EVERY = [*((name, "shared") for name in REMOVED), ("middle_stage_and_last_opening", "separate")]
TWO = [("first_two_stages", "shared"), ("middle_stage_and_last_opening", "separate")]

every_case = pytest.mark.parametrize("case", EVERY, indirect=True, ids=str)
two_cases = pytest.mark.parametrize("case", TWO, indirect=True, ids=str)


@pytest.fixture
def case(request):
    """The network with zero branches, the one without them, and which blocks were removed."""
    name, exits = request.param
    removed, blocks, bare = REMOVED[name]
    variables = random_variables(replace(WHOLE, exits=exits))
    zeroed = Network(
        replace(WHOLE, exits=exits), zero_branches(variables.params, removed), variables.batch_stats
    )
    config = replace(WHOLE, exits=exits, blocks=blocks, bare_stages=bare)
    smaller = Network(
        config, without(variables.params, removed), without(variables.batch_stats, removed)
    )
    return zeroed, smaller, removed


@every_case
def test_lemma_1_the_smaller_network_computes_what_zero_branches_compute(case):
    zeroed, smaller, removed = case
    images = random_images(WHOLE)
    kept = [output for output in range(7) if output not in removed]
    for train in (False, True) if removed == REMOVED["middle_stage"][0] else (False,):
        wanted, _ = apply(zeroed.config, zeroed.variables, images, train=train)
        logits, stats = apply(smaller.config, smaller.variables, images, train=train)
        np.testing.assert_allclose(logits, wanted[np.array(kept)], rtol=1e-6, atol=2e-6)
        assert structure(stats) == structure(smaller.batch_stats)


@every_case
def test_fresh_arrays_have_the_structure_of_the_pruned_ones(case):
    _, smaller, _ = case
    fresh = jax.eval_shape(lambda: resnet.init(smaller.config, jax.random.key(0)))
    assert structure(fresh.params) == structure(smaller.params)
    assert structure(fresh.batch_stats) == structure(smaller.batch_stats)


@two_cases
def test_pruning_afterwards_keeps_every_exit(case):
    _, smaller, _ = case
    images = random_images(WHOLE)
    outputs, _ = apply(smaller.config, smaller.variables, images)
    for blocks in range(smaller.config.depth + 1):
        cut = prune(smaller, blocks)
        assert cut.config.depth == blocks
        fresh = jax.eval_shape(lambda config=cut.config: resnet.init(config, jax.random.key(0)))
        assert structure(fresh.params) == structure(cut.params)
        logits, _ = apply(cut.config, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[blocks], rtol=1e-5, atol=2e-6)


@two_cases
def test_early_exit_walks_over_bare_skips(case):
    _, smaller, _ = case
    images = random_images(WHOLE, batch=12)
    logits = logits_over_depth(smaller, images)
    chances = np.asarray(jax.nn.softmax(logits)).max(-1)
    confidence = float(np.median(chances)) + 1e-4
    sure = chances >= confidence
    sure[-1] = True
    exits = sure.argmax(0)
    result = predict(smaller, images, confidence=confidence)
    np.testing.assert_array_equal(result.blocks, exits)
    np.testing.assert_array_equal(result.labels, logits[exits, np.arange(12)].argmax(-1))
    whole = predict(smaller, images, confidence=NEVER)
    np.testing.assert_array_equal(whole.labels, logits[-1].argmax(-1))


@two_cases
def test_saved_networks_come_back(case, tmp_path):
    _, smaller, _ = case
    networks.save(smaller, tmp_path)
    loaded = networks.load(tmp_path)
    assert loaded.config == smaller.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, smaller.params)
    assert ResNetConfig(**json.loads(json.dumps(asdict(smaller.config)))) == smaller.config


@two_cases
def test_calibrated_exits_and_norms_have_one_entry_a_block(case):
    zeroed, smaller, removed = case
    calibrated = calibrate_exits(smaller, random_images(WHOLE, batch=8), batch_size=4)
    assert structure(calibrated.batch_stats) == structure(smaller.batch_stats)
    norms = parameter_norms(smaller.config, smaller.params)
    whole = np.delete(parameter_norms(zeroed.config, zeroed.params), removed)
    np.testing.assert_allclose(norms, whole, rtol=1e-6)


def test_multiply_adds_of_bare_skips_by_hand():
    """Stages of 8x6, 4x3 and 2x2 pixels; the skips alone open stages 1 and 2."""
    config = ResNetConfig((2, 0, 1), (4, 6, 8), 3, (8, 6, 1), bare_stages=(1, 2))
    cost = counts.multiply_adds(config)
    skips = 12 * 4 * 6 + 4 * 6 * 8
    np.testing.assert_array_equal(cost.skips, [0, 0, skips])
    np.testing.assert_array_equal(cost.blocks, [48 * 9 * 2 * 16] * 2 + [4 * 9 * 2 * 64])
    from_first = 4 * (4 * 6 + 6 * 8) + 8 * 3
    np.testing.assert_array_equal(cost.exits, [from_first, from_first, 8 * 3])
    stem = 48 * 9 * 4
    assert cost.total == stem + cost.blocks.sum() + skips + 8 * 3
    np.testing.assert_allclose(
        exit_costs(config) * cost.total,
        [
            stem + from_first,
            stem + 48 * 9 * 32 + 2 * from_first,
            stem + 2 * 48 * 9 * 32 + skips + 2 * from_first + 24,
            cost.total + 2 * from_first + 24,
        ],
    )


def test_a_skip_after_the_last_block_belongs_to_the_head():
    config = replace(WHOLE, blocks=(2, 0, 2), bare_stages=(1,))
    assert config.subresnet(2).bare_stages == () and config.subresnet(2).blocks == (2, 0, 0)
    assert config.subresnet(3).bare_stages == (1,) and config.subresnet(3).blocks == (2, 0, 1)


@pytest.mark.parametrize(
    ("blocks", "bare", "message"),
    [
        ((2, 0, 1), (), "only the last stages can be without blocks"),
        ((2, 0, 1), (2,), "only the last stages can be without blocks"),
        ((2, 2, 0), (2,), r"bare_stages is \(2,\), but must name stages of \[1\]"),
        ((2, 1, 1), (0,), r"must name stages of \[1, 2\]"),
        ((2, 1, 1), (3,), r"must name stages of \[1, 2\]"),
        ((2, 1, 1), (2, 1), "in order"),
        ((2, 1, 1), (1, 1), "in order"),
        ((2, 1, 1), (1.5,), "bare_stages is"),
    ],
)
def test_impossible_bare_stages_are_refused(blocks, bare, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(blocks, (4, 6, 8), bare_stages=bare)


def structure(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
