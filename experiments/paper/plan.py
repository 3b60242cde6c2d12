"""The training runs behind every table and figure of the stage-cost paper, at three scales.

paper   the paper's setting to the letter (A.1): 54 blocks, 165 epochs
small   the same experiment on two CPU cores: 12 blocks behind a stem of stride 2, on the first
        10,000 training images. gamma N, the weight of all stage costs together, is the paper's;
        the weight decay is ten times the paper's, since there are fifty times fewer steps for it
        to act in.
smoke   3 blocks on the bundled digits, one epoch: for tests
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from ocresnet.systems import architecture as systems
from ocresnet.systems.architecture import Exits
from ocresnet.training.config import TrainingConfig

from ..common.presets.paper import PAPER_BLOCKS, paper_network, paper_preset
from ..common.presets.preset import TRAINING_SAMPLES, Preset, training_cost

Architecture = Literal["homogeneous", "standard"]
DATASETS = ("digits", "mnist", "cifar10", "cifar100")

Artefact = Literal["table1", "table2", "table3", "figure2", "figure3", "figure4", "figure5"]


def default_artefacts(dataset: str) -> tuple[Artefact, ...]:
    """Those of the paper: it trains the standard network on CIFAR-10 only."""
    artefacts = get_args(Artefact)
    if dataset == "cifar10":
        return artefacts
    return tuple(name for name in artefacts if ARCHITECTURE.get(name) != "standard")


ARCHITECTURE: dict[str, Architecture] = {
    "table2": "standard",
    "table3": "homogeneous",
    "figure2": "standard",
    "figure3": "homogeneous",
    "figure4": "standard",
    "figure5": "homogeneous",
}
"""Of which networks each artefact speaks; Table 1 speaks of both."""


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
      blocks: N, of the full networks.
      step: SubResNets have 0, step, 2 step, ... blocks.
      cut: blocks that the pruned networks of Table 1 keep.
      samples: training images used, the first ones; 0 means all.
    """

    blocks: int
    step: int
    cut: int
    samples: int = 0

    @property
    def depths(self) -> range:
        """Depths M of the SubResNets trained without stage cost, 0 ... N."""
        return range(0, self.blocks + 1, self.step)


SCALES = {
    "paper": Scale(blocks=PAPER_BLOCKS, step=6, cut=12),
    "small": Scale(blocks=12, step=2, cut=4, samples=10_000),
    "smoke": Scale(blocks=3, step=3, cut=1, samples=256),
}

EPOCHS: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = {
    ("small", "digits"): (30, (16, 24)),
    ("small", "mnist"): (6, (3, 5)),
    ("small", "cifar10"): (15, (8, 12)),
    ("small", "cifar100"): (15, (8, 12)),
}
"""{(scale, data set): epochs and milestones}, where they are not the paper's."""

for _name in DATASETS:
    EPOCHS["smoke", _name] = (1, ())


class PlannedRun(NamedTuple):
    """One training run.

    Attributes:
      name: folder of the run, below that of its scale.
      data: what `load_dataset` takes.
      samples: training images in it.
      network: the architecture, its data-dependent fields not yet filled in.
      training: everything else that determines the numbers.
    """

    name: str
    data: str
    samples: int
    network: systems.Architecture
    training: TrainingConfig

    @property
    def cost(self) -> float:
        """Multiply-adds of the training."""
        return training_cost(self.network, self.training, self.samples)


def architectures(artefact: Artefact, dataset: str) -> tuple[Architecture, ...]:
    """The networks an artefact speaks of; in Table 1 standard ones are trained on CIFAR-10 only."""
    if artefact in ARCHITECTURE:
        return (ARCHITECTURE[artefact],)
    return ("homogeneous", "standard") if dataset == "cifar10" else ("homogeneous",)


def run_name(dataset: str, architecture: Architecture, blocks: int, exits: Exits, seed: int) -> str:
    """The folder of a run, e.g. "cifar10_homogeneous/54_shared/seed_0"."""
    kind = "plain" if exits == "none" else exits
    return f"{dataset}_{architecture}/{blocks}_{kind}/seed_{seed}"


def plan(
    artefacts: Sequence[Artefact], dataset: str, scale_name: str, seeds: Sequence[int]
) -> list[PlannedRun]:
    """The runs that the artefacts need, each once.

    Raises:
      ValueError: if the paper has no such runs at its own scale.
    """
    if scale_name == "paper" and dataset == "digits":
        raise ValueError("the paper has no runs on digits: choose scale small or smoke for them.")
    runs: dict[str, PlannedRun] = {}
    for seed in seeds:
        for artefact in artefacts:
            for architecture in architectures(artefact, dataset):
                for blocks, exits in _needed(artefact, SCALES[scale_name]):
                    run = _run(dataset, architecture, blocks, exits, scale_name, seed)
                    runs.setdefault(run.name, run)
    return list(runs.values())


def _needed(artefact: Artefact, scale: Scale) -> Iterator[tuple[int, Exits]]:
    yield scale.blocks, "shared"
    if not artefact.startswith("table") or artefact == "table1":
        yield scale.blocks, "separate"
    if artefact == "table1":
        yield scale.blocks, "none"
        yield scale.cut, "none"
        return
    for blocks in scale.depths:
        yield blocks, "none"


def _run(
    dataset: str,
    architecture: Architecture,
    blocks: int,
    exits: Exits,
    scale_name: str,
    seed: int,
) -> PlannedRun:
    scale = SCALES[scale_name]
    samples = min(scale.samples or TRAINING_SAMPLES[dataset], TRAINING_SAMPLES[dataset])
    if scale_name == "paper":
        preset = paper_preset(dataset, architecture, blocks, exits)
    else:
        preset = _shrunk_preset(dataset, architecture, blocks, exits, scale_name)
    return PlannedRun(
        name=run_name(dataset, architecture, blocks, exits, seed),
        data=f"{dataset}[:{samples}]" if scale.samples else dataset,
        samples=samples,
        network=preset.network,
        training=replace(preset.training, seed=seed),
    )


def _shrunk_preset(
    dataset: str, architecture: Architecture, blocks: int, exits: Exits, scale_name: str
) -> Preset:
    """The paper's preset with a smaller network, fewer epochs and what has to change with them."""
    scale = SCALES[scale_name]
    width = 16 if scale_name == "small" else 4
    filters = (width, 2 * width, 4 * width) if architecture == "standard" else (width,)
    preset = paper_preset(dataset, architecture, PAPER_BLOCKS, exits)
    network = replace(
        paper_network(dataset, architecture, PAPER_BLOCKS, exits),
        filters=filters,
        blocks=(scale.blocks // len(filters),) * len(filters),
        stem_stride=1 if dataset == "digits" else 2,
    )
    epochs, milestones = EPOCHS[scale_name, dataset]
    optimizer = preset.training.optimizer
    training = replace(
        preset.training,
        epochs=epochs,
        batch_size=32 if dataset == "digits" else 128,
        optimizer=replace(
            optimizer, milestones=milestones, weight_decay=10 * optimizer.weight_decay
        ),
        stage_cost=preset.training.stage_cost * PAPER_BLOCKS / scale.blocks,
    )
    return replace(preset, network=network.subresnet(blocks), training=training)
