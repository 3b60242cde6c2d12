"""Train a continuous normalizing flow, or continue the run in the workdir, and measure its density.

  python -m experiments.flow --dataset=moons
  python -m experiments.flow --dataset=checkerboard --steps=12 --epochs=100 --workdir=runs/board
  python -m experiments.flow --dataset=breast_cancer --trace=rademacher
  python -m experiments.flow --dataset=mine.npz --solver=dopri5 --batch_size=64

is `experiments.train --architecture=flow`, and then: the log-likelihood of the test set, in nats,
with a finer solver than in training, beside what the training's own solver says of it, and that of
the normal density with the data's mean and covariance. Where samples are held out, the flow is that
of the checkpoint that was best on them. The workdir gets likelihood.json, samples.npz, and of data
with two features figures/density.png, beside what every run leaves there.
A `.npz` needs no labels, and may hold points as images of one pixel, [samples, 1, 1, features].
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ocresnet.continuous.flows import finer, log_likelihood, sample
from ocresnet.continuous.normal_fit import normal_log_likelihood
from ocresnet.data.training_data import TrainingData
from ocresnet.plots.densities import draw_flow
from ocresnet.plots.runs import FIGURES
from ocresnet.systems.network import Network
from ocresnet.training.restore import restore_network

from .common import command_line, reports
from .common.display import draw_figures
from .common.flag_kinds import FlagValues
from .common.flags import TrainingRunFlags
from .common.hosts import is_first
from .train import run_training

FAMILY = "flow"
LIKELIHOOD, SAMPLES, DENSITY = "likelihood.json", "samples.npz", "density.png"

COARSE = 0.02
"""Nats by which a solver may be wrong without a word about it."""

AT_ONCE = 500
"""Points whose likelihoods are computed together."""


class Flags(TrainingRunFlags):
    """Those of a training run, of flows alone."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, families=(FAMILY,))


def train_flow(flags: Flags) -> None:
    """Run `fit` as the flags say, measure the density, and draw it."""
    wanted, data, run = run_training(flags)
    if not is_first():
        return
    workdir = Path(wanted.workdir)
    chosen = run.network
    if "validation" in data.parts:
        chosen = restore_network(workdir, "best")
    measured = likelihoods(chosen, data)
    reports.write(workdir / LIKELIHOOD, {"dataset": wanted.dataset, **measured})
    chosen = finer(chosen)
    drawn = sample(chosen, jax.random.key(wanted.training.seed), data.samples("test"))
    np.savez(workdir / SAMPLES, samples=np.asarray(drawn))
    print(table(measured))
    error = measured["test"]["own solver"]["mean"] - measured["test"]["flow"]["mean"]
    if abs(error) > COARSE:
        print(
            f"the solver is too coarse: by {error:+.3f} nats it is wrong about the test set; raise "
            "steps, or lower rtol and atol, and train again."
        )
    draw_figures(workdir)
    if math.prod(chosen.architecture.image_shape) == 2:
        draw_density(chosen, data, workdir)


def likelihoods(network: Network, data: TrainingData) -> dict[str, Any]:
    """Mean log-likelihood of every part and its standard error: of the flow, solved finely and as
    its own solver has it, and of a normal fit, where there is one."""
    measured: dict[str, Any] = {}
    fine = finer(network)
    points = {part: data.images(part)[np.arange(data.samples(part))] for part in data.parts}
    for part in data.parts:
        measured[part] = {
            "flow": _mean(_log_likelihoods(fine, points[part])),
            "own solver": _mean(_log_likelihoods(network, points[part])),
        }
    try:
        for part, own in measured.items():
            own["normal density"] = _mean(normal_log_likelihood(points["train"], points[part]))
    except ValueError as error:
        print(f"no normal density to compare with: {error}")
    return measured


def _log_likelihoods(network: Network, points: np.ndarray) -> np.ndarray:
    """Of so many points at a time that also those of many features fit into memory."""
    parts = [points[start : start + AT_ONCE] for start in range(0, len(points), AT_ONCE)]
    return np.concatenate([log_likelihood(network, part) for part in parts])


def _mean(values: Any) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "standard_error": float(error)}


def table(measured: dict[str, Any]) -> str:
    """The likelihoods as a Markdown table."""
    rows = [
        (part, *(f"{of[name]['mean']:.3f} ± {of[name]['standard_error']:.3f}" for name in of))
        for part, of in measured.items()
    ]
    columns = ("log-likelihood (nats)", *next(iter(measured.values())))
    return reports.markdown_table(columns, rows)


def draw_density(network: Network, data: TrainingData, workdir: Path) -> None:
    """Draw the density into the run's figures, or say what is missing to do so."""
    try:
        figure = draw_flow(network, data.images("test"))
    except ImportError as error:
        print(f"no density: {command_line.sentence(error)}", file=sys.stderr)
        return
    (workdir / FIGURES).mkdir(exist_ok=True)
    figure.savefig(workdir / FIGURES / DENSITY, dpi=150)
    print(f"wrote {workdir / FIGURES / DENSITY}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit status."""
    return command_line.run(train_flow, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
