"""Write a run's network as one file of StableHLO that runs without this package.

  python -m experiments.export --workdir=runs/demo                    # pruned, if it was pruned
  python -m experiments.export --workdir=runs/demo --nopruned --output=whole.stablehlo

The file holds the function from images to logits with its weights, for CPU, GPU and TPU:

  import jax
  from pathlib import Path
  model = jax.export.deserialize(bytearray(Path("runs/demo/model.stablehlo").read_bytes()))
  logits = model.call(images)           # float32 [batch, height, width, channels]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ocresnet.export import Pixel, export_network
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import ResidualArchitecture
from ocresnet.training import records

from .common import command_line
from .common.flag_kinds import FlagValues, Section
from .common.runs import needed_workdir
from .prune import PRUNED


class Flags:
    """Which network, and what its file takes and gives."""

    def __init__(self, values: FlagValues) -> None:
        self.workdir = Section(values, "Run").text("workdir", "Folder of the run.")
        section = Section(values, "Export")
        self.output = section.text("output", "The file. Default: <workdir>/model.stablehlo.")
        self.pruned = section.switch(
            "pruned",
            "The pruned network, or the whole one. Default: pruned, if there is one.",
            None,
        )
        self.all_exits = section.switch("all_exits", "Give the logits of every exit.")
        self.images = section.whole(
            "images", "How many images it takes. Default: any number.", least=1
        )
        self.pixel = section.choice(
            "pixel", get_args(Pixel), "Dtype of the images.", default="float32"
        )


def export(flags: Flags) -> None:
    """Write the file, and say what is in it."""
    workdir = needed_workdir(flags.workdir)
    pruned = flags.pruned.value
    if pruned is None:
        pruned = (workdir / PRUNED).is_dir()
    network = networks.load(workdir / (PRUNED if pruned else records.NETWORK))
    output = Path(flags.output.value or workdir / "model.stablehlo")
    export_network(
        network,
        output,
        exits=flags.all_exits.value,
        batch_size=flags.images.value,
        pixel=flags.pixel.value,
    )
    architecture = network.architecture
    blocks = (
        f" of {architecture.depth} blocks" if isinstance(architecture, ResidualArchitecture) else ""
    )
    print(
        f"wrote the {'pruned' if pruned else 'whole'} network{blocks} to {output} "
        f"({output.stat().st_size / 1e6:.1f} MB)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the arguments say; returns the exit status."""
    return command_line.run(export, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
