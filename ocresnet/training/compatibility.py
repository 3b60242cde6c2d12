"""What `fit` and `sweep` refuse before anything is compiled."""

import jax

from ocresnet.data.training_data import TrainingData
from ocresnet.systems import families
from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.training.config import TrainingConfig
from ocresnet.training.shrinking import check_shrinking
from ocresnet.training.step import training_problem


def check_kinds(architecture: object, config: object, data: object) -> None:
    """Refuse swapped arguments, and arrays or dictionaries for data.

    Raises:
      ValueError: naming the argument and what it must be.
    """
    for name, value, fits, wanted in (
        (
            "architecture",
            architecture,
            isinstance(architecture, Architecture),
            "an Architecture, as ResNetConfig(...)",
        ),
        ("config", config, isinstance(config, TrainingConfig), "a TrainingConfig"),
        ("data", data, hasattr(data, "feed"), "a Dataset or a StreamingDataset"),
    ):
        if not fits:
            raise ValueError(
                f"fit takes architecture, config and data in this order: {name} is a "
                f"{type(value).__name__}, but must be {wanted}."
            )


def check_fit(
    architecture: Architecture, config: TrainingConfig, data: TrainingData, devices: int
) -> None:
    """Refuse architecture, configuration, data and devices that do not fit together.

    Args:
      architecture, config, data: of the run.
      devices: how many share a batch, in all processes.

    Raises:
      ValueError: saying what does not fit.
    """
    if architecture.image_shape != data.image_shape:
        raise ValueError(
            f"the network takes images of shape {architecture.image_shape}, but {data.name} has "
            f"{data.image_shape}."
        )
    if architecture.classes < data.classes:
        raise ValueError(
            f"the network has {architecture.classes} classes, but {data.name} has {data.classes}."
        )
    architecture.system()  # a family may refuse the images
    _check_stage_cost(architecture, config)
    check_shrinking(architecture, config)
    if config.batch_size % devices:
        raise ValueError(f"batch_size {config.batch_size} is not divisible over {devices} devices.")
    if config.batch_size > data.samples("train"):
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training set of {data.name}, "
            f"which has {data.samples('train')} samples."
        )
    if config.augmentation not in data.augmentations:
        raise ValueError(
            f"augmentation is {config.augmentation!r}, but {data.name} can have "
            f"{', '.join(data.augmentations)}."
        )


def check_optimizer(architecture: Architecture, config: TrainingConfig, devices: int) -> None:
    """Refuse a problem that the configured optimizer cannot solve on so many devices.

    Raises:
      ValueError: saying what does not fit.
    """
    variables = jax.eval_shape(architecture.init, jax.random.key(0))
    problem = training_problem(architecture, config)
    samples = config.batch_size // devices
    config.optimizer.check(architecture, problem, variables, devices, samples)


def _check_stage_cost(architecture: Architecture, config: TrainingConfig) -> None:
    """Refuse a stage cost that nothing would pay, and exits that nothing would train."""
    if architecture.outputs == 1 and config.stage_cost > 0:
        raise ValueError(
            f"stage_cost is {config.stage_cost}, but the network has no exits to pay it on: "
            + (
                "give it exits (shared or separate), or set stage_cost to 0."
                if isinstance(architecture, ResidualArchitecture)
                else f"set stage_cost to 0 (a {type(architecture).__name__} cannot have any)."
            )
        )
    if not isinstance(architecture, ResidualArchitecture) or architecture.exits != "separate":
        return
    if config.stage_cost == 0:
        raise ValueError(
            "separate exit heads learn only from the stage cost: set stage_cost above 0, or choose "
            "exits shared or none."
        )
    if config.stage_cost_schedule != "constant":
        raise ValueError(
            f"stage_cost_schedule is {config.stage_cost_schedule!r}, but separate exit heads learn "
            "at a rate that is divided by the stage cost: it must be constant."
        )


def check_initial(architecture: Architecture, initial: Architecture) -> None:
    """Refuse to start from a network of another architecture.

    Raises:
      ValueError: naming what differs.
    """
    wanted, given = families.describe(architecture), families.describe(initial)
    different = [name for name in wanted if wanted[name] != given.get(name)]
    if different:
        names = " and ".join(
            f"{name} {given.get(name)} instead of {wanted[name]}" for name in different
        )
        raise ValueError(
            f"the initial network is of another architecture: it has {names}; train its own "
            "`architecture`, or start from another network."
        )
