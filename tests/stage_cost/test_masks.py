"""Which parameters decay, and which belong to separate heads."""

import jax.numpy as jnp

from ocresnet.stage_cost.masks import separate_exit_mask, weight_decay_mask


def test_masks_name_residual_branches_and_separate_heads():
    tree = {
        "stem": jnp.zeros(1),
        "level_0": {"residual": {"k": jnp.zeros(1)}, "exit": {"norm": {"scale": jnp.zeros(1)}}},
    }
    all_of_it = weight_decay_mask(tree, "all")
    assert all_of_it == {
        "stem": True,
        "level_0": {"residual": {"k": True}, "exit": {"norm": {"scale": True}}},
    }
    assert weight_decay_mask(tree, "residual_branches") == {
        "stem": False,
        "level_0": {"residual": {"k": True}, "exit": {"norm": {"scale": False}}},
    }
    assert separate_exit_mask(tree) == {
        "stem": False,
        "level_0": {"residual": {"k": False}, "exit": {"norm": {"scale": True}}},
    }
