"""The depth rule over resampled validation sets."""

import numpy as np
import pytest

from ocresnet.stage_cost.depth_choice import choose_depth


def logits_with(correct: np.ndarray, margin: float = 6.0) -> np.ndarray:
    """Logits of two classes that are right where `correct` [outputs, samples] is; all labels 0."""
    return np.stack([np.where(correct, margin, 0.0), np.where(correct, 0.0, margin)], axis=-1)


def test_a_clear_case_has_no_uncertainty():
    correct = np.ones((4, 50), bool)
    correct[:2] = False
    chosen = choose_depth(logits_with(correct), np.zeros(50, int), resamples=50)
    assert (chosen.blocks, chosen.low, chosen.high) == (2, 2, 2)
    np.testing.assert_array_equal(chosen.shares, [0, 0, 1, 0])


def test_a_single_sample_decides_as_often_as_it_is_drawn():
    """Output 1 misses one of n samples: it is chosen when that one is not drawn, (1 - 1/n)^n."""
    samples = 20
    correct = np.ones((3, samples), bool)
    correct[0] = False
    correct[1, 0] = False
    chosen = choose_depth(
        logits_with(correct), np.zeros(samples, int), tolerance=0.5, resamples=4000
    )
    assert chosen.blocks == 2 and (chosen.low, chosen.high) == (1, 2)
    expected = (1 - 1 / samples) ** samples
    deviation = (expected * (1 - expected) / 4000) ** 0.5
    assert abs(chosen.shares[1] - expected) < 4 * deviation
    assert chosen.shares.sum() == pytest.approx(1)


def test_the_draw_is_that_of_the_seed():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(5, 30, 3)), draw.integers(0, 3, 30)
    first, again = (choose_depth(logits, labels, seed=3, tolerance=5.0) for _ in range(2))
    np.testing.assert_array_equal(first.shares, again.shares)


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="resamples is 0, but must be at least 1"):
        choose_depth(np.zeros((2, 3, 2)), np.zeros(3, int), resamples=0)


def test_what_does_not_fit_is_refused():
    logits, labels = np.zeros((2, 3, 2)), np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"logits have shape \(3,\), but must be \[outputs"):
        choose_depth(labels, logits)
    with pytest.raises(ValueError, match="labels have shape .* one-hot labels"):
        choose_depth(logits, np.eye(2)[labels])
    with pytest.raises(ValueError, match="there are 3 images, but 2 labels"):
        choose_depth(logits, labels[:2])
