"""The presets are the paper's runs, and flags change what they say."""

import re
from dataclasses import replace

import jax
import pytest
from programs import call

from experiments import train
from experiments.common import speed, starting_points
from experiments.common.command_line import parse as parse_flags
from experiments.common.flag_kinds import FlagValues
from experiments.common.flags import TrainingRunFlags, WantedRun
from experiments.common.presets import PRESETS, describe
from experiments.common.presets.preset import IMAGE_SHAPES, TRAINING_SAMPLES
from experiments.common.starting_points import with_optimizer
from ocresnet.data.sources import load_dataset
from ocresnet.systems.architecture import ResidualArchitecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.families import FAMILIES
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.transformer import TransformerConfig
from ocresnet.training.fit import fit as real_fit
from ocresnet.training.optimizers import OPTIMIZERS, SGD, AdamW, OCNOpt

DIGITS = "--preset=digits_homogeneous12_shared"
RESIDUAL_MLP = "--preset=digits_residual_mlp12_shared"


def parse(*arguments: str) -> WantedRun:
    """What a command line asks for."""
    values = FlagValues()
    flags = TrainingRunFlags(values)
    parse_flags(values, arguments)
    return flags.wanted()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("run", ["54_plain", "54_shared", "54_separate", "12_plain"])
def test_homogeneous_presets_are_the_papers(dataset, run):
    preset = PRESETS[f"{dataset}_homogeneous{run}"]
    assert preset.network.blocks == (int(run[:2]),)
    assert preset.network.filters == (32 if dataset == "mnist" else 64,)
    assert preset.network.classes == (100 if dataset == "cifar100" else 10)
    training, optimizer = preset.training, preset.training.optimizer
    assert isinstance(optimizer, SGD) and optimizer.schedule == "milestones"
    assert training.stage_cost == (0.0 if "plain" in run else 0.02)
    assert (training.epochs, training.batch_size, optimizer.learning_rate) == (165, 128, 0.1)
    assert (optimizer.momentum, optimizer.milestones) == (0.9, (82, 123))
    assert (optimizer.weight_decay, optimizer.decay_factor) == (1e-4, 0.1)
    assert training.augmentation == ("none" if dataset == "mnist" else "crop_flip")


def test_standard_presets_are_the_papers():
    assert PRESETS["cifar10_standard54_shared"].network == ResNetConfig.standard(54)
    assert PRESETS["cifar10_standard12_plain"].network.blocks == (12, 0, 0)
    assert PRESETS["cifar10_standard12_plain"].network.filters == (16, 32, 64)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("exits", ["plain", "shared"])
def test_imagenet_presets_have_the_usual_schedule(depth, exits):
    preset = PRESETS[f"imagenet_resnet{depth}_{exits}"]
    network, training, optimizer = preset.network, preset.training, preset.training.optimizer
    assert network == ResNetConfig.imagenet(depth, exits="none" if exits == "plain" else exits)
    assert training.stage_cost == (0.0 if exits == "plain" else 0.02)
    assert (training.epochs, training.batch_size, optimizer.learning_rate) == (90, 256, 0.1)
    assert (optimizer.milestones, optimizer.weight_decay) == ((30, 60, 80), 1e-4)
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
    network, training, optimizer = wanted.network, wanted.training, wanted.training.optimizer
    assert (network.blocks, network.filters) == ((3, 3), (4, 8))
    assert (network.stem_stride, network.exits) == (2, "separate")
    assert (network.block, network.stem) == ("bottleneck", "convolution")
    assert parse("--preset=cifar10_standard54_shared", "--stem=imagenet").network.stem == "imagenet"
    assert (training.stage_cost, training.loss, training.label_smoothing) == (0.1, "l2", 0.2)
    assert (optimizer.weight_decay, optimizer.weight_decay_on) == (0.5, "residual_branches")
    assert (training.epochs, training.batch_size, optimizer.learning_rate) == (3, 32, 0.2)
    assert (optimizer.momentum, optimizer.milestones) == (0.8, (1, 2))
    assert (optimizer.decay_factor, optimizer.warmup_epochs) == (0.5, 0.5)
    assert (optimizer.gradient_clip, training.average_decay) == (2.0, 0.9)
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
    assert (wanted.dataset, wanted.workdir) == ("data/mine.npz", "runs/resnet_mine")
    assert wanted.network == ResNetConfig.homogeneous(12, 16, exits="separate")
    assert wanted.training == starting_points.preset_for("data/mine.npz").training
    assert wanted.training.validation > 0 and wanted.training.stage_cost > 0
    assert parse("--dataset=mnist[:100]").workdir == "runs/resnet_mnist"


def test_the_recipe_cuts_early_where_it_can():
    """A run of its own on small images shrinks; the paper's recipe is one flag away."""
    assert parse("--dataset=mine.npz").training.shrink == (3, 8)
    wanted = parse("--dataset=mine.npz", "--epochs=100", "--shrink_tolerance=0.3")
    assert (wanted.training.shrink, wanted.training.shrink_tolerance) == ((10, 25), 0.3)
    assert parse("--dataset=mine.npz", "--shrink=5").training.shrink == (5,)
    assert parse("--dataset=mine.npz", "--recipe=paper").training.shrink == ()
    assert parse("--preset=mnist_homogeneous12_small").training.shrink == (1, 2)
    assert parse(DIGITS).training.shrink == ()
    assert parse(DIGITS, "--recipe=shrink").training.shrink == (5, 12)
    for name in ("cifar10_homogeneous54_shared", "imagenet_resnet18_shared"):
        assert parse(f"--preset={name}").training.shrink == ()
    for unfit in ("--exits=separate", "--stage_cost=0", "--epochs=4", "--architecture=transformer"):
        assert parse("--dataset=mine.npz", unfit).training.shrink == ()


def test_a_recipe_that_cannot_be_followed_is_refused():
    with pytest.raises(ValueError, match="--recipe=paper has no cuts: leave out --shrink"):
        parse("--dataset=mine.npz", "--recipe=paper", "--shrink=3")
    with pytest.raises(ValueError, match="without stage cost no exit is trained to cut at"):
        parse("--dataset=mine.npz", "--recipe=shrink", "--stage_cost=0")
    with pytest.raises(ValueError, match="epochs is 3, but recipe shrink"):
        parse("--dataset=mine.npz", "--recipe=shrink", "--epochs=3")
    for epochs in (6, 7, 10, 1000):
        first, second = parse("--dataset=mine.npz", f"--epochs={epochs}").training.shrink
        assert 0 < first < second < epochs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_from_its_defaults(family):
    wanted = parse("--dataset=mine.npz", f"--architecture={family}")
    assert wanted.network == starting_points.DEFAULT_NETWORKS[family]
    assert wanted.workdir == f"runs/{family}_mine"
    residual = isinstance(wanted.network, ResidualArchitecture)
    assert (wanted.training.stage_cost > 0) == residual
    kind = SGD if family == "resnet" else AdamW
    assert isinstance(wanted.training.optimizer, kind)


def test_fields_of_every_family_are_flags():
    wanted = parse("--dataset=digits", "--architecture=mlp", "--hidden=5,4", "--activation=tanh")
    assert wanted.network == MLPConfig(hidden=(5, 4), activation="tanh")
    assert parse("--dataset=digits", "--architecture=mlp", "--hidden=").network.hidden == ()
    wanted = parse("--dataset=digits", "--architecture=cnn", "--filters=3", "--strides=2")
    assert wanted.network == CNNConfig(filters=(3,), strides=(2,))
    small = ("--filters=3", "--reduced_filters=2", "--strides=2", "--stem_filters=5")
    wanted = parse("--dataset=digits", "--architecture=inception", *small)
    assert wanted.network == InceptionConfig((3,), (2,), (2,), stem_filters=5)
    wanted = parse(RESIDUAL_MLP, "--blocks=3", "--width=8", "--hidden=16", "--exits=separate")
    network = wanted.network
    assert (network.blocks, network.width, network.hidden) == (3, 8, 16)
    assert network.exits == "separate" and wanted.workdir == "runs/digits_residual_mlp12_shared"


def test_another_solver_of_an_ode_leaves_behind_what_it_does_not_have():
    own = PRESETS["digits_neural_ode"].network
    ode = "--preset=digits_neural_ode"
    assert parse(ode, "--solver=euler").network == replace(own, solver="euler")
    adaptive = replace(own, solver="tsit5", steps=None)
    assert parse(ode, "--solver=tsit5").network == adaptive
    wanted = parse(ode, "--solver=tsit5", "--rtol=1e-4", "--adjoint=backsolve", "--max_steps=9")
    assert wanted.network == replace(adaptive, rtol=1e-4, adjoint="backsolve", max_steps=9)
    with pytest.raises(ValueError, match="steps is 3, but belongs to the solvers euler"):
        parse(ode, "--solver=dopri5", "--steps=3")
    convolutional = parse(
        "--dataset=digits", "--architecture=neural_ode", "--vector_field=convolutional",
        "--strides=1,2", "--activation=relu", "--horizon=0.5", "--steps=4",
    ).network  # fmt: skip
    assert convolutional == NeuralODEConfig(
        vector_field="convolutional",
        strides=(1, 2),
        activation="relu",
        horizon=0.5,
        solver="rk4",
        steps=4,
    )


def test_another_family_than_the_preset_s_has_its_own_defaults():
    preset = PRESETS["digits_homogeneous12_shared"]
    wanted = parse(DIGITS, "--architecture=residual_mlp")
    assert wanted.network == ResidualMLPConfig() and wanted.training == preset.training
    wanted = parse(DIGITS, "--architecture=mlp")
    assert wanted.network == MLPConfig()
    assert wanted.training == replace(preset.training, stage_cost=0.0)
    assert parse(DIGITS, "--architecture=resnet").network == preset.network


def test_every_field_of_every_optimizer_is_a_flag():
    values = {
        "sgd": {"nesterov": True, "momentum": 0.5},
        "adamw": {"decay_of_mean": 0.8, "decay_of_square": 0.95, "epsilon": 1e-7},
        "rmsprop": {"momentum": 0.3, "decay_of_square": 0.9, "epsilon": 1e-6},
        "muon": {"momentum": 0.9},
        "momo": {"momentum": 0.5, "lower_bound": 0.1},
        "momo_adam": {"decay_of_mean": 0.8, "epsilon": 1e-7, "lower_bound": 0.1},
        "prodigy": {"decay_of_mean": 0.8, "decay_of_square": 0.95, "epsilon": 1e-7},
        "dowg": {"epsilon": 1e-3},
        "schedule_free_adamw": {"interpolation": 0.95, "decay_of_square": 0.95},
        "polyak_sgd": {"largest_step": 2.0, "lower_bound": 0.1},
        "kfac": {"damping": 0.1, "factor_every": 3, "factor_samples": 16, "eigen_every": 6},
        "ekfac": {"damping": 0.1, "decay": 0.8, "moments": "per_example"},
        "ocnopt": {
            "curvature": "diagonal",
            "epsilon": 1e-3,
            "feedback": "joint",
            "groups": 4,
            "rollout": "nonlinear",
            "beta": 0.5,
            "value_beta": 0.25,
            "factor": "sampled",
        },
    }
    for name, given in values.items():
        flags = [f"--{field}={value}" for field, value in given.items()]
        optimizer = parse("--dataset=digits", f"--optimizer={name}", *flags).training.optimizer
        assert optimizer == OPTIMIZERS[name](**given)
    assert parse("--dataset=digits", "--optimizer=ocnopt").training.optimizer == OCNOpt()
    flow = parse("--dataset=moons", "--architecture=flow", "--optimizer=ocnopt")
    assert flow.training.optimizer == OCNOpt(weight_decay=0.0)


def test_another_optimizer_than_the_preset_s_keeps_schedule_clipping_and_decay():
    flags = "--optimizer=ocnopt", "--rollout=nonlinear", "--gradient_clip=3"
    optimizer = parse(DIGITS, *flags).training.optimizer
    wanted = OCNOpt(
        schedule="milestones",
        milestones=(30, 42),
        weight_decay=2e-3,
        gradient_clip=3.0,
        rollout="nonlinear",
    )
    assert optimizer == wanted and optimizer.learning_rate == OCNOpt().learning_rate != 0.1
    # The region of OCNOpt bounds its step: of clipping that nobody asked for it keeps nothing.
    clipped = replace(PRESETS[DIGITS[9:]].training, optimizer=AdamW(gradient_clip=1.0))
    assert with_optimizer(clipped, "ocnopt").optimizer.gradient_clip == 0
    assert with_optimizer(clipped, "ekfac").optimizer.gradient_clip == 1
    assert parse(DIGITS, "--optimizer=sgd").training == PRESETS[DIGITS[9:]].training


@pytest.mark.parametrize(
    ("arguments", "schedule", "milestones"),
    [
        ((DIGITS, "--epochs=50"), "milestones", (30, 42)),
        ((DIGITS, "--epochs=5"), "milestones", (0.6, 0.84)),
        ((DIGITS, "--milestones=0.5,0.75"), "milestones", (0.5, 0.75)),
        ((DIGITS, "--milestones=20"), "milestones", (20,)),
        ((DIGITS, "--milestones="), "milestones", ()),
        ((DIGITS, "--schedule=cosine"), "cosine", (30, 42)),
        (("--dataset=digits", "--epochs=1"), "milestones", (0.6, 0.85)),
        (("--dataset=digits", "--architecture=mlp"), "cosine", AdamW().milestones),
        (("--dataset=digits", "--architecture=mlp", "--milestones=9"), "milestones", (9,)),
    ],
)
def test_schedules_fit_any_number_of_epochs(arguments, schedule, milestones):
    optimizer = parse(*arguments).training.optimizer
    assert (optimizer.schedule, optimizer.milestones) == (schedule, milestones)
    kinds = [type(milestone) for milestone in optimizer.milestones]
    assert kinds == [type(milestone) for milestone in milestones]


STUDIES = {
    "wine_fcn": MLPConfig(hidden=(32, 32, 32, 32), activation="tanh"),
    "digits_fcn": MLPConfig(hidden=(32, 32, 32, 32), activation="tanh"),
    "digits_cnn": CNNConfig(filters=(8, 16), strides=(1, 2), hidden=(32,)),
    "digits_resnet": ResNetConfig.homogeneous(4, 8, exits="none"),
    "digits_inception": InceptionConfig((4, 8), (4, 4), (1, 2), stem_filters=8),
    "mnist_fcn": MLPConfig(hidden=(32, 32, 32, 32)),
    "mnist_inception": InceptionConfig((16, 32), (8, 16), (2, 2), stem_filters=16),
    "cifar10_inception": InceptionConfig((16, 32), (8, 16), (2, 2), stem_filters=16),
    "mnist_cnn": CNNConfig(filters=(32,) * 4, strides=(2, 2, 2, 1), hidden=(64,)),
    "cifar10_cnn": CNNConfig(filters=(32,) * 4, strides=(2, 2, 2, 1), hidden=(64,)),
}


@pytest.mark.parametrize("name", STUDIES)
def test_networks_of_the_studies_of_ocnopt_are_presets(name):
    preset = PRESETS[name]
    shape = {"image_shape": preset.network.image_shape, "classes": preset.network.classes}
    assert preset.network == replace(STUDIES[name], **shape)
    assert preset.training.optimizer == OCNOpt() and preset.training.stage_cost == 0
    if preset.dataset in ("wine", "digits"):
        data = load_dataset(preset.dataset)
        assert shape == {"image_shape": data.image_shape, "classes": data.classes}
        assert len(data.train_labels) == TRAINING_SAMPLES[preset.dataset]


@pytest.mark.parametrize("name", [name for name in PRESETS if "transformer" in name])
def test_transformers_of_the_presets_cover_their_images(name):
    preset = PRESETS[name]
    network, training = preset.network, preset.training
    assert isinstance(network, TransformerConfig) and isinstance(training.optimizer, AdamW)
    assert network.image_shape == IMAGE_SHAPES[preset.dataset] and network.system().segments
    shared = name.endswith("_shared")
    assert (network.exits, training.stage_cost > 0) == ("shared" if shared else "none", shared)


def test_patches_may_fit_the_data_alone():
    """7 divides the images of MNIST, and not those that a network of this family starts from."""
    wanted = parse("--dataset=mnist", "--architecture=transformer", "--patch=7", "--heads=2")
    assert (wanted.network.patch, wanted.network.heads) == (7, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset or --dataset is needed"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=x"], "--blocks=x: it must be whole"),
        (["--preset=mnist_homogeneous54_shared", "--blocks=-1"], "blocks is"),
        (["--preset=mnist_homogeneous54_shared", "--epochs=0"], "epochs is 0"),
        (["--preset=cifar10_standard54_shared", "--blocks=10"], "divisible by the 3 levels"),
        (["--preset=mnist_homogenous54_shared"], "Did you mean 'mnist_homogeneous54_shared'?"),
        (["--dataset=minst"], "Did you mean 'mnist'?"),
        (["--dataset=minst[:10]"], "Did you mean 'mnist'?"),
        (["--dataset=digits", "--weight_dcay=1"], "Did you mean 'weight_decay'?"),
        (["--dataset=digits", "--exits=sharde"], "Did you mean 'shared'?"),
        (["--dataset=digits", "--milestones=100000000"], "not reached in 30 epochs"),
        (["--dataset=digits", "--milestones=0.5,x"], "must be numbers separated by commas"),
        (["--dataset=digits", "--milestones=nan"], "must be finite"),
        (["--dataset=digits", "--milestones=0.9,0.5"], "increasing, and either shares"),
        (
            ["--dataset=digits", "--schedule=cosine", "--milestones=5"],
            "--milestones belongs to --schedule=milestones, but it is cosine.",
        ),
        (["--dataset=digits", "--architecture=mpl"], "Did you mean 'mlp'?"),
        (
            ["--dataset=digits", "--architecture=mlp", "--filters=3"],
            "--filters belongs to --architecture=resnet|cnn|inception, but this run's is mlp, "
            "which has --hidden, --activation.",
        ),
        (
            ["--dataset=digits", "--architecture=transformer", "--heads=3"],
            "heads is 3, but must divide width, which is 64.",
        ),
        (["--preset=wine_fcn", "--blocks=3"], "--blocks belongs to --architecture=resnet|residual"),
        ([RESIDUAL_MLP, "--blocks=3,4"], "--blocks is 3,4, but must be one whole number here."),
        (["--dataset=digits", "--optimizer=ocn_opt"], "Did you mean 'ocnopt'?"),
        (
            [DIGITS, "--curvature=ekfac"],
            "--curvature belongs to --optimizer=ocnopt, but this run's is sgd, which has "
            "--learning_rate",
        ),
        ([DIGITS, "--optimizer=ocnopt", "--curvature=ekfca"], "Did you mean 'ekfac'?"),
        (
            [DIGITS, "--optimizer=ocnopt", "--curvature=identity", "--damping=1"],
            "curvature 'identity' has no such setting",
        ),
        (["--dataset=digits", "--milestones=1,99999999999"], "not be larger"),
        (["--dataset=digits", "--batch_size=9999999999"], "not an integer in the range"),
        (["--dataset=digits", "--learning_rate=nan"], "nan is not a finite number"),
    ],
)
def test_impossible_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(*arguments)
