"""Figures of a run show what was saved: the right numbers, in the styles of the paper."""

import json

import numpy as np
import pytest
from drawn import MEASURED, lines, row

from ocresnet.plots import runs
from ocresnet.training import records


def test_the_comparison_has_both_networks_in_one_panel():
    without = {"test": {"accuracies": [0.1, 0.1, 0.8]}}
    (axis,) = runs.draw_depth_comparison(MEASURED, without).axes
    shown = lines(axis)
    np.testing.assert_allclose(shown["with stage cost"].get_ydata(), [20, 50, 70])
    np.testing.assert_allclose(shown["without stage cost"].get_ydata(), [10, 10, 80])
    np.testing.assert_allclose(shown["without stage cost"].get_xdata(), [0, 1, 2])
    assert [text.get_text() for text in axis.get_legend().texts] == list(shown)


def test_epochs_shows_the_networks_own_output():
    loss, accuracy, rate = runs.draw_epochs([row(1), row(2)]).axes
    np.testing.assert_allclose(lines(loss)["test"].get_ydata(), [3.0, 2.5])
    np.testing.assert_allclose(lines(accuracy)["train"].get_ydata(), [90, 90])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.05])


@pytest.mark.parametrize("kept", [None, 1])
def test_depth_is_dashed_in_training_and_solid_in_test(kept):
    loss, accuracy = runs.draw_depth(MEASURED, kept).axes
    shown = lines(loss)
    assert shown["train"].get_linestyle() == "--" and shown["test"].get_linestyle() == "-"
    np.testing.assert_allclose(shown["test"].get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(shown["test"].get_ydata(), [2.0, 1.0, 2.5])
    np.testing.assert_allclose(lines(accuracy)["validation"].get_ydata(), [20, 50, 80])
    assert ("cut: 1 blocks kept" in shown) == (kept is not None)


def test_convergence_marks_the_cut_before_the_first_block_that_goes():
    residual, norm = runs.draw_convergence(MEASURED, 1).axes
    np.testing.assert_allclose(lines(residual)["test"].get_ydata(), [3.0, 3.0])
    np.testing.assert_allclose(norm.lines[0].get_ydata(), [5.0, 4.0])
    np.testing.assert_allclose(lines(norm)["cut: 1 blocks kept"].get_xdata(), [0.5, 0.5])


def test_files_are_drawn_from_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics"):
        runs.save_figures(tmp_path)
    (tmp_path / records.METRICS).write_text(json.dumps(row(1)) + "\n")
    assert [path.name for path in runs.save_figures(tmp_path)] == ["epochs.png"]
    (tmp_path / records.TRAJECTORY).write_text(json.dumps(MEASURED))
    (tmp_path / runs.PRUNING).write_text("{}")
    with pytest.raises(ValueError, match=r"pruning\.json is damaged"):
        runs.save_figures(tmp_path)
    (tmp_path / runs.PRUNING).unlink()
    assert len(runs.save_figures(tmp_path)) == 3
    for damaged in ("null", "[]", '{"train": {}}', '{"test": {"losses": 3}}'):
        (tmp_path / records.TRAJECTORY).write_text(damaged)
        with pytest.raises(ValueError, match=r"trajectory\.json is damaged"):
            runs.save_figures(tmp_path)


def test_a_network_without_blocks_has_no_figures_over_depth(tmp_path):
    one_output = {
        "test": {"losses": [0.1], "accuracies": [0.9], "output_residuals": []},
        "parameter_norms": [],
    }
    (tmp_path / records.METRICS).write_text(json.dumps(row(1)) + "\n")
    (tmp_path / records.TRAJECTORY).write_text(json.dumps(one_output))
    assert [path.name for path in runs.save_figures(tmp_path)] == ["epochs.png"]
