"""Costs of an output and the factors of their curvature, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.costs import Cost, cross_entropy, make_cost, squared_error

LOGITS = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def smoothed(smoothing):
    return np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3


def probabilities(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy(smoothing):
    wanted = -np.sum(smoothed(smoothing) * np.log(probabilities(LOGITS)), -1)
    got = make_cost("cross_entropy", smoothing).value(LOGITS, LABELS)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_l2(smoothing):
    wanted = 0.5 * np.sum((LOGITS - smoothed(smoothing)) ** 2, -1)
    np.testing.assert_allclose(make_cost("l2", smoothing).value(LOGITS, LABELS), wanted, rtol=1e-5)


def test_mean_squared_error_is_over_what_is_known():
    targets = np.random.default_rng(1).normal(size=(5, 3, 1))
    targets[0, 1], targets[2] = np.nan, np.nan
    cost = make_cost("mean_squared_error")
    wanted = np.nan_to_num(LOGITS - targets[..., 0]) ** 2
    wanted = np.sum(np.where(np.isnan(targets[..., 0]), 0, wanted), -1) / [2, 3, 1, 3, 3]
    np.testing.assert_allclose(cost.value(LOGITS, targets), wanted, rtol=1e-5)
    slopes = jax.grad(lambda outputs: jnp.sum(cost.value(outputs, targets)))(LOGITS[0])
    assert np.isfinite(slopes).all() and np.all(slopes[2] == 0) and slopes[0, 1] == 0
    assert not cost.classifies
    with pytest.raises(ValueError, match="the targets have shape .5,., but must be the 3 numbers"):
        cost.value(LOGITS, LABELS)
    with pytest.raises(ValueError, match="but a prediction has no labels to smooth"):
        make_cost("mean_squared_error", 0.1)


def test_costs_of_the_same_arguments_are_the_same():
    """So that programs that were compiled for one are found for the other."""
    for same in (make_cost(), make_cost("cross_entropy", 0), make_cost(label_smoothing=0.0)):
        assert same is cross_entropy
    assert make_cost("l2", 0.3) is make_cost(loss="l2", label_smoothing=0.3)
    assert make_cost("l2") is squared_error is not make_cost("l2", 0.3)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_exact_columns_sum_to_the_hessian(loss, smoothing):
    cost = make_cost(loss, smoothing)
    with jax.enable_x64(True):
        logits = LOGITS.astype(np.float64)
        columns = np.asarray(cost.exact(jnp.asarray(logits)))
        assert columns.shape == (3, 4, 5, 3)
        hessians = jax.vmap(jax.vmap(jax.hessian(cost.value)), (0, None))(logits, LABELS)
    np.testing.assert_allclose(
        np.einsum("k...i,k...j->...ij", columns, columns), hessians, atol=1e-9
    )
    p = probabilities(logits)
    wanted = np.eye(3) * p[..., None] - p[..., :, None] * p[..., None, :]
    if loss == "l2":
        wanted = np.broadcast_to(np.eye(3), wanted.shape)
    np.testing.assert_allclose(hessians, wanted, atol=1e-9)


@pytest.mark.parametrize("cost", [cross_entropy, squared_error], ids=["cross_entropy", "l2"])
def test_one_sample_has_its_columns_too(cost):
    np.testing.assert_allclose(cost.exact(LOGITS[0, 0]), cost.exact(LOGITS)[:, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_sampled_columns_have_the_hessian_as_mean_square(loss):
    cost, draws = make_cost(loss), 20_000
    logits = LOGITS[0, 0]
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = np.asarray(jax.jit(jax.vmap(cost.sampled, (0, None)))(keys, jnp.asarray(logits)))
    exact = np.asarray(cost.exact(logits))
    error = np.einsum("ki,kj->ij", drawn, drawn) / draws - exact.T @ exact
    np.testing.assert_allclose(error, 0, atol=0.05)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.03)


def test_sampled_columns_of_cross_entropy_are_gradients_for_drawn_labels():
    drawn = np.asarray(cross_entropy.sampled(jax.random.key(1), jnp.asarray(LOGITS)))
    p = probabilities(LOGITS)
    labels = np.argmax(p - drawn, -1)
    np.testing.assert_allclose(drawn, p - np.eye(3)[labels], atol=1e-6)
    assert len(set(labels.ravel())) == 3


def test_any_function_of_logits_and_targets_is_a_cost():
    cost = Cost(lambda logits, targets: logits[..., 0] * targets["scale"])
    np.testing.assert_array_equal(cost.value(LOGITS, {"scale": LABELS}), LOGITS[..., 0] * LABELS)
    assert cost.exact is None and cost.sampled is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("hinge", 0.0),
            "loss is 'hinge', but must be one of cross_entropy, l2, negative_log_likelihood, "
            "mean_squared_error.",
        ),
        (("l2", 1.0), "label_smoothing is 1.0, but must be in [0, 1)."),
        (("l2", -0.1), "label_smoothing is -0.1, but must be in [0, 1)."),
        (("l2", float("nan")), "label_smoothing is nan, but must be in [0, 1)."),
    ],
)
def test_unknown_losses_are_refused(arguments, message):
    with pytest.raises(ValueError) as refusal:
        make_cost(*arguments)
    assert str(refusal.value) == message
