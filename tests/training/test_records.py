"""Metrics, configuration and provenance on disk."""

import errno
import json
import os

import numpy as np
import pytest

from ocresnet.training import records


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_epochs_that_are_not_done_are_dropped(tmp_path):
    file = records.MetricsFile(tmp_path, [])
    for epoch in (1, 2, 3):
        file.append({"epoch": epoch, "losses": np.array([0.5, epoch])})
    path = tmp_path / records.METRICS
    with path.open("a") as stream:
        stream.write('{"epoch": 4, "los')  # killed while writing
    assert [row["epoch"] for row in records.read_metrics(tmp_path)] == [1, 2, 3]
    done = records.read_metrics(tmp_path)[:2]
    assert records.rows_of_epochs(tmp_path, 2, records.digest_of_rows(done)) == done
    records.MetricsFile(tmp_path, done).append({"epoch": 3})
    assert rows(path) == [
        {"epoch": 1, "losses": [0.5, 1.0]},
        {"epoch": 2, "losses": [0.5, 2.0]},
        {"epoch": 3},
    ]


@pytest.mark.parametrize(
    "line",
    [b'{"ep', b"null", b"[1]", b'{"epoch": "2"}', b'{"epoch": null}', b"\xff", b"[" * 100_000, b""],
)
def test_a_damaged_line_in_the_middle_is_an_error(tmp_path, line):
    (tmp_path / records.METRICS).write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 2: .*\.$"):
        records.read_metrics(tmp_path)


def test_a_changed_number_is_noticed(tmp_path):
    file = records.MetricsFile(tmp_path, [])
    rows = [{"epoch": 1, "loss": 0.25}, {"epoch": 2, "loss": 0.125}]
    for row in rows:
        file.append(row)
    path = tmp_path / records.METRICS
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: its content does not fit"):
        records.rows_of_epochs(tmp_path, 2, records.digest_of_rows(rows))


def test_a_full_disk_is_said_of_the_metrics(tmp_path, monkeypatch):
    file = records.MetricsFile(tmp_path, [])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left on device"):
        file.append({"epoch": 1})


@pytest.mark.parametrize("content", [b"[", b"\xff", b"[" * 100_000, b'{"training": 1}', b"null"])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    records.check_config(tmp_path, {"training": {"seed": 0}})
    (tmp_path / records.CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: |another configuration"):
        records.check_config(tmp_path, {"training": {"seed": 0}})


def test_a_changed_configuration_is_refused(tmp_path):
    records.check_config(tmp_path, {"training": {"seed": 0}})
    path = tmp_path / records.CONFIG
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="does not fit its checksum"):
        records.check_config(tmp_path, {"training": {"seed": 1}})


def test_another_configuration_is_refused_by_name(tmp_path):
    records.check_config(tmp_path, {"training": {"seed": 0, "milestones": (1, 2)}})
    records.check_config(tmp_path, {"training": {"seed": 0, "milestones": (1, 2)}})
    with pytest.raises(ValueError, match=r"training\.seed is 0 there and 1 here") as error:
        records.check_config(tmp_path, {"training": {"seed": 1, "milestones": (1, 2)}})
    assert "milestones" not in str(error.value)


def test_every_session_is_recorded(tmp_path):
    records.record_session(tmp_path, {"dataset": "digits"})
    records.record_session(tmp_path, {"dataset": "digits"})
    run = records.read_json(tmp_path / records.RUN)
    assert run["dataset"] == "digits" and len(run["sessions"]) == 2
    assert run["sessions"][0]["versions"]["jax"]


def test_a_damaged_record_of_sessions_is_an_error(tmp_path):
    for content in ("{}", "null", "[]", '{"sessions": 3}'):
        (tmp_path / records.RUN).write_text(content)
        with pytest.raises(ValueError, match="holds no list of sessions"):
            records.record_session(tmp_path, {})


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="workdir .* cannot be written"):
        records.prepare_workdir(tmp_path / "file" / "run")


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    row = {"epoch": 2, "objective": 0.5, "test": {"accuracies": [0.1, 0.75]}}
    with records.tensorboard(tmp_path) as write:
        write(row)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    found, position = {}, 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        event = Event.FromString(content[position + 12 : position + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        position += 16 + length
    assert found == {
        "epoch": (2, 2.0),
        "objective": (2, 0.5),
        "test/accuracies": (2, 0.75),
    }


def test_no_tensorboard_writes_nothing(tmp_path):
    with records.tensorboard(None) as write:
        write({"epoch": 1})
    assert list(tmp_path.iterdir()) == []
