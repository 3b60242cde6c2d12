"""The families of networks by name: where a new one is listed.

A saved network, a run's configuration and the flag `--architecture` name a family; `register` adds
one from outside this package.
"""

from dataclasses import asdict
from typing import Any

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.transformer import TransformerConfig

FAMILIES: dict[str, type[Architecture]] = {
    "resnet": ResNetConfig,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
    "residual_mlp": ResidualMLPConfig,
    "inception": InceptionConfig,
    "transformer": TransformerConfig,
    "neural_ode": NeuralODEConfig,
    "gru_ode": GRUODEConfig,
    "flow": FlowConfig,
}


def register(name: str, family: type[Architecture]) -> None:
    """Add a family.

    Raises:
      ValueError: if another one has that name.
    """
    if FAMILIES.setdefault(name, family) is not family:
        raise ValueError(f"there is a family {name!r} already: choose another name.")


def describe(architecture: Architecture) -> dict[str, Any]:
    """An architecture as JSON values: its fields, and its family's name.

    Raises:
      ValueError: for a family that is not registered.
    """
    for name, family in FAMILIES.items():
        if type(architecture) is family:
            return {"family": name, **asdict(architecture)}
    raise ValueError(
        f"{type(architecture).__name__} is no known family of networks: call "
        "ocresnet.systems.families.register first."
    )


def from_description(described: Any) -> Architecture:
    """Undo `describe`.

    Raises:
      ValueError: for what `describe` has not made, or an impossible architecture.
    """
    name = described.get("family") if isinstance(described, dict) else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"an architecture must be described with its family, one of {', '.join(FAMILIES)}, "
            f"but it is {name!r}."
        )
    fields = {field: value for field, value in described.items() if field != "family"}
    try:
        return FAMILIES[name](**fields)
    except TypeError as error:
        raise ValueError(f"the description of an architecture is wrong: {error}") from error
