"""A sequence of the user's Flax modules as a controlled system: x_{k+1} = module_k(x_k).

What is a module's own turns into arrays that are passed and returned: parameters are controls, and
everything else that a module remembers (running averages, the key of its random numbers) are batch
statistics. Nothing is written into the user's modules.

Dense layers and convolutions that compute what `layers.py` computes become these layers, which
Kronecker curvature knows. All other modules run as they are, in segments that declare no layers.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx, traverse_util
from jax import lax

from ocresnet.systems import layers
from ocresnet.systems.layers import Convolution
from ocresnet.systems.system import PyTree, Segment, Stage, System, Transition, Variables
from ocresnet.systems.taps import AffineLayer

Array = jax.Array
Module = nnx.Module | linen.Module | Callable[[Array], Array]
Fits = Callable[[Array], bool]
"""Whether a layer of `layers.py` does with an input what the module does."""

Parts = tuple[Transition, PyTree, PyTree]
"""A module's transition, parameters and batch statistics."""

KEY = "key"
"""The entry of a module's batch statistics from which its random numbers come."""

ORDINARY_SETTINGS = (
    "precision",
    "preferred_element_type",
    "promote_dtype",
    "dot_general",
    "dot_general_cls",
    "conv_general_dilated",
    "conv_general_dilated_cls",
    "feature_group_count",
    "mask",
)
"""A layer of `layers.py` has no choice of these: they must be what Flax sets by itself."""


def from_flax(
    modules: Sequence[Module], inputs: Array | None = None, *, key: Array | None = None
) -> tuple[System, Variables]:
    """Turn Flax modules, which are applied one after the other, into a system and its variables.

    In training, modules normalise with the batch's statistics and drop out; the system's `train`
    decides, whatever was chosen when the module was made. It reaches NNX modules by `train()` and
    `eval()`, and both kinds by the arguments `train`, `training`, `deterministic` and
    `use_running_average` where their `__call__` has them. A module that draws random numbers has a
    key among its statistics: with the same statistics it draws the same numbers, and the
    statistics that a training pass returns have a new key.

    Args:
      modules: NNX modules, Linen modules, and functions of the activations without parameters.
      inputs: example inputs of the network, [batch, ...]. Linen modules need them; NNX modules can
        do without, but then no layer is declared for strided convolutions with padding "SAME".
      key: of the initial parameters of Linen modules.

    Returns:
      A system with the segments "layer_0", "layer_1", ..., and its variables: the parameters and
      statistics of every module that has some, as nested dictionaries with names as keys.

    Raises:
      TypeError: for what is neither a Flax module nor a function.
      ValueError: for no modules; Linen modules without inputs and key; modules that share
        parameters; Linen modules with variables that are neither parameters nor batch statistics.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> modules = [nnx.Linear(4, 8, rngs=rngs), jax.nn.relu, nnx.Linear(8, 3, rngs=rngs)]
      >>> system, variables = from_flax(modules)
    """
    if not isinstance(modules, (list, tuple)):
        raise TypeError(
            f"modules is {_describe(modules)}, but must be a list or tuple of modules that are "
            "applied one after the other."
        )
    if not modules:
        raise ValueError("modules is empty, but must have at least one module.")
    segments, params, batch_stats = [], {}, {}
    owners: dict[int, tuple[Any, str]] = {}
    for index, module in enumerate(modules):
        name = f"layer_{index}"
        transition, own, stats = _parts(module, name, index, inputs, key)
        for part in [module, *jax.tree.leaves(own)] if own else []:
            _, owner = owners.setdefault(id(part), (part, name))
            if owner != name:
                raise ValueError(
                    f"{owner} and {name} share parameters, but every module must have its own."
                )
        known = _affine(module, name, inputs, own)
        if known is None:
            segments.append(Segment(name, transition))
        else:
            layer, affine = known
            segments.append(Segment(name, affine, layers={"": layer}))
        # Copies, so that a training step that gives its buffers away does not take the module's.
        own, stats = jax.tree.map(jnp.copy, (own, stats))
        if own:
            params[name] = own
        if stats:
            batch_stats[name] = stats
        if inputs is not None:
            inputs, _ = transition(Stage(own, stats, jnp.zeros(())), inputs)
    return System(tuple(segments)), Variables(params, batch_stats)


def _parts(module: Any, name: str, index: int, inputs: Array | None, key: Array | None) -> Parts:
    if isinstance(module, type) or not callable(module):
        raise TypeError(
            f"{name} is {_describe(module)}, but must be a Flax module that can be called, or a "
            "function of the activations."
        )
    if isinstance(module, nnx.Module):
        return _nnx_parts(module, index)
    if isinstance(module, linen.Module):
        if inputs is None or key is None:
            raise ValueError(
                f"{name} is {_describe(module)} of Linen, whose parameters are made from example "
                "inputs and a key: give from_flax both."
            )
        return _linen_parts(module, name, inputs, jax.random.fold_in(key, index))

    def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        return module(x), {}

    return transition, {}, {}


def _nnx_parts(module: nnx.Module, index: int) -> Parts:
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params_state, random_state, stats_state = states
    keys = [leaf for leaf in jax.tree.leaves(random_state) if _is_key(leaf)]

    def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        stats, train = stage.batch_stats, bool(stage.train)
        stats, draw, advanced = _next_key(stats, train) if keys else (stats, None, {})
        merged = nnx.merge(
            graph,
            _filled(params_state, stage.params),
            random_state if draw is None else _reseeded(random_state, draw),
            _filled(stats_state, stats),
        )
        if train:
            merged.train()
        else:
            merged.eval()
        y = merged(x, **_flags(merged, train))
        # What a call adds (intermediates) is left out: statistics keep their structure.
        changed = traverse_util.flatten_dict(_as_dict(nnx.state(merged)))
        kept = {path: changed[path] for path in traverse_util.flatten_dict(stats)}
        return y, {**traverse_util.unflatten_dict(kept), **advanced}

    stats = _as_dict(stats_state)
    if keys:
        # Modules that were made with one stream must not draw the same numbers.
        stats[KEY] = jax.random.fold_in(keys[0].ravel()[0], index)
    return transition, _as_dict(params_state), stats


def _linen_parts(module: Any, name: str, inputs: Array, key: Array) -> Parts:
    # What is set in the module may not be given to its call as well.
    settings = {field.name for field in dataclasses.fields(module)} & set(_flags(module, True))
    module = module.clone(**dict.fromkeys(settings))

    def apply(
        params: PyTree, stats: PyTree, x: Array, train: bool, rngs: dict[str, Array]
    ) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        flags = _flags(module, train)
        y, changed = module.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **flags)
        return y, changed.get("batch_stats", {})

    def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        train = bool(stage.train)
        stats, draw, advanced = _next_key(stage.batch_stats, train)
        # Every stream that a module asks for and is not given is drawn from "params".
        y, changed = apply(stage.params, stats, x, train, {} if draw is None else {"params": draw})
        return y, {**changed, **advanced}

    init_key, draw_key = jax.random.split(key)
    variables = dict(module.init(init_key, inputs, **_flags(module, False)))
    variables.pop("intermediates", None)
    params, stats = variables.pop("params", {}), variables.pop("batch_stats", {})
    if variables:
        raise ValueError(
            f"{name} has Linen variables of the collection {next(iter(variables))!r}, but only "
            "'params' and 'batch_stats' are known."
        )
    try:
        jax.eval_shape(lambda: apply(params, stats, inputs, True, {}))
    except (errors.InvalidRngError, NameError):
        # A NameError is an axis that is not mapped here: random numbers may be drawn after it.
        stats = {**stats, KEY: draw_key}
    return transition, params, stats


def _next_key(stats: PyTree, train: bool) -> tuple[PyTree, Array | None, PyTree]:
    """The statistics without their key, the key to draw from (or None), and the entry to return."""
    if KEY not in stats:
        return stats, None, {}
    following, draw = jax.random.split(stats[KEY])
    rest = {name: entry for name, entry in stats.items() if name != KEY}
    return rest, draw, {KEY: following if train else stats[KEY]}


def _reseeded(state: nnx.State, key: Array) -> nnx.State:
    """The random state of an NNX module, with streams that begin at `key`."""

    def reseed(index: int, leaf: Array) -> Array:
        if not _is_key(leaf):
            return jnp.zeros_like(leaf)
        return jax.random.split(jax.random.fold_in(key, index), leaf.shape)

    leaves, treedef = jax.tree.flatten(state)
    leaves = [reseed(index, leaf) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, leaves)


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_dict(state: nnx.State) -> PyTree:
    """{name: {name: array}}: the lists of a module have the names "0", "1", ..."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return traverse_util.unflatten_dict({tuple(map(str, path)): flat[path] for path in flat})


def _filled(state: nnx.State, tree: PyTree) -> nnx.State:
    """A copy of the state with the arrays of `tree`, which `_as_dict` made of its like."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, tree)
    return state


def _flags(module: Any, train: bool) -> dict[str, bool]:
    """What the module's call wants to know of the mode."""
    flags = {
        "train": train,
        "training": train,
        "deterministic": not train,
        "use_running_average": not train,
    }
    arguments = inspect.signature(module.__call__).parameters
    return {name: value for name, value in flags.items() if name in arguments}


def _affine(
    module: Any, name: str, inputs: Array | None, own: PyTree
) -> tuple[AffineLayer, Transition] | None:
    """The layer of `layers.py` that the module is, and its transition; None where it is not one."""
    layer: AffineLayer | None
    fits: Fits = _always
    if type(module) in (nnx.Linear, linen.Dense):
        layer = layers.dense
    elif type(module) in (nnx.Conv, linen.Conv):
        layer, fits = _convolution(module, inputs)
    else:
        return None
    arguments = inspect.signature(type(module).__init__).parameters
    ordinary = all(
        getattr(module, setting) is arguments[setting].default
        for setting in ORDINARY_SETTINGS
        if setting in arguments
    )
    names = {"kernel", "bias"} if module.use_bias else {"kernel"}
    if layer is None or not ordinary or set(own) != names:
        return None
    known, dtype = layer, module.dtype

    def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        if not fits(x):
            raise ValueError(
                f"{name} does not pad inputs of shape {x.shape} as it pads the example inputs: "
                "give from_flax inputs of the same height and width."
            )
        kernel = stage.params["kernel"]
        common = jnp.promote_types(x.dtype, kernel.dtype) if dtype is None else dtype
        return known(stage.params, x.astype(common)), {}

    return known, transition


def _convolution(module: Any, inputs: Array | None) -> tuple[AffineLayer | None, Fits]:
    """The module as a convolution of `layers.py`, and for which inputs; None where it is another.

    That one pads by half the kernel. Padding "SAME" with a stride puts fewer zeros before images
    whose size is a multiple of it; where their size is not known, all sizes must agree.
    """
    sides, padding = module.kernel_size, module.padding
    if isinstance(sides, int) or len(sides) != 2 or padding in ("CIRCULAR", "REFLECT"):
        return None, _always
    stride, other_stride = _pair(module.strides)
    dilations = _pair(module.input_dilation) + _pair(module.kernel_dilation)
    if stride != other_stride or dilations != (1, 1, 1, 1) or not all(side % 2 for side in sides):
        return None, _always

    def agrees(axis: int, size: int) -> bool:
        side = sides[axis]
        if isinstance(padding, str):
            [(before, after)] = lax.padtype_to_pads((size,), (side,), (stride,), padding)
        else:
            before, after = _pair(_pair(padding)[axis])
        count = (size + before + after - side) // stride + 1
        return before == side // 2 and count == -(-size // stride)

    def fits(x: Array) -> bool:
        return x.ndim == 4 and agrees(0, x.shape[1]) and agrees(1, x.shape[2])

    if inputs is None:
        sizes = [(axis, side + rest) for axis, side in enumerate(sides) for rest in range(stride)]
        same = all(agrees(axis, size) for axis, size in sizes)
    else:
        same = fits(inputs)
    return (Convolution(tuple(sides), stride) if same else None), fits


def _always(x: Array) -> bool:
    return True


def _pair(setting: int | Sequence[Any] | None) -> tuple[Any, Any]:
    """A setting for both directions, as Flax takes it: one number, two, or None for 1."""
    if setting is None:
        return 1, 1
    if isinstance(setting, int):
        return setting, setting
    first, second = setting
    return first, second


def _describe(thing: Any) -> str:
    """What a message calls it."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return repr(thing) if isinstance(thing, (str, int, float)) else f"a {type(thing).__name__}"
