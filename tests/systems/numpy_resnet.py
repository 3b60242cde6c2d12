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


def project(kernel, x):
    """A 1x1 convolution of stride 2."""
    return convolve(x, kernel[None, None], 2)


def branch(params, stats, x, stride, train):
    x = relu(batch_norm(params["norm_1"], stats["norm_1"], x, train))
    x = convolve(x, params["convolution_1"]["kernel"], stride)
    x = relu(batch_norm(params["norm_2"], stats["norm_2"], x, train))
    return convolve(x, params["convolution_2"]["kernel"])


def head(params, projections, stats, x, stage, stages, train):
    for later in range(stage + 1, stages):
        x = project(projections[f"stage_{later}"]["kernel"], x)
    x = relu(batch_norm(params["norm"], stats, x, train))
    return x.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


def entry(tree, position):
    if isinstance(tree, dict):
        return {key: entry(value, position) for key, value in tree.items()}
    return tree[position]


def blocks_in_order(config, params, stats):
    """(params, stats, stage of the state before, stage of the block) of every block."""
    for stage, count in enumerate(config.blocks):
        for index in range(count):
            if stage > 0 and index == 0:
                name = f"transition_{stage}"
                yield params[name], stats[name], stage - 1, stage
                continue
            name, position = f"stage_{stage}", index - (stage > 0)
            yield entry(params[name], position), entry(stats[name], position), stage, stage


def forward(config, params, stats, images, train):
    """All outputs of equations (1) and (2): [outputs, batch, classes]."""
    stages = len(config.filters)
    x = (images - np.array(config.pixel_mean)) / np.array(config.pixel_deviation)
    x = convolve(x, params["stem"]["convolution"]["kernel"], config.stem_stride)
    x = relu(batch_norm(params["stem"]["norm"], stats["stem"]["norm"], x, train))
    outputs, stage = [], 0
    for block, block_stats, before, stage in blocks_in_order(config, params, stats):
        if config.exits == "shared":
            own, projections = params["head"], params["projections"]
        elif config.exits == "separate":
            own, projections = block["exit"], block["exit"]["projections"]
        if config.exits != "none":
            outputs.append(head(own, projections, block_stats["exit"], x, before, stages, train))
        residual = branch(
            block["residual"], block_stats["residual"], x, 1 if before == stage else 2, train
        )
        skip = x
        if before != stage:
            skip = project(params["projections"][f"stage_{stage}"]["kernel"], x)
        x = skip + residual
    last = head(
        params["head"],
        params["projections"],
        stats["output_block"]["norm"],
        x,
        stage,
        stages,
        train,
    )
    return np.stack([*outputs, last])
