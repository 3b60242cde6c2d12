"""Figures of a GRU-ODE beside the closed form."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ocresnet.continuous.series import predictions
from ocresnet.data.oscillators import Drawn, Generator
from ocresnet.plots.style import PALETTE, panels
from ocresnet.systems.network import Network

from .measures import BEST, NETWORK, probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 300
"""Of a series in a figure, most of them without measurements, so that its lines are smooth."""


def densely(generator: Generator, samples: int, seed: int) -> Drawn:
    """Series with as many measurements as the generator's, and many rows between them."""
    rng = np.random.default_rng((seed, 2))
    drawn = replace(generator, rows=ROWS, missing=0.0, forecast=0).draw(samples, (seed, 3))
    seen = generator.rows - generator.forecast
    masks = np.zeros(drawn.measurements.shape, bool)
    for sample in range(samples):
        early = round(ROWS * seen / generator.rows)
        chosen = rng.choice(early, min(seen, early), replace=False)
        masks[sample, chosen] = rng.uniform(size=(len(chosen), 2)) >= generator.missing
    return drawn._replace(series=drawn.series._replace(masks=masks))


def draw_series(network: Network, generator: Generator, seed: int) -> "Figure":
    """Some series: what was measured, the truth, and the predictions of network and closed form."""
    drawn = densely(generator, 3, seed)
    of_network = predictions(network, drawn.series)
    best = generator.best(drawn.series).predictions
    said = ((NETWORK, of_network, "-"), (BEST, best, "--"))
    figure, axes = panels(6, columns=3)
    for panel, axis in enumerate(axes):
        feature, sample = divmod(panel, 3)
        times, seen = drawn.series.times[sample], drawn.series.masks[sample, :, feature]
        axis.plot(times, drawn.states[sample, :, feature], color="0.6", linewidth=3, label="truth")
        for (who, values, line), color in zip(said, PALETTE, strict=False):
            axis.plot(times, values[sample, :, feature], line, color=color, label=who)
        axis.plot(
            times[seen], drawn.measurements[sample, seen, feature], "ko", ms=4, label="measured"
        )
        axis.set(xlabel="time", ylabel=("position", "velocity")[feature])
        if feature == 0:
            kind = generator.kinds[drawn.kinds[sample]]
            axis.set_title(f"frequency {kind.frequency:g}, damping {kind.damping:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_posterior(network: Network, generator: Generator, test: Drawn) -> "Figure":
    """The network's probability of every kind against the exact one."""
    exact, said = generator.best(test.series).posterior, probabilities(network, test.series)
    figure, axes = panels(len(generator.kinds))
    for kind, axis in enumerate(axes):
        color = PALETTE[kind % len(PALETTE)]
        axis.plot(exact[:, kind], said[:, kind], ".", color=color, markersize=3, alpha=0.5)
        axis.plot([0, 1], [0, 1], color="0.4", linewidth=1)
        axis.set(xlabel=f"probability, {BEST}", ylabel=f"probability, {NETWORK}")
        axis.set_title(f"frequency {generator.kinds[kind].frequency:g}")
    return figure
