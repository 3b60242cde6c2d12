"""Evaluate a run over its depth, and try early exits, without retraining.

  python -m experiments.evaluate --workdir=runs/demo
  python -m experiments.evaluate --workdir=runs/demo --exit_accuracy=0.97
  python -m experiments.evaluate --workdir=runs/demo --exit_budget=0.5

prints accuracy and loss of every exit and writes <workdir>/evaluation.json, with the norm of every
block's parameters and of its change of the state on the test set. With a wish for early exits, a
confidence threshold is chosen on the validation split (without one, on the training set) and its
accuracy and saving are measured on the test set.
"""

import time
from typing import Any

import numpy as np
from absl import flags

from experiments import command_line, runs
from experiments.display import print_depth_table
from ocresnet.stage_cost.calibration import calibrate_confidence, exit_costs
from ocresnet.stage_cost.early_exit import Predictions, predict
from ocresnet.stage_cost.objective import per_sample_loss
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.stage_cost.trajectory import (
    check_batch_size,
    logits_over_depth,
    parameter_norms,
    trajectory,
)
from ocresnet.training import records

EXIT_ACCURACY = flags.DEFINE_float(
    "exit_accuracy", None, "Accuracy in [0, 1] that early exits must keep on the calibration data."
)
EXIT_BUDGET = flags.DEFINE_float(
    "exit_budget", None, "Share of the network's multiply-adds that early exits may spend."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Samples a batch of early-exit inference.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "Run": runs.FLAGS,
    "Early exit": [EXIT_ACCURACY, EXIT_BUDGET, BATCH_SIZE],
}

EVALUATION = "evaluation.json"


def measure_early_exit(
    run: runs.FinishedRun, accuracy: float | None, budget: float | None, batch_size: int
) -> dict[str, Any]:
    """Calibrate a threshold, then measure accuracy, cost and time with and without it."""
    data, network = run.data, run.network
    part = data.choosing_part
    calibration = calibrate_confidence(
        network.config,
        logits_over_depth(network, data.images(part)),
        data.labels(part),
        accuracy=accuracy,
        budget=budget,
    )

    def timed(confidence: float | None) -> tuple[Predictions, float]:
        predict(network, data.images("test"), confidence=confidence, batch_size=batch_size)
        start = time.perf_counter()
        result = predict(network, data.images("test"), confidence=confidence, batch_size=batch_size)
        return result, time.perf_counter() - start

    whole, whole_seconds = timed(None)
    early, early_seconds = timed(calibration.confidence)
    return {
        "calibrated_on": part,
        "calibration": calibration,
        "test_accuracy_whole": np.mean(whole.labels == data.labels("test")),
        "test_accuracy_early": np.mean(early.labels == data.labels("test")),
        "mean_blocks": early.blocks.mean(),
        "cost": exit_costs(network.config)[early.blocks].mean(),
        "seconds_whole": whole_seconds,
        "seconds_early": early_seconds,
    }


def main() -> None:
    if EXIT_ACCURACY.value is not None and EXIT_BUDGET.value is not None:
        raise ValueError("give either --exit_accuracy or --exit_budget, and not both.")
    check_batch_size(BATCH_SIZE.value)
    run = runs.run_of_flags()
    loss = per_sample_loss(run.training.loss, run.training.label_smoothing)
    trajectories = {
        part: trajectory(
            run.network,
            run.data.images(part),
            run.data.labels(part),
            loss=loss,
            execution=run.training.execution,
        )
        for part in run.data.parts[1:]
    }
    print_depth_table(trajectories)
    evaluation: dict[str, Any] = {
        "checkpoint": runs.CHECKPOINT.value,
        **trajectories,
        "parameter_norms": parameter_norms(run.network.config, run.network.params),
        "state_changes": state_changes(
            run.network, run.data.images("test"), execution=run.training.execution
        ),
    }
    if EXIT_ACCURACY.value is not None or EXIT_BUDGET.value is not None:
        early = measure_early_exit(run, EXIT_ACCURACY.value, EXIT_BUDGET.value, BATCH_SIZE.value)
        evaluation["early_exit"] = early
        print_early_exit(early)
    records.write_json(run.workdir / EVALUATION, evaluation)
    print(f"wrote {run.workdir / EVALUATION}")


def print_early_exit(early: dict[str, Any]) -> None:
    """One paragraph on what early exits gave."""
    print(
        f"early exit at confidence {early['calibration'].confidence:.4f} (chosen on the "
        f"{early['calibrated_on']} set): test accuracy {early['test_accuracy_early']:.2%} instead "
        f"of {early['test_accuracy_whole']:.2%}, {early['mean_blocks']:.1f} blocks on average, "
        f"{early['cost']:.0%} of the multiply-adds, {early['seconds_early']:.3f} s instead of "
        f"{early['seconds_whole']:.3f} s"
    )


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
