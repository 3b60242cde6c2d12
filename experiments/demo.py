"""The whole story on the bundled digits: train, look over the depth, prune, leave early.

  python -m experiments.demo --workdir=runs/demo

is three commands with the same workdir: `experiments.train --preset=digits_homogeneous12_shared`,
`experiments.prune` and `experiments.evaluate --exit_budget=0.2`.
"""

import sys
import time
from collections.abc import Sequence
from types import ModuleType

from . import evaluate, prune, train
from .common import command_line
from .common.flag_kinds import FlagValues, Section

COMMANDS: tuple[tuple[ModuleType, list[str]], ...] = (
    (train, ["--preset=digits_homogeneous12_shared"]),
    (prune, []),
    (evaluate, ["--exit_budget=0.2"]),
)


class Flags:
    """Where."""

    def __init__(self, values: FlagValues) -> None:
        self.workdir = Section(values, "Run").text("workdir", "Folder of the run.", "runs/demo")


def demo(flags: Flags) -> int:
    """Run the commands one after another, until one fails; returns its exit status."""
    start = time.perf_counter()
    workdir = f"--workdir={flags.workdir.value}"
    for binary, arguments in COMMANDS:
        name = binary.__name__.rpartition(".")[2]
        print(" ".join([f"\n$ python -m experiments.{name}", *arguments, workdir]), flush=True)
        status = binary.main([*arguments, workdir])
        if status:
            return status
    seconds = time.perf_counter() - start
    print(f"\ndone in {seconds:.0f} s; everything is in {flags.workdir.value}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story as the arguments say; returns the exit status."""
    return command_line.run(demo, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
