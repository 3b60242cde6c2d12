"""A network as a table: its segments, the states they see, their parameters and their cost."""

from dataclasses import asdict
from typing import Any

import jax

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.counts import multiply_adds, parameter_count, segment_sizes

HEADINGS = ("segment", "transitions", "state", "parameters", "multiply-adds")


def summary(architecture: Architecture) -> str:
    """The architecture's fields, then one line a segment and the totals.

    Multiply-adds are for one image: of all transitions of the segment, without its exits.
    """
    fields = ", ".join(f"{name}={value!r}" for name, value in asdict(architecture).items())
    params = jax.eval_shape(architecture.init, jax.random.key(0)).params
    rows = [HEADINGS]
    for size in segment_sizes(architecture):
        transitions = size.segment.transitions
        rows.append(
            (
                size.segment.name,
                f"{transitions}",
                _shapes(size.state),
                f"{size.parameters:,}",
                f"{transitions * size.transition:,}",
            )
        )
    shared = parameter_count(params) - sum(size.parameters for size in segment_sizes(architecture))
    if shared:
        rows.append(("shared", "", "", f"{shared:,}", ""))
    total = f"{multiply_adds(architecture).total:,}"
    rows.append(("all", "", "", f"{parameter_count(params):,}", total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([f"{type(architecture).__name__}({fields})", *lines])


def _shapes(state: Any) -> str:
    """The shapes in a state, as in 8x8x16."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return ", ".join("x".join(map(str, shape)) or "1" for shape in leaves)
