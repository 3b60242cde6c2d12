"""What the depth tools rely on, for every family with residual blocks."""

from dataclasses import replace
from itertools import chain, combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.architecture import OUTPUT_BLOCK, residual
from ocresnet.systems.blocks import Block, blocks, with_blocks
from ocresnet.systems.fold import advance, shared_parameters, stages
from ocresnet.systems.network import Network
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Variables
from tests.conftest import apply, random_images, random_network
from tests.quick import quick_jit
from tests.systems.every_family import EVERY, RESIDUAL
from tests.systems.lemmas import subresnet, zero_branches

every_architecture = pytest.mark.parametrize("name", RESIDUAL)
with_exits = pytest.mark.parametrize(
    "name", [name for name in RESIDUAL if RESIDUAL[name].exits != "none"]
)


def shapes(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def initial_shapes(architecture):
    return shapes(jax.eval_shape(architecture.init, jax.random.key(0)))


def without(network: Network, removed) -> Network:
    kept = [block for index, block in enumerate(blocks(network)) if index not in removed]
    return with_blocks(network, network.architecture.without(removed), kept)


def assert_equal_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@every_architecture
def test_depth_exits_and_outputs(name):
    architecture = RESIDUAL[name]
    system = architecture.system()
    assert sum(segment.transitions for segment in system.blocks) == architecture.depth
    exits = 0 if architecture.exits == "none" else architecture.depth
    assert (system.outputs, architecture.outputs) == (exits, exits + 1)
    assert system.segments[-1].name == OUTPUT_BLOCK


@every_architecture
def test_branches_without_parameters_are_zero_and_others_are_not(name):
    """f_k = S_k + F_k, and zeros in all of `residual` make F_k zero."""
    network = random_network(RESIDUAL[name])
    architecture, system = network.architecture, network.architecture.system()
    params, stats = jax.tree.map(jnp.asarray, tuple(network.variables))
    zeroed = zero_branches(architecture, params, range(architecture.depth))
    x = system.initial_state(random_images(architecture))

    @quick_jit
    def branches(params):
        """F_k(x_k) of the first transition of every segment of blocks."""
        variables = Variables(params, stats)
        entering = rollout(system, variables, x, train=False, keep_states=True).states
        found = []
        for segment in system.blocks:
            stage, state = stages(system, variables)[segment.name], entering[segment.name]
            if segment.stacked:
                stage, state = jax.tree.map(lambda leaf: leaf[0], (stage, state))
            stage = stage._replace(shared=shared_parameters(system, params), train=False)
            _, following, _ = advance(system, segment, stage, state)
            found.append(following - segment.skip(stage, state))
        return found

    for branch, zero in zip(branches(params), branches(zeroed), strict=True):
        assert np.abs(branch).max() > 1e-3
        np.testing.assert_array_equal(zero, 0)


@every_architecture
def test_what_is_left_has_the_shapes_of_its_architecture(name):
    """Of every set of blocks that can be removed."""
    network = random_network(RESIDUAL[name])
    depth = range(network.architecture.depth)
    for removed in chain.from_iterable(
        combinations(depth, count) for count in (*depth, len(depth))
    ):
        smaller = without(network, removed)
        assert smaller.architecture.depth == len(depth) - len(removed)
        assert initial_shapes(smaller.architecture) == shapes(smaller.variables)


@every_architecture
def test_lemma_1_what_is_left_computes_what_zero_branches_compute(name):
    network = random_network(RESIDUAL[name])
    architecture = network.architecture
    removed = (0, architecture.depth - 1)
    zeroed = network.replace(params=zero_branches(architecture, network.params, removed))
    images = random_images(architecture)
    wanted, _ = apply(architecture, zeroed.variables, images)
    smaller = without(network, removed)
    logits, stats = apply(smaller.architecture, smaller.variables, images)
    kept = [index for index in range(architecture.outputs) if index not in removed]
    if architecture.exits == "none":
        kept = [0]
    np.testing.assert_allclose(logits, wanted[np.array(kept)], rtol=1e-5, atol=2e-6)
    assert shapes(stats) == shapes(smaller.batch_stats)


@with_exits
def test_lemma_2_a_subresnet_computes_the_intermediate_output(name):
    network = random_network(RESIDUAL[name])
    images = random_images(network.architecture)
    outputs, _ = apply(network.architecture, network.variables, images)
    for count in range(network.architecture.depth + 1):
        cut = subresnet(network, count)
        assert cut.architecture == network.architecture.subresnet(count)
        assert initial_shapes(cut.architecture) == shapes(cut.variables)
        logits, _ = apply(cut.architecture, cut.variables, images, own_output=True)
        np.testing.assert_allclose(logits[0], outputs[count], rtol=1e-5, atol=2e-6)


@every_architecture
def test_the_own_output_is_the_last_of_all_outputs(name):
    network = random_network(RESIDUAL[name])
    images = random_images(network.architecture)
    outputs, _ = apply(network.architecture, network.variables, images)
    own, stats = apply(network.architecture, network.variables, images, own_output=True)
    np.testing.assert_allclose(own, outputs[-1:], rtol=1e-5, atol=1e-6)
    assert_equal_trees(stats, network.batch_stats)


@with_exits
def test_statistics_of_exits_alone_can_be_trained(name):
    network = random_network(RESIDUAL[name])
    images = random_images(network.architecture)
    _, stats = apply(network.architecture, network.variables, images, train_exits=True)
    changed = jax.tree.map_with_path(
        lambda path, new, old: bool(np.any(new != old)) == any(part.key == "exit" for part in path),
        stats,
        network.batch_stats,
    )
    assert all(jax.tree.leaves(changed))


@every_architecture
def test_blocks_come_out_and_go_back_in(name):
    network = random_network(RESIDUAL[name])
    listed = blocks(network)
    assert len(listed) == network.architecture.depth
    again = with_blocks(network, network.architecture, listed)
    assert again.architecture == network.architecture
    assert_equal_trees(again.variables, network.variables)
    last = network.architecture.system().blocks[-1]
    row = last.length - 1 if last.stacked else ...
    wanted = jax.tree.map(lambda leaf: leaf[row], network.params[last.name])
    assert_equal_trees(listed[-1].params, wanted)


@every_architecture
def test_blocks_keep_their_order(name):
    """Each is known by its branch's first parameter, which tells its place."""
    network = random_network(RESIDUAL[name])
    marked = [
        Block(
            {**block.params, "residual": jax.tree.map(lambda leaf, k=k: 0 * leaf + k, own)},
            block.batch_stats,
        )
        for k, block in enumerate(blocks(network))
        for own in [block.params["residual"]]
    ]
    seen = []
    changed = with_blocks(network, network.architecture, marked)
    for segment in network.architecture.system().blocks:
        leaf = jax.tree.leaves(changed.params[segment.name]["residual"])[0]
        seen += [float(np.ravel(row)[0]) for row in (leaf if segment.stacked else leaf[None])]
    assert seen == list(range(network.architecture.depth))


@with_exits
def test_the_own_head_as_a_separate_one_computes_the_shared_exits(name):
    shared = replace(RESIDUAL[name], exits="shared")
    network = random_network(shared)
    listed = [
        block._replace(params={**block.params, "exit": shared.own_head(network.params, index)})
        for index, block in enumerate(blocks(network))
    ]
    separate = with_blocks(network, replace(shared, exits="separate"), listed)
    assert initial_shapes(separate.architecture) == shapes(separate.variables)
    images = random_images(shared)
    wanted, _ = apply(shared, network.variables, images)
    outputs, _ = apply(separate.architecture, separate.variables, images)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)
    for block in listed:
        again = shared.with_own_head(network.params, block.params["exit"])
        assert_equal_trees(again, network.params)


@every_architecture
def test_a_separate_head_becomes_the_own_one(name):
    architecture = replace(RESIDUAL[name], exits="separate")
    network = random_network(architecture)
    for index, block in enumerate(blocks(network)):
        head = block.params["exit"]
        params = architecture.with_own_head(network.params, head)
        assert shapes(params) == shapes(network.params)
        assert_equal_trees(architecture.own_head(params, index), head)


@every_architecture
def test_blocks_that_are_not_there_are_refused(name):
    architecture = RESIDUAL[name]
    depth = architecture.depth
    for removed, message in (
        ([depth], f"there is no block {depth}: this network has blocks 0 to {depth - 1}."),
        ([-1], "there is no block -1"),
        ([0.0], "there is no block 0.0"),
        ([True], "there is no block True"),
        (["0"], "there is no block '0'"),
        ([1, 0, 1], "blocks [0, 1, 1] name a block twice."),
    ):
        with pytest.raises(ValueError) as refusal:
            architecture.without(removed)
        assert message in str(refusal.value)
    for count in (-1, depth + 1, 1.0, "1", True):
        with pytest.raises(ValueError) as refusal:
            architecture.subresnet(count)
        assert f"cannot keep {count!r} blocks: this network has {depth}" in str(refusal.value)
    assert architecture.subresnet(np.int64(1)) == architecture.subresnet(1)
    with pytest.raises(ValueError, match="this network has no blocks"):
        architecture.subresnet(0).without([0])


def test_another_number_of_blocks_is_refused():
    network = random_network(RESIDUAL["residual_mlp"])
    for listed in (blocks(network)[1:], [*blocks(network), blocks(network)[0]]):
        with pytest.raises(ValueError, match=f"{len(listed)} blocks do not make a network of 4."):
            with_blocks(network, network.architecture, listed)


@pytest.mark.parametrize("name", ["mlp", "cnn", "inception"])
def test_families_without_residual_blocks_are_refused_in_one_sentence(name):
    architecture = EVERY[name]
    message = (
        f"pruning needs residual blocks, and a {type(architecture).__name__} has none: choose a "
        "residual architecture."
    )
    with pytest.raises(ValueError) as refusal:
        residual(architecture, "pruning")
    assert str(refusal.value) == message
    with pytest.raises(ValueError, match="a list of blocks needs residual blocks, and a"):
        blocks(random_network(architecture))
    assert residual(RESIDUAL["residual_mlp"]) is RESIDUAL["residual_mlp"]
