"""Two processes, each with a device of its own, give the run of one; the first writes for all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ocresnet.training import processes

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, jax
rank, address, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if rank >= 0:
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
from ocresnet.data.sources import load_dataset
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset
data = load_dataset("digits")
network = for_dataset(ResNetConfig.homogeneous(blocks=2, filters=4), data)
config = TrainingConfig(epochs=1, batch_size=64, augmentation="crop")
fit(network, config, data, workdir=workdir, progress=False)
"""


def start(rank: int, address: str, workdir: Path) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rank), address, str(workdir)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path):
    """`fit` after `jax.distributed.initialize`: batches, gradients, records and checkpoints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    single = [start(-1, address, tmp_path / "one")]
    pair = [start(rank, address, tmp_path / "two") for rank in (0, 1)]
    for process in single + pair:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 1
    for split in ("train", "test"):
        np.testing.assert_allclose(two[0][split]["losses"], one[0][split]["losses"], rtol=1e-3)
    np.testing.assert_allclose(two[0]["objective"], one[0]["objective"], rtol=1e-3)
    assert any((tmp_path / "two" / "checkpoints").iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_the_other_processes_wait_for_the_first_and_learn_how_it_went(monkeypatch, fails):
    """Neither is left waiting: of a refused workdir or a full disk all of them stop."""
    done = []
    gathered = []

    def process_allgather(value):
        gathered.append(bool(value))
        return np.array([fails, False])

    monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    if fails:
        with pytest.raises(OSError, match="the first process could not write"):
            processes.in_first_process(lambda: done.append(1))
    else:
        processes.in_first_process(lambda: done.append(1))
    assert done == [] and gathered == [False]


def test_what_the_first_process_raises_is_heard_by_all(monkeypatch):
    gathered = []

    def process_allgather(value):
        gathered.append(bool(value))
        return np.array([value])

    def work():
        raise OSError("full")

    monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(OSError, match="^full$"):
        processes.in_first_process(work)
    assert gathered == [True]
