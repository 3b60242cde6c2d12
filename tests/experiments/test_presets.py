"""The presets are the paper's runs, and flags change what they say."""

import re

import jax
import pytest
from ocresnet.systems.resnet_config import ResNetConfig
from programs import call

from experiments import train
from experiments.common import presets, speed
from experiments.common.command_line import parse as parse_flags
from experiments.common.flag_kinds import FlagValues
from experiments.common.flags import TrainingFlags, WantedRun
from experiments.common.presets import PRESETS, describe
from ocresnet.training.fit import fit as real_fit


def parse(*arguments: str) -> WantedRun:
    """What a command line asks for."""
    values = FlagValues()
    flags = TrainingFlags(values)
    parse_flags(values, arguments)
    return flags.wanted()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("run", ["54_plain", "54_shared", "54_separate", "12_plain"])
def test_homogeneous_presets_are_the_papers(dataset, run):
    preset = PRESETS[f"{dataset}_homogeneous{run}"]
    assert preset.network.blocks == (int(run[:2]),)
    assert preset.network.filters == (32 if dataset == "mnist" else 64,)
    assert preset.network.classes == (100 if dataset == "cifar100" else 10)
    training = preset.training
    assert training.stage_cost == (0.0 if "plain" in run else 0.02)
    assert (training.epochs, training.batch_size, training.learning_rate) == (165, 128, 0.1)
    assert (training.momentum, training.milestones) == (0.9, (82, 123))
    assert (training.weight_decay, training.decay_factor) == (1e-4, 0.1)
    assert training.augmentation == ("none" if dataset == "mnist" else "crop_flip")


def test_standard_presets_are_the_papers():
    assert PRESETS["cifar10_standard54_shared"].network == ResNetConfig.standard(54)
    assert PRESETS["cifar10_standard12_plain"].network.blocks == (12, 0, 0)
    assert PRESETS["cifar10_standard12_plain"].network.filters == (16, 32, 64)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("exits", ["plain", "shared"])
def test_imagenet_presets_have_the_usual_schedule(depth, exits):
    preset = PRESETS[f"imagenet_resnet{depth}_{exits}"]
    network, training = preset.network, preset.training
    assert network == ResNetConfig.imagenet(depth, exits="none" if exits == "plain" else exits)
    assert training.stage_cost == (0.0 if exits == "plain" else 0.02)
    assert (training.epochs, training.batch_size, training.learning_rate) == (90, 256, 0.1)
    assert (training.milestones, training.weight_decay) == ((30, 60, 80), 1e-4)
    assert training.augmentation == "resized_crop_flip"


def test_every_preset_states_command_accuracy_and_cost():
    text = describe(rate=1e10)
    for name, preset in PRESETS.items():
        assert f"--preset={name}" in text and preset.expected in text
    assert text.count("multiply-adds") == len(PRESETS)
    small = PRESETS["mnist_homogeneous12_small"]
    assert f"about {small.cost / 1e10 / 60:.0f} minutes on this machine" in text


def test_the_list_of_presets_has_the_minutes_of_a_measured_speed(monkeypatch):
    monkeypatch.setattr(speed, "multiply_adds_per_second", lambda: 2e10)
    code, output, _ = call(train.main, "--list_presets")
    assert code == 0 and describe(rate=2e10) in output
    assert "2.0e+10 multiply-adds a second, measured training 6 residual blocks" in output


def test_the_measured_speed_is_that_of_a_training_without_its_compilation(monkeypatch):
    """Of a real training, here of a tiny network: images a second times multiply-adds an image."""
    runs = []

    def fit(*args, **kwargs):
        runs.append(real_fit(*args, **kwargs, devices=jax.local_devices()[:1]))
        return runs[-1]

    monkeypatch.setattr(speed, "fit", fit)
    small = ResNetConfig.homogeneous(1, 2, image_shape=(4, 4, 3), exits="none")
    monkeypatch.setattr(speed, "NETWORK", small)
    monkeypatch.setattr(speed, "SAMPLES", 64)
    rate = speed.multiply_adds_per_second()
    convolutions = 16 * 9 * (3 * 2 + 2 * 2 + 2 * 2)
    rows = runs[0].metrics
    images = max(row["images_per_second"] for row in rows[1:])
    assert rate == pytest.approx(3 * (convolutions + 2 * 10) * images)
    assert rows[0]["images_per_second"] < images


def test_every_field_can_be_overridden():
    wanted = parse(
        "--preset=cifar10_standard54_shared",
        "--dataset=data.npz",
        "--workdir=w",
        "--blocks=6",
        "--filters=4,8",
        "--block=bottleneck",
        "--stem_stride=2",
        "--exits=separate",
        "--stage_cost=0.1",
        "--loss=l2",
        "--label_smoothing=0.2",
        "--weight_decay=0.5",
        "--weight_decay_on=residual_branches",
        "--epochs=3",
        "--batch_size=32",
        "--learning_rate=0.2",
        "--momentum=0.8",
        "--milestones=1,2",
        "--decay_factor=0.5",
        "--warmup_epochs=0.5",
        "--gradient_clip=2",
        "--average_decay=0.9",
        "--augmentation=crop",
        "--validation=0.25",
        "--seed=7",
        "--precision=bfloat16",
        "--remat=none",
        "--unroll",
    )
    assert (wanted.dataset, wanted.workdir) == ("data.npz", "w")
    network, training = wanted.network, wanted.training
    assert (network.blocks, network.filters) == ((3, 3), (4, 8))
    assert (network.stem_stride, network.exits) == (2, "separate")
    assert (network.block, network.stem) == ("bottleneck", "convolution")
    assert parse("--preset=cifar10_standard54_shared", "--stem=imagenet").network.stem == "imagenet"
    assert (training.stage_cost, training.loss, training.label_smoothing) == (0.1, "l2", 0.2)
    assert (training.weight_decay, training.weight_decay_on) == (0.5, "residual_branches")
    assert (training.epochs, training.batch_size, training.learning_rate) == (3, 32, 0.2)
    assert (training.momentum, training.milestones) == (0.8, (1, 2))
    assert (training.decay_factor, training.warmup_epochs) == (0.5, 0.5)
    assert (training.gradient_clip, training.average_decay) == (2.0, 0.9)
    assert (training.augmentation, training.validation, training.seed) == ("crop", 0.25, 7)
    execution = training.execution
    assert (execution.precision, execution.remat, execution.unroll) == ("bfloat16", "none", True)


def test_blocks_of_a_subresnet():
    assert parse("--preset=cifar10_standard54_plain", "--blocks=18,2,0").network.blocks == (
        18,
        2,
        0,
    )
    for blocks, stages in ((12, (12, 0, 0)), (20, (18, 2, 0))):
        wanted = parse("--preset=cifar10_standard12_plain", f"--blocks={blocks}")
        assert wanted.network.blocks == stages
    wanted = parse("--preset=cifar10_homogeneous54_shared", "--filters=16,32,64")
    assert wanted.network.blocks == (18, 18, 18)


def test_without_a_preset_a_run_starts_from_what_suits_any_small_images():
    wanted = parse("--dataset=data/mine.npz", "--exits=separate")
    assert (wanted.dataset, wanted.workdir) == ("data/mine.npz", "runs/mine")
    assert wanted.network == ResNetConfig.homogeneous(12, 16, exits="separate")
    assert wanted.training == presets.preset_for("data/mine.npz").training
    assert wanted.training.validation > 0 and wanted.training.stage_cost > 0
    assert parse("--dataset=mnist[:100]").workdir == "runs/mnist"


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(1, ()), (2, (1,)), (10, (6, 8)), (30, (18, 26))]
)
def test_without_a_preset_the_schedule_fits_the_epochs(epochs, milestones):
    training = parse("--dataset=digits", f"--epochs={epochs}").training
    assert (training.epochs, training.milestones) == (epochs, milestones)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset or --dataset is needed"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=x"], "--blocks=x: it must be whole"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=-1"], "blocks is"),
        (["--preset=mnist_homogeneous54_shared", "--epochs=0"], "epochs is 0"),
        (["--preset=cifar10_standard54_shared", "--blocks=10"], "divisible by the 3 stages"),
        (["--preset=mnist_homogenous54_shared"], "Did you mean 'mnist_homogeneous54_shared'?"),
        (["--dataset=minst"], "Did you mean 'mnist'?"),
        (["--dataset=minst[:10]"], "Did you mean 'mnist'?"),
        (["--dataset=digits", "--weight_dcay=1"], "Did you mean 'weight_decay'?"),
        (["--dataset=digits", "--exits=sharde"], "Did you mean 'shared'?"),
        (["--dataset=digits", "--milestones=100000000"], "over after 30 epochs"),
        (["--dataset=digits", "--milestones=1,99999999999"], "must not be larger"),
        (["--dataset=digits", "--batch_size=9999999999"], "not an integer in the range"),
        (["--dataset=digits", "--learning_rate=nan"], "nan is not a finite number"),
    ],
)
def test_impossible_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(*arguments)
