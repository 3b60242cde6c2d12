"""The study of depth: equal prices, what each method trains, resuming, and what the tables say."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from programs import call

from experiments.depth_study import __main__ as binary
from experiments.depth_study import laboratory as laboratories
from experiments.depth_study import methods
from experiments.depth_study.laboratory import Laboratory, Plan, Trained
from experiments.depth_study.methods import (
    FromScratch,
    ProbeThenTrain,
    ShrinkToTheFewest,
    ShrinkWhileTraining,
    TrainThenCut,
    operated,
    shortened,
)
from experiments.depth_study.tables import draw, groups, tables
from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.depth_choice import DepthChoice
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems import counts
from ocresnet.systems.network import create
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import SGD

PLAN = Plan(
    ResNetConfig.homogeneous(4, 4),
    TrainingConfig(
        epochs=12,
        batch_size=16,
        optimizer=SGD(schedule="cosine", weight_decay=1e-3),
        stage_cost=0.1,
        validation=0.25,
    ),
)


class Trainings(list):
    """What was trained, in place of training it."""

    def __call__(self, network, training, data, *, initial=None, teacher=None, **rest):
        self.append((network.depth, training, initial, teacher))
        network = replace(network, image_shape=data.image_shape, classes=data.classes)
        done = create(network) if initial is None else initial
        outputs = network.depth + 1
        # The third exit is the first that is good enough.
        measured = trajectory(done, data.train_images[:8], data.train_labels[:8])
        good = np.arange(outputs) >= 2
        measured = measured._replace(accuracies=0.9 * good, probabilities=0.9 * good)
        return FinishedRun(done, measured)


class FinishedRun:
    """What the study asks of a run."""

    interrupted = False

    def __init__(self, network, measured):
        self.network, self.trajectories = network, {"validation": measured}


@pytest.fixture
def trainings(monkeypatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(laboratories, "fit", found)
    return found


@pytest.fixture
def laboratory(toy_data: Dataset) -> Laboratory:
    return Laboratory(PLAN, toy_data, seed=3)


METHODS = [
    TrainThenCut(True),
    TrainThenCut(True, None, 0.25, 0.01),
    TrainThenCut(True, 1, 0.25, 0.01),
    TrainThenCut(True, None, 0.25, 0.01, taught=True),
    ProbeThenTrain(1 / 3, on=True, tolerance=1.0),
    ProbeThenTrain(1 / 3, on=False, tolerance=1.0),
    ShrinkWhileTraining((0.2, 0.4), to_the_end=False, tolerance=1.0),
    ShrinkWhileTraining((0.2, 0.4), to_the_end=True, tolerance=1.0),
    ShrinkToTheFewest((0.2, 0.4), to_the_end=False, tolerance=1.0),
    FromScratch(2),
]


def price_by_hand(laboratory: Laboratory, trainings: Trainings) -> float:
    """Of all that was trained: three forward passes of everything that is computed."""
    total = 0.0
    for blocks, training, _, teacher in trainings:
        macs = counts.multiply_adds(laboratory.whole.subresnet(blocks))
        image = 3 * macs.total + (3 * macs.exits.sum() if training.stage_cost > 0 else 0)
        if teacher is not None:
            image += counts.multiply_adds(teacher.architecture).total
        total += 64 * training.epochs * float(image)  # 72 images to train on: 4 batches of 16
    return total


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_spends_the_budget_and_no_more(laboratory, trainings, method):
    """To less than an epoch of what it trained last (of the whole for the cut itself)."""
    trained = method.carry_out(laboratory)
    assert trained.price == pytest.approx(price_by_hand(laboratory, trainings))
    assert trained.block_epochs == sum(run[0] * run[1].epochs for run in trainings)
    epoch = laboratory.price_of_epoch(laboratory.whole, 0.1)
    assert laboratory.budget == pytest.approx(12 * epoch)
    assert laboratory.budget - 1.4 * epoch < trained.price <= laboratory.budget * (1 + 1e-9)
    assert all(run[1].seed == 3 and run[1].validation == 0.25 for run in trainings)


def test_a_probe_finds_the_depth_and_the_rest_trains_it(laboratory, trainings):
    on = ProbeThenTrain(1 / 3, on=True, tolerance=1.0).carry_out(laboratory)
    anew = ProbeThenTrain(1 / 3, on=False, tolerance=1.0).carry_out(laboratory)
    # The probe is trained once for both.
    assert [run[0] for run in trainings] == [4, 2, 2]
    probe, first, second = (run[1] for run in trainings)
    assert (probe.epochs, probe.stage_cost, probe.optimizer.schedule) == (4, 0.1, "cosine")
    assert first == second and first.stage_cost == 0 and first.optimizer.schedule == "cosine"
    assert trainings[1][2] is not None and trainings[2][2] is None
    assert on.price == anew.price and on.architecture.depth == anew.architecture.depth == 2


def test_shrinking_pays_stage_costs_to_the_end_or_until_the_last_cut(laboratory, trainings):
    for to_the_end, last in ((True, 0.1), (False, 0.0)):
        trainings.clear()
        ShrinkWhileTraining((0.25, 0.5), to_the_end, tolerance=1.0).carry_out(laboratory)
        gammas = [run[1].stage_cost for run in trainings]
        assert gammas[-1] == last and set(gammas[:-1]) <= {0.1}
        assert [run[0] for run in trainings] == [4, 2, 2][-len(trainings) :]


def test_the_fewest_blocks_are_those_of_the_low_end_over_resampled_sets(
    laboratory, trainings, monkeypatch
):
    """The whole validation set says 2 blocks in `trainings`, some of the resampled ones 1."""

    def chosen(logits, labels, *, tolerance):
        assert logits.shape[1] == len(labels) == len(laboratory.data.labels("validation"))
        return DepthChoice(2, 1 if tolerance == 1.0 else 2, 3, np.zeros(len(logits)))

    monkeypatch.setattr(methods, "choose_depth", chosen)
    few = ShrinkToTheFewest((0.2, 0.4), to_the_end=False, tolerance=1.0).carry_out(laboratory)
    rule = ShrinkWhileTraining((0.2, 0.4), to_the_end=False, tolerance=1.0).carry_out(laboratory)
    assert (few.architecture.depth, rule.architecture.depth) == (1, 2)


def test_a_budget_that_is_too_small_is_refused(laboratory, trainings):
    with pytest.raises(ValueError, match="leaves no epoch"):
        ProbeThenTrain(0.01, on=True, tolerance=1.0).carry_out(laboratory)


def test_surgery_keeps_so_many_blocks_and_measures_the_statistics_anew(laboratory):
    network = calibrate_exits(create(laboratory.whole), laboratory.data.images("train"))
    images, labels = laboratory.data.images("validation"), laboratory.data.labels("validation")
    whole = Trained(network, trajectory(network, images, labels), 5.0, 7)
    cut = operated(whole, 2, laboratory)
    assert cut.architecture.depth == 2 and (cut.price, cut.block_epochs) == (5.0, 7)
    kept = shortened(whole, 2)
    for values, wanted in zip(
        kept.validation, trajectory(kept.network, images, labels), strict=True
    ):
        # The output block has the statistics of the exit there.
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


def row(method: str, seed: int, kept: int, test: float, **changes) -> dict:
    return {
        "method": method,
        "seed": seed,
        "kept": kept,
        "test": test,
        "validation": test,
        "multiply_adds": 1000 * kept,
        "price": 1e6,
        "share_of_budget": 1.0,
        "block_epochs": 100,
    } | changes


ROWS = [
    row("from scratch", 0, 3, 90.0, blocks=3),
    row("from scratch", 1, 4, 92.0, blocks=4),
    row("probe", 0, 3, 91.0),
    row("probe", 1, 4, 91.0),
    row("cut to a depth", 0, 3, 80.0, blocks=3, rate=0.1, validation=70.0),
    row("cut to a depth", 0, 3, 70.0, blocks=3, rate=0.01, validation=80.0),
    row("search", 0, 1, 50.0, blocks=1, share_of_budget=0.25, price=2.5e5),
    row("search", 0, 3, 90.2, blocks=3, share_of_budget=0.75, price=7.5e5),
    row("search", 0, 4, 90.5, blocks=4),
]


def test_networks_are_compared_with_those_of_their_size_and_seed():
    text = tables(ROWS, tolerance=0.5)
    # +1 and -1: the mean of the differences seed by seed.
    assert "| probe | 3, 4 |  | 91.00 ± 0.00 | +0.00 ± 1.41 |" in text
    # The rate is chosen on the validation part, not by the test accuracy.
    assert "| cut to 3 | 3 | 0.01 | 70.00 | -20.00 |" in text
    assert "The search chooses 3 blocks" in text and "for 2.0 budgets" in text
    assert [name for name, _ in groups(ROWS)] == ["probe", "cut to 3"]


def test_the_figure_has_every_method_and_the_price_of_the_search(tmp_path):
    figure = draw(ROWS)
    size, price = figure.axes
    assert size.get_title().startswith("(a)") and price.get_title().startswith("(b)")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["from scratch, the whole budget", "from scratch, search", "probe", "cut to 3"]
    ((at,), (height,)) = price.containers[1].lines[0].get_data()
    assert at == pytest.approx(2e6) and height == 9.5
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.slow
def test_a_study_from_nothing_that_is_not_repeated(tmp_path, monkeypatch):
    """One command, every method on digits; the second time nothing is trained."""
    arguments = ("--blocks=3", "--filters=4", "--epochs=6", "--seed=0", "--cut=1", "--rate=0.03")
    study = partial(call, binary.main, *arguments, "--depths=1,3", f"--output={tmp_path / 'out'}")
    code, output, errors = study()
    assert code == 0, errors
    record = json.loads((tmp_path / "out.json").read_text())
    assert {row["method"].partition(" ")[0] for row in record["rows"]} == {
        *("stage", "plain,", "probe", "shrink", "search", "from")
    }
    assert all(0.5 < row["share_of_budget"] <= 1 + 1e-9 for row in record["rows"][:-2])
    assert (tmp_path / "out.png").is_file()
    monkeypatch.setattr(laboratories, "fit", None)
    assert study() == (0, output, errors)
