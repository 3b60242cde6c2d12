"""Training configurations refuse impossible values; the defaults are the paper's."""

import json
from dataclasses import asdict

import pytest

from ocresnet.systems.resnet_config import Execution
from ocresnet.training.config import TrainingConfig


def test_defaults_are_the_papers():
    config = TrainingConfig()
    assert (config.epochs, config.batch_size, config.milestones) == (165, 128, (82, 123))
    assert (config.learning_rate, config.momentum, config.decay_factor) == (0.1, 0.9, 0.1)
    assert (config.weight_decay, config.stage_cost) == (1e-4, 0.02)


def test_survives_json():
    config = TrainingConfig(execution=Execution(precision="bfloat16"), milestones=(3, 5))
    assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "a whole number"),
        ("batch_size", -1, "at least 1"),
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("weight_decay", -1e-4, "at least 0"),
        ("weight_decay", float("inf"), "at least 0"),
        ("stage_cost", -0.1, "at least 0"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("average_decay", 1.0, r"in \[0, 1\)"),
        ("distillation", 1.1, r"in \[0, 1\]"),
        ("distillation", float("nan"), r"in \[0, 1\]"),
        ("temperature", 0.0, "positive"),
        ("validation", 1.0, r"in \[0, 1\)"),
        ("milestones", (5, 3), "increasing"),
        ("milestones", (0,), "increasing positive"),
        ("loss", "hinge", "cross_entropy, l2"),
        ("augmentation", "cutmix", "none, crop, crop_flip"),
        ("weight_decay_on", "biases", "all, residual_branches"),
        ("seed", -1, "a whole number, 0"),
    ],
)
def test_impossible_values_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("precision", "float16"), ("remat", "all")])
def test_impossible_execution_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}', but must be one of"):
        Execution(**{name: value})
