"""What `fit` and `sweep` refuse before anything is compiled."""

import jax

from ocresnet.costs import PerSampleLoss, make_cost
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
        ("data", data, hasattr(data, "feed"), "a Dataset, a StreamingDataset or a TimeSeriesData"),
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
    if architecture.classifies and data.classes == 1:
        raise ValueError(
            f"{data.name} has no labels, and a {type(architecture).__name__} tells classes apart: "
            "give them, or train what needs none: a FlowConfig, or on series a "
            "GRUODEConfig(task='prediction')."
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


def check_loss(
    architecture: Architecture, config: TrainingConfig, loss: PerSampleLoss | None
) -> None:
    """Refuse a loss of other outputs than the network has, a teacher of classes where it has none,
    and an optimizer's lower bound of 0 under a loss that has none.

    Args:
      architecture, config: of the run.
      loss: is used instead of that of `config`, unless it is None.

    Raises:
      ValueError: naming the losses that fit.
    """
    if loss is None and config.loss not in architecture.losses:
        raise ValueError(
            f"loss is {config.loss!r}, but a {type(architecture).__name__} is trained with "
            f"{' or '.join(architecture.losses)}."
        )
    if config.distillation > 0 and not architecture.classifies:
        raise ValueError(
            f"distillation is {config.distillation}, but a {type(architecture).__name__} has no "
            "classes to learn from a teacher: set it to 0."
        )
    unbounded = loss is None and not make_cost(config.loss, config.label_smoothing).bounded
    if unbounded and getattr(config.optimizer, "lower_bound", None) == 0:
        raise ValueError(
            f"lower_bound is 0, but the loss of a {type(architecture).__name__} may fall below, "
            f"where {type(config.optimizer).__name__} would stand still: give a number that it "
            "cannot reach."
        )


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
