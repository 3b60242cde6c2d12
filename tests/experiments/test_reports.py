"""Tables, records with their origin, and rows that are not measured twice."""

import json
import subprocess

import numpy as np
import pytest

from experiments.common import reports
from experiments.common.reports import Study, markdown_table


def test_a_table_has_text_on_the_left_and_numbers_on_the_right():
    table = markdown_table(["name", "kind", "value"], [["a", "b", 1.5], ["c", None, 2]], left=2)
    assert table == "| name | kind | value |\n|---|---|---:|\n| a | b | 1.5 |\n| c |  | 2 |"


def test_provenance_names_command_commit_versions_and_device(monkeypatch):
    reports.provenance.cache_clear()
    monkeypatch.setattr(
        reports.sys, "orig_argv", ["/bin/python3", "-m", "experiments.paper", "--output=a b"]
    )
    made = reports.provenance()
    assert made["command"] == "python -m experiments.paper '--output=a b'"
    assert {"python", "jax", "numpy"} <= made["versions"].keys()
    assert made["devices"] == 8 and made["device"] == "cpu" and made["cores"] >= 1
    command = ["git", "-C", str(reports.ROOT), "rev-parse", "HEAD"]
    if (reports.ROOT / ".git").exists():
        head = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        assert made["commit"].removesuffix("-dirty") == head
    reports.provenance.cache_clear()
    monkeypatch.setattr(reports.sys, "orig_argv", ["python3", "/venv/bin/ocresnet-demo", "-x"])
    assert reports.provenance()["command"] == "ocresnet-demo -x"
    reports.provenance.cache_clear()


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    reports.provenance.cache_clear()
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    assert reports.provenance()["commit"] is None
    reports.provenance.cache_clear()


def test_a_row_is_on_disk_at_once_and_not_measured_again(tmp_path):
    output = tmp_path / "results" / "jax_0.10"
    study = Study(output, {"epochs": 2})
    study.row({"method": "a"}, lambda: {"accuracy": np.array([1.0, 2.0])})
    with pytest.raises(KeyboardInterrupt):
        study.row({"method": "b"}, interrupt)
    # Another process: it finds the first row, and measures the second.
    study = Study(output, {"epochs": 2})
    assert study.row({"method": "a"}, interrupt) == {"method": "a", "accuracy": [1.0, 2.0]}
    study.row({"method": "b"}, lambda: {"accuracy": [3.0]})
    study.write("| table |")
    assert (tmp_path / "results" / "jax_0.10.md").read_text() == "| table |\n"
    record = json.loads((tmp_path / "results" / "jax_0.10.json").read_text())
    assert record["settings"] == {"epochs": 2} and record["rows"] == study.rows
    assert [row["method"] for row in record["rows"]] == ["a", "b"]
    assert record["made"] == [reports.provenance()]


def interrupt():
    raise KeyboardInterrupt


def test_rows_of_other_settings_take_no_part_and_stay(tmp_path):
    output = tmp_path / "out"
    Study(output, {"epochs": 1}).row({"method": "a"}, lambda: {"accuracy": 1})
    other = Study(output, {"epochs": 2})
    assert other.rows == []
    other.row({"method": "a"}, lambda: {"accuracy": 2})
    assert Study(output, {"epochs": 1}).rows == [{"method": "a", "accuracy": 1}]
    assert Study(output, {"epochs": 2}).rows == [{"method": "a", "accuracy": 2}]


def test_a_line_that_was_cut_off_is_measured_again_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "out.jsonl"
    Study(tmp_path / "out", {}).row({"method": "a"}, lambda: {"accuracy": 1})
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    study = Study(tmp_path / "out", {})
    assert path.read_text() == whole
    study.row({"method": "b"}, lambda: {"accuracy": 2})
    assert [row["method"] for row in Study(tmp_path / "out", {}).rows] == ["a", "b"]
    for damaged in ("[1]\n", "null\n", "{}\n", "{\n"):
        path.write_text(whole + damaged + whole)
        with pytest.raises(ValueError, match="out.jsonl is damaged in line 2"):
            Study(tmp_path / "out", {})


def test_without_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(None, {})
    assert study.row({"method": "a"}, lambda: {"accuracy": 1})["accuracy"] == 1
    study.write("text")
    assert study.rows and not list(tmp_path.iterdir()) and not study.writes


def test_of_several_processes_only_one_writes(tmp_path):
    study = Study(tmp_path / "out", {}, writes=False)
    study.row({"method": "a"}, lambda: {"accuracy": 1})
    study.write("text")
    assert study.rows and not list(tmp_path.iterdir())
