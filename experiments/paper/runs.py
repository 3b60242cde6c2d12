"""Carrying out a plan of the paper's runs: what is finished is skipped, the rest is continued."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import residual
from ocresnet.training import config as configs
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.loop import CHECKPOINTS
from ocresnet.training.restore import load_configs

from ..common.reports import markdown_table
from .plan import PlannedRun

MEASUREMENTS = "measurements.json"

DIGITS = 6
"""Significant ones, of what is kept of all runs together."""

Measurements = Mapping[str, dict[str, Any]]
"""{name of a run: what `measure` found}."""

State = Literal["finished", "interrupted", "to do"]


def state_of(run: PlannedRun, folder: Path) -> State:
    """How far a run has come.

    Raises:
      ValueError: if its folder holds a run with another configuration.
    """
    workdir = folder / run.name
    if not (workdir / records.CONFIG).exists():
        return "to do"
    found = training_of(folder, run.name)
    if found != run.training:
        records.refuse_other_config(
            configs.describe(found), configs.describe(run.training), str(workdir)
        )
    done = (workdir / records.TRAJECTORY).exists() and (workdir / records.NETWORK).is_dir()
    return "finished" if done else "interrupted"


def describe(runs: Sequence[PlannedRun], folder: Path, rate: float) -> str:
    """The plan as a table: every run with its state and its cost.

    Args:
      runs: the plan.
      folder: where they lie.
      rate: multiply-adds a second that the machine trains with.
    """
    rows = []
    left = 0.0
    for run in runs:
        state = state_of(run, folder)
        hours = run.cost / rate / 3600
        left += 0.0 if state == "finished" else hours
        rows.append(
            [
                run.name,
                state,
                residual(run.network).depth,
                run.training.epochs,
                f"{run.cost:.1e}",
                f"{hours:.2f}",
            ]
        )
    columns = ["run", "state", "blocks", "epochs", "multiply-adds", "hours"]
    table = markdown_table(columns, rows, left=2)
    return f"{table}\n\nstill to run: about {left:.1f} hours at {rate:.0e} multiply-adds a second"


def carry_out(runs: Sequence[PlannedRun], folder: Path, data_dir: str | None) -> None:
    """Train what is not finished.

    A finished run gives up its checkpoints: its network, metrics and trajectory stay.

    Raises:
      KeyboardInterrupt: if a signal stopped a run.
    """
    datasets: dict[str, Dataset] = {}
    for number, run in enumerate(runs, start=1):
        state = state_of(run, folder)
        print(f"[{number}/{len(runs)}] {run.name}: {state}", flush=True)
        workdir = folder / run.name
        if (workdir / MEASUREMENTS).exists() and state == "finished":
            continue
        if run.data not in datasets:
            datasets[run.data] = load_dataset(run.data, data_dir)
        data = datasets[run.data]
        if state != "finished":
            done = fit(for_dataset(run.network, data), run.training, data, workdir=workdir)
            if done.interrupted:
                raise KeyboardInterrupt
        records.write_json(workdir / MEASUREMENTS, measure(workdir, data))
        shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)


def measure(workdir: Path, data: Dataset) -> dict[str, Any]:
    """Everything over depth that the tables and figures show, of a finished run.

    Returns:
      What the run's trajectory.json holds (losses, accuracies, output residuals on the training set
      without augmentation and on the test set, in inference mode; parameter norms), and
      `train_in_training_mode` (with the statistics of each batch) and `state_changes` (on the test
      set).
    """
    network = networks.load(workdir / records.NETWORK)
    training = training_of(workdir.parent, workdir.name)
    return {
        **records.read_json(workdir / records.TRAJECTORY),
        "train_in_training_mode": trajectory(
            network,
            data.train_images,
            data.train_labels,
            batch_size=training.batch_size,
            mode="training",
        ),
        "state_changes": state_changes(network, data.test_images),
    }


def gather(runs: Sequence[PlannedRun], folder: Path) -> Measurements:
    """What `measure` found for every run, to so many digits as tables and figures show."""
    return {run.name: _rounded(records.read_json(folder / run.name / MEASUREMENTS)) for run in runs}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}")


def gathered(path: Path) -> Measurements:
    """What `gather` found and was written to a file; nothing, if there is none.

    Raises:
      ValueError: if the file is damaged.
    """
    return records.read_json(path).get("runs", {}) if path.exists() else {}


def require(runs: Sequence[PlannedRun], found: Measurements, path: Path) -> None:
    """Refuse to go on without a run.

    Raises:
      ValueError: naming the runs that the file lacks.
    """
    missing = [run.name for run in runs if run.name not in found]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: leave --redraw out, which trains what is missing."
        )


def training_of(folder: Path, name: str) -> TrainingConfig:
    """The training configuration of the run called `name`."""
    return load_configs(folder / name)[1]
