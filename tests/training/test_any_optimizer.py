"""What `fit` promises holds for every family of networks and every optimizer.

Not the full product: every family and every optimizer is resumed, and run on several devices, once.
"""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.curvature import ekfac
from ocresnet.control.optimizer import ocnopt
from ocresnet.data.dataset import Dataset
from ocresnet.problem import Problem
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.families import describe
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.network import Network
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Execution, Segment, System, Variables
from ocresnet.systems.transformer import TransformerConfig
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset
from ocresnet.training.loop import NonFiniteLossError, TrainingLoop
from ocresnet.training.optimizers import (
    EKFAC,
    KFAC,
    SGD,
    AdamW,
    DoWG,
    MoMo,
    MoMoAdam,
    Muon,
    OCNOpt,
    Optimizer,
    PolyakSGD,
    Prodigy,
    RMSprop,
    ScheduleFreeAdamW,
    SNOpt,
)
from ocresnet.training.restore import restore_network
from ocresnet.training.step import AXIS_NAME
from tests.conftest import random_network
from tests.training.test_fit import ONE_DEVICE, Killed, killed_after, without_times

CONVOLUTIONAL_ODE = NeuralODEConfig(vector_field="convolutional", strides=(2,), width=3)
FAMILIES: dict[str, Architecture] = {
    "resnet": ResNetConfig.homogeneous(blocks=2, filters=4),
    "projections": ResNetConfig.standard(blocks=4, filters=(3, 4)),
    "residual_mlp": ResidualMLPConfig(blocks=2, width=6),
    "transformer": TransformerConfig(blocks=2, width=6, heads=2, hidden=5, patch=3),
    "mlp": MLPConfig(hidden=(6, 5), activation="tanh"),
    "cnn": CNNConfig(filters=(4, 5), strides=(2, 1), hidden=(6,)),
    "inception": InceptionConfig((3,), (2,), (2,), stem_filters=4),
    "neural_ode": NeuralODEConfig(width=6, solver="rk4", steps=2),
    # Of a dense stem that reads more pixels than a batch has samples, the eigenvectors of A that
    # belong to no sample are anyone's.
    "free_horizon": replace(CONVOLUTIONAL_ODE, solver="midpoint", steps=2, free_horizon=True),
    "adaptive_ode": replace(CONVOLUTIONAL_ODE, solver="dopri5", adjoint="backsolve"),
}
OFTEN = {"factor_every": 2, "eigen_every": 4}
WALKED = partial(OCNOpt, rollout="nonlinear")
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(learning_rate=0.05, gradient_clip=1.0),
    "adamw": AdamW(learning_rate=0.01, warmup_epochs=0.5),
    "rmsprop": RMSprop(learning_rate=0.01, momentum=0.5),
    "kfac": KFAC(weight_decay=1e-3, **OFTEN),
    "ekfac": EKFAC(learning_rate=0.05, damping=0.3, weight_decay=1e-3, **OFTEN),
    "stacked": WALKED(learning_rate=0.01, momentum=0.5, weight_decay=1e-3, **OFTEN),
    "joint": WALKED(feedback="joint", groups=8, curvature="identity", learning_rate=0.05),
    "per_sample": WALKED(
        learning_rate=0.01, feedback="per_sample", curvature="diagonal", beta=1 / 16
    ),
    "muon": Muon(learning_rate=0.01, weight_decay=1e-3),
    "momo": MoMo(weight_decay=1e-3),
    "momo_adam": MoMoAdam(weight_decay=1e-3),
    "prodigy": Prodigy(learning_rate=30.0, weight_decay=1e-3),
    "dowg": DoWG(weight_decay=1e-3),
    "schedule_free_adamw": ScheduleFreeAdamW(learning_rate=0.01, weight_decay=1e-3),
    "polyak_sgd": PolyakSGD(weight_decay=1e-3),
    "layers": WALKED(alignment="layers_last", momentum=0.5, weight_decay=1e-3, **OFTEN),
    "adaptive": WALKED(
        alignment="adaptive", alignment_hold=2, curvature="diagonal", learning_rate=0.003
    ),
    "snopt": SNOpt(momentum=0.5, weight_decay=1e-3, grid=3, refresh_every=4, horizon_every=2),
    "snopt_constant": SNOpt(grid=3, refresh_every=4),
}
PAIRS = [
    pytest.param("resnet", "stacked", marks=pytest.mark.slow),
    pytest.param("projections", "adaptive", marks=pytest.mark.slow),
    pytest.param("projections", "layers", marks=pytest.mark.slow),
    ("residual_mlp", "joint"),
    ("inception", "sgd"),
    pytest.param("transformer", "stacked", marks=pytest.mark.slow),
    # Not AdamW: a key's bias has no gradient but rounding, of which it makes whole steps.
    ("transformer", "sgd"),
    ("mlp", "per_sample"),
    ("mlp", "kfac"),
    ("cnn", "ekfac"),
    ("cnn", "adamw"),
    ("mlp", "rmsprop"),
    pytest.param("inception", "stacked", marks=pytest.mark.slow),
    ("mlp", "momo"),
    ("mlp", "schedule_free_adamw"),
    ("neural_ode", "joint"),
    ("free_horizon", "snopt"),
]
ADAPTIVE_ODE = pytest.param("adaptive_ode", "snopt_constant", marks=pytest.mark.slow)
OF_THE_MEAN = [
    pytest.param("residual_mlp", "muon", marks=pytest.mark.slow),
    pytest.param("mlp", "momo_adam", marks=pytest.mark.slow),
    ("mlp", "prodigy"),
    pytest.param("mlp", "dowg", marks=pytest.mark.slow),
    pytest.param("mlp", "polyak_sgd", marks=pytest.mark.slow),
]
"""They see the mean gradient and loss alone, as the others of optax do: devices make no difference
that those do not show."""


ROUNDING = {"ekfac": 1e-3, "stacked": 1e-2, "layers": 1e-2}
"""Of EKFAC the eigenvectors of nearly equal eigenvalues turn with the last bit, and its moments
with them, less so where they are damped; K-FAC's inverse does not. 1e-4 for all others."""


def run(family: str, chosen: str | Optimizer, data: Dataset, workdir=None, **kwargs) -> Run:
    architecture = for_dataset(FAMILIES[family], data)
    config = TrainingConfig(
        epochs=2,
        batch_size=16,
        optimizer=OPTIMIZERS[chosen] if isinstance(chosen, str) else chosen,
        stage_cost=0.1 if isinstance(architecture, ResidualArchitecture) else 0.0,
        average_decay=0.5,
        augmentation="crop",
    )
    config = replace(config, **kwargs.pop("changes", {}))
    kwargs = {"progress": False, "devices": ONE_DEVICE} | kwargs
    return fit(architecture, config, data, workdir=workdir, **kwargs)


@pytest.mark.parametrize(("family", "optimizer"), [*PAIRS, *OF_THE_MEAN, ADAPTIVE_ODE])
def test_a_killed_run_resumes_to_the_same_bits(family, optimizer, toy_data, tmp_path, monkeypatch):
    whole = run(family, optimizer, toy_data, tmp_path / "whole", tensorboard=True)
    with monkeypatch.context() as patch:
        killed_after(patch, 9)  # in the middle of the second epoch
        with pytest.raises(Killed):
            run(family, optimizer, toy_data, tmp_path / "killed")
    resumed = run(family, optimizer, toy_data, tmp_path / "killed")
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)
    # What is on disk is of this family and this optimizer, and reads back.
    restored = restore_network(tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, restored.variables, whole.network.variables)
    described = json.loads((tmp_path / "whole" / records.CONFIG).read_text())
    assert described["architecture"]["family"] == describe(FAMILIES[family])["family"]
    norms = isinstance(FAMILIES[family], ResidualArchitecture)
    assert all(("parameter_norms" in row) == norms for row in whole.metrics)
    assert any((tmp_path / "whole" / "tensorboard").iterdir())
    # It has learned: three classes by chance have a loss of log 3.
    assert whole.metrics[-1]["train"]["losses"][-1] < whole.metrics[0]["train"]["losses"][-1]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "optimizer"), PAIRS)
def test_devices_make_no_difference(family, optimizer, toy_data):
    tolerance = ROUNDING.get(optimizer, 1e-4)
    one = run(family, optimizer, toy_data, changes={"epochs": 1})
    for devices in (2, 8):
        several = run(
            family, optimizer, toy_data, changes={"epochs": 1}, devices=jax.devices()[:devices]
        )
        for part in ("train", "test"):
            np.testing.assert_allclose(
                several.metrics[0][part]["losses"], one.metrics[0][part]["losses"], rtol=tolerance
            )
        for got, wanted in zip(
            jax.tree.leaves(several.network), jax.tree.leaves(one.network), strict=True
        ):
            scale = np.max(np.abs(wanted), initial=1.0)
            np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_step_hands_the_trajectory_on(toy_data, monkeypatch):
    """OCNOpt gets what it needs: it does not linearise the problem again."""
    monkeypatch.setattr("ocresnet.control.policy.linearize", None)
    for optimizer in (
        OPTIMIZERS["stacked"],
        WALKED(
            learning_rate=0.01, feedback="joint", groups=4, factor="sampled", curvature="identity"
        ),
        OPTIMIZERS["per_sample"],
    ):
        result = run("mlp", optimizer, toy_data, changes={"epochs": 1})
        assert np.isfinite(result.metrics[0]["objective"])
    result = run("projections", OPTIMIZERS["layers"], toy_data, changes={"epochs": 1})
    assert np.isfinite(result.metrics[0]["objective"])


@pytest.mark.slow
def test_the_step_is_that_of_the_optimizer_alone(toy_data):
    """OCNOpt given as a function is offered no trajectory, and ends an epoch at the same place."""

    def alone(problem, schedule):
        choices = {"rollout": "nonlinear", "weight_decay": 0.1, "axis_name": AXIS_NAME}
        return ocnopt(problem, schedule, curvature=ekfac(**OFTEN), **choices)

    wanted = run("resnet", "sgd", toy_data, optimizer=alone, changes={"epochs": 1})
    got = run(
        "resnet",
        WALKED(learning_rate=0.05, schedule="milestones", **OFTEN),
        toy_data,
        changes={"epochs": 1},
    )
    for a, b in zip(jax.tree.leaves(got.network), jax.tree.leaves(wanted.network), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_any_optimizer_learns_from_a_teacher_of_any_family(toy_data):
    teacher = random_network(for_dataset(FAMILIES["resnet"], toy_data))
    exact = OCNOpt(learning_rate=0.01, curvature="kfac", factor="exact", **OFTEN)
    distilled = {"distillation": 0.5, "epochs": 1}
    result = run("mlp", exact, toy_data, teacher=teacher, changes=distilled)
    alone = run("mlp", exact, toy_data, changes={"epochs": 1})
    assert np.isfinite(result.metrics[0]["objective"])
    assert result.metrics[0]["objective"] != alone.metrics[0]["objective"]


def test_what_is_evaluated_is_the_average_of_a_schedule_free_optimizer(toy_data, tmp_path):
    """In `fit`'s records, in the network that it returns and in the one read back; also where the
    optimizer is one's own."""

    def own(problem, schedule):
        chain = optax.chain(optax.scale_by_rms(), optax.scale_by_learning_rate(schedule))
        return optax.chain(optax.clip(1.0), optax.contrib.schedule_free(chain, schedule, b1=0.5))

    loops = []

    class Loop(TrainingLoop):
        def close(self):
            loops.append(self)
            super().close()

    for optimizer in (None, own):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ocresnet.training.fit.TrainingLoop", Loop)
            workdir = tmp_path / str(optimizer is None)
            free = ScheduleFreeAdamW(learning_rate=0.01, gradient_clip=1.0)
            result = run(
                "mlp", free, toy_data, workdir, optimizer=optimizer, changes={"average_decay": 0.0}
            )
        state = loops.pop().state
        (free_state,) = (
            node for node in state.opt_state if isinstance(node, optax.contrib.ScheduleFreeState)
        )
        wanted = optax.contrib.schedule_free_eval_params(free_state, state.variables.params)
        jax.tree.map(np.testing.assert_array_equal, result.network.params, wanted)
        restored = restore_network(workdir, optimizer=optimizer)
        jax.tree.map(np.testing.assert_array_equal, restored.params, wanted)
        measured = trajectory(result.network, toy_data.test_images, toy_data.test_labels)
        np.testing.assert_allclose(result.metrics[-1]["test"]["losses"], measured.losses, rtol=1e-5)
        taken_at = Network(result.network.architecture, *state.variables)
        other = trajectory(taken_at, toy_data.test_images, toy_data.test_labels)
        assert np.abs(other.losses / measured.losses - 1).max() > 1e-3


def own_optimizer(problem, schedule):
    """Any optax transformation, with the schedule of the configuration."""
    return optax.chain(optax.scale_by_lion(), optax.scale_by_learning_rate(schedule))


def test_any_optax_transformation_trains_and_is_recognised(toy_data, tmp_path):
    result = run("mlp", "sgd", toy_data, tmp_path, optimizer=own_optimizer)
    described = json.loads((tmp_path / records.CONFIG).read_text())
    assert described["optimizer"] == "own_optimizer"
    restored = restore_network(tmp_path, optimizer=own_optimizer)
    jax.tree.map(np.testing.assert_array_equal, restored.variables, result.network.variables)
    with pytest.raises(ValueError, match="optimizer is own_optimizer there and None here"):
        run("mlp", "sgd", toy_data, tmp_path)
    with pytest.raises(ValueError, match="had the optimizer own_optimizer, .* give optimizer=own"):
        restore_network(tmp_path)


def test_other_precision_and_a_loss_that_is_not_finite(toy_data, tmp_path):
    bfloat16 = {"execution": Execution(precision="bfloat16"), "epochs": 1}
    result = run("residual_mlp", "stacked", toy_data, changes=bfloat16)
    assert np.isfinite(result.metrics[0]["objective"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result.network))
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        run("mlp", AdamW(learning_rate=1e38), toy_data, tmp_path)


def test_what_an_optimizer_cannot_do_is_refused_before_anything_is_compiled(toy_data, monkeypatch):
    monkeypatch.setattr("ocresnet.training.fit.TrainingLoop", None)
    with pytest.raises(ValueError, match="a ResNetConfig has batch statistics: choose feedback"):
        run("resnet", "per_sample", toy_data)
    with pytest.raises(ValueError, match="a ResidualMLPConfig has parameters that several blocks"):
        run("residual_mlp", "per_sample", toy_data)
    shares = "a TransformerConfig has parameters that several blocks share: choose feedback"
    with pytest.raises(ValueError, match=shares):
        run("transformer", "per_sample", toy_data)
    with pytest.raises(ValueError, match="runs on one device only, and there are 8"):
        run("resnet", "joint", toy_data, devices=jax.devices())
    for groups in (4, 32):
        joint = OCNOpt(feedback="joint", groups=groups)
        with pytest.raises(ValueError, match=f"groups is {groups}, but .* 8 devices .* 16 samples"):
            run("mlp", joint, toy_data, devices=jax.devices())
    with pytest.raises(ValueError, match="declares none: choose adamw"):
        undeclared = OPTIMIZERS["muon"]
        linear = System((Segment("own", lambda stage, x: (x @ stage.params["w"], {})),))
        params = Variables({"own": {"w": np.zeros((3, 2))}}, {})
        undeclared.check(FAMILIES["mlp"], Problem(linear), params, 1, 16)
    branches = SGD(weight_decay_on="residual_branches")
    with pytest.raises(ValueError, match="and a MLPConfig has none: choose 'all'"):
        run("mlp", branches, toy_data)
    with pytest.raises(ValueError, match="stage_cost is 0.1, .* set stage_cost to 0 .a CNNConfig"):
        run("cnn", "sgd", toy_data, changes={"stage_cost": 0.1})


@pytest.mark.parametrize("optimizer", [None, own_optimizer])
def test_images_that_a_family_cannot_take_leave_no_run_behind(
    optimizer, toy_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(FAMILIES, "transformer", replace(FAMILIES["transformer"], patch=4))
    message = "patch is 4, but must divide the height and the width of an image, which are 6 and 6."
    with pytest.raises(ValueError, match=message):
        run("transformer", "sgd", toy_data, tmp_path / "run", optimizer=optimizer)
    assert not (tmp_path / "run").exists()
