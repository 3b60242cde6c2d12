"""The flags that the studies of optimizers share, and the study that they describe."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..common.flag_kinds import FlagValues, Section
from ..common.reports import Study
from .tasks import NETWORKS, Task, make_task

T = TypeVar("T")


class StudyFlags:
    """What is trained, how often and how long, and where the rows go."""

    def __init__(
        self,
        values: FlagValues,
        *,
        network: str = "digits_fcn",
        epochs: int = 20,
        batch_size: int = 32,
        seeds: int = 4,
        least_seeds: int = 1,
    ) -> None:
        """Define them, with the defaults of one study.

        Args:
          values: where they are defined.
          network, epochs, batch_size, seeds: the defaults.
          least_seeds: 2 where a deviation over the seeds is shown.
        """
        section = Section(values, "What")
        self._network = section.choice("network", NETWORKS, "What is trained.", network)
        self._data = section.text("data", "Name or .npz of the data. Default: by network.")
        self._samples = section.whole("samples", "Train on so many samples. Default: all.", least=1)
        self._methods = section.texts("method", "Only methods whose name has this in it.")
        section = Section(values, "How")
        self._epochs = section.whole("epochs", "Passes over the training set.", epochs, least=1)
        self._batch_size = section.whole("batch_size", "Samples a step.", batch_size, least=1)
        self._seeds = section.whole("seeds", "Runs of each setting.", seeds, least=least_seeds)
        self._output = section.text(
            "output", "Where to write, without extension; rows found there are not run again."
        )

    @property
    def network(self) -> str:
        """What is trained."""
        return self._network.value

    @property
    def epochs(self) -> int:
        """Passes over the training set."""
        return self._epochs.value

    @property
    def batch_size(self) -> int:
        """Samples a step."""
        return self._batch_size.value

    @property
    def seeds(self) -> range:
        """One for each run of a setting."""
        return range(self._seeds.value)

    def task(self) -> Task:
        """The network and its data."""
        return make_task(self.network, self._data.value, self._samples.value)

    def chosen(self, methods: Mapping[str, T]) -> dict[str, T]:
        """Those of the methods that `--method` names.

        Raises:
          ValueError: if it names none of them.
        """
        return those_named(self._methods.value, methods)

    def study(self, **settings: Any) -> Study:
        """The study, with the settings that are no flags of these."""
        flags = (self._network, self._data, self._samples, self._epochs, self._batch_size)
        used = {flag.name: flag.value for flag in (*flags, self._seeds)}
        return Study(self._output.value, {**used, **settings})


def those_named(parts: Sequence[str] | None, methods: Mapping[str, T]) -> dict[str, T]:
    """Those of the methods whose name is one of these parts, or has it in it where none is called
    so; None: all.

    Raises:
      ValueError: if there are none.
    """
    if not parts:
        return dict(methods)
    found = {
        name: method
        for name, method in methods.items()
        if any(name == part if part in methods else part in name for part in parts)
    }
    if not found:
        raise ValueError(
            f"--method={parts[0]} is in the name of no method; they are: {', '.join(methods)}."
        )
    return found


def spread(values: Any, digits: int = 2) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
