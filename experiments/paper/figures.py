"""Figures 2 to 5 of the stage-cost paper from finished runs.

Training data is dashed, test data solid. Networks trained without stage cost are thin lines from
dark (shallow) to bright (deep), each ending at its own depth; those trained with it are thick.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ocresnet import plots

from .plan import SCALES, Artefact, architectures, run_name
from .runs import measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """One network over its depth: means over the seeds.

    Attributes:
      label: what it is called in the legend.
      style: of its lines.
      values: as `runs.measure` gives them.
    """

    label: str
    style: dict[str, Any]
    values: Mapping[str, Any]


def curves(
    artefact: Artefact, dataset: str, scale_name: str, seeds: Sequence[int], folder: Path
) -> list[Curve]:
    """The networks that the figure called `artefact` shows."""
    import matplotlib

    (architecture,) = architectures(artefact, dataset)
    scale = SCALES[scale_name]
    colors = matplotlib.colormaps["viridis"]

    def mean_of(blocks: int, exits: Any) -> Any:
        found = [
            measured(folder, run_name(dataset, architecture, blocks, exits, seed)) for seed in seeds
        ]
        return _mean(found)

    shallow = [
        Curve(
            f"SubResNet-{blocks}" if blocks < scale.blocks else f"ResNet-{blocks} standard",
            {"color": colors(0.95 * blocks / scale.blocks), "linewidth": 1.0, "marker": "."},
            mean_of(blocks, "none"),
        )
        for blocks in scale.depths
    ]
    return [
        *shallow,
        Curve(
            f"ResNet-{scale.blocks} stage cost, shared",
            {"color": "C3", "linewidth": 2.2},
            mean_of(scale.blocks, "shared"),
        ),
        Curve(
            f"ResNet-{scale.blocks} stage cost, separate",
            {"color": "C1", "linewidth": 2.2},
            mean_of(scale.blocks, "separate"),
        ),
    ]


def draw(artefact: Artefact, networks: Sequence[Curve]) -> "Figure":
    """The figure called `artefact`."""
    figure, (left, right) = plots.panels(2)
    if artefact in ("figure2", "figure3"):
        for curve in networks:
            for part, line in (("test", "-"), ("train", "--")):
                over_depth = curve.values[part]
                label = curve.label if part == "test" else None
                if part == "test":
                    accuracies = 100 * over_depth["accuracies"]
                    left.plot(accuracies, line, label=label, **_markers(curve, accuracies))
                right.plot(over_depth["losses"], line, **_markers(curve, over_depth["losses"]))
        left.set(xlabel="output after k residual blocks", ylabel="test accuracy (%)")
        right.set(xlabel="output after k residual blocks", ylabel="loss", yscale="log")
    else:
        for curve in networks:
            residuals = curve.values["test"]["output_residuals"]
            norms = curve.values["parameter_norms"]
            left.plot(residuals, label=curve.label, **_markers(curve, residuals))
            right.plot(norms, **_markers(curve, norms))
        left.set(
            xlabel="residual block k",
            ylabel=r"output residual $\|\hat y_{k+1} - \hat y_k\|$",
            yscale="log",
        )
        right.set(xlabel="residual block k", ylabel=r"parameter norm $\|w_{\mathcal{F},k}\|$")
    figure.set_figwidth(figure.get_figwidth() + 2.6)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    return figure


def _markers(curve: Curve, values: np.ndarray) -> dict[str, Any]:
    """A SubResNet's own output is marked."""
    if "marker" not in curve.style or len(values) == 0:
        return curve.style
    return {**curve.style, "markevery": [len(values) - 1]}


def _mean(trees: Sequence[Any]) -> Any:
    """Means, leaf by leaf, of dictionaries of lists."""
    if isinstance(trees[0], Mapping):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return np.mean(np.array(trees), axis=0)
