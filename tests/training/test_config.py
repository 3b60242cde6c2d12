"""Training configurations refuse impossible values; the defaults are the paper's."""

import json

import pytest

from ocresnet.systems.system import Execution
from ocresnet.training.config import TrainingConfig, describe, from_description
from ocresnet.training.optimizers import SGD, AdamW


def test_defaults_are_the_papers():
    config = TrainingConfig()
    assert (config.epochs, config.batch_size, config.stage_cost) == (165, 128, 0.02)
    optimizer = config.optimizer
    assert isinstance(optimizer, SGD)
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.decay_factor) == (0.1, 0.9, 0.1)
    assert (optimizer.weight_decay, optimizer.weight_decay_on) == (1e-4, "all")
    # Divided by ten in the epochs after 82 and 123.
    schedule = optimizer.schedule_over(config.epochs, steps_per_epoch=2)
    rates = [float(schedule(2 * epoch)) for epoch in (82, 83, 123, 124)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_survives_json():
    config = TrainingConfig(
        execution=Execution(precision="bfloat16"),
        optimizer=AdamW(milestones=(0.2, 0.5), schedule="milestones"),
    )
    assert from_description(json.loads(json.dumps(describe(config)))) == config


@pytest.mark.parametrize(
    "damage",
    [
        lambda described: None,
        lambda described: [],
        lambda described: {**described, "momentum": 0.9},
        lambda described: {name: described[name] for name in described if name != "seed"},
        lambda described: {**described, "execution": None},
        lambda described: {**described, "execution": {"speed": 1}},
        lambda described: {**described, "optimizer": None},
        lambda described: {**described, "optimizer": {"name": "sgd", "speed": 1}},
        lambda described: {**described, "optimizer": {"name": ["sgd"]}},
    ],
)
def test_other_descriptions_are_refused(damage):
    with pytest.raises(ValueError, match="description|described"):
        from_description(damage(describe(TrainingConfig())))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("batch_size", -1, "at least 1"),
        ("stage_cost", -0.1, "at least 0"),
        ("stage_cost", "0.1", "at least 0"),
        ("average_decay", 1.0, r"in \[0, 1\)"),
        ("distillation", 1.1, r"in \[0, 1\]"),
        ("distillation", float("nan"), r"in \[0, 1\]"),
        ("temperature", 0.0, "positive"),
        ("validation", 1.0, r"in \[0, 1\)"),
        ("loss", "hinge", "cross_entropy, l2"),
        ("augmentation", "cutmix", "none, crop, crop_flip"),
        ("seed", -1, "a whole number, 0"),
        ("optimizer", "sgd", r"a configuration like SGD\(learning_rate=0.1\)"),
        ("execution", {"precision": "bfloat16"}, "a configuration like Execution"),
    ],
)
def test_impossible_values_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("milestones", [(5, 10), (100000000,)])
def test_milestones_past_the_last_epoch_are_refused(milestones):
    with pytest.raises(ValueError, match="not reached in 10 epochs: give whole numbers below 10"):
        TrainingConfig(epochs=10, optimizer=SGD(milestones=milestones))
    # Of another schedule they say nothing.
    TrainingConfig(epochs=10, optimizer=SGD(milestones=milestones, schedule="cosine"))
