"""Cutting while training: what is carried over, and that a killed run cuts as the whole one did."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest

from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.pruning import prune, recommend_depth
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.network import Network
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.checkpoints import Checkpoints
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset
from ocresnet.training.optimizers import OPTIMIZERS, SGD
from ocresnet.training.restore import restore_network
from ocresnet.training.shrinking import cut_state
from ocresnet.training.step import init_state, training_problem
from ocresnet.training.sweep import sweep
from tests.conftest import SMALL
from tests.training.test_fit import Killed, killed_after, without_times

CONFIG = TrainingConfig(
    epochs=4,
    batch_size=16,
    optimizer=SGD(learning_rate=0.05, schedule="cosine"),
    stage_cost=0.1,
    shrink=(1, 3),
    # Everything may be lost: the first cut leaves one block, the second has nothing to cut.
    shrink_tolerance=100.0,
    validation=0.2,
    average_decay=0.9,
)


def run(data: Dataset, workdir=None, config: TrainingConfig = CONFIG, **kwargs) -> Run:
    network = for_dataset(ResNetConfig.homogeneous(blocks=3, filters=4), data)
    devices = jax.devices()[:1]
    return fit(network, config, data, workdir=workdir, progress=False, devices=devices, **kwargs)


WHOLE: list[Run] = []


@pytest.fixture
def whole_run(toy_data) -> Run:
    """The run of `CONFIG` without interruptions, trained once for all tests."""
    if not WHOLE:
        WHOLE.append(run(toy_data))
    return WHOLE[0]


def same(first: Run, second: Run) -> None:
    assert without_times(first.metrics) == without_times(second.metrics)
    assert first.network.architecture == second.network.architecture
    jax.tree.map(np.testing.assert_array_equal, first.network, second.network)
    for name in second.trajectories:
        jax.tree.map(
            np.testing.assert_array_equal, first.trajectories[name], second.trajectories[name]
        )


def test_the_network_is_smaller_from_the_milestone_on(whole_run):
    assert whole_run.network.architecture.blocks == (1,)
    assert [len(row["test"]["losses"]) for row in whole_run.metrics] == [4, 2, 2, 1]
    assert [len(row["train"]["losses"]) for row in whole_run.metrics] == [4, 2, 2, 1]
    assert [row.get("kept_blocks") for row in whole_run.metrics] == [1, None, 1, None]
    assert len(whole_run.trajectories["test"].losses) == 2


def test_stage_costs_are_paid_until_the_last_cut_or_the_end(whole_run, toy_data):
    """Until then both are the same; afterwards the objective is that of the own output alone."""
    to_the_end = run(toy_data, config=replace(CONFIG, stage_cost_until="end"))
    *before, last = without_times(whole_run.metrics)
    *before_too, last_too = without_times(to_the_end.metrics)
    assert before == before_too and len(last_too["train"]["losses"]) == 2
    assert last["objective"] == pytest.approx(last["train"]["losses"][0], rel=1e-6)
    first_exit, own = last_too["train"]["losses"]
    assert last_too["objective"] == pytest.approx(own + 0.1 * first_exit, rel=1e-6)


def test_the_cut_is_that_of_the_depth_rule_and_of_pruning(toy_data, tmp_path):
    """Stopped right after the cut: its checkpoint is the pruned network of the one before it."""
    config = replace(CONFIG, average_decay=0.0, epochs=2, shrink=(1,), shrink_tolerance=2.0)
    before = run(toy_data, config=replace(config, epochs=1, shrink=(), optimizer=_constant()))
    after = run(toy_data, tmp_path, replace(config, optimizer=_constant()), keep_checkpoints=9)
    validation = before.trajectories["validation"]
    blocks = max(recommend_depth(validation, 2.0), 1)
    assert after.metrics[0]["kept_blocks"] == blocks == after.network.architecture.depth
    # A network of another depth was trained on: what it was at the cut is in the checkpoint.
    steps = after.metrics[0]["step"]
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    assert checkpoints.position(steps)["blocks"] == blocks
    pruned = prune(before.network, blocks)
    afterwards = replace(config, optimizer=_constant()).after(1)
    assert afterwards.stage_cost == 0
    state = _state(pruned.architecture, afterwards, pruned)
    restored = checkpoints.restore(steps, state)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored.variables, pruned.variables)
    assert restored.step == steps


def _constant() -> SGD:
    return SGD(learning_rate=0.05, schedule="constant")


def _state(architecture, config, network: Network | None = None):
    """The start of a training."""
    problem = training_problem(architecture, config)
    schedule = config.optimizer.schedule_over(config.epochs, 2)
    variables = network.variables if network else architecture.init(jax.random.key(0))
    return init_state(problem, config, variables, config.optimizer.build(problem, schedule))


@pytest.mark.parametrize("stop", [2, 4, 6, 13])
def test_killed_anywhere_it_cuts_to_the_same_bits(whole_run, toy_data, tmp_path, monkeypatch, stop):
    """Before the first cut, right after it, and in later epochs."""
    assert whole_run.metrics[0]["step"] == 4
    with monkeypatch.context() as patch:
        killed_after(patch, stop)
        with pytest.raises(Killed):
            run(toy_data, tmp_path)
    same(run(toy_data, tmp_path), whole_run)


@pytest.mark.parametrize("epoch", [1, 3])
def test_killed_between_cut_and_checkpoint_it_cuts_again(
    whole_run, toy_data, tmp_path, monkeypatch, epoch
):
    save = Checkpoints.save

    def dying_save(self, step, *arguments):
        if step == 4 * epoch:
            raise Killed
        return save(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dying_save)
        with pytest.raises(Killed):
            run(toy_data, tmp_path)
    same(run(toy_data, tmp_path), whole_run)


def test_a_finished_run_comes_back_with_and_without_its_checkpoints(
    whole_run, toy_data, tmp_path, monkeypatch
):
    run(toy_data, tmp_path)
    restored = restore_network(tmp_path)  # exits that are not trained are not calibrated there
    jax.tree.map(np.testing.assert_array_equal, restored.params, whole_run.network.params)
    own = [
        trajectory(net, *_validation(toy_data)).losses[-1] for net in (restored, whole_run.network)
    ]
    assert own[0] == own[1]
    best = restore_network(tmp_path, "best")
    # Of what a checkpoint holds: after a cut the exit that became the network's own output.
    scores = [
        row["validation"]["accuracies"][row.get("kept_blocks", -1)] for row in whole_run.metrics
    ]
    measured = trajectory(best, *_validation(toy_data)).accuracies
    assert measured[-1] == pytest.approx(max(scores))
    with monkeypatch.context() as patch:
        killed_after(patch, 0)
        same(run(toy_data, tmp_path), whole_run)
        for path in sorted((tmp_path / "checkpoints").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        same(run(toy_data, tmp_path), whole_run)


def _validation(data: Dataset):
    split = data.split(CONFIG.validation, CONFIG.seed)
    return split.images("validation"), split.labels("validation")


def test_without_a_validation_split_the_training_set_decides(toy_data):
    done = run(toy_data, config=replace(CONFIG, validation=0.0, epochs=2, shrink=(1,)))
    assert done.metrics[0]["kept_blocks"] == 1 and "validation" not in done.metrics[0]


# SNOpt is for a differential equation, whose blocks share their parameters.
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"snopt"}))
def test_an_optimizer_remembers_what_it_knew_of_the_blocks_that_stay(name):
    """Every array of its state is that of the kept blocks, or of what is no block, to the bit; also
    where no stage cost is paid any more."""
    whole = SMALL["standard"]
    config = replace(CONFIG, optimizer=OPTIMIZERS[name](), average_decay=0.0)
    rng = np.random.default_rng(0)

    def drawn(architecture, config):
        """A state with nothing that occurs twice; nothing is compiled."""
        shapes = jax.eval_shape(partial(_state, architecture, config))
        return jax.tree.map(
            lambda leaf: rng.integers(1, 10**6, leaf.shape).astype(leaf.dtype), shapes
        )

    state = drawn(whole, config)
    was = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
    }
    for blocks, afterwards in ((1, config), (3, config), (3, config.after(3))):
        start = drawn(whole.subresnet(blocks), afterwards)
        after = cut_state(state, whole, blocks, start)
        assert after.step == state.step
        jax.tree.map(np.testing.assert_array_equal, after.variables, start.variables)
        for (path, leaf), fresh in zip(
            jax.tree.leaves_with_path(after.opt_state),
            jax.tree.leaves(start.opt_state),
            strict=True,
        ):
            key = jax.tree_util.keystr(path)
            if ".info" in key:  # diagnostics, an entry a stage
                continue
            assert leaf.shape == fresh.shape
            kept = was[key] if leaf.ndim == 0 else was[key][: len(leaf)]
            np.testing.assert_array_equal(leaf, kept, key)


def test_an_optimizer_that_would_forget_at_a_cut_is_refused_before_training(toy_data):
    def forgetful(problem, schedule):
        descent = optax.sgd(schedule, momentum=0.9)
        return optax.chain(optax.identity(), descent) if problem.stage_costs.any() else descent

    with pytest.raises(ValueError, match="so that it would forget") as error:
        run(toy_data, optimizer=forgetful)
    assert ".trace" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shrink": (4,)}, "before the last of 4"),
        ({"shrink": (3, 1)}, "increasing"),
        ({"shrink": (2, 2)}, "increasing"),
        ({"shrink": (0,)}, "at least 1"),
        ({"shrink": (0.5,)}, "whole numbers"),
        ({"shrink": 2}, "a tuple"),
        ({"stage_cost": 0.0}, "no exit is trained"),
        ({"shrink_tolerance": -1.0}, "at least 0"),
        ({"stage_cost_until": "then"}, "one of last_cut, end"),
    ],
)
def test_impossible_cuts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **changes)
    assert len(str(error.value).split(". ")) == 1


def test_other_networks_and_sweeps_are_refused(toy_data):
    network = for_dataset(ResNetConfig.homogeneous(2, 4, exits="separate"), toy_data)
    with pytest.raises(ValueError, match="choose exits shared"):
        fit(network, CONFIG, toy_data)
    ode = NeuralODEConfig(width=4, solver="rk4", steps=2, free_horizon=True)
    with pytest.raises(ValueError, match="the horizon of this network is free"):
        fit(for_dataset(ode, toy_data), CONFIG, toy_data)
    refused = partial(sweep, learning_rates=[0.1], weight_decays=[0.0], seeds=[0])
    with pytest.raises(ValueError, match="one depth"):
        refused(replace(network, exits="shared"), replace(CONFIG, validation=0.0), toy_data)
