"""Writing the paper's tables and figures, each with the measured values behind it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..common import reports
from . import figures, tables
from .plan import Artefact
from .runs import Measurements


def write(
    artefact: Artefact,
    dataset: str,
    scale_name: str,
    seeds: Sequence[int],
    found: Measurements,
    output: Path,
) -> list[Path]:
    """Make one artefact from finished runs.

    Args:
      artefact, dataset, scale_name, seeds: which.
      found: what was measured on the finished runs.
      output: folder to write to.

    Returns:
      The files: <artefact>.json with what it shows, and .md and .csv, or .png and .pdf.
    """
    stem = output / artefact
    if artefact.startswith("figure"):
        curves = figures.curves(artefact, dataset, scale_name, seeds, found)
        shown = {curve.label: curve.values for curve in curves}
        figure = figures.draw(artefact, curves)
        paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf", ".json")]
        for path in paths[:2]:
            # Without a date in it, the same runs make the same file.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(path, dpi=150, metadata=metadata)
        reports.write(paths[2], {"curves": shown})
        return paths
    table = tables.make(artefact, dataset, scale_name, seeds, found)
    paths = [stem.with_suffix(suffix) for suffix in (".md", ".csv", ".json")]
    paths[0].write_text(tables.markdown(table) + "\n")
    with paths[1].open("w", newline="") as file:
        csv.writer(file).writerows([table.columns, *table.rows])
    reports.write(paths[2], table._asdict())
    return paths
