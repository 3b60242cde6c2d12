"""Figures of flows in two dimensions: the data, samples like it, and the density."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from ocresnet.continuous.flows import log_likelihood, sample
from ocresnet.plots.style import PALETTE, panels
from ocresnet.systems.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 160
"""Places of the density along each axis."""

MARGIN = 0.15
"""Of the data's extent, shown around it."""

SAMPLES = 4000


def draw_flow(network: Network, points: np.ndarray, seed: int = 0) -> "Figure":
    """Data, as many samples of the flow (4,000 at most), and its density.

    Args:
      network: a flow of two features.
      points: [samples, ...], two features each.
      seed: of the samples.

    Raises:
      ValueError: for a network that is no flow, or points of other than two features.
      ImportError: if matplotlib is not installed.
    """
    points = np.reshape(points, (len(points), -1))[:SAMPLES]
    if points.shape[1] != 2:
        raise ValueError(
            f"the points have {points.shape[1]} features, but a density is drawn of 2."
        )
    drawn = np.asarray(sample(network, jax.random.key(seed), len(points)))
    low, high = points.min(axis=0), points.max(axis=0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    places, _ = density_grid(low, high, GRID)
    density = np.exp(np.asarray(log_likelihood(network, places))).reshape(GRID, GRID)

    figure, (data, samples, image) = panels(3)
    for axis, shown, title in ((data, points, "Data"), (samples, drawn, "Samples of the flow")):
        axis.plot(*shown.T, ".", color=PALETTE[0], markersize=1.5, alpha=0.5)
        axis.set(title=title)
    extent = (low[0], high[0], low[1], high[1])
    shown = image.imshow(density.T, origin="lower", extent=extent, cmap="viridis", aspect="auto")
    image.set(title="Density of the flow")
    image.grid(visible=False)
    figure.colorbar(shown, ax=image)
    for axis in (data, samples, image):
        axis.set(xlim=extent[:2], ylim=extent[2:], xlabel="$x_1$", ylabel="$x_2$")
    return figure


def density_grid(low: np.ndarray, high: np.ndarray, places: int) -> tuple[np.ndarray, float]:
    """The middles of equal cells of a rectangle, and the area of one.

    Args:
      low, high: opposite corners, [2].
      places: cells along each axis.

    Returns:
      [places * places, 2], float32, the second feature fastest; and the area.
    """
    size = (np.asarray(high, float) - low) / places
    axes = [start + step * (np.arange(places) + 0.5) for start, step in zip(low, size, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2).astype(np.float32), float(size.prod())
