"""Write a run's network as one file of StableHLO that runs without this package.

  python -m experiments.export --workdir=runs/demo                    # pruned, if it was pruned
  python -m experiments.export --workdir=runs/demo --nopruned --output=whole.stablehlo

The file holds the function from images to logits with its weights, for CPU, GPU and TPU:

  import jax
  from pathlib import Path
  model = jax.export.deserialize(bytearray(Path("runs/demo/model.stablehlo").read_bytes()))
  logits = model.call(images)           # float32 [batch, height, width, channels]
"""

from pathlib import Path
from typing import get_args

from absl import flags

from experiments import command_line, runs
from experiments.prune import PRUNED
from ocresnet.export import Pixel, export_network
from ocresnet.systems import network as networks
from ocresnet.training import records

OUTPUT = flags.DEFINE_string("output", None, "The file. Default: <workdir>/model.stablehlo.")
WHICH = flags.DEFINE_bool(
    "pruned", None, "The pruned network, or the whole one. Default: pruned, if there is one."
)
ALL_EXITS = flags.DEFINE_bool("all_exits", False, "Give the logits of every exit.")
BATCH = flags.DEFINE_integer("images", None, "How many images it takes. Default: any number.")
PIXEL = flags.DEFINE_enum("pixel", "float32", get_args(Pixel), "Dtype of the images.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "Run": [runs.WORKDIR],
    "Export": [OUTPUT, WHICH, ALL_EXITS, BATCH, PIXEL],
}


def main() -> None:
    if not runs.WORKDIR.value:
        raise ValueError("--workdir is needed: the folder of a finished run of experiments.train.")
    workdir = Path(runs.WORKDIR.value)
    pruned = (workdir / PRUNED).is_dir() if WHICH.value is None else WHICH.value
    network = networks.load(workdir / (PRUNED if pruned else records.NETWORK))
    output = Path(OUTPUT.value or workdir / "model.stablehlo")
    pixel: Pixel = "uint8" if PIXEL.value == "uint8" else "float32"
    export_network(network, output, exits=ALL_EXITS.value, batch_size=BATCH.value, pixel=pixel)
    what = "pruned" if pruned else "whole"
    print(
        f"wrote the {what} network of {network.config.depth} blocks to {output} "
        f"({output.stat().st_size / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
