"""Series as images, as data for training, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.data.batches import Batching, epoch_order
from ocresnet.data.time_series import Part, Series, TimeSeriesData, packed

TIMES = np.array([[0.5, 1.0, 2.5], [3.0, 3.1, np.nan]])
MASKS = np.array([[[1, 0], [0, 0], [1, 1]], [[0, 1], [1, 1], [0, 0]]])
VALUES = np.arange(12.0).reshape(2, 3, 2)
SERIES = Series(TIMES, VALUES, MASKS)


def data(samples=10) -> TimeSeriesData:
    rng = np.random.default_rng(0)

    def part(samples):
        times = np.sort(rng.uniform(size=(samples, 4)), axis=1)
        values = rng.normal(2.0, 3.0, size=(samples, 4, 2))
        series = Series(times, values, rng.uniform(size=values.shape) < 0.5)
        return Part(series, values)

    return TimeSeriesData("made up", {"train": part(samples), "test": part(3)})


def test_series_as_images():
    images = packed(SERIES._replace(values=np.where(MASKS, VALUES, np.nan)))
    assert images.shape == (2, 3, 2, 3) and images.dtype == np.float32
    gaps = [[0, 0.5, 1.5], [0, 0.1, 0]]
    np.testing.assert_allclose(images[..., 0], np.repeat(np.array(gaps)[..., None], 2, -1), 1e-6)
    np.testing.assert_array_equal(images[..., 1], VALUES * MASKS)
    np.testing.assert_array_equal(images[..., 2], MASKS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": VALUES[0]}, "values have shape (3, 2), but must be [samples, rows, features]"),
        ({"times": TIMES[:, :2]}, "times have shape (2, 2), but with values of shape (2, 3, 2) th"),
        ({"masks": MASKS[..., 0]}, "masks have shape (2, 3), but with values of shape (2, 3, 2)"),
        ({"masks": MASKS * 2}, "masks must be 1 where a value was observed and 0 elsewhere."),
        (
            {"times": np.array([[0.5, 1.0, 2.5], [3.0, 3.0, np.nan]])},
            "series 1 is wrong: times must increase from row to row.",
        ),
        (
            {"times": np.array([[0.5, 0.4, 2.5], [3.0, 3.1, np.nan]])},
            "series 0 is wrong: times must increase from row to row.",
        ),
        (
            {"times": np.array([[0.5, np.nan, 2.5], [3.0, 3.1, np.nan]])},
            "series 0 is wrong: times must be finite numbers, and NaN after the end of a series",
        ),
        ({"times": TIMES * np.nan}, "series 0 is wrong: times must be finite numbers"),
        ({"times": TIMES * np.inf}, "series 0 is wrong: times must be finite numbers"),
        ({"masks": np.ones_like(MASKS)}, "series 1 is wrong: nothing is observed after a series'"),
        ({"values": VALUES * np.nan}, "series 0 is wrong: observed values must be finite."),
    ],
)
def test_impossible_series_are_refused(changed, message):
    with pytest.raises(ValueError) as refusal:
        packed(SERIES._replace(**changed))
    assert message in str(refusal.value)


def test_batches_carry_series_and_targets():
    whole = data()
    how = Batching(seed=3, batch_size=4, devices=2)
    batches = list(whole.feed(how)(1, 1))
    assert len(batches) == 1
    rows = np.asarray(epoch_order(3, 1, 10))[4:8]
    [batch] = batches
    assert batch.images.shape == (2, 2, 4, 2, 3) and batch.labels.shape == (2, 2, 4, 2)
    np.testing.assert_array_equal(batch.images.reshape(4, 4, 2, 3), whole.images("train")[rows])
    np.testing.assert_array_equal(batch.labels.reshape(4, 4, 2), whole.labels("train")[rows])


def test_only_observed_values_count_in_the_statistics():
    whole = data()
    series = whole.given["train"].series
    observed = series.values[series.masks].astype(np.float32).astype(np.float64)
    mean, deviation = whole.pixel_statistics
    np.testing.assert_allclose(mean, (0, observed.mean(), 0))
    np.testing.assert_allclose(deviation, (1, observed.std(), 1))


def test_a_part_is_held_out():
    whole = data()
    split = whole.split(0.3, seed=1)
    assert split.parts == ("train", "validation", "test") and split.choosing_part == "validation"
    assert [split.samples(part) for part in split.parts] == [7, 3, 3]
    together = np.concatenate([split.images("train"), split.images("validation")])
    np.testing.assert_array_equal(
        np.sort(together.sum((1, 2, 3))), np.sort(whole.images("train").sum((1, 2, 3)))
    )
    assert split.fingerprint != whole.fingerprint == data().fingerprint
    assert whole.split(0.0) is whole
    with pytest.raises(ValueError, match="a validation set is held out already"):
        split.split(0.3)


def test_kinds_of_targets():
    whole = data()
    assert whole.classes == 1 and whole.image_shape == (4, 2, 3)
    labelled = {
        name: Part(part.series, np.arange(len(part.targets)) % 4)
        for name, part in whole.given.items()
    }
    assert TimeSeriesData("labelled", labelled).classes == 4
    assert TimeSeriesData("labelled", labelled).labels("train").dtype == np.int32
    mixed = {**whole.given, "test": labelled["test"]}
    for parts, message in (
        ({"train": labelled["train"]}, "its parts are train, but must be train and test"),
        (mixed, "all parts must have the same rows and features, and targets of one kind"),
        (
            {**labelled, "test": labelled["test"]._replace(targets=np.array([-1, 0, 0]))},
            "test targets are int64 of shape (3,), but must be a class from 0 for each of 3",
        ),
        (
            {**whole.given, "test": whole.given["test"]._replace(targets=np.ones((3, 4)))},
            "or values of shape (3, 4, 2).",
        ),
        (
            {
                **whole.given,
                "test": Part(SERIES._replace(times=TIMES[:1, [1, 0, 2]]), VALUES),
            },
            "made up, test: times have shape (1, 3), but with values of shape (2, 3, 2)",
        ),
    ):
        with pytest.raises(ValueError) as refusal:
            replace(whole, given=parts)
        assert message in str(refusal.value)


def test_unknown_targets_are_kept():
    whole = data().given
    targets = whole["train"].targets.copy()
    targets[0, 0, 0] = np.nan
    kept = TimeSeriesData("some", {**whole, "train": whole["train"]._replace(targets=targets)})
    assert np.isnan(kept.labels("train")).sum() == 1
    assert jax.tree.leaves(kept.labels("train"))
