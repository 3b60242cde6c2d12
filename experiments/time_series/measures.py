"""What a network makes of test series, beside the best there is and what needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ocresnet.continuous.series import predictions
from ocresnet.data.oscillators import Drawn, Generator
from ocresnet.data.time_series import Series, packed
from ocresnet.stage_cost.trajectory import logits_over_depth
from ocresnet.systems.network import Network

from ..common.reports import markdown_table

NETWORK, BEST = "GRU-ODE", "closed form"

TITLES = {
    "all": "every measurement",
    "next": "rows with measurements",
    "forecast": "rows after the last one",
    "accuracy": "accuracy (%)",
    "cross_entropy": "cross-entropy (nats)",
}


def probabilities(network: Network, series: Series) -> np.ndarray:
    """The network's probability of every class, [samples, classes]."""
    (logits,) = logits_over_depth(network, packed(series)).astype(np.float64)
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return chances / chances.sum(axis=-1, keepdims=True)


def carried_forward(series: Series) -> np.ndarray:
    """For every row the last value that was observed before it, 0 before the first: [samples, rows,
    features]."""
    last = np.zeros_like(series.values)
    for row in range(1, last.shape[1]):
        seen = series.masks[:, row - 1].astype(bool)
        last[:, row] = np.where(seen, series.values[:, row - 1], last[:, row - 1])
    return last


def measure_predictions(
    network: Network, generator: Generator, train: Drawn, test: Drawn
) -> dict[str, dict[str, float]]:
    """Root mean squared errors on the test series: {who: {over which rows: error}}."""
    observed = train.series.masks.astype(bool)
    counts = np.maximum(observed.sum(axis=(0, 1)), 1)
    mean = np.where(observed, train.series.values, 0).sum(axis=(0, 1)) / counts
    said = {
        NETWORK: predictions(network, test.series),
        BEST: generator.best(test.series).predictions,
        "last value": carried_forward(test.series),
        "mean": np.broadcast_to(mean, test.measurements.shape),
    }
    seen = generator.rows - generator.forecast
    rows = {"all": slice(None), "next": slice(seen), "forecast": slice(seen, None)}
    return {
        who: {
            which: float(np.sqrt(np.mean((values - test.measurements)[:, chosen] ** 2)))
            for which, chosen in rows.items()
            if chosen.start != generator.rows
        }
        for who, values in said.items()
    }


def measure_classes(
    network: Network, generator: Generator, train: Drawn, test: Drawn
) -> dict[str, dict[str, float]]:
    """Accuracies in percent and cross-entropies on the test series: {who: {what: value}}."""
    shares = np.bincount(train.kinds, minlength=len(generator.kinds)) / len(train.kinds)
    said = {
        NETWORK: probabilities(network, test.series),
        BEST: generator.best(test.series).posterior,
        "share of the class": np.broadcast_to(shares, (len(test.kinds), len(shares))),
    }
    return {
        who: {
            "accuracy": float(100 * np.mean(chances.argmax(axis=1) == test.kinds)),
            "cross_entropy": float(-np.mean(np.log(chances[np.arange(len(chances)), test.kinds]))),
        }
        for who, chances in said.items()
    }


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each task that there are rows of: means over the seeds, with the sample deviation
    where there are several; and how much more than the closed form the network has."""
    parts = []
    for task, title in (
        ("prediction", "root mean squared error of the prediction of a measurement"),
        ("classification", "which oscillator it is"),
    ):
        own = [row["measured"] for row in rows if row["task"] == task]
        if not own:
            continue
        columns = list(own[0][NETWORK])
        lines = [
            [who, *(_spread([measured[who][column] for measured in own]) for column in columns)]
            for who in own[0]
        ]
        more = {name: [one[NETWORK][name] - one[BEST][name] for one in own] for name in columns}
        lines.append([f"{NETWORK} less {BEST}", *map(_spread, more.values())])
        seeds = f"{len(own)} seed{'s' if len(own) > 1 else ''}"
        table = markdown_table(["", *(TITLES[column] for column in columns)], lines)
        parts.append(f"{task.capitalize()}: {title}, {seeds}.\n\n{table}")
    return "\n\n".join(parts)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"
