"""The tables and the figure of the study, drawn from its rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ocresnet.plots.style import line_style, logarithmic, panels

from ..common.reports import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

SCRATCH, SEARCH = "from scratch", "search"
"""The methods that the others are compared with."""


def mean_and_deviation(values: Sequence[float], form: str = ".2f") -> str:
    """The mean, and of several values their sample deviation."""
    text = f"{np.mean(values):{form}}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.2f}"


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Every method but networks from scratch, with its rows over the seeds.

    Of a method that was run with several learning rates, those of the rate that is best on the
    validation part, in the mean over seeds.
    """
    named: dict[str, dict[Any, list[Row]]] = {}
    for row in rows:
        if row["method"] in (SCRATCH, SEARCH):
            continue
        to = row.get("blocks")
        name = row["method"] if to is None else row["method"].replace("a depth", str(to))
        named.setdefault(name, {}).setdefault(row.get("rate"), []).append(row)
    for name, by_rate in named.items():
        yield name, max(by_rate.values(), key=_validation)


def _validation(rows: Sequence[Row]) -> float:
    return float(np.mean([row["validation"] for row in rows]))


def tables(rows: Sequence[Row], tolerance: float) -> str:
    """Every method against networks of its size from scratch, those networks, and the search."""
    parts = [_methods(rows), _from_scratch(rows)]
    if any(row["method"] == SEARCH for row in rows):
        parts.append(_search(rows, tolerance))
    return "\n\n".join(parts)


def _methods(rows: Sequence[Row]) -> str:
    scratch = {
        (row["seed"], row["blocks"]): row["test"] for row in rows if row["method"] == SCRATCH
    }
    cells = []
    for name, found in groups(rows):
        rivals = [
            row["test"] - scratch[row["seed"], row["kept"]]
            for row in found
            if (row["seed"], row["kept"]) in scratch
        ]
        rate = found[0].get("rate")
        cells.append(
            [
                name,
                ", ".join(str(row["kept"]) for row in found),
                None if rate is None else f"{rate:g}",
                mean_and_deviation([row["test"] for row in found]),
                mean_and_deviation(rivals, "+.2f") if rivals else None,
                f"{np.mean([row['multiply_adds'] for row in found]):.3g}",
                f"{np.mean([row['price'] for row in found]):.3g}",
                f"{np.mean([row['block_epochs'] for row in found]):.0f}",
            ]
        )
    return markdown_table(
        [
            "method",
            "blocks kept",
            "rate",
            "test accuracy (%)",
            "less that from scratch",
            "multiply-adds",
            "of all training",
            "blocks x epochs",
        ],
        cells,
    )


def _from_scratch(rows: Sequence[Row]) -> str:
    """The networks from scratch, each for the whole budget."""
    by_depth: dict[int, list[Row]] = {}
    for row in rows:
        if row["method"] == SCRATCH:
            by_depth.setdefault(row["blocks"], []).append(row)
    return markdown_table(
        ["from scratch for the whole budget: blocks", "seeds", "test accuracy (%)"],
        [
            [depth, len(found), mean_and_deviation([row["test"] for row in found])]
            for depth, found in sorted(by_depth.items())
        ],
        left=0,
    )


def _search(rows: Sequence[Row], tolerance: float) -> str:
    """The search over depths: what it finds on the validation part, and its whole price."""
    by_depth: dict[int, list[Row]] = {}
    for row in rows:
        if row["method"] == SEARCH:
            by_depth.setdefault(row["blocks"], []).append(row)
    accuracies = {depth: _validation(found) for depth, found in by_depth.items()}
    near = max(accuracies.values()) - tolerance - 1e-9
    chosen = min(depth for depth, accuracy in accuracies.items() if accuracy >= near)
    price = sum(found[0]["share_of_budget"] for found in by_depth.values())
    table = markdown_table(
        ["search: blocks", "seeds", "validation accuracy (%)", "test accuracy (%)"],
        [
            [
                depth,
                len(found),
                *(mean_and_deviation([row[part] for row in found]) for part in PARTS),
            ]
            for depth, found in sorted(by_depth.items())
        ],
        left=0,
    )
    return (
        f"{table}\n\nThe search chooses {chosen} blocks (the fewest within {tolerance:g} points of "
        f"the best on the validation part), for {price:.1f} budgets."
    )


PARTS = ("validation", "test")
TICKS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
"""Of the figure, in a decade."""
LEAST = 0.01
"""Percent that a smaller error is drawn at."""


def draw(rows: Sequence[Row]) -> "Figure":
    """Test error over the multiply-adds of the network that comes out, and over those of all the
    training that led to it.

    The error is 100 less the accuracy, on a logarithmic scale, as methods differ by tenths of a
    point and by tens. A marker is the mean over seeds, its bar goes from the best to the worst.
    Networks from scratch are a line over their depths; in the right panel the search is one point
    for all its trainings.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    figure, (size, price) = panels(2)
    baselines = [
        ("from scratch, the whole budget", [row for row in rows if row["method"] == SCRATCH]),
        ("from scratch, search", [row for row in rows if row["method"] == SEARCH]),
    ]
    index = 0
    for name, found in baselines:
        if not found:
            continue
        by_depth = [
            [row for row in found if row["blocks"] == depth]
            for depth in sorted({row["blocks"] for row in found})
        ]
        style = line_style(index)
        _points(size, "multiply_adds", by_depth, style, name)
        if found[0]["method"] == SEARCH:
            total = sum(of_depth[0]["price"] for of_depth in by_depth)
            best = max(by_depth, key=_validation)
            _points(price, total, [best], style, name)
        else:
            _points(price, "price", by_depth, {**style, "linestyle": "none"}, name)
        index += 1
    for name, found in groups(rows):
        style = {**line_style(index), "linestyle": "none"}
        _points(size, "multiply_adds", [found], style, name)
        _points(price, "price", [found], style, name)
        index += 1
    size.set(title="(a) The network that comes out", xlabel="multiply-adds for one image")
    price.set(title="(b) All the training that led to it", xlabel="multiply-adds")
    price.set_xlim(0, 1.1 * price.dataLim.x1)  # all but the search have one price
    for axis in (size, price):
        axis.set_ylabel("test error (%)")
    logarithmic((size, price), TICKS)
    handles, labels = size.get_legend_handles_labels()
    figure.set_figwidth(figure.get_figwidth() + 3.6)
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    return figure


def _points(
    axis: Any, x: str | float, found: Sequence[Sequence[Row]], style: dict[str, Any], name: str
) -> None:
    """Mean errors over seeds with bars from the best to the worst."""
    at = [np.mean([row[x] for row in rows]) if isinstance(x, str) else x for rows in found]
    errors = [[max(100 - row["test"], LEAST) for row in rows] for rows in found]
    mean = np.array([np.mean(values) for values in errors])
    low, high = (np.array([of(values) for values in errors]) for of in (min, max))
    # The mean of equal numbers may be rounded beyond them.
    bars = np.maximum((mean - low, high - mean), 0)
    axis.errorbar(at, mean, yerr=bars, capsize=2, label=name, **style)
