"""The same residual network, loss and training step in PyTorch, for `step`.

Weights are taken over from ours, so that the benchmark can check that both compute the same loss
before it times them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from ocresnet.systems import resnet
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.systems.system import Variables, unstack


class Block(nn.Module):
    """x -> S(x) + F(x), pre-activation; the first block of a later stage halves the resolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels_in == channels else 2
        self.norm_1 = nn.BatchNorm2d(channels_in)
        self.convolution_1 = nn.Conv2d(channels_in, channels, 3, self.stride, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels)
        self.convolution_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.convolution_1(functional.relu(self.norm_1(x)))
        return skip + self.convolution_2(functional.relu(self.norm_2(x)))


class TorchResNet(nn.Module):
    """ResNet-v2 with shared exit heads: every head has batch statistics of its own."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        filters, channels = config.filters, config.image_shape[2]
        self.stem = nn.Conv2d(channels, filters[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(filters[0])
        self.blocks = nn.ModuleList()
        self.stages = []
        for stage, count in enumerate(config.blocks):
            for index in range(count):
                first = stage > 0 and index == 0
                self.blocks.append(Block(filters[stage - first], filters[stage]))
                self.stages.append(stage - first)
        self.projections = nn.ModuleList(
            nn.Conv2d(before, after, 1, 2, bias=False) for before, after in pairwise(filters)
        )
        self.norm = nn.BatchNorm2d(filters[-1], affine=True)
        self.running = nn.ModuleList(
            nn.BatchNorm2d(filters[-1], affine=False) for _ in range(config.depth)
        )
        self.dense = nn.Linear(filters[-1], config.classes)
        self.with_exits = config.exits != "none"

    def head(self, x: torch.Tensor, stage: int, statistics: nn.BatchNorm2d) -> torch.Tensor:
        for projection in self.projections[stage:]:
            x = projection(x)
        x = functional.batch_norm(
            x,
            statistics.running_mean,
            statistics.running_var,
            self.norm.weight,
            self.norm.bias,
            training=True,
        )
        return self.dense(functional.relu(x).mean((2, 3)))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = functional.relu(self.stem_norm(self.stem(images)))
        outputs = []
        for block, stage, statistics in zip(self.blocks, self.stages, self.running, strict=True):
            if self.with_exits:
                outputs.append(self.head(x, stage, statistics))
            x = block(x, x if block.stride == 1 else self.projections[stage](x))
        return [*outputs, self.head(x, len(self.projections), self.norm)]


def load_weights(model: TorchResNet, config: ResNetConfig, variables: Variables) -> None:
    """Copy our parameters into the model."""
    system = resnet.resnet_system(config)
    params = unstack(system, jax.device_get(variables.params))

    def convolution(target: nn.Conv2d, source: dict) -> None:
        kernel = source["kernel"]
        if kernel.ndim == 2:
            kernel = kernel[None, None]
        target.weight.data.copy_(torch.tensor(np.transpose(kernel, (3, 2, 0, 1))))

    def norm(target: nn.BatchNorm2d, source: dict) -> None:
        target.weight.data.copy_(torch.tensor(source["scale"]))
        target.bias.data.copy_(torch.tensor(source["bias"]))

    convolution(model.stem, params["stem"]["convolution"])
    norm(model.stem_norm, params["stem"]["norm"])
    blocks: list[dict] = []
    for segment in resnet.block_segments(config):
        entry = params[segment.name]
        blocks += [entry] if segment.transition else entry
    for block, entry in zip(model.blocks, blocks, strict=True):
        residual = entry["residual"]
        norm(block.norm_1, residual["norm_1"])
        convolution(block.convolution_1, residual["convolution_1"])
        norm(block.norm_2, residual["norm_2"])
        convolution(block.convolution_2, residual["convolution_2"])
    for projection, name in zip(model.projections, sorted(params["projections"]), strict=True):
        convolution(projection, params["projections"][name])
    norm(model.norm, params["head"]["norm"])
    model.dense.weight.data.copy_(torch.tensor(params["head"]["dense"]["kernel"].T))
    model.dense.bias.data.copy_(torch.tensor(params["head"]["dense"]["bias"]))


def torch_step(
    config: ResNetConfig,
    variables: Variables,
    images: np.ndarray,
    labels: np.ndarray,
    stage_cost: float,
    channels_last: bool,
) -> Callable[[], float]:
    """A training step (SGD with momentum and weight decay) that returns its objective."""
    model = TorchResNet(config)
    load_weights(model, config, variables)
    batch = torch.tensor(np.transpose(images, (0, 3, 1, 2)))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch = batch.to(memory_format=torch.channels_last)
    targets = torch.tensor(labels).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        losses = [functional.cross_entropy(logits, targets) for logits in model(batch)]
        objective = losses[-1] + stage_cost * sum(losses[:-1])
        objective.backward()
        optimizer.step()
        return objective.item()

    return step


def torch_convolutions(stages: Sequence[tuple[np.ndarray, np.ndarray]]) -> Callable[[], float]:
    """Value and gradient of sum over stages of mean(x_N^2), x_{k+1} = x_k + w_k2 * (w_k1 * x_k).

    Args:
      stages: images [batch, height, width, channels] and kernels [blocks, 2, 3, 3, channels,
        channels] of each stage.
    """
    prepared = [
        (
            torch.tensor(np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))), requires_grad=True),
            torch.tensor(
                np.ascontiguousarray(np.transpose(kernels, (0, 1, 5, 4, 2, 3))), requires_grad=True
            ),
        )
        for x, kernels in stages
    ]

    def step() -> float:
        value = torch.zeros(())
        for x, kernels in prepared:
            x.grad = kernels.grad = None
            for first, second in kernels:
                branch = functional.conv2d(x, first, padding=1)
                x = x + functional.conv2d(branch, second, padding=1)
            value = value + torch.mean(x**2)
        value.backward()
        return value.item()

    return step
