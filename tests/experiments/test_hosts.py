"""Several processes: told by flags, or found by themselves under Slurm."""

import contextlib
import json
import random
import socket

import jax
import numpy as np
import pytest
from programs import Outcome, finish, start

from experiments.common import hosts
from experiments.common.command_line import parse
from experiments.common.flag_kinds import FlagValues
from ocresnet.systems.network import load

RUN = ("--dataset=digits[:256]", "--blocks=1", "--filters=4", "--epochs=1", "--batch_size=32")


def host_flags(*arguments: str) -> hosts.HostFlags:
    values = FlagValues()
    flags = hosts.HostFlags(values)
    parse(values, arguments)
    return flags


def free_port(ports: range = range(30000, 60000)) -> int:
    """A port that nobody listens on."""
    while True:
        port = random.choice(ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def joined(monkeypatch) -> list:
    """The arguments of every `jax.distributed.initialize`, which does nothing."""
    calls: list = []
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *args: calls.append(args))
    for name in ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_alone_nothing_is_joined(joined, monkeypatch):
    host_flags().start()
    # A batch script of Slurm is not a task, and one task needs no others.
    monkeypatch.setenv("SLURM_NTASKS", "4")
    host_flags().start()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    host_flags().start()
    assert joined == []


def test_flags_say_who_joins(joined):
    host_flags("--coordinator=[::1]:99", "--processes=3", "--process=2").start()
    assert joined == [("[::1]:99", 3, 2)]


def test_tasks_of_slurm_find_each_other(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a[1-2]")
    host_flags().start()
    assert joined == [(None, None, None)]


def test_a_tpu_machine_joins_its_pod_if_there_is_one(joined, monkeypatch):
    monkeypatch.setattr(hosts, "_on_tpu_machine", lambda: True)
    host_flags().start()
    assert joined == [(None, None, None)]

    def no_pod(*args):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", no_pod)
    host_flags().start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "belong together"),
        (["--coordinator=here:1", "--process=0"], "belong together"),
        (["--coordinator=here", "--processes=2", "--process=0"], "must be host:port"),
        (["--coordinator=:1", "--processes=2", "--process=0"], "must be host:port"),
        (["--coordinator=here:99999", "--processes=2", "--process=0"], "must be host:port"),
        (["--coordinator=here:1", "--processes=2", "--process=2"], "must be 0 to 1"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(joined, arguments, message):
    with pytest.raises(ValueError, match=message):
        host_flags(*arguments).start()
    assert joined == []


def test_unreachable_processes_get_a_sentence(joined, monkeypatch):
    def unreachable(*args):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", unreachable)
    with pytest.raises(OSError, match="did not find each other: DEADLINE"):
        host_flags("--coordinator=here:1", "--processes=2", "--process=0").start()


def test_devices_of_one_process(monkeypatch):
    assert host_flags().devices() is None
    assert host_flags("--devices=3").devices() == hosts.jax.local_devices()[:3]
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    assert host_flags().devices() is None
    with pytest.raises(ValueError, match="leave --devices out"):
        host_flags("--devices=3").devices()


def check_run(outcomes: list[Outcome], workdir) -> None:
    """A run of two processes and one epoch, of which the first alone has printed and written."""
    for code, _, errors in outcomes:
        assert code == 0, errors
    assert ["accuracy" in outcome.output for outcome in outcomes] == [True, False]
    assert json.loads((workdir / "run.json").read_text())["sessions"][-1]["devices"] == 2
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_processes_train_and_fine_tune_as_one(tmp_path):
    """The binaries on a loopback port, and as tasks of Slurm, give the same run."""
    port = free_port()
    told = [
        start(
            "experiments.train",
            *RUN,
            f"--workdir={tmp_path / 'told'}",
            f"--coordinator=127.0.0.1:{port}",
            "--processes=2",
            f"--process={process}",
        )
        for process in (0, 1)
    ]
    check_run([finish(process) for process in told], tmp_path / "told")
    # Where Slurm's tasks meet follows from the number of the job.
    slurm = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    ports = range(2**16 - 2**12, 2**16)
    slurm["SLURM_JOB_ID"] = str(free_port(ports) - ports.start)
    found = [
        start(
            "experiments.finetune",
            f"--workdir={tmp_path / 'told'}",
            "--epochs=1",
            "--blocks=1",
            "--learning_rate=0.0001",
            **slurm,
            SLURM_PROCID=process,
            SLURM_LOCALID=process,
        )
        for process in ("0", "1")
    ]
    check_run([finish(process) for process in found], tmp_path / "told" / "finetuned")
    # At such a learning rate the parameters stay nearly what they were.
    trained, tuned = (
        jax.tree.leaves(load(folder / "network").params)
        for folder in (tmp_path / "told", tmp_path / "told" / "finetuned")
    )
    changes = [np.abs(new - old).max() for old, new in zip(trained, tuned, strict=True)]
    assert 0 < max(changes) < 2e-3
