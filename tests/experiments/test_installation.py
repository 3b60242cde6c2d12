"""What is installed: no top-level package `experiments`, and commands that work."""

import importlib
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from programs import ROOT

setuptools = pytest.importorskip("setuptools")


@pytest.fixture(scope="module")
def arguments() -> dict:
    """What setup.py tells setuptools."""
    told: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **arguments: told.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return told


def test_every_module_is_installed_and_experiments_only_inside_ocresnet(arguments):
    packages = set(arguments["packages"])
    assert {name.partition(".")[0] for name in packages} == {"ocresnet"}
    for folder, package in (("ocresnet", "ocresnet"), ("experiments", "ocresnet.experiments")):
        for path in (ROOT / folder).rglob("*.py"):
            below = path.parent.relative_to(ROOT / folder).parts
            assert ".".join([package, *below]) in packages, path


def test_every_command_is_the_main_of_a_binary():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["scripts"]) == 8
    for command, target in project["scripts"].items():
        module, _, function = target.partition(":")
        binary = importlib.import_module(module.removeprefix("ocresnet."))
        assert command == f"ocresnet-{module.rpartition('.')[2].replace('_', '-')}"
        assert callable(getattr(binary, function)) and getattr(binary, "Flags", None)


@pytest.mark.slow
def test_an_installed_copy_trains_and_prunes(arguments, tmp_path, monkeypatch):
    """The files as setuptools installs them, away from the checkout, in a process of their own."""
    monkeypatch.chdir(ROOT)
    build = setuptools.Distribution({**arguments, "script_name": "setup.py"}).get_command_obj(
        "build_py"
    )
    build.build_lib = str(tmp_path / "site")
    build.ensure_finalized()
    build.run()
    assert [path.name for path in Path(build.build_lib).iterdir()] == ["ocresnet"]
    program = (
        "import sys; from ocresnet.experiments import train, prune\n"
        "run = '--dataset=digits --blocks=1 --filters=2 --epochs=1 --batch_size=128'.split()\n"
        "sys.exit(train.main([*run, '--workdir=w']) or prune.main(['--workdir=w', '--blocks=0']))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": build.build_lib},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "pruned" / "network.json").is_file()
