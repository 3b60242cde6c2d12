"""The methods that are compared: each spends the whole budget, and ends with one network.

A method is a frozen record of its choices; `carry_out` trains what it says and returns the network
with the price of all the training that led to it.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from ocresnet.stage_cost.block_scores import ScoringData, loss_increase
from ocresnet.stage_cost.depth_choice import choose_depth
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.surgery import greedy_removal_order, remove_blocks
from ocresnet.stage_cost.trajectory import Trajectory, logits_over_depth, trajectory

from .laboratory import Laboratory, Trained

SCORED = 500
"""Images that surgery scores blocks on, and measures batch statistics on."""


@dataclass(frozen=True)
class Method(ABC):
    """How the budget is spent."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in the table, whatever its depth and rate."""

    @abstractmethod
    def carry_out(self, laboratory: Laboratory) -> Trained:
        """Train as the method says."""

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from all others of a seed."""
        return {"method": self.name, **asdict(self)}


@dataclass(frozen=True)
class FromScratch(Method):
    """A plain network of a given depth.

    Attributes:
      blocks: its depth.
      epochs: how long; None: as long as the budget pays for.
    """

    blocks: int
    epochs: int | None = None

    @property
    def name(self) -> str:
        return "from scratch" if self.epochs is None else "search"

    def carry_out(self, laboratory: Laboratory) -> Trained:
        network = laboratory.whole.subresnet(self.blocks)
        epochs = self.epochs or laboratory.epochs_for(laboratory.budget, network)
        return laboratory.train(network, epochs)


@dataclass(frozen=True)
class TrainThenCut(Method):
    """The whole network first, then a cut, then fine-tuning with what is left of the budget.

    Attributes:
      stage_costs: pay them, and cut the tail where an exit was trained; else a plain network that
        loses the blocks that surgery finds.
      blocks: to keep; None: the depth rule's (with stage costs only).
      share: of the budget, for fine-tuning; 0: none.
      rate: learning rate of fine-tuning, which falls as a cosine.
      taught: fine-tuning with the whole network as teacher.
      tolerance: percentage points that the depth rule may lose.
    """

    stage_costs: bool
    blocks: int | None = None
    share: float = 0.0
    rate: float | None = None
    taught: bool = False
    tolerance: float = 0.5

    @property
    def name(self) -> str:
        first = "stage costs, cut" if self.stage_costs else "plain, surgery"
        first += "" if self.blocks is None else " to a depth"
        if self.share == 0:
            return first
        return f"{first}, {'taught' if self.taught else 'fine-tuned'} ({self.share:.2g})"

    def carry_out(self, laboratory: Laboratory) -> Trained:
        stage_cost = laboratory.plan.training.stage_cost if self.stage_costs else 0.0
        epochs = laboratory.epochs_for(
            (1 - self.share) * laboratory.budget, laboratory.whole, stage_cost
        )
        whole = laboratory.train(laboratory.whole, epochs, stage_cost=stage_cost)
        blocks = whole.depth_by_rule(self.tolerance) if self.blocks is None else self.blocks
        cut = shortened(whole, blocks) if self.stage_costs else operated(whole, blocks, laboratory)
        if self.share == 0:
            return cut
        teacher = whole.network if self.taught else None
        left = laboratory.budget - cut.price
        return laboratory.train(
            cut,
            laboratory.epochs_for(left, cut.architecture, teacher=teacher),
            learning_rate=self.rate,
            schedule="cosine",
            teacher=teacher,
        )


@dataclass(frozen=True)
class ProbeThenTrain(Method):
    """A short training with stage costs finds the depth; the rest trains the network of that depth.

    Attributes:
      share: of the budget, for the probe. Its learning rate falls as a cosine: at a constant one
        deeper exits are surer for longer, and the depth rule keeps more blocks.
      on: train on from the probe's weights; else from new ones.
      tolerance: percentage points that the depth rule may lose.
    """

    share: float
    on: bool
    tolerance: float

    @property
    def name(self) -> str:
        return f"probe ({self.share:.2g}, {self.tolerance:g} points), then " + (
            "train on" if self.on else "train anew"
        )

    def carry_out(self, laboratory: Laboratory) -> Trained:
        probe = laboratory.train_for(self.share * laboratory.budget, laboratory.whole, "cosine")
        cut = shortened(probe, probe.depth_by_rule(self.tolerance))
        epochs = laboratory.epochs_for(laboratory.budget - cut.price, cut.architecture)
        if self.on:
            return laboratory.train(cut, epochs)
        new = laboratory.train(laboratory.whole.subresnet(cut.architecture.depth), epochs)
        return new._replace(
            price=probe.price + new.price, block_epochs=probe.block_epochs + new.block_epochs
        )


@dataclass(frozen=True)
class ShrinkWhileTraining(Method):
    """The depth rule cuts at milestones, and training goes on with what is left.

    The learning rate is constant up to the last milestone, and falls from there.

    Attributes:
      milestones: shares of the budget.
      to_the_end: pay stage costs after the last cut too.
      tolerance: percentage points that the depth rule may lose.
    """

    milestones: tuple[float, ...]
    to_the_end: bool
    tolerance: float

    @property
    def name(self) -> str:
        at = ", ".join(f"{milestone:.2g}" for milestone in self.milestones)
        until = "to the end" if self.to_the_end else "until then"
        return f"shrink ({at}, {self.tolerance:g} points), stage costs {until}"

    def depth_to_keep(self, trained: Trained, laboratory: Laboratory) -> int:
        """The depth rule's."""
        return trained.depth_by_rule(self.tolerance)

    def carry_out(self, laboratory: Laboratory) -> Trained:
        first, *others = self.milestones
        trained = laboratory.train_for(first * laboratory.budget, laboratory.whole, "constant")
        for milestone in others:
            trained = shortened(trained, self.depth_to_keep(trained, laboratory))
            price = milestone * laboratory.budget - trained.price
            trained = laboratory.train_for(price, trained, "constant")
        trained = shortened(trained, self.depth_to_keep(trained, laboratory))
        stage_cost = laboratory.plan.training.stage_cost if self.to_the_end else 0.0
        epochs = laboratory.epochs_for(
            laboratory.budget - trained.price, trained.architecture, stage_cost
        )
        return laboratory.train(trained, epochs, stage_cost=stage_cost)


@dataclass(frozen=True)
class ShrinkToTheFewest(ShrinkWhileTraining):
    """The same, but each cut is to the low end of what the depth rule answers over resampled
    validation sets: the fewest blocks that may be enough, for all these samples tell."""

    @property
    def name(self) -> str:
        return super().name.replace("shrink", "shrink to the fewest")

    def depth_to_keep(self, trained: Trained, laboratory: Laboratory) -> int:
        images, labels = (
            of("validation") for of in (laboratory.data.images, laboratory.data.labels)
        )
        logits = logits_over_depth(trained.network, images)
        return max(choose_depth(logits, labels, tolerance=self.tolerance).low, 1)


def shortened(trained: Trained, blocks: int) -> Trained:
    """The first blocks with the exit after them, whose trajectory is a part of the whole one."""
    losses, accuracies, probabilities, residuals = trained.validation
    outputs = blocks + 1
    kept = Trajectory(
        losses[:outputs], accuracies[:outputs], probabilities[:outputs], residuals[:blocks]
    )
    return trained._replace(network=prune(trained.network, blocks), validation=kept)


def operated(trained: Trained, blocks: int, laboratory: Laboratory) -> Trained:
    """The network without the blocks whose loss costs the least on the validation part, one after
    the other, and with batch statistics of its own."""
    data = laboratory.data
    scored = ScoringData(
        data.images("validation")[:SCORED], data.labels("validation")[:SCORED], batch_size=SCORED
    )
    removals = trained.architecture.depth - blocks
    order = greedy_removal_order(trained.network, loss_increase, scored, removals=removals)
    statistics = data.images("train")[: 4 * SCORED]
    network = recalibrate(remove_blocks(trained.network, order), statistics)
    measured = trajectory(network, data.images("validation"), data.labels("validation"))
    return trained._replace(network=network, validation=measured)
