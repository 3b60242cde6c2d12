"""Where a run on any data starts, and what becomes of a start with another network, optimizer or
length."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ocresnet.data.points import TABLES
from ocresnet.systems import families
from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.solver_settings import SolverChoice, foreign_fields
from ocresnet.systems.system import Execution
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import OPTIMIZERS, SGD, AdamW, Optimizer

from .presets.paper import PAPER_BLOCKS
from .presets.preset import Preset

_SMALL: dict[type[Architecture], Architecture] = {
    ResNetConfig: ResNetConfig.homogeneous(12, 16),
    NeuralODEConfig: NeuralODEConfig(solver="rk4", steps=8),
    FlowConfig: FlowConfig(solver="rk4", steps=8),
    GRUODEConfig: GRUODEConfig(solver="rk4", steps=1),
}
DEFAULT_NETWORKS: dict[str, Architecture] = {
    name: _SMALL[family] if family in _SMALL else family()
    for name, family in families.FAMILIES.items()
}
"""A network of each family that suits small images."""

DEFAULT_OPTIMIZERS: dict[str, Optimizer] = {
    name: optimizer() for name, optimizer in OPTIMIZERS.items()
}


def preset_for(dataset: str, family: str = "resnet") -> Preset:
    """Where a run on any small images starts that has no preset of its own.

    Args:
      dataset: name of the data, or path of a `.npz` file.
      family: of the network. Without batch norm, the rate of SGD would have to be found for every
        data set: other families than "resnet" have AdamW.
    """
    network = DEFAULT_NETWORKS[family]
    if not network.classifies:
        return Preset(dataset, network, _flow_training(dataset), "unknown")
    return Preset(
        dataset=dataset,
        network=network,
        training=TrainingConfig(
            epochs=30,
            batch_size=64,
            optimizer=SGD(milestones=(0.6, 0.85)) if family == "resnet" else AdamW(),
            stage_cost=0.05 if isinstance(network, ResidualArchitecture) else 0.0,
            validation=0.1,
        ),
        expected="unknown",
        recipe="shrink" if family == "resnet" else "paper",
    )


def _flow_training(dataset: str) -> TrainingConfig:
    """Of a flow; a table of a few hundred samples is soon learned by heart."""
    small = dataset in TABLES
    return TrainingConfig(
        epochs=150 if small else 40,
        batch_size=64 if small else 256,
        optimizer=AdamW(learning_rate=5e-3),
        stage_cost=0.0,
        loss="negative_log_likelihood",
        validation=0.15 if small else 0.1,
        execution=Execution(remat="none"),
    )


def of_family(preset: Preset, family: str) -> Preset:
    """A preset with the default network of another family, without stage cost where it has no
    exits to pay it on, and with the likelihood as its loss where it tells no classes apart."""
    network = DEFAULT_NETWORKS[family]
    if network.outputs == 1:
        preset = replace(preset, training=replace(preset.training, stage_cost=0.0))
    if not network.classifies:
        likelihood = replace(preset.training, loss="negative_log_likelihood", label_smoothing=0.0)
        preset = replace(preset, training=likelihood)
    return replace(preset, network=network, recipe="paper")


def default_optimizer(name: str, network: Architecture) -> Optimizer:
    """An optimizer at its defaults; OCNOpt without weight decay for a network that tells no classes
    apart, as densities are worse with it (`results/README.md`)."""
    optimizer = DEFAULT_OPTIMIZERS[name]
    if name == "ocnopt" and not network.classifies:
        return replace(optimizer, weight_decay=0.0)
    return optimizer


def with_fields(network: Architecture, given: Mapping[str, Any]) -> Architecture:
    """A network with these fields; of a residual network one number of blocks is split evenly over
    its levels, and a SubResNet has the first ones of the paper's 54. Another solver of an ODE
    leaves behind what it does not have.

    Raises:
      ValueError: for an impossible network.
    """
    if isinstance(network, SolverChoice) and "solver" in given:
        given = {**dict.fromkeys(foreign_fields(given["solver"])), **given}
    if not isinstance(network, ResNetConfig):
        return replace(network, **given)
    filters, blocks = (given.get(name, getattr(network, name)) for name in ("filters", "blocks"))
    if "blocks" not in given and len(filters) != len(blocks):
        blocks = (network.depth,)
    if len(blocks) == 1 and len(filters) > 1:
        of_subresnet = 0 in network.blocks
        whole = ResNetConfig.standard(PAPER_BLOCKS if of_subresnet else blocks[0], filters)
        blocks = whole.subresnet(blocks[0]).blocks
    return replace(network, **{**given, "blocks": blocks})


def with_optimizer(training: TrainingConfig, name: str) -> TrainingConfig:
    """A training with another optimizer, at that one's own learning rate; it keeps schedule,
    weight decay and clipping, but for OCNOpt, whose region bounds the step."""
    kept = {
        field.name: getattr(training.optimizer, field.name)
        for field in fields(Optimizer)
        if field.name != "learning_rate"
    }
    if name == "ocnopt":
        del kept["gradient_clip"]
    return replace(training, optimizer=OPTIMIZERS[name](**kept))


def with_epochs(training: TrainingConfig, epochs: int) -> TrainingConfig:
    """A training of another length, whose milestones stay at the same shares of it."""
    milestones = training.optimizer.milestones
    if epochs != training.epochs and epochs > 0:
        milestones = tuple(
            milestone / training.epochs if isinstance(milestone, int) else milestone
            for milestone in milestones
        )
    optimizer = replace(training.optimizer, milestones=milestones)
    return replace(training, epochs=epochs, optimizer=optimizer)
