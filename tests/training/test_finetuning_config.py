"""What fine-tuning changes of a run's settings."""

from dataclasses import replace

import pytest

from ocresnet.training.config import TrainingConfig
from ocresnet.training.finetuning import finetuning_config
from ocresnet.training.optimizers import AdamW


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(1, ()), (2, ()), (3, (2,)), (5, (4,)), (10, (7,))]
)
def test_it_trains_without_stage_cost_and_slower_in_the_last_third(epochs, milestones):
    optimizer = AdamW(weight_decay=0.3, warmup_epochs=2.0, schedule="cosine")
    training = TrainingConfig(optimizer=optimizer, seed=4, validation=0.1)
    config = finetuning_config(
        training, epochs=epochs, learning_rate=0.02, distillation=0.5, temperature=2.0
    )
    assert config == replace(
        training,
        epochs=epochs,
        optimizer=AdamW(
            learning_rate=0.02, weight_decay=0.3, schedule="milestones", milestones=milestones
        ),
        stage_cost=0.0,
        distillation=0.5,
        temperature=2.0,
    )
