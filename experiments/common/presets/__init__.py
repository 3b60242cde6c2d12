"""Runs by name."""

from .paper import IMAGENET, PAPER
from .preset import TRAINING_SAMPLES, Preset
from .small import SMALL
from .studies import STUDIES

PRESETS: dict[str, Preset] = PAPER | IMAGENET | SMALL | STUDIES


def describe(rate: float) -> str:
    """Every preset with its command, expected accuracy and cost.

    Args:
      rate: multiply-adds a second that this machine trains with.
    """
    lines = []
    for name, preset in PRESETS.items():
        minutes = preset.cost / rate / 60
        about = f"about {minutes:,.0f} minutes" if minutes >= 1 else "less than a minute"
        lines += [
            name,
            f"    python -m experiments.train --preset={name}",
            f"    expected test accuracy: {preset.expected}",
            f"    cost: {preset.cost:.1e} multiply-adds, {about} on this machine; "
            f"{preset.training.epochs} epochs of {TRAINING_SAMPLES[preset.dataset]:,} images",
        ]
    return "\n".join(lines)
