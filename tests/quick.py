"""Compilation for what is run once or twice, as most of what a test compares is."""

from contextlib import suppress
from functools import partial
from typing import Any

import jax


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the compiler's options that this version of it has."""
    known = {}
    for name, value in options.items():
        with suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value})()
            known[name] = value
    return known


QUICK = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})

quick_jit = partial(jax.jit, compiler_options=QUICK)
"""`jax.jit` for checks of numbers, best in float64: it compiles in a fifth of the time."""
