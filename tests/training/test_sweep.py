"""A sweep trains as `fit` does, many runs at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.optimizers import SGD, OCNOpt, ScheduleFreeAdamW
from ocresnet.training.sweep import measured_steps, sweep

STACKED = OCNOpt(curvature="diagonal", momentum=0.5, schedule="milestones", rollout="nonlinear")
CASES = {
    "mlp": (MLPConfig(hidden=(6,), activation="tanh"), STACKED, 0.0),
    "schedule-free": (MLPConfig(hidden=(6,)), ScheduleFreeAdamW(), 0.0),
    "resnet": (ResNetConfig.homogeneous(blocks=2, filters=4), SGD(warmup_epochs=0.5), 0.1),
}


def config(optimizer, stage_cost: float) -> TrainingConfig:
    return TrainingConfig(
        epochs=2, batch_size=16, optimizer=optimizer, stage_cost=stage_cost, augmentation="crop"
    )


@pytest.mark.parametrize("name", CASES)
def test_each_run_is_that_of_fit(name, toy_data):
    architecture, optimizer, stage_cost = CASES[name]
    architecture = for_dataset(architecture, toy_data)
    training = config(optimizer, stage_cost)
    found = sweep(
        architecture,
        training,
        toy_data,
        learning_rates=[0.02, 0.005],
        weight_decays=[0.0, 0.1],
        seeds=[0, 3],
        together=name == "mlp",
        points=4,
        on_the_way=lambda variables: {"sums": [jnp.sum(x) for x in jax.tree.leaves(variables)]},
    )
    assert found.accuracies.shape == found.losses.shape == found.train_losses.shape == (2, 2, 2)
    for place, rate, decay, seed in (((1, 0, 1), 0.02, 0.1, 3), ((0, 1, 0), 0.005, 0.0, 0)):
        own = replace(optimizer, learning_rate=rate, weight_decay=decay)
        alone = fit(
            architecture,
            replace(training, optimizer=own, seed=seed),
            toy_data,
            devices=jax.devices()[:1],
            progress=False,
        )
        sums = [own[place][-1] for own in found.measured_on_the_way["sums"]]
        wanted = [np.sum(leaf) for leaf in jax.tree.leaves(alone.network)]
        np.testing.assert_allclose(sums, wanted, rtol=1e-3, atol=1e-3)
        measured = alone.trajectories
        np.testing.assert_allclose(found.losses[place], measured["test"].losses[-1], rtol=1e-4)
        np.testing.assert_allclose(
            found.train_losses[place], measured["train"].losses[-1], rtol=1e-4
        )
        epochs = found.objectives[place].reshape(2, -1).mean(axis=-1)
        np.testing.assert_allclose(epochs, [row["objective"] for row in alone.metrics], rtol=1e-4)
        np.testing.assert_allclose(
            found.accuracies[place], measured["test"].accuracies[-1], atol=0.04
        )
        # Two points an epoch.
        on_the_way = found.accuracies_on_the_way[place]
        after_epochs = [row["test"]["accuracies"][-1] for row in alone.metrics]
        np.testing.assert_allclose(on_the_way[1::2], after_epochs, atol=0.04)
        assert on_the_way[-1] == found.accuracies[place]


def test_one_weight_decay_for_all_runs_is_that_weight_decay(toy_data):
    architecture = for_dataset(MLPConfig(hidden=(6,)), toy_data)
    grid = {"learning_rates": [0.02], "seeds": [0, 1]}
    training = config(STACKED, 0.0)
    among = sweep(architecture, training, toy_data, weight_decays=[0.0, 5.0], **grid)
    for index, decay in enumerate((0.0, 5.0)):
        alone = sweep(architecture, training, toy_data, weight_decays=[decay], **grid)
        np.testing.assert_allclose(alone.losses[0], among.losses[index], rtol=1e-4)
    assert np.all(np.abs(among.losses[0] / among.losses[1] - 1) > 1e-3)


def test_points_of_a_run_are_equally_far_apart_and_end_with_it():
    assert measured_steps(12, 4).tolist() == [3, 6, 9, 12]
    assert measured_steps(10, 3).tolist() == [3, 7, 10]
    assert measured_steps(3, 3).tolist() == [1, 2, 3]
    assert measured_steps(3, 0).tolist() == []
    with pytest.raises(ValueError, match="4 points need at least as many steps, but there are 3"):
        measured_steps(3, 4)


def test_a_run_that_diverges_is_right_nowhere(toy_data):
    architecture = for_dataset(MLPConfig(hidden=()), toy_data)
    found = sweep(
        architecture,
        config(SGD(), 0.0),
        toy_data,
        learning_rates=[1e38, 0.01],
        weight_decays=[0.0],
        seeds=[0],
        points=1,
    )
    assert not np.isfinite(found.losses[0, 0, 0]) and found.accuracies[0, 0, 0] == 0
    assert found.accuracies[0, 1, 0] > 0.4
    np.testing.assert_array_equal(found.accuracies_on_the_way[..., 0], found.accuracies)


def test_what_cannot_be_swept_is_refused(toy_data):
    architecture, training = for_dataset(MLPConfig(), toy_data), config(SGD(), 0.0)
    grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": [0]}
    with pytest.raises(ValueError, match="a sweep has no teacher"):
        sweep(architecture, replace(training, distillation=0.5), toy_data, **grid)
    with pytest.raises(ValueError, match="nothing to run"):
        sweep(architecture, training, toy_data, **{**grid, "seeds": []})
    with pytest.raises(ValueError, match="stage_cost is 0.1, but the network has no exits"):
        sweep(architecture, replace(training, stage_cost=0.1), toy_data, **grid)
