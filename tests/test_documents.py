"""The Python of README and CONTRIBUTING runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet import MLPConfig, Problem, TrainingConfig, fit, for_dataset, linearize, ocnopt
from ocresnet.control.curvature import identity
from ocresnet.control.linearize import Keep
from ocresnet.systems.families import FAMILIES, describe, from_description

ROOT = Path(__file__).parents[1]


def examples(document: str) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def contributed():
    """What the examples of CONTRIBUTING.md define."""
    names = {}
    for example in examples("CONTRIBUTING.md"):
        exec(example, names)
    yield names
    del FAMILIES["linear"]


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 2, 2, 1)).astype(np.float32), rng.integers(0, 3, 8)


def test_readme_trains_prunes_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = (text for text in examples("README.md") if "prune(" in text)
    names = {}
    exec(example.replace("epochs=50", "epochs=1").replace("blocks=12", "blocks=2"), names)
    assert (tmp_path / "small" / "network.json").is_file()
    assert names["run"].trajectories["validation"].accuracies.shape == (3,)


def test_readme_learns_a_density():
    (example,) = (text for text in examples("README.md") if "FlowConfig" in text)
    names = {}
    exec(example.replace("moons", "moons[:512]", 1).replace("epochs=40", "epochs=1"), names)
    assert names["points"].shape == (1000, 2)


def test_readme_predicts_series():
    (example,) = (text for text in examples("README.md") if "GRUODEConfig" in text)
    names = {}
    exec(example.replace("epochs=10", "epochs=1").replace("draw(3000", "draw(200"), names)
    assert names["ahead"].shape == (500, 20, 2)


def test_readme_steps_with_ocnopt():
    (example,) = (text for text in examples("README.md") if "from_flax" in text)
    names = {}
    exec(example, names)
    images = jax.random.normal(jax.random.key(0), (16, 64))
    labels = jnp.arange(16) % 10
    params, stats, state = names["params"], names["batch_stats"], names["state"]
    losses = []
    for _ in range(20):
        params, stats, state = names["step"](params, stats, state, images, labels)
        losses.append(float(linearize(names["problem"], params, stats, images, labels).objective))
    assert losses[-1] < 0.8 * losses[0]


def test_a_contributed_family_trains_and_is_described(contributed, toy_data):
    architecture = for_dataset(contributed["LinearConfig"](), toy_data)
    assert from_description(describe(architecture)) == architecture
    config = TrainingConfig(epochs=1, batch_size=16, stage_cost=0.0)
    run = fit(architecture, config, toy_data, progress=False, devices=jax.devices()[:1])
    assert run.metrics[0]["train"]["losses"][-1] < 2


def test_a_contributed_curvature_is_adagrad(contributed):
    """As optax computes it, where no policy reacts."""
    architecture = MLPConfig(hidden=(3,), classes=3, image_shape=(2, 2, 1))
    problem = Problem(architecture.system())
    params = architecture.init(jax.random.key(0)).params
    own = ocnopt(problem, 0.1, curvature=contributed["SumOfSquares"](), feedback="none")
    adagrad = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-8)
    gradient = linearize(problem, params, {}, *batch()).gradient
    got, _ = own.update(gradient, own.init(params), params, batch=batch())
    wanted, _ = adagrad.update(gradient, adagrad.init(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got, wanted)


@pytest.mark.parametrize("rollout", ["linear", "nonlinear"])
def test_a_contributed_decision_replaces_the_policy(contributed, rollout):
    architecture = MLPConfig(hidden=(3, 3), classes=3, image_shape=(2, 2, 1))
    problem = Problem(architecture.system())
    params = architecture.init(jax.random.key(0)).params
    decision = contributed["base_optimizer"]
    tx = ocnopt(problem, 0.1, curvature=identity(), value_update=decision, rollout=rollout)
    nominal = linearize(problem, params, {}, *batch(), keep=Keep(trajectory=True))
    got, _ = tx.update(nominal.gradient, tx.init(params), params, batch=batch(), nominal=nominal)
    jax.tree.map(
        lambda a, g: np.testing.assert_allclose(a, -0.1 * g, rtol=1e-5, atol=1e-7),
        got,
        nominal.gradient,
    )
