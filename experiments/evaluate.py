"""Evaluate a run over its depth, and try early exits, without retraining.

  python -m experiments.evaluate --workdir=runs/demo
  python -m experiments.evaluate --workdir=runs/demo --exit_accuracy=0.97
  python -m experiments.evaluate --workdir=runs/demo --exit_budget=0.5
  python -m experiments.evaluate --workdir=runs/demo --confidence=0.95

prints accuracy and loss of every exit and writes <workdir>/evaluation.json, with the norm of every
block's parameters and of its change of the state on the test set. With a wish for early exits, a
confidence threshold is chosen on the validation split (without one, on the training set), or taken
as given, and its accuracy and saving are measured on the test set.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ocresnet.stage_cost.calibration import calibrate_confidence, exit_costs
from ocresnet.stage_cost.early_exit import Predictions, predict
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.stage_cost.trajectory import check_batch_size, logits_over_depth, parameter_norms
from ocresnet.systems.architecture import ResidualArchitecture, residual

from .common import command_line, reports
from .common.display import print_depth_table
from .common.flag_kinds import FlagValues, Section
from .common.runs import FinishedRun, FinishedRunFlags

EVALUATION = "evaluation.json"


class EarlyExitFlags:
    """What is wished of early exits."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Early exit")
        self.accuracy = section.share(
            "exit_accuracy", "Accuracy that early exits must keep on the calibration data."
        )
        self.budget = section.share(
            "exit_budget", "Share of the network's multiply-adds that early exits may spend."
        )
        self.confidence = section.share(
            "confidence", "Largest softmax probability at which a sample leaves."
        )
        self.batch_size = section.whole("batch_size", "Samples a batch of early exits.", 256)

    def wished(self) -> bool:
        """Whether any wish is given.

        Raises:
          ValueError: if there is more than one, or the batch size is impossible.
        """
        wishes = [self.accuracy, self.budget, self.confidence]
        count = sum(wish.value is not None for wish in wishes)
        if count > 1:
            raise ValueError("give only one of --exit_accuracy, --exit_budget and --confidence.")
        check_batch_size(self.batch_size.value)
        return count == 1


class Flags:
    """Which run, and early exits."""

    def __init__(self, values: FlagValues) -> None:
        self.run = FinishedRunFlags(values)
        self.early_exit = EarlyExitFlags(values)


def measure_early_exit(run: FinishedRun, flags: EarlyExitFlags) -> dict[str, Any]:
    """Accuracy, cost and time on the test set with and without early exits."""
    data, network = run.data, run.network
    architecture = residual(network.architecture)
    measured: dict[str, Any] = {}
    confidence = flags.confidence.value
    if confidence is None:
        part = data.choosing_part
        calibration = calibrate_confidence(
            architecture,
            logits_over_depth(network, data.images(part)),
            data.labels(part),
            accuracy=flags.accuracy.value,
            budget=flags.budget.value,
        )
        confidence = calibration.confidence
        measured = {"calibrated_on": part, "calibration": calibration}

    def timed(confidence: float | None) -> tuple[Predictions, float]:
        batch_size = flags.batch_size.value
        predict(network, data.images("test"), confidence=confidence, batch_size=batch_size)
        start = time.perf_counter()
        result = predict(network, data.images("test"), confidence=confidence, batch_size=batch_size)
        return result, time.perf_counter() - start

    whole, whole_seconds = timed(None)
    early, early_seconds = timed(confidence)
    return measured | {
        "confidence": confidence,
        "test_accuracy_whole": np.mean(whole.labels == data.labels("test")),
        "test_accuracy_early": np.mean(early.labels == data.labels("test")),
        "mean_blocks": early.blocks.mean(),
        "cost": exit_costs(architecture)[early.blocks].mean(),
        "seconds_whole": whole_seconds,
        "seconds_early": early_seconds,
    }


def print_early_exit(early: dict[str, Any]) -> None:
    """One paragraph on what early exits gave."""
    chosen = f" (chosen on the {early['calibrated_on']} set)" if "calibrated_on" in early else ""
    print(
        f"early exit at confidence {early['confidence']:.4f}{chosen}: test accuracy "
        f"{early['test_accuracy_early']:.2%} instead of {early['test_accuracy_whole']:.2%}, "
        f"{early['mean_blocks']:.1f} blocks on average, {early['cost']:.0%} of the multiply-adds, "
        f"{early['seconds_early']:.3f} s instead of {early['seconds_whole']:.3f} s"
    )


def evaluate(flags: Flags) -> None:
    """Measure over depth and the early exits, print and write both."""
    early_exits = flags.early_exit.wished()
    run = flags.run.load()
    network = run.network
    if early_exits:
        residual(network.architecture, "leaving early")
    trajectories = {part: run.measure(network, part) for part in run.data.parts[1:]}
    print_depth_table(trajectories)
    evaluation: dict[str, Any] = {"checkpoint": flags.run.checkpoint, **trajectories}
    if isinstance(network.architecture, ResidualArchitecture):
        images, execution = run.data.images("test"), run.training.execution
        evaluation["parameter_norms"] = parameter_norms(network.architecture, network.params)
        evaluation["state_changes"] = state_changes(network, images, execution=execution)
    if early_exits:
        evaluation["early_exit"] = measure_early_exit(run, flags.early_exit)
        print_early_exit(evaluation["early_exit"])
    reports.write(run.workdir / EVALUATION, evaluation)
    print(f"wrote {run.workdir / EVALUATION}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; returns the exit status."""
    return command_line.run(evaluate, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
