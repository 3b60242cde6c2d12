"""What the binaries show: the table of a network over its depth, and its figures."""

import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from ocresnet.plots.runs import save_figures
from ocresnet.stage_cost.trajectory import Trajectory

from .command_line import sentence


def print_depth_table(
    trajectories: Mapping[str, Trajectory], recommended: int | None = None
) -> None:
    """Accuracy and loss of every exit on every split; the recommended depth is marked.

    Of a network without exits it is one line, and names no depth; of one that tells no classes
    apart it has no accuracies.
    """
    depth = len(next(iter(trajectories.values())).losses)
    classes = all(len(measured.accuracies) for measured in trajectories.values())
    over_depth = " after each number of residual blocks" if depth > 1 else ""
    table = Table(title=f"{'accuracy (%) and ' if classes else ''}loss{over_depth}")
    if depth > 1:
        table.add_column("blocks", justify="right")
    for split in trajectories:
        if classes:
            table.add_column(f"{split} accuracy", justify="right")
        table.add_column(f"{split} loss", justify="right")
    for k in range(depth):
        cells = [f"{k} <- keep" if k == recommended else f"{k}"] if depth > 1 else []
        for measured in trajectories.values():
            if classes:
                cells.append(f"{100 * measured.accuracies[k]:.2f}")
            cells.append(f"{measured.losses[k]:.4f}")
        table.add_row(*cells, style="bold green" if k == recommended else None)
    console = Console()
    # Outside a terminal a table of this width would be cut at 80 columns.
    console = console if console.is_terminal else Console(width=120)
    console.print(table)


def draw_figures(workdir: str | os.PathLike) -> None:
    """Draw the figures, or say what is missing to do so."""
    try:
        for path in save_figures(workdir):
            print(f"wrote {path}")
    except (ImportError, FileNotFoundError) as error:
        print(f"no figures: {sentence(error)}", file=sys.stderr)
