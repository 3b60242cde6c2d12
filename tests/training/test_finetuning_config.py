"""What fine-tuning changes of a run's settings."""

from dataclasses import replace

import pytest

from ocresnet.training.config import TrainingConfig
from ocresnet.training.finetuning import finetuning_config


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(1, ()), (2, ()), (3, (2,)), (5, (4,)), (10, (7,))]
)
def test_it_trains_without_stage_cost_and_slower_in_the_last_third(epochs, milestones):
    training = TrainingConfig(weight_decay=0.3, seed=4, validation=0.1, warmup_epochs=2.0)
    config = finetuning_config(
        training, epochs=epochs, learning_rate=0.02, distillation=0.5, temperature=2.0
    )
    assert config == replace(
        training,
        epochs=epochs,
        milestones=milestones,
        learning_rate=0.02,
        warmup_epochs=0.0,
        stage_cost=0.0,
        distillation=0.5,
        temperature=2.0,
    )
