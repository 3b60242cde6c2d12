"""Writing the paper's tables and figures, each with the measured values behind it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from experiments import paper_figures, paper_tables
from experiments.paper_plan import Artefact


def write(
    artefact: Artefact,
    dataset: str,
    scale_name: str,
    seeds: Sequence[int],
    folder: Path,
    output: Path,
) -> list[Path]:
    """Make one artefact from finished runs.

    Args:
      artefact, dataset, scale_name, seeds: which.
      folder: where the runs lie.
      output: folder to write to.

    Returns:
      The files: <artefact>.md and .csv, or .png and .pdf.
    """
    stem = output / artefact
    if artefact.startswith("figure"):
        figure = paper_figures.draw(artefact, dataset, scale_name, seeds, folder)
        paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
        for path in paths:
            # Without a date in it, the same runs make the same file.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(path, dpi=150, metadata=metadata)
        return paths
    table = paper_tables.make(artefact, dataset, scale_name, seeds, folder)
    paths = [stem.with_suffix(suffix) for suffix in (".md", ".csv")]
    paths[0].write_text(paper_tables.markdown(table))
    with paths[1].open("w", newline="") as file:
        csv.writer(file).writerows([table.columns, *table.rows])
    return paths
