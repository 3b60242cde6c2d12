"""Every figure has panels with titles, and lines that differ in grey and for the colour-blind."""

import pytest
from drawn import MEASURED, row

from ocresnet.plots import runs, studies, style

DRAWN = {
    name.removeprefix("draw_"): getattr(module, name)
    for module in (runs, studies)
    for name in dir(module)
    if name.startswith("draw_") and name != "draw_line"
}


def in_grey(line):
    """What tells a line apart where there are no colours."""
    return line.get_linestyle(), line.get_marker()


def test_lines_differ_in_grey_and_for_the_colour_blind():
    styles = [style.line_style(index) for index in range(32)]
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 32
    assert len({style["color"] for style in styles}) == len(style.PALETTE) == 7
    assert all(color.startswith("#") for color in style.PALETTE)
    assert len({(style["linestyle"], style["marker"]) for style in runs.SPLITS.values()}) == 3
    assert {style["color"] for style in runs.SPLITS.values()} <= set(style.PALETTE)


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
    return DRAWN[name](*arguments[name])


@pytest.mark.parametrize("name", DRAWN)
def test_panels_have_titles_and_lines_that_can_be_told_apart_in_grey(name):
    for axis in draw(name).axes:
        assert axis.get_title() and axis.get_xlabel() and axis.get_ylabel()
        assert len({in_grey(line) for line in axis.lines}) == len(axis.lines)
        assert {line.get_color() for line in axis.lines} <= set(style.PALETTE)


def test_ticks_can_be_read():
    figure = runs.draw_depth(MEASURED)
    figure.canvas.draw()
    loss, _ = figure.axes
    across = [label.get_text() for label in loss.get_xticklabels()]
    assert "1" in across and not any("." in text for text in across)
    up = [label.get_text() for label in loss.get_yticklabels()]
    assert {"0.5", "1", "2"} <= set(up)
