"""Figures 2 to 5 of the stage-cost paper from finished runs.

Training data is dashed, test data solid. Networks trained without stage cost are thin lines from
dark (shallow) to bright (deep), each ending at its own depth; those trained with it are thick.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ocresnet.plots.style import panels

from .plan import SCALES, Artefact, architectures, run_name
from .runs import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OVER_BLOCKS = ("figure4", "figure5")
"""The figures with something of each block, which a network without blocks has not."""

TITLES = {
    **dict.fromkeys(("figure2", "figure3"), ("Accuracy", "Loss")),
    **dict.fromkeys(OVER_BLOCKS, ("Output residuals, test data", "Parameters")),
}
"""Of the two panels."""


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
    artefact: Artefact, dataset: str, scale_name: str, seeds: Sequence[int], found: Measurements
) -> list[Curve]:
    """The networks that the figure called `artefact` shows: those of Figures 4 and 5 have blocks to
    show something of."""
    import matplotlib

    (architecture,) = architectures(artefact, dataset)
    scale = SCALES[scale_name]
    colors = matplotlib.colormaps["viridis"]

    def mean_of(blocks: int, exits: Any) -> Any:
        names = [run_name(dataset, architecture, blocks, exits, seed) for seed in seeds]
        return _mean([found[name] for name in names])

    shallow = [
        Curve(
            f"SubResNet-{blocks}" if blocks < scale.blocks else f"ResNet-{blocks} standard",
            {"color": colors(0.95 * blocks / scale.blocks), "linewidth": 1.0, "marker": "."},
            mean_of(blocks, "none"),
        )
        for blocks in scale.depths
        if blocks > 0 or artefact not in OVER_BLOCKS
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
    figure, (left, right) = panels(2)
    if artefact not in OVER_BLOCKS:
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
        for part, line in (("test", "-"), ("train", "--")):
            right.plot([], line, color="0.3", label=f"{part} data")
        right.legend(loc="best", fontsize="small")
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
    for axis, letter in ((left, "a"), (right, "b")):
        axis.set_title(f"({letter}) {TITLES[artefact][letter == 'b']}", fontsize="medium")
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
