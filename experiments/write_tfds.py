"""Write a `.npz` data set as a TFDS folder (array_record), without TensorFlow.

  python -m experiments.write_tfds --npz=mnist.npz --name=mnist --data_dir=data

The `.npz` holds train_images, train_labels, test_images and test_labels (uint8 images
[samples, height, width, channels]). The folder is then read by `--dataset=mnist --data_dir=data`,
by ocresnet or by any other user of TFDS.
"""

import sys
from collections.abc import Sequence

from ocresnet.data.sources import TFDS_NAMES
from ocresnet.data.tfds_folder import write_tfds

from .common import command_line
from .common.flag_kinds import FlagValues, Section


class Flags:
    """From where, as what, to where."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Data")
        self.npz = section.text("npz", "The .npz file to read.")
        self.name = section.choice("name", TFDS_NAMES, "The TFDS name to write it as.")
        self.data_dir = section.text("data_dir", "The TFDS folder to write to.")


def write(flags: Flags) -> None:
    """Write the folder, and say where it is."""
    npz, name, data_dir = flags.npz.value, flags.name.value, flags.data_dir.value
    if not (npz and name and data_dir):
        raise ValueError("--npz, --name and --data_dir are needed; see --help.")
    print(f"wrote {write_tfds(npz, name, data_dir)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write as the arguments say; returns the exit status."""
    return command_line.run(write, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
