"""The presets are the paper's runs, and flags change what they say."""

import pytest
from absl import flags as absl_flags

from experiments import flags
from experiments.presets import PRESETS, describe
from ocresnet.systems.resnet_config import ResNetConfig


@pytest.fixture
def parse():
    """Parse a command line, and forget it afterwards."""

    def parse(*arguments):
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS(["train", *arguments])
        return flags.run_flags()

    yield parse
    for holders in flags.GROUPS.values():
        for holder in holders:
            absl_flags.FLAGS[holder.name].unparse()


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
    text = describe()
    for name, preset in PRESETS.items():
        assert f"--preset={name}" in text and preset.expected in text
    assert text.count("multiply-adds") == len(PRESETS)


def test_every_field_can_be_overridden(parse):
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


def test_blocks_of_a_subresnet(parse):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset is needed"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=x"], "--blocks is 'x'"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=-1"], "blocks is"),
        (["--preset=mnist_homogeneous54_shared", "--epochs=0"], "epochs is 0"),
        (["--preset=cifar10_standard54_shared", "--blocks=10"], "divisible by the 3 stages"),
    ],
)
def test_impossible_flags_are_refused(parse, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments)
