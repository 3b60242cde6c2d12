"""The flags that the optimizer experiments share, and how they write what they found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from experiments.optimizer_runs import Task, write_record
from experiments.optimizer_tasks import NETWORKS, make_task

NETWORK = flags.DEFINE_enum("network", "digits_fcn", list(NETWORKS), "What is trained.")
SOURCE = flags.DEFINE_string("data", None, "Name or .npz of the data. Default: by network.")
SAMPLES = flags.DEFINE_integer("samples", None, "Train on so many samples. Default: all.")
METHODS = flags.DEFINE_multi_string("method", None, "Only methods whose name has this in it.")
EPOCHS = flags.DEFINE_integer("epochs", 20, "Passes over the training set.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Samples a step.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 4, "Runs of each setting.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "Where to write, without extension.")

WHAT: list[flags.FlagHolder] = [NETWORK, SOURCE, SAMPLES, METHODS]
HOW: list[flags.FlagHolder] = [EPOCHS, BATCH_SIZE, SEEDS, OUTPUT]

T = TypeVar("T")


def task() -> Task:
    """The network and data that the flags name."""
    return make_task(NETWORK.value, SOURCE.value, SAMPLES.value)


def chosen(methods: Mapping[str, T]) -> dict[str, T]:
    """Those of the methods that `--method` names.

    Raises:
      ValueError: if it names none of them.
    """
    wanted = METHODS.value
    if not wanted:
        return dict(methods)
    found = {name: m for name, m in methods.items() if any(part in name for part in wanted)}
    if not found:
        raise ValueError(
            f"--method={wanted[0]} is in the name of no method; they are: {', '.join(methods)}."
        )
    return found


def write(rows: Sequence[Mapping[str, Any]], lines: Sequence[str], **settings: Any) -> Path | None:
    """Write <output>.json and <output>.md, if `--output` is given; returns it with .png."""
    if not OUTPUT.value:
        return None
    output = Path(OUTPUT.value)
    used = {flag.name: flag.value for flag in (NETWORK, SAMPLES, EPOCHS, BATCH_SIZE, SEEDS)}
    write_record(output.with_name(f"{output.name}.json"), {**used, **settings}, rows)
    output.with_name(f"{output.name}.md").write_text("\n".join(lines) + "\n")
    return output.with_name(f"{output.name}.png")
