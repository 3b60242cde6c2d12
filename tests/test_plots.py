"""Figures show what was saved: the right numbers, in the styles of the paper."""

import json

import numpy as np
import pytest

from ocresnet import plots
from ocresnet.training import records

SPLITS = ("train", "validation", "test")


def row(epoch):
    values = {
        split: {"losses": [3.0, position + 1 / epoch], "accuracies": [0.1, 0.9 - position / 10]}
        for position, split in enumerate(SPLITS)
    }
    return {"epoch": epoch, "learning_rate": 0.1 / epoch, **values}


MEASURED = {
    **{
        split: {
            "losses": [2.0, 1.0, 0.5 + position],
            "accuracies": [0.2, 0.5, 0.9 - position / 10],
            "output_residuals": [3.0, 1.0 + position],
        }
        for position, split in enumerate(SPLITS)
    },
    "parameter_norms": [5.0, 4.0],
}


def lines(axis):
    return {line.get_label(): line for line in axis.lines}


def test_epochs_shows_the_networks_own_output():
    loss, accuracy, rate = plots.draw_epochs([row(1), row(2)]).axes
    np.testing.assert_allclose(lines(loss)["test"].get_ydata(), [3.0, 2.5])
    np.testing.assert_allclose(lines(accuracy)["train"].get_ydata(), [90, 90])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.05])


@pytest.mark.parametrize("kept", [None, 1])
def test_depth_is_dashed_in_training_and_solid_in_test(kept):
    loss, accuracy = plots.draw_depth(MEASURED, kept).axes
    shown = lines(loss)
    assert shown["train"].get_linestyle() == "--" and shown["test"].get_linestyle() == "-"
    np.testing.assert_allclose(shown["test"].get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(shown["test"].get_ydata(), [2.0, 1.0, 2.5])
    np.testing.assert_allclose(lines(accuracy)["validation"].get_ydata(), [20, 50, 80])
    assert ("cut: 1 blocks kept" in shown) == (kept is not None)


def test_convergence_marks_the_cut_before_the_first_block_that_goes():
    residual, norm = plots.draw_convergence(MEASURED, 1).axes
    np.testing.assert_allclose(lines(residual)["test"].get_ydata(), [3.0, 3.0])
    np.testing.assert_allclose(norm.lines[0].get_ydata(), [5.0, 4.0])
    np.testing.assert_allclose(lines(norm)["cut: 1 blocks kept"].get_xdata(), [0.5, 0.5])


def test_files_are_drawn_from_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics"):
        plots.save_figures(tmp_path)
    (tmp_path / records.METRICS).write_text(json.dumps(row(1)) + "\n")
    assert [path.name for path in plots.save_figures(tmp_path)] == ["epochs.png"]
    (tmp_path / records.TRAJECTORY).write_text(json.dumps(MEASURED))
    (tmp_path / plots.PRUNING).write_text("{}")
    with pytest.raises(ValueError, match=r"pruning\.json is damaged"):
        plots.save_figures(tmp_path)
    (tmp_path / plots.PRUNING).unlink()
    assert len(plots.save_figures(tmp_path)) == 3


def test_learning_rates_has_a_panel_for_each_base():
    rows = [
        {"base": base, "method": method, "learning_rates": [0.1, 1.0], "accuracy": accuracy}
        for base in ("sgd", "ekfac")
        for method, accuracy in (("off", [[90.0, 92.0], [20.0, 30.0]]), ("on", [[91.0], [92.0]]))
    ]
    first, second = plots.draw_learning_rates(rows).axes
    assert "sgd" in first.get_xlabel() and "ekfac" in second.get_xlabel()
    off, on = first.lines
    np.testing.assert_array_equal(off.get_ydata(), [91.0, 25.0])
    np.testing.assert_array_equal(on.get_ydata(), [91.0, 92.0])
    assert off.get_color() != on.get_color()


def test_losses_are_over_steps_and_seconds():
    rows = [{"method": "SGD", "steps": [1, 2], "seconds": [0.5, 1.0], "losses": [2.0, 1.0]}]
    steps, seconds = plots.draw_losses(rows).axes
    np.testing.assert_array_equal(steps.lines[0].get_xdata(), [1, 2])
    np.testing.assert_array_equal(seconds.lines[0].get_xdata(), [0.5, 1.0])
    np.testing.assert_array_equal(seconds.lines[0].get_ydata(), [2.0, 1.0])


def test_removals_has_a_color_for_each_criterion_and_a_style_for_each_order():
    rows = [
        {
            "criterion": criterion,
            "order": order,
            "kept": [2, 1, 0],
            "accuracy": [0.9, 0.8 - shift, 0.1],
            "accuracy_recalibrated": [0.95, 0.85 - shift, 0.1],
        }
        for criterion, order, shift in [
            ("taylor", "once", 0),
            ("taylor", "greedy", 0.1),
            ("tail", "once", 0.2),
        ]
    ]
    trained, anew = plots.draw_removals(rows).axes
    shown = lines(trained)
    np.testing.assert_allclose(shown["tail (once)"].get_ydata(), [90, 60, 10])
    np.testing.assert_allclose(lines(anew)["taylor (greedy)"].get_ydata(), [95, 75, 10])
    np.testing.assert_allclose(shown["tail (once)"].get_xdata(), [2, 1, 0])
    once, greedy, tail = (shown[f"{row['criterion']} ({row['order']})"] for row in rows)
    assert once.get_color() == greedy.get_color() != tail.get_color()
    assert (once.get_linestyle(), greedy.get_linestyle()) == ("--", "-")
