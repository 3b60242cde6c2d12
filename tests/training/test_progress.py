"""What the bar says."""

import io

from rich.console import Console

from ocresnet.training.progress import TrainingProgress


def shown(progress: TrainingProgress) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(progress._bar.get_renderable())
    return console.export_text()


def test_nothing_is_claimed_before_the_first_step_is_back():
    progress = TrainingProgress(epochs=3, steps_per_epoch=4, batch_size=8, done=0, show=False)
    assert "compiling" in shown(progress)
    assert "nan" not in shown(progress) and "loss" not in shown(progress)
    progress.step(1, 0.25, 0.5)
    assert "compiling" not in shown(progress)
    assert "epoch 1/3" in shown(progress) and "loss 0.2500  accuracy 50.00%" in shown(progress)
    assert "images/s" in shown(progress)
