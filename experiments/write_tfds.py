"""Write a `.npz` data set as a TFDS folder (array_record), without TensorFlow.

  python -m experiments.write_tfds --npz=mnist.npz --name=mnist --data_dir=data

The `.npz` holds train_images, train_labels, test_images and test_labels (uint8 images
[samples, height, width, channels]). The folder is then read by `--dataset=mnist --data_dir=data`,
by ocresnet or by any other user of TFDS.
"""

from absl import flags

from experiments import command_line
from ocresnet.data.sources import TFDS_NAMES
from ocresnet.data.tfds_folder import write_tfds

NPZ = flags.DEFINE_string("npz", None, "The .npz file to read.")
NAME = flags.DEFINE_enum("name", None, TFDS_NAMES, "The TFDS name to write it as.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS folder to write to.")


def main() -> None:
    if not (NPZ.value and NAME.value and DATA_DIR.value):
        raise ValueError("--npz, --name and --data_dir are needed; see --help.")
    print(f"wrote {write_tfds(NPZ.value, NAME.value, DATA_DIR.value)}")


if __name__ == "__main__":
    command_line.run(main, __doc__, {"Flags": [NPZ, NAME, DATA_DIR]})
