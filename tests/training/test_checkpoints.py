"""Checkpoints: what comes back, what is kept, what is refused."""

import resource
import shutil
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

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
    assert checkpoints.position(7) == {"epoch": 2}
    assert jax.tree.structure(restored) == jax.tree.structure(state(0.0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(0.1))


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, 0.3, 0.4, 0.2]):
        checkpoints.save(step, state(step), {}, score)
    assert steps(tmp_path) == [1, 3, 4]
    assert checkpoints.best_step() == 1 and checkpoints.latest_step() == 4


def test_without_scores_only_the_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in range(3):
        checkpoints.save(step, state(step), {}, None)
    assert steps(tmp_path) == [2]


def test_a_state_of_another_structure_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), {}, None)
    other = {"v": jnp.zeros(2)}, {"w": jnp.zeros((3, 1))}, {"w": jnp.zeros((3, 2), jnp.int32)}
    for params, difference in zip(
        other, ("missing there", r"float32\[3, 1\] here", r"int32\[3, 2\] here"), strict=True
    ):
        with pytest.raises(ValueError, match=rf"checkpoint 1 in .* another run: .*{difference}"):
            checkpoints.restore(1, state(1.0)._replace(params=params))


def flip_a_bit(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_falls_back_to_the_checkpoint_before(tmp_path):
    whole = tmp_path / "whole"
    checkpoints = Checkpoints(whole)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), {"epoch": step}, None)
    files = sorted(path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file())
    assert len(files) > 5
    for name in files:
        for part in (0, 0.5, 1):
            folder = tmp_path / "damaged"
            shutil.copytree(whole, folder)
            size = (folder / name).stat().st_size
            flip_a_bit(folder / name, round(part * (size - 1)))
            damaged = Checkpoints(folder)
            latest = damaged.latest_step()
            if name.name == "checkpoint.json" and latest == 2:  # only its last newline is changed
                assert part == 1
            else:
                assert latest == 1 and "damaged/2" in damaged.damaged[2]
                assert float(damaged.restore(1, state(0.0)).params["w"][0, 0]) == 1
            shutil.rmtree(folder)


def test_what_is_missing_or_of_another_step_is_left_out(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=4)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step), {}, None)
    shutil.rmtree(tmp_path / "4" / "state" / "d")
    (tmp_path / "3" / "checkpoint.json").write_text("[null]")
    shutil.rmtree(tmp_path / "2")
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    damaged = Checkpoints(tmp_path)
    assert damaged.latest_step() == 1
    for step, what in ((4, "is missing"), (3, "does not say"), (2, "it is that of step 1")):
        assert what in damaged.damaged[step]
    # The next one takes their place.
    damaged.save(4, state(9.0), {}, None)
    assert steps(tmp_path) == [1, 4] and 4 not in damaged.damaged
    assert Checkpoints(tmp_path).latest_step() == 4


def large_state():
    return state(1.0)._replace(params={"w": np.random.default_rng(0).normal(size=(300, 300))})


def refused_then_saved(checkpoints: Checkpoints, folder, disk, why: str) -> None:
    """The second checkpoint does not fit; when it does, it is saved."""
    checkpoints.save(1, large_state(), {}, None)
    with disk:
        message = f"checkpoint 2 cannot be written to .*: {why}; checkpoint 1 stays\\.$"
        with pytest.raises(OSError, match=message):
            checkpoints.save(2, large_state(), {}, None)
    assert steps(folder) == [1]
    assert checkpoints.latest_step() == Checkpoints(folder).latest_step() == 1
    checkpoints.save(2, large_state(), {}, None)
    assert checkpoints.latest_step() == 2


def test_a_full_disk_is_one_sentence_and_leaves_the_last_good_one(tmp_path, capfd):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20 + large_state().params["w"].nbytes)
    full = mock.patch("ocresnet.training.checkpoints.shutil.disk_usage", return_value=usage)
    refused_then_saved(Checkpoints(tmp_path), tmp_path, full, "No space left on device")
    assert capfd.readouterr().err == ""


@contextmanager
def largest_file(size: int):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_write_that_orbax_cannot_do_is_one_sentence(tmp_path, capfd):
    refused_then_saved(Checkpoints(tmp_path), tmp_path, largest_file(100_000), "File too large")
    assert capfd.readouterr().err == ""
