"""Every binary in one process: help in sections, one sentence for a mistake, Ctrl-C."""

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from programs import ROOT, call, finish, interrupted_at_import_of, start

import ocresnet.export
from experiments import (
    choose_depth,
    demo,
    evaluate,
    export,
    finetune,
    prune,
    surgery,
    train,
    write_tfds,
)
from experiments.benchmarks import optimizers as benchmark_optimizers
from experiments.benchmarks import step as benchmark_step
from experiments.common import command_line
from experiments.common.flag_kinds import FlagValues, Section, did_you_mean, given
from experiments.common.kind_flags import KindFlags
from experiments.continuous import horizon_study, snopt_study, step_benchmark
from experiments.depth_study import __main__ as depth_study
from experiments.optimizers import (
    alignments,
    ddpnopt_table,
    feedback_ablation,
    optimizer_curves,
    promises,
    robustness,
    untuned,
)
from experiments.paper import __main__ as paper
from tests.conftest import SMALL, random_network

BINARIES = (
    train,
    evaluate,
    prune,
    finetune,
    surgery,
    choose_depth,
    export,
    write_tfds,
    demo,
    paper,
    depth_study,
    robustness,
    feedback_ablation,
    alignments,
    ddpnopt_table,
    optimizer_curves,
    promises,
    untuned,
    benchmark_step,
    benchmark_optimizers,
    snopt_study,
    horizon_study,
    step_benchmark,
)

DIGITS = "--preset=digits_homogeneous12_shared"


@pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.__name__)
def test_help_says_what_the_binary_does_and_every_flag_in_its_section(binary):
    code, output, errors = call(binary.main, "--help")
    assert code == 0 and not errors
    assert output.startswith(binary.__doc__.strip())
    name = binary.__name__.removesuffix(".__main__")
    assert f"python -m {name}" in output
    values = FlagValues()
    binary.Flags(values)
    for title, flags in values.flags_by_module_dict().items():
        section = output.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        for flag in flags:
            assert re.search(rf"^  --(\[no\])?{flag.name}\b", section, re.MULTILINE), flag.name
            assert flag.help


def test_help_of_a_training_run_has_a_section_for_each_configuration():
    output = call(train.main, "--help").output
    titles = re.findall(r"^(\w[\w ]+):$", output, re.MULTILINE)
    assert titles == [
        "Run",
        "Data",
        "Network",
        "Objective",
        "Training",
        "Optimizer",
        "Execution",
        "Hosts and devices",
    ]
    assert "mnist_homogeneous12_small" in output and "Default: 2" not in output
    assert "(default: 2)" in output
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize(
    ("binary", "arguments", "message"),
    [
        (train, (), "--preset or --dataset is needed"),
        (train, (DIGITS, "--exits=some"), "must be one of none, shared, separate"),
        (train, (DIGITS, "--batch_size=0"), "batch_size is 0"),
        (train, (DIGITS, "--devices=9"), "this machine has 8"),
        (train, (DIGITS, "--devices=0"), "choose 1 to 8"),
        (train, ("--preset=mnist_homogeneous54_shared", "--data_dir=/none"), "is not a folder"),
        (train, (DIGITS, "--workdir=/dev/null/x"), "cannot be"),
        (train, ("surprise",), "unexpected argument 'surprise'"),
        (train, (DIGITS, "--exits=none"), "has no exits to pay"),
        (train, ("--blokcs=3",), "--blokcs is not a flag of this program. Did you mean 'blocks'?"),
        (train, (DIGITS, "--milestones=50"), "milestones (50,) are not reached in 50 epochs"),
        (train, (DIGITS, "--curvature=kfac"), "--curvature belongs to --optimizer=ocnopt"),
        (train, ("--preset=digits_fcn", "--stage_cost=0.1"), "a MLPConfig cannot have any"),
        (choose_depth, ("--preset=digits_fcn", "--validation=0.1"), "needs residual blocks, and a"),
        (demo, ("--blocks=3",), "--blocks is not a flag of this program. See --help."),
        (surgery, (), "--workdir is needed"),
        (surgery, ("--keep=2", "--budget=0.5"), "only one of --keep, --budget and --tolerance"),
        (surgery, ("--budget=50",), "50 is not a share in (0, 1]: 50 % is 0.5"),
        (surgery, ("--samples=0",), "--samples=0"),
        (choose_depth, (DIGITS, "--validation=0"), "needs a validation split"),
        (prune, ("--workdir=w", "--blocks=3", "--tolerance=1"), "and no other"),
        (prune, ("--workdir=/none",), "there is no config.json in /none"),
        (evaluate, (), "--workdir is needed"),
        (evaluate, ("--exit_accuracy=91",), "91 is not a share in (0, 1]: 91 % is 0.91"),
        (evaluate, ("--exit_budget=20",), "20 is not a share in (0, 1]: 20 % is 0.2"),
        (evaluate, ("--confidence=95",), "95 is not a share in (0, 1]: 95 % is 0.95"),
        (evaluate, ("--confidence=0",), "0 is not a share in (0, 1]."),
        (evaluate, ("--exit_budget=nan",), "nan is not a finite number"),
        (evaluate, ("--exit_budget=0.2", "--confidence=0.9"), "give only one of"),
        (finetune, (), "--workdir is needed"),
        (finetune, ("--workdir=w", "--blocks=3", "--tolerance=1"), "and no other"),
        (export, (), "--workdir is needed"),
        (export, ("--workdir=/none", "--pruned"), "/none/pruned holds no saved network"),
        (export, ("--workdir=w", "--images=99999999999999999999"), "not an integer in the range"),
        (export, ("--workdir=w", "--images=0"), "not an integer in the range [1, 2147483647]"),
        (write_tfds, (), "--npz, --name and --data_dir are needed"),
        (write_tfds, ("--name=minst",), "Did you mean 'mnist'?"),
        (ddpnopt_table, ("--network=digits_fcn", "--data=nothing.npz"), "nothing.npz"),
        (ddpnopt_table, ("--network=digits_fcn", "--method=x"), "--method=x"),
        (ddpnopt_table, ("--seeds=1",), "--seeds=1"),
        (benchmark_step, ("--threads=0",), "--threads is 0"),
        (train, (DIGITS, "--shrink=10,50"), "before the last of 50"),
        (train, (DIGITS, "--shrink=10", "--stage_cost=0"), "no exit is trained to cut at"),
        (train, (DIGITS, "--shrink=10", "--exits=separate"), "choose exits shared"),
        (depth_study, ("--cut=13",), "--cut=13 must be 1 to 12 blocks"),
        (depth_study, ("--milestones=0.5,0.2",), "increasing shares of the budget"),
        (depth_study, ("--validation=10",), "10 is not a share in (0, 1]: 10 % is 0.1"),
        (paper, ("--scale=paper", "--dataset=digits"), "no runs on digits"),
    ],
)
def test_a_mistake_gets_one_sentence(binary, arguments, message):
    code, _, errors = call(binary.main, *arguments)
    assert code == 1
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("binary", [train, finetune, choose_depth])
def test_ctrl_c_in_the_middle_is_one_line_and_status_130(binary, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(binary, "fit", interrupted)
    monkeypatch.setattr(finetune.FinishedRunFlags, "load", interrupted)
    code, _, errors = call(binary.main, *(() if binary is finetune else (DIGITS,)))
    assert (code, errors) == (130, "interrupted.\n")


def test_a_run_that_a_signal_stopped_ends_with_status_130(monkeypatch):
    class Interrupted:
        interrupted = True

    monkeypatch.setattr(train, "fit", lambda *args, **kwargs: Interrupted)
    code, output, errors = call(train.main, DIGITS)
    assert (code, output, errors) == (130, "", "interrupted.\n")


def test_ctrl_c_while_a_binary_is_imported_is_one_line_and_status_130(tmp_path):
    """A process that gets SIGINT long before its `main` runs."""
    process = start("experiments.evaluate", **interrupted_at_import_of("jax", tmp_path))
    code, output, errors = finish(process)
    assert (code, output, errors) == (130, "", "interrupted.\n")


def test_importing_a_binary_leaves_signals_alone():
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); import experiments.common; "
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_missing_package_is_named_for_a_checkout_too(monkeypatch, tmp_path):
    ocresnet.save(random_network(SMALL["homogeneous"]), tmp_path / "network")
    monkeypatch.setattr(ocresnet.export.importlib.util, "find_spec", lambda name: None)
    code, _, errors = call(export.main, f"--workdir={tmp_path}")
    assert code == 1
    assert "pip install 'ocresnet[export]', or in a checkout pip install '.[export]'" in errors


def test_flags_of_a_configuration_are_those_of_its_fields():
    """Of two kinds: the widest type, the documentation and the defaults of each, and a refusal."""

    @dataclass(frozen=True)
    class One:
        """One kind.

        Attributes:
          both: how many,
            in one.
          word: which.
        """

        both: int = 1
        word: Literal["a", "b"] = "a"

    @dataclass(frozen=True)
    class Two(One):
        """Another.

        Attributes:
          share, rest: numbers of `two`.
        """

        both: tuple[int, ...] = (2, 3)  # type: ignore[assignment]
        word: Literal["b", "c"] = "c"  # type: ignore[assignment]
        share: float | None = None
        rest: bool = False

    values = FlagValues()
    kinds = KindFlags(Section(values, "Kinds"), "kind", {"one": One(), "two": Two()}, "Which.")
    text = command_line.help_text("", values)
    assert "--both=<int,int,...>\n      How many, in one. (default: one 1; two 2,3)" in text
    assert "--word=<a|b|c>\n      Which. (default: one a; two c)" in text
    assert "--share=<float>\n      Of two: numbers of two.\n" in text
    assert "--[no]rest\n      Of two: numbers of two. (default: False)" in text
    command_line.parse(values, ["--both=4", "--share=0.5", "--kind=two"])
    assert kinds.kind == "two" and kinds.given("two") == {"both": (4,), "share": 0.5}
    with pytest.raises(ValueError, match="--share belongs to --kind=two, but this run's is one, "):
        kinds.given("one")


def test_two_command_lines_in_one_process_do_not_meet():
    def define(values):
        return Section(values, "Run").whole("blocks", "How many.", 7)

    seen = []
    for arguments in (["--blocks=3"], [], ["--blocks=4"]):
        command_line.run(lambda flag: seen.append(flag.value), define, "", arguments)
    assert seen == [3, 7, 4]


def test_kinds_of_flags():
    values = FlagValues()
    section = Section(values, "All")
    flags = {
        "text": section.text("text", "."),
        "switch": section.switch("switch", "."),
        "whole": section.whole("whole", ".", least=2),
        "wholes": section.wholes("wholes", "."),
        "number": section.number("number", "."),
        "numbers": section.numbers("numbers", ".", [0.5]),
        "share": section.share("share", "."),
        "choice": section.choice("choice", ["a", "b"], "."),
        "choices": section.choices("choices", ["a", "b"], ".", ["b"]),
        "texts": section.texts("texts", "."),
        "row": section.row("row", "."),
    }
    command_line.parse(values, [])
    assert given(**flags) == {"switch": False, "numbers": [0.5], "choices": ["b"]}
    line = (
        "--text=t --switch --whole=2 --wholes=1,2 --number=-1e3 --numbers=1 --numbers=2 --share=1 "
        "--choice=a --choices=a --choices=b --texts=x --texts=y --row=1,0.5"
    )
    command_line.parse(values, line.split(" "))
    assert given(**flags) == {
        "text": "t",
        "switch": True,
        "whole": 2,
        "wholes": (1, 2),
        "number": -1000.0,
        "numbers": [1.0, 2.0],
        "share": 1.0,
        "choice": "a",
        "choices": ["a", "b"],
        "texts": ["x", "y"],
        "row": (1, 0.5),
    }


def test_did_you_mean_only_what_is_near():
    assert did_you_mean("digitz", ["digits", "mnist"]) == " Did you mean 'digits'?"
    assert did_you_mean("imagenet", ["digits", "mnist"]) == ""
