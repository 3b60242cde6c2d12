"""The binaries, the papers' pipelines and the benchmarks: `python -m experiments.train --help`.

Installed, the package is `ocresnet.experiments`, and the binaries are `ocresnet-train` and so on.
"""

import sys
from pathlib import Path


def _is_the_program() -> bool:
    """Whether this process was started as one of the binaries in here."""
    arguments = sys.orig_argv
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    command = Path(arguments[1]).name if len(arguments) > 1 else ""
    return module.startswith(f"{__name__}.") or command.startswith("ocresnet-")


if _is_the_program():
    # Before anything slow is imported, so that Ctrl-C ends an import quietly too.
    from .common import interrupts

    interrupts.exit_on_sigint()
