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


def in_grey(line):
    """What tells a line apart where there are no colours."""
    return line.get_linestyle(), line.get_marker()


def test_lines_differ_in_grey_and_for_the_colour_blind():
    styles = [plots.line_style(index) for index in range(32)]
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 32
    assert len({style["color"] for style in styles}) == len(plots.PALETTE) == 7
    assert all(color.startswith("#") for color in plots.PALETTE)
    assert len({(style["linestyle"], style["marker"]) for style in plots.SPLITS.values()}) == 3
    assert {style["color"] for style in plots.SPLITS.values()} <= set(plots.PALETTE)


def draw(name):
    removal = {"kept": [1, 0], "accuracy": [0.9, 0.8], "accuracy_recalibrated": [0.9, 0.8]}
    orders = [
        {"criterion": criterion, "order": order, **removal}
        for criterion in ("taylor", "tail")
        for order in ("once", "greedy")
    ]
    methods = [
        {
            "method": f"method {index}",
            "base": "sgd",
            "task": "wine",
            "learning_rates": [0.1, 1.0],
            "factors": [0.1, 1.0],
            "accuracy": [[90.0], [80.0]],
            "steps": [1, 2],
            "seconds": [0.5, 1.0],
            "losses": [2.0, 1.0],
            "horizons": [1.0, 1.5],
            "accuracies": [80.0, 90.0],
            "evaluations": [13.0, 19.0],
        }
        for index in range(12)
    ]
    arguments = {
        "epochs": ([row(1), row(2)],),
        "depth": (MEASURED, 1),
        "depth_comparison": (MEASURED, MEASURED),
        "convergence": (MEASURED, 1),
        "learning_rates": (methods,),
        "losses": (methods, ("steps", "seconds", "evaluations")),
        "horizons": (methods,),
        "tasks": (methods,),
        "removals": (orders,),
    }
    return getattr(plots, f"draw_{name}")(*arguments[name])


DRAWN = [name.removeprefix("draw_") for name in dir(plots) if name.startswith("draw_")]


@pytest.mark.parametrize("name", DRAWN)
def test_panels_have_titles_and_lines_that_can_be_told_apart_in_grey(name):
    for axis in draw(name).axes:
        assert axis.get_title() and axis.get_xlabel() and axis.get_ylabel()
        assert len({in_grey(line) for line in axis.lines}) == len(axis.lines)
        assert {line.get_color() for line in axis.lines} <= set(plots.PALETTE)


def test_the_comparison_has_both_networks_in_one_panel():
    without = {"test": {"accuracies": [0.1, 0.1, 0.8]}}
    (axis,) = plots.draw_depth_comparison(MEASURED, without).axes
    shown = lines(axis)
    np.testing.assert_allclose(shown["with stage cost"].get_ydata(), [20, 50, 70])
    np.testing.assert_allclose(shown["without stage cost"].get_ydata(), [10, 10, 80])
    np.testing.assert_allclose(shown["without stage cost"].get_xdata(), [0, 1, 2])
    assert [text.get_text() for text in axis.get_legend().texts] == list(shown)


def test_ticks_can_be_read():
    figure = plots.draw_depth(MEASURED)
    figure.canvas.draw()
    loss, _ = figure.axes
    across = [label.get_text() for label in loss.get_xticklabels()]
    assert "1" in across and not any("." in text for text in across)
    up = [label.get_text() for label in loss.get_yticklabels()]
    assert {"0.5", "1", "2"} <= set(up)


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
    for damaged in ("null", "[]", '{"train": {}}', '{"test": {"losses": 3}}'):
        (tmp_path / records.TRAJECTORY).write_text(damaged)
        with pytest.raises(ValueError, match=r"trajectory\.json is damaged"):
            plots.save_figures(tmp_path)


def test_a_network_without_blocks_has_no_figures_over_depth(tmp_path):
    one_output = {
        "test": {"losses": [0.1], "accuracies": [0.9], "output_residuals": []},
        "parameter_norms": [],
    }
    (tmp_path / records.METRICS).write_text(json.dumps(row(1)) + "\n")
    (tmp_path / records.TRAJECTORY).write_text(json.dumps(one_output))
    assert [path.name for path in plots.save_figures(tmp_path)] == ["epochs.png"]


def test_learning_rates_has_a_panel_for_each_base():
    rows = [
        {"base": base, "method": method, "learning_rates": [0.1, 1.0], "accuracy": accuracy}
        for base in ("sgd", "ekfac")
        for method, accuracy in (("off", [[90.0, 92.0], [20.0, 30.0]]), ("on", [[91.0], [92.0]]))
    ]
    first, second = plots.draw_learning_rates(rows).axes
    assert "sgd" in first.get_title() and "ekfac" in second.get_title()
    off, on = first.lines
    np.testing.assert_array_equal(off.get_ydata(), [91.0, 25.0])
    np.testing.assert_array_equal(on.get_ydata(), [91.0, 92.0])
    assert off.get_color() != on.get_color()


def test_a_legend_of_many_methods_is_not_cut_off():
    rows = [
        {"task": "one", "method": f"method {index}", "factors": [1.0], "accuracy": [[90.0]]}
        for index in range(24)
    ]
    figure = plots.draw_tasks(rows)
    figure.canvas.draw()
    box, (legend,) = figure.bbox, figure.legends
    extent = legend.get_window_extent()
    assert box.y0 <= extent.y0 and extent.y1 <= box.y1 and extent.x1 <= box.x1


def test_tasks_have_panels_in_lines_and_single_rates_are_level():
    rows = [
        {"task": task, "method": method, "factors": factors, "accuracy": accuracy}
        for task in ("wine", "digits", "mnist", "cifar10")
        for method, factors, accuracy in (
            ("SGD", [0.1, 1.0, 10.0], [[80.0, 90.0], [92.0, 94.0], [10.0, 12.0]]),
            ("MoMo", [1.0], [[91.0, 93.0]]),
        )
    ]
    figure = plots.draw_tasks(rows)
    assert [axis.get_title() for axis in figure.axes] == ["wine", "digits", "mnist", "cifar10"]
    first, *_, last = figure.axes
    assert last.get_subplotspec().rowspan.start == 1 > first.get_subplotspec().rowspan.start
    tuned, untuned = last.lines
    np.testing.assert_array_equal(tuned.get_ydata(), [85.0, 93.0, 11.0])
    np.testing.assert_array_equal(tuned.get_xdata(), [0.1, 1.0, 10.0])
    assert set(untuned.get_ydata()) == {92.0} and len(untuned.get_markevery()) == 1
    assert tuned.get_color() != untuned.get_color() and tuned.get_marker() != untuned.get_marker()
    shaded, spread = last.collections
    assert shaded.get_paths()[0].get_extents().ymin == 10.0
    assert spread.get_segments()[0][:, 1].tolist() == [91.0, 93.0]


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
