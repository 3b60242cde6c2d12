"""Trainings with their price: what every method of the study is made of.

Notation
    N        blocks of the whole network
    c(d)     multiply-adds of an epoch of a network of d blocks: forward, and twice that backward
    c_g(d)   the same with stage costs, which read every exit
    B        the budget that every method has: what the whole network costs with stage costs

    B = epochs c_g(N)

What no step is taken for (evaluating, scoring blocks, measuring batch statistics) is not counted.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax

from ocresnet.data.dataset import Dataset
from ocresnet.files import remove_at_once
from ocresnet.stage_cost.pruning import recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory, trajectory
from ocresnet.systems import counts
from ocresnet.systems.architecture import ResidualArchitecture, residual
from ocresnet.systems.network import Network
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset, run_config
from ocresnet.training.loop import CHECKPOINTS
from ocresnet.training.schedules import ScheduleName

from ..common.presets.preset import training_cost

SPENT = "spent"
"""The checkpoints of a finished run, while they are removed."""

WATCHED = 500
"""Test images that are measured after each epoch; all of them are when the network is finished."""


class Trained(NamedTuple):
    """A network, and all the training that led to it.

    Attributes:
      network: with exits (calibrated ones, if it was trained without stage cost).
      validation: its trajectory over depth on the held-out part.
      price: multiply-adds of all its training.
      block_epochs: the same in blocks x epochs.
    """

    network: Network
    validation: Trajectory
    price: float = 0.0
    block_epochs: int = 0

    @property
    def architecture(self) -> ResidualArchitecture:
        """Of the network."""
        return residual(self.network.architecture)

    def depth_by_rule(self, tolerance: float) -> int:
        """The depth rule on the validation part; at least one block is kept."""
        return max(recommend_depth(self.validation, tolerance), 1)


@dataclass(frozen=True)
class Plan:
    """What all methods of a study have in common.

    Attributes:
      network: the whole network, of N blocks, with shared exits.
      training: how it is trained; `epochs` make the budget, `stage_cost` is paid where a method
        wants it, `validation` is held out for the depth rule.
    """

    network: ResidualArchitecture
    training: TrainingConfig


class Laboratory:
    """The data of one seed, and what is trained on it.

    The same training is not done twice: it is kept in memory, and in `workdir` as a run of its own,
    so that a killed study goes on in the middle of a training.
    """

    def __init__(self, plan: Plan, data: Dataset, seed: int, workdir: Path | None = None) -> None:
        """Split the data as every training does.

        Args:
          plan: what all methods have in common.
          data: whole: each training holds out the same validation part.
          seed: of the split, and of everything in a training.
          workdir: where runs lie; None keeps them in memory only.
        """
        self.plan = replace(plan, training=replace(plan.training, seed=seed))
        self.whole = for_dataset(plan.network, data)
        self.data = data.split(plan.training.validation, seed)
        # To train on: fit measures the test set after each epoch, which costs a third of it.
        self._short = replace(
            data, test_images=data.test_images[:WATCHED], test_labels=data.test_labels[:WATCHED]
        )
        self._workdir = workdir
        self._runs: dict[str, Trained] = {}

    @property
    def budget(self) -> float:
        """B."""
        return self.plan.training.epochs * self.price_of_epoch(
            self.whole, self.plan.training.stage_cost
        )

    def price_of_epoch(
        self,
        network: ResidualArchitecture,
        stage_cost: float = 0.0,
        teacher: Network | None = None,
    ) -> float:
        """c(d), or with a stage cost c_g(d); a teacher's forward pass on top of that."""
        batch = self.plan.training.batch_size
        samples = self.data.samples("train") // batch * batch
        training = replace(self.plan.training, epochs=1, stage_cost=stage_cost)
        training = replace(training, optimizer=replace(training.optimizer, schedule="constant"))
        price = training_cost(network, training, samples)
        if teacher is not None:
            price += samples * counts.multiply_adds(teacher.architecture).total
        return price

    def epochs_for(
        self,
        price: float,
        network: ResidualArchitecture,
        stage_cost: float = 0.0,
        teacher: Network | None = None,
    ) -> int:
        """How many whole epochs this price pays for.

        Raises:
          ValueError: if it pays for none.
        """
        # The slack is for rounding: a budget of three epochs pays for three.
        epochs = int(price / self.price_of_epoch(network, stage_cost, teacher) + 1e-6)
        if epochs < 1:
            raise ValueError(
                f"the budget leaves no epoch of {network.depth} blocks for a part of a method: "
                "give more --epochs, or other shares."
            )
        return epochs

    def train(
        self,
        start: Trained | ResidualArchitecture,
        epochs: int,
        *,
        stage_cost: float = 0.0,
        learning_rate: float | None = None,
        schedule: ScheduleName | None = None,
        teacher: Network | None = None,
    ) -> Trained:
        """Train a network, from new weights or on from those it has.

        Args:
          start: an architecture, or a network, whose price is added to this training's.
          epochs: passes over the training part.
          stage_cost: gamma.
          learning_rate, schedule: None is the plan's.
          teacher: of half the loss, where there is one; its forward pass is paid for.

        Raises:
          KeyboardInterrupt: if a signal stopped it; the study goes on there.
        """
        initial = start.network if isinstance(start, Trained) else None
        network = start.architecture if isinstance(start, Trained) else start
        training = self.plan.training
        optimizer = replace(
            training.optimizer,
            learning_rate=learning_rate or training.optimizer.learning_rate,
            schedule=schedule or training.optimizer.schedule,
        )
        training = replace(
            training,
            epochs=epochs,
            stage_cost=stage_cost,
            optimizer=optimizer,
            distillation=0.0 if teacher is None else 0.5,
        )
        done = self._run(network, training, initial, teacher)
        price = epochs * self.price_of_epoch(network, stage_cost, teacher)
        before = start if isinstance(start, Trained) else Trained(*done[:2])
        return done._replace(
            price=before.price + price, block_epochs=before.block_epochs + epochs * network.depth
        )

    def _run(
        self,
        network: ResidualArchitecture,
        training: TrainingConfig,
        initial: Network | None,
        teacher: Network | None,
    ) -> Trained:
        """One training, unless it was done before."""
        described = run_config(network, training, self._short, initial=initial, teacher=teacher)
        name = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        if name not in self._runs:
            workdir = None if self._workdir is None else self._workdir / name
            run = fit(
                network,
                training,
                self._short,
                workdir=workdir,
                # One: what comes out does not depend on how many there are.
                devices=jax.local_devices()[:1],
                progress=False,
                initial=initial,
                teacher=teacher,
            )
            if run.interrupted:
                raise KeyboardInterrupt
            if workdir is not None:
                remove_at_once(workdir / CHECKPOINTS, workdir / SPENT)
            self._runs[name] = Trained(run.network, run.trajectories["validation"])
        return self._runs[name]

    def train_for(
        self, price: float, start: Trained | ResidualArchitecture, schedule: ScheduleName
    ) -> Trained:
        """Train with stage costs for as many epochs as a price pays for."""
        network = start.architecture if isinstance(start, Trained) else start
        stage_cost = self.plan.training.stage_cost
        epochs = self.epochs_for(price, network, stage_cost)
        return self.train(start, epochs, stage_cost=stage_cost, schedule=schedule)

    def accuracy(self, network: Network, part: str) -> float:
        """Of the network's own output, in percent."""
        images, labels = self.data.images(part), self.data.labels(part)
        measured = trajectory(network, images, labels, own_output=True)
        return 100 * float(measured.accuracies[-1])
