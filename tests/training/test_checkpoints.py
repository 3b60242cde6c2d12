"""Checkpoints: what comes back, what is kept, what is refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.training.checkpoints import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    average: dict | None


def state(value: float) -> State:
    return State(jnp.int32(value), {"w": jnp.full((3, 2), value), "empty": {}}, None)


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save(7, state(0.1), {"epoch": 2}, None)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 7
    restored = checkpoints.restore(7, state(0.0))
    assert restored.position == {"epoch": 2}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state(0.0))
    jax.tree.map(np.testing.assert_array_equal, restored.state, state(0.1))


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, scored=True)
    for step, score in enumerate([0.1, 0.9, 0.3, 0.4, 0.2]):
        checkpoints.save(step, state(step), {}, score)
    assert steps(tmp_path) == [1, 3, 4]
    assert checkpoints.best_step() == 1 and checkpoints.latest_step() == 4


def test_without_scores_only_the_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in range(3):
        checkpoints.save(step, state(step), {}, None)
    assert steps(tmp_path) == [2]


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), {}, None)
    other = state(1.0)._replace(params={"v": jnp.zeros(2)})
    with pytest.raises(ValueError, match="checkpoint 1 in .* cannot be read"):
        checkpoints.restore(1, other)
    for file in (tmp_path / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoint 1 in .* cannot be read"):
        checkpoints.restore(1, state(0.0))
