"""A residual network in the stages of an alignment, against full matrices."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control import reference
from ocresnet.control.curvature import ekfac
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.settings import Settings
from ocresnet.control.view import aligned
from ocresnet.problem import Problem, objective
from ocresnet.systems.system import Execution, Variables
from tests.control.aligned import ORDER, Aligned, aligned_case, dense_problem, resnet_problem
from tests.control.dense import bellman, chain, split, total_jacobian, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    of_sample,
    random_batch,
)
from tests.quick import quick_jit

NETWORKS = {
    "dense": dense_problem,
    "dense, exits": partial(dense_problem, exits=True),
    "resnet": resnet_problem,
    "resnet, shared exits": partial(resnet_problem, "shared"),
    "bottlenecks": partial(resnet_problem, block="bottleneck"),
}
FORMS: dict[str, dict[str, Any]] = {
    "stacked": {"rollout": "nonlinear"},
    "linear": {"rollout": "linear", "value_beta": BETA},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "joint linear": {"feedback": "joint", "groups": 2, "rollout": "linear", "value_beta": BETA},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batch_of(network: str) -> tuple[jax.Array, jax.Array]:
    inputs, labels = random_batch(features=4 if "dense" in network else 16)
    return (inputs if "dense" in network else inputs.reshape(-1, 4, 4, 1)), labels


def step(case: Aligned, batch: Any, share: float = 0.0, **choices: Any) -> Any:
    """The updates, as if that share of a step had been taken before."""

    @quick_jit
    def update(variables):
        params, stats = variables
        gradient = jax.grad(lambda params: objective(case.problem, params, stats, *batch))(params)
        fixed = {"beta": BETA, "curvature": case.curvature, "region": "fixed"}
        chosen = {**fixed, "rollout": "nonlinear", **choices}
        optimizer = ocnopt(case.problem, ETA, **chosen)
        first, *others = optimizer.init(params)
        state = first._replace(share=jnp.asarray(share)), *others
        return optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)[0]

    return update(case.variables)


def dense_step(case: Aligned, batch: Any, rollout: str = "nonlinear", groups: int = 1) -> Any:
    """The same by the recursion in full matrices, over the view's augmented states."""
    problem = case.view.problem

    @quick_jit
    def solve(variables):
        chain = reference.make_chain(problem, variables, batch[0])
        last = reference.terminal(problem, chain, batch[1], BETA, groups=groups)
        still = [jnp.zeros_like(theta) for theta in chain.controls]
        policies, _ = reference.bellman(chain, last, [own / ETA for own in case.M], still)
        if rollout == "nonlinear":
            return reference.roll_out(chain, policies, still)
        dx, changes = jnp.zeros_like(chain.states[0]), []
        for k, f in enumerate(chain.functions):
            changes.append(policies[k].k + policies[k].K @ dx)
            moved = changes[-1].astype(chain.controls[k].dtype)  # where there is nothing: float32
            dx = jax.jvp(f, (chain.controls[k], chain.states[k]), (moved, dx))[1]
        return changes

    return solve(Variables(*(case.view.split(tree) for tree in case.variables)))


CASES = [
    *(("dense", "layers_first", form) for form in FORMS if form != "linear"),
    pytest.param("dense", "layers_first", "linear", marks=pytest.mark.slow),
    pytest.param("dense", "layers_last", "joint", marks=pytest.mark.slow),
    ("dense, exits", "layers_last", "stacked"),
    ("dense, exits", "layers_first", "joint"),
    ("resnet", "layers_first", "stacked"),
    pytest.param("resnet", "layers_last", "linear", marks=pytest.mark.slow),
    pytest.param("resnet, shared exits", "layers_last", "stacked", marks=pytest.mark.slow),
    pytest.param("bottlenecks", "layers_last", "stacked", marks=pytest.mark.slow),
    pytest.param("resnet", "layers_last", "joint", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "alignment", "form"), CASES)
def test_a_step_is_that_of_the_reference_on_the_augmented_state(network, alignment, form):
    choices, batch = FORMS[form], batch_of(network)
    case = aligned_case(*NETWORKS[network](), alignment)
    changes = step(case, batch, alignment=alignment, **choices)
    got = split(case.view.problem.system, case.view.split(changes))
    wanted = dense_step(case, batch, choices.get("rollout", "nonlinear"), choices.get("groups", 1))
    assert max(np.abs(part).max(initial=0) for part in wanted) > 1e-2
    for stage, (own, expected) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12, err_msg=f"stage {stage}")


def in_view(case: Aligned, batch: Any) -> Setting:
    """The view as a problem of its own, with its Jacobians as matrices."""
    problem, params = case.view.problem, case.view.split(case.variables.params)
    dense = chain(problem, params, batch)
    return Setting(problem, params, batch, None, dense, None, case.M)


@pytest.mark.parametrize("rollout", ["nonlinear", "linear"])
def test_per_sample_feedback_is_the_mean_policy_over_the_augmented_states(rollout):
    batch, case = batch_of("dense"), aligned_case(*dense_problem(exits=True), "layers_last")
    view = in_view(case, batch)
    policies = []
    for sample in range(BATCH):
        rows = view.dense.owners[-1] == sample
        gradient = view.dense.gradient(jnp.eye(BATCH)[sample])[rows]
        value = gradient, BETA * np.outer(gradient, gradient)
        A = [M / ETA for M in case.M]
        policies.append(bellman(of_sample(view, sample), value, A).policies)

    def decide(stage, dx):
        owners = view.dense.owners[stage]
        return np.mean(
            [own[stage][0] + own[stage][1] @ dx[owners == i] for i, own in enumerate(policies)], 0
        )

    changes = step(case, batch, alignment="layers_last", feedback="per_sample", rollout=rollout)
    assert_changes(view, case.view.split(changes), walk(view.dense, decide, rollout))


def test_a_step_along_the_linear_dynamics_is_the_joint_step_whatever_the_alignment():
    """Levenberg-Marquardt with the exact Hessian, over all layers, from the network's own Jacobian
    (identities 7 and 14)."""
    batch = batch_of("dense")
    form = {"feedback": "joint", "groups": BATCH, "factor": "exact", "rollout": "linear"}
    for alignment in ("layers_first", ORDER):
        problem, variables = dense_problem()
        if alignment == ORDER:  # without the block of three layers
            problem, variables = without_long_block(problem, variables)
        case, whole = (aligned_case(problem, variables, own) for own in (alignment, "blocks"))
        dense = in_view(whole, batch).dense
        J = total_jacobian(dense.jacobians)
        weights = jnp.full(BATCH, 1 / BATCH)
        size = sum(len(M) for M in whole.M)
        matrix, start = np.zeros((size, size)), 0
        for M in whole.M:
            matrix[start : start + len(M), start : start + len(M)] = M / ETA
            start += len(M)
        matrix += BETA * J.T @ dense.hessian(weights) @ J
        wanted = -np.linalg.solve(matrix, J.T @ dense.gradient(weights))
        changes = step(case, batch, alignment=alignment, value_beta=BETA, **form)
        got = np.concatenate(split(problem.system, changes))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-13 * np.abs(wanted).max())


def without_long_block(problem, variables):
    system = problem.system
    segments = tuple(segment for segment in system.segments if segment.name != "long")
    params = {name: part for name, part in variables.params.items() if name != "long"}
    return Problem(replace(system, segments=segments)), Variables(params, {})


def test_inside_a_block_the_recursion_is_that_of_state_and_shortcut():
    """Section 3.1 of GT-DDP, written out: (x, x_r), with feedback K and residual feedback G, and
    the sum of both at the entrance; a factor (r, s) shares one root, and enters as r + s."""
    problem, variables = dense_problem()
    batch, case = batch_of("dense"), aligned_case(problem, variables, "layers_first")
    view = case.view.problem
    A = [M / ETA for M in case.M]

    @quick_jit
    def solve(params):
        flat = reference.make_chain(view, Variables(params, {}), batch[0])
        last = reference.terminal(view, flat, batch[1], BETA)
        still = [jnp.zeros_like(theta) for theta in flat.controls]
        return flat.controls, flat.states, *reference.bellman(flat, last, A, still)

    controls, states, policies, values = solve(case.view.split(variables.params))
    names = [s.name for run in view.system.runs for _ in range(run[0].stages) for s in run]
    first = names.index("run.1")
    theta, x = controls[first : first + 2], states[first]

    def layer(theta, x):
        weights = theta.reshape(4, 3)  # the bias, then the kernel
        return jnp.tanh(x.reshape(-1, 3) @ weights[1:] + weights[0]).ravel()

    inner = layer(theta[0], x)
    np.testing.assert_allclose(states[first + 2], x + layer(theta[1], inner), atol=1e-14)
    jacobian = quick_jit(jax.jacobian(layer, (0, 1)))
    f_theta, f_x = zip(jacobian(theta[0], x), jacobian(theta[1], inner), strict=True)
    V = jax.tree.map(np.asarray, values[first + 2])
    V_x = V_r = V.x
    V_xx = V_xr = V_rr = V.xx
    r = s = root_of(V.xx)
    for number in (1, 0):
        F, P = np.asarray(f_x[number]), np.asarray(f_theta[number])
        Q_theta, Q_theta_x, Q_theta_r = P.T @ V_x, P.T @ V_xx @ F, P.T @ V_xr
        Q_theta_theta = A[first + number] + P.T @ V_xx @ P
        k, K, G = (-np.linalg.solve(Q_theta_theta, own) for own in (Q_theta, Q_theta_x, Q_theta_r))
        q = P.T @ r
        root = np.sqrt(1 - q @ np.linalg.solve(Q_theta_theta, q))
        V_x, V_r = F.T @ V_x + Q_theta_x.T @ k, V_r + Q_theta_r.T @ k
        V_xx, V_xr, V_rr = (
            F.T @ V_xx @ F + Q_theta_x.T @ K,
            F.T @ V_xr + Q_theta_x.T @ G,
            V_rr + Q_theta_r.T @ G,
        )
        r, s = root * F.T @ r, root * s
        own = policies[first + number]
        np.testing.assert_allclose(own.k, k, atol=1e-13)
        # Inside the block the state is the inner value, then the shortcut.
        np.testing.assert_allclose(own.K, K + G if number == 0 else np.hstack([K, G]), atol=1e-13)
    entrance = values[first]
    np.testing.assert_allclose(entrance.x, V_x + V_r, atol=1e-13)
    np.testing.assert_allclose(entrance.xx, V_xx + V_xr + V_xr.T + V_rr, atol=1e-13)
    np.testing.assert_allclose(entrance.xx, np.outer(r + s, r + s), atol=1e-13)


def root_of(matrix):
    """r of a matrix r r^T."""
    largest = np.argmax(np.diag(matrix))
    return matrix[largest] / np.sqrt(matrix[largest, largest])


@pytest.mark.parametrize(
    "feedback",
    ["stacked", *(pytest.param(form, marks=pytest.mark.slow) for form in ("joint", "per_sample"))],
)
def test_where_a_projection_acts_changes_the_policy_alone(feedback):
    """Along the linear dynamics both steps are the same joint minimum; along new states they
    differ, but in no prediction of first order."""
    batch, choices = batch_of("dense"), {"feedback": feedback, "curvature": ekfac()}
    if feedback == "joint":
        choices["groups"] = 2
    cases = [aligned_case(*dense_problem(), own) for own in ("layers_first", "layers_last")]
    first, last = (
        step(case, batch, alignment=own, **choices)
        for case, own in zip(cases, ("layers_first", "layers_last"), strict=True)
    )
    system = cases[0].problem.system
    first, last = (np.concatenate(split(system, changes)) for changes in (first, last))
    assert 1e-6 < np.abs(first - last).max() < 0.3 * np.abs(first).max()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dense", "resnet"])
def test_the_linear_step_of_a_factor_does_not_depend_on_the_alignment(network):
    """With K-FAC's curvature, momentum and weight decay, whose state is the network's own."""
    batch, results = batch_of(network), []
    choices = {"rollout": "linear", "value_beta": BETA, "beta": BETA}
    for alignment in ("blocks", "layers_first", "layers_last"):
        problem, variables = NETWORKS[network]()
        params, stats = variables
        optimizer = ocnopt(
            problem,
            ETA,
            curvature=ekfac(damping=0.3),
            momentum=0.5,
            weight_decay=0.1,
            alignment=alignment,
            **choices,
        )

        @quick_jit
        def two_steps(params, stats=stats, problem=problem, optimizer=optimizer):
            state = optimizer.init(params)
            for _ in range(2):
                gradient = jax.grad(lambda own: objective(problem, own, stats, *batch))(params)
                changes, state = optimizer.update(
                    gradient, state, params, batch=batch, batch_stats=stats
                )
                params = optax.apply_updates(params, changes)
            return params, state[0].curvature, state[0].drift

        results.append(two_steps(params))
    for result in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
            result,
            results[0],
        )


def test_momentum_and_decay_are_counted_on_in_the_view():
    """A step with weight decay after a whole one, against the reference with that drift."""
    decay, batch = 0.4, batch_of("dense")
    case = aligned_case(*dense_problem(), "layers_first")
    changes = step(case, batch, share=1.0, alignment="layers_first", weight_decay=decay)
    view = case.view.problem
    drift = [
        jnp.asarray(-ETA * decay * own)
        for own in split(view.system, case.view.split(case.variables.params))
    ]

    @quick_jit
    def solve(params):
        flat = reference.make_chain(view, Variables(params, {}), batch[0])
        last = reference.terminal(view, flat, batch[1], BETA)
        policies, _ = reference.bellman(flat, last, [own / ETA for own in case.M], drift)
        return reference.roll_out(flat, policies, drift)

    wanted = solve(case.view.split(case.variables.params))
    got = split(view.system, case.view.split(changes))
    for own, expected in zip(got, wanted, strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("network", ["dense, exits", "resnet, shared exits"])
def test_the_view_is_the_same_network(network):
    """Outputs, batch statistics, gradient and factors, under the network's own names."""
    problem, variables = NETWORKS[network]()
    batch, keep = batch_of(network), Keep("sampled", 2, trajectory=True)
    key = jax.random.key(3)

    @quick_jit
    def both(variables):
        return [
            linearize(problem, *variables, *batch, own, key)._replace(trajectory=None)
            for own in (keep, replace(keep, alignment="layers_last"))
        ]

    plain, seen = both(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13), seen, plain)
    view = aligned_case(problem, variables, "layers_last").view
    back = view.join(view.split(variables.params), variables.params)
    jax.tree.map(np.testing.assert_array_equal, back, variables.params)


def test_scanned_is_unrolled():
    batch, results = batch_of("dense"), []
    for unroll in (False, True):
        problem, variables = dense_problem(exits=True)
        system = replace(problem.system, execution=Execution(remat="everything", unroll=unroll))
        problem = replace(problem, system=system, stage_cost=0.6)
        case = aligned_case(problem, variables, "layers_first")
        results.append(step(case, batch, alignment="layers_first", feedback="joint", groups=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), *results)


def test_a_nominal_pass_saves_another_one_if_it_has_the_same_stages(monkeypatch):
    batch, case = batch_of("dense"), aligned_case(*dense_problem(), "layers_first")
    keep = Settings(alignment="layers_first", rollout="nonlinear").keep
    assert keep == Keep(trajectory=True, alignment="layers_first")
    wanted = step(case, batch, alignment="layers_first")
    choices = {"alignment": "layers_first", "region": "fixed", "rollout": "nonlinear"}
    optimizer = ocnopt(case.problem, ETA, beta=BETA, curvature=case.curvature, **choices)
    monkeypatch.setattr("ocresnet.control.policy.linearize", None)

    @partial(quick_jit, static_argnums=1)
    def update(params, keep):
        nominal = linearize(case.problem, params, {}, *batch, keep)
        return optimizer.update(
            nominal.gradient, optimizer.init(params), params, batch=batch, nominal=nominal
        )[0]

    got = update(case.variables.params, keep)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), got, wanted)
    with pytest.raises(ValueError, match="stages of another alignment"):
        update(case.variables.params, Keep(trajectory=True))


def test_a_projection_is_a_player_unless_costly_exits_read_it_too():
    problem, variables = resnet_problem()
    for alignment, stage in (("layers_first", "opening_1.1"), ("layers_last", "opening_1.2")):
        view = aligned(problem, alignment)
        players = {s.name: s.players for s in view.problem.system.segments if s.players}
        assert players == {stage: ("projection",)}
        split_params = view.split(variables.params)
        assert split_params["projections"] == {}
        assert f"{stage}/projection/projections/level_1" in view.entries(
            dict.fromkeys(["projections/level_1"])
        )
    view = aligned(resnet_problem("shared")[0], "layers_last")
    assert not any(segment.players for segment in view.problem.system.segments)
    assert view.path("projections/level_1/kernel") == "projections/level_1/kernel"


def test_for_one_sample_all_forms_of_feedback_are_the_same():
    """With K-FAC's curvature, whose squares of gradients come from the layers of each stage."""
    case, batch = aligned_case(*dense_problem(), "layers_last"), random_batch(batch=1)
    choices = {"alignment": "layers_last", "curvature": ekfac(damping=0.3)}
    wanted = step(case, batch, **choices)
    got = step(case, batch, feedback="per_sample", **choices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, wanted)
