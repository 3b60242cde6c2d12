"""How figures look: panels, lines, axes and legends.

Lines are told apart by colour, by style and by marker, so that figures can be read in grey and by
the colour-blind. Training data is dashed, test data solid, as in the stage-cost paper.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind can tell apart (Okabe and Ito 2008), without their pale yellow."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

INCHES_A_LABEL = 0.21
"""Height of a line in a legend beside the panels."""

MARKERS_A_LINE = 12
"""About how many points of a line are marked."""


def line_style(index: int) -> dict[str, Any]:
    """The style of line `index` of a figure: no two of the first 32 have the same dashes and
    marker, and neighbours differ in the colour too."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[(index + index // len(MARKERS)) % len(LINES)],
    }


def panels(count: int, columns: int | None = None) -> tuple["Figure", Any]:
    """A figure with `count` panels side by side, and their axes.

    Args:
      count: how many.
      columns: so many in a line, those of the next below; None: all in one.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is needed to draw figures: pip install 'ocresnet[plots]'."
        ) from error
    columns = columns or count
    lines = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for unused in axes[count:]:
        unused.remove()
    axes = axes[:count]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def draw_line(axis: "Axes", x: Sequence[float], y: Sequence[float], **style: Any) -> Any:
    """A line with some of its points marked."""
    every = max(len(x) // MARKERS_A_LINE, 1)
    (line,) = axis.plot(x, y, markevery=every, markersize=5, **style)
    return line


def whole_numbers(axes: Sequence["Axes"], label: str) -> None:
    """What is counted along the horizontal axes, with ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def logarithmic(axes: Sequence["Axes"], ticks: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Logarithmic vertical axes, with these ticks in a decade written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in axes:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=ticks))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: "Figure", axis: "Axes") -> None:
    """One legend for the whole figure, below its panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1))


def legend_beside(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for the whole figure, at its right; long enough to show dashes and marker. The
    figure is made as high as it is."""
    figure.set_figwidth(figure.get_figwidth() + 3.0)
    figure.set_figheight(max(figure.get_figheight(), INCHES_A_LABEL * (len(labels) + 1)))
    figure.legend(handles, labels, loc="outside right center", handlelength=3.5)
