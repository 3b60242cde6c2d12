"""An independent residual network: plain numpy, float64, one block after the other.

Written from the papers' equations and sharing no code with the library, as an oracle for it.
"""

import numpy as np


def convolve(x, kernel, stride=1):
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def batch_norm(params, stats, x, train):
    if train:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    else:
        mean, variance = stats["mean"], stats["variance"]
    return params["scale"] * (x - mean) / np.sqrt(variance + 1e-5) + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def maximum(x):
    """Over 3x3 pixels, with stride 2."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max((-1, -2))


def project(kernel, x, level):
    """The 1x1 convolution that opens a level."""
    return convolve(x, kernel[None, None], 1 if level == 0 else 2)


def branch(params, stats, x, stride, train):
    for number in range(1, len(stats) + 1):
        kernel = params[f"convolution_{number}"]["kernel"]
        x = relu(batch_norm(params[f"norm_{number}"], stats[f"norm_{number}"], x, train))
        x = convolve(x, kernel, stride if len(kernel) == 3 else 1)
        stride = 1 if len(kernel) == 3 else stride
    return x


def head(params, projections, stats, x, level, levels, train):
    for later in range(level + 1, levels):
        x = project(projections[f"level_{later}"]["kernel"], x, later)
    x = relu(batch_norm(params["norm"], stats, x, train))
    return x.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


def entry(tree, position):
    if isinstance(tree, dict):
        return {key: entry(value, position) for key, value in tree.items()}
    return tree[position]


def blocks_in_order(config, params, stats):
    """(params, stats, level of the state before, level of the block) of every basic block."""
    for level, count in enumerate(config.blocks):
        for index in range(count):
            if level > 0 and index == 0:
                name = f"opening_{level}"
                yield params[name], stats[name], level - 1, level
                continue
            name, position = f"level_{level}", index - (level > 0)
            yield entry(params[name], position), entry(stats[name], position), level, level


def stem(config, params, stats, images, train):
    x = (images - np.array(config.pixel_mean)) / np.array(config.pixel_deviation)
    imagenet = config.stem == "imagenet"
    x = convolve(x, params["convolution"]["kernel"], 2 if imagenet else config.stem_stride)
    x = relu(batch_norm(params["norm"], stats["norm"], x, train))
    return maximum(x) if imagenet else x


def forward(config, params, stats, images, train):
    """All outputs of equations (1) and (2): [outputs, batch, classes]."""
    levels = len(config.filters)
    x = stem(config, params["stem"], stats["stem"], images, train)
    outputs, state_level = [], -1 if "level_0" in params["projections"] else 0

    def block(own, own_stats, x, opens):
        level = state_level
        if config.exits == "shared":
            parts, projections = params["head"], params["projections"]
        elif config.exits == "separate":
            parts, projections = own["exit"], own["exit"]["projections"]
        if config.exits != "none":
            outputs.append(
                head(parts, projections, own_stats["exit"]["norm"], x, level, levels, train)
            )
        stride = 2 if opens and level >= 0 else 1
        residual = branch(own["residual"], own_stats["residual"], x, stride, train)
        if opens:
            x = project(params["projections"][f"level_{level + 1}"]["kernel"], x, level + 1)
        return x + residual

    for level, count in enumerate(config.blocks):
        if level in config.bare_levels:
            x = project(params["projections"][f"level_{level}"]["kernel"], x, level)
            state_level = level
        if count and state_level < level:
            name = f"opening_{level}"
            x, state_level = block(params[name], stats[name], x, opens=True), level
            count -= 1
        name = f"level_{level}"
        for position in range(count):
            own, own_stats = entry(params[name], position), entry(stats[name], position)
            x = block(own, own_stats, x, opens=False)
    last = head(
        params["head"],
        params["projections"],
        stats["output_block"]["norm"],
        x,
        state_level,
        levels,
        train,
    )
    return np.stack([*outputs, last])
