"""Figures of studies show their rows: the right numbers, with legends that are not cut off."""

import numpy as np
from drawn import lines

from ocresnet.plots import studies


def test_learning_rates_has_a_panel_for_each_base():
    rows = [
        {"base": base, "method": method, "learning_rates": [0.1, 1.0], "accuracy": accuracy}
        for base in ("sgd", "ekfac")
        for method, accuracy in (("off", [[90.0, 92.0], [20.0, 30.0]]), ("on", [[91.0], [92.0]]))
    ]
    first, second = studies.draw_learning_rates(rows).axes
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
    figure = studies.draw_tasks(rows)
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
    figure = studies.draw_tasks(rows)
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
    steps, seconds = studies.draw_losses(rows).axes
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
    trained, anew = studies.draw_removals(rows).axes
    shown = lines(trained)
    np.testing.assert_allclose(shown["tail (once)"].get_ydata(), [90, 60, 10])
    np.testing.assert_allclose(lines(anew)["taylor (greedy)"].get_ydata(), [95, 75, 10])
    np.testing.assert_allclose(shown["tail (once)"].get_xdata(), [2, 1, 0])
    once, greedy, tail = (shown[f"{row['criterion']} ({row['order']})"] for row in rows)
    assert once.get_color() == greedy.get_color() != tail.get_color()
    assert (once.get_linestyle(), greedy.get_linestyle()) == ("--", "-")
