"""A network as a table: its segments, the states they see, their parameters and their cost."""

from dataclasses import asdict

import jax

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.counts import parameter_count, segment_sizes
from ocresnet.systems.system import PyTree

HEADINGS = ("segment", "transitions", "state", "parameters", "multiply-adds")


def summary(architecture: Architecture) -> str:
    """The architecture's fields, then one line a segment and the totals.

    Multiply-adds are for one image: of all transitions of the segment, without its exits.
    """
    fields = ", ".join(f"{name}={value!r}" for name, value in asdict(architecture).items())
    params = jax.eval_shape(architecture.init, jax.random.key(0)).params
    sizes = segment_sizes(architecture)
    rows = [HEADINGS]
    for size in sizes:
        transitions = size.segment.transitions
        cells = (f"{transitions}", _shapes(size.state), f"{size.parameters:,}")
        rows.append((size.segment.name, *cells, f"{transitions * size.transition:,}"))
    parameters = parameter_count(params)
    shared = parameters - sum(size.parameters for size in sizes)
    if shared:
        rows.append(("shared", "", "", f"{shared:,}", ""))
    cost = sum(size.segment.transitions * size.transition for size in sizes)
    rows.append(("all", "", "", f"{parameters:,}", f"{cost:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"{type(architecture).__name__}({fields})", *lines])


def _shapes(state: PyTree) -> str:
    """The shapes in a state without their batch axis, as in 8x8x16."""
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(state)]
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)
