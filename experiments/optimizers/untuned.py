"""What tuning is worth: optimizers as they come against optimizers whose learning rate is searched.

  python -m experiments.optimizers.untuned --task=wine_fcn --task=digits_fcn \\
      --output=results/untuned/small

For every task and method the accuracies and training losses over a grid of learning rates and
seeds, with a cosine schedule; an untuned method is judged at its published default, and OCNOpt's
forms are run on a wide grid besides. Games are run where stages have several players. Tables: test
accuracy, training loss, regret to the best tuned method, decades of learning rate within one point
of the best, and steps and seconds to a target accuracy. Figure: accuracy over the learning rate, a
panel a task. Writes <output>.json, .md and .png, and .jsonl as it goes; what is found there is not
run again, so that tasks may be run one after the other.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ocresnet.control.stages import players
from ocresnet.plots.studies import draw_tasks
from ocresnet.training.records import plain
from ocresnet.training.sweep import measured_steps, sweep

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import Study
from .flags import those_named
from .methods import describe
from .runs import seconds_of_step, training_of
from .tasks import NETWORKS, Task, make_task
from .untuned_methods import GAMES, METHODS, TASKS, TUNED, Method, Setting
from .untuned_tables import Row, accuracy, rate_that_counts, tables

TIMED_STEPS = 100
"""A whole round of EKFAC's refreshes, also where they are as rare as by default."""


class Flags:
    """The tasks, the methods, and what is not as in `TASKS`."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        self.tasks = section.choices("task", TASKS, "What is trained, repeatable.", TASKS)
        self._methods = section.texts("method", "Only methods of this name, or with it in theirs.")
        self._data = section.texts(
            "data", "Where data is, repeatable: its name, = and a .npz file, as mnist=mnist.npz."
        )
        section = Section(values, "How")
        self._samples = section.whole(
            "samples", "Train on so many samples. Default: by task.", least=1
        )
        self._epochs = section.whole("epochs", "Passes over them. Default: by task.", least=1)
        self._batch_size = section.whole("batch_size", "Samples a step. Default: by task.", least=1)
        self._seeds = section.whole("seeds", "Runs of each rate. Default: by task.", least=1)
        self.decades = section.whole(
            "decades", "Of a grid on each side, at most. Default: by method.", least=0
        )
        self.a_decade = section.whole("a_decade", "Learning rates in a decade of it.", 2, least=1)
        self._weight_decay = section.number(
            "weight_decay", "Of every method. Default: 0; of OCNOpt its own."
        )
        self.points = section.whole(
            "points", "Of a run where the test accuracy is measured.", 40, least=1
        )
        self.together = section.switch(
            "together", "All rates and seeds in one program. Default: by task.", None
        )
        self._output = section.text(
            "output", "Where to write, without extension; rows found there are not run again."
        )

    def setting(self, task: str) -> Setting:
        """How a task is run."""
        flags = {
            "epochs": self._epochs,
            "batch_size": self._batch_size,
            "seeds": self._seeds,
            "samples": self._samples,
        }
        given = {name: flag.value for name, flag in flags.items() if flag.value is not None}
        return TASKS[task]._replace(**given)

    def task(self, name: str) -> Task:
        """The network and its data."""
        task = make_task(name, self._sources().get(NETWORKS[name].data), self.setting(name).samples)
        together = self.together.value
        return task if together is None else task._replace(together=together)

    def methods(self) -> dict[str, Method]:
        """Those of the methods that are asked for."""
        found = those_named(self._methods.value, METHODS)
        return {name: self._as_asked(method) for name, method in found.items()}

    def _as_asked(self, method: Method) -> Method:
        decay = self._weight_decay.value
        if decay is not None:
            optimizer = replace(method.optimizer, weight_decay=decay)
            method = method._replace(optimizer=optimizer)
        return method._replace(a_decade=self.a_decade.value).within(self.decades.value)

    def study(self) -> Study:
        """The rows."""
        return Study(self._output.value, {})

    def _sources(self) -> dict[str, str]:
        names = {network.data for network in NETWORKS.values()}
        sources = {}
        for text in self._data.value or []:
            name, equals, source = text.partition("=")
            if name not in names or not equals:
                raise ValueError(
                    f"--data={text} must be one of {', '.join(sorted(names))}, = and a .npz file."
                )
            sources[name] = source
        return sources


def key_of(task: str, name: str, method: Method, setting: Setting) -> dict[str, Any]:
    """What tells a row from all others but those with other learning rates or points on the way."""
    length = {field: value for field, value in setting._asdict().items() if field != "target"}
    return {"task": task, "method": name, **length, "optimizer": describe(method.optimizer)}


def judged(row: Row, method: Method, setting: Setting) -> Row:
    """A row with what it is compared by, which no number in it depends on."""
    rates, own = row["learning_rates"], method.optimizer.learning_rate
    return {
        **row,
        "tuned": method.tuned,
        "reference": row["method"] in TUNED,
        "own_rate": rates.index(own),
        "factors": [float(f"{rate / own:.3g}") for rate in rates],
        "target": setting.target,
    }


def measure(task: Task, setting: Setting, method: Method, points: int) -> dict[str, Any]:
    """Accuracies in percent (0 for a run that diverged) and training losses over learning rates and
    seeds, accuracies on the way, and the time of a step."""
    training = training_of(task, method.optimizer, setting.epochs, setting.batch_size)
    steps = setting.epochs * (task.data.samples("train") // setting.batch_size)
    found = sweep(
        task.architecture,
        training,
        task.data,
        learning_rates=method.learning_rates,
        weight_decays=[method.optimizer.weight_decay],
        seeds=range(setting.seeds),
        together=task.together,
        points=points,
    )
    return {
        "accuracy": 100 * found.accuracies[0],
        "train_loss": found.train_losses[0],
        "steps": measured_steps(steps, points),
        "accuracies_on_the_way": np.round(100 * found.accuracies_on_the_way[0], 3),
        "seconds_a_step": seconds_of_step(task, training, TIMED_STEPS),
    }


def study(flags: Flags) -> None:
    """Run every method on every task, and write tables and figure of all that is there."""
    found, methods = flags.study(), flags.methods()
    for name in flags.tasks.value:
        task, setting = flags.task(name), flags.setting(name)
        alone = players(task.architecture.system()) == 1
        for label, method in methods.items():
            if alone and label in GAMES:
                continue
            key = {
                **key_of(name, label, method, setting),
                "learning_rates": method.learning_rates,
                "points": flags.points.value,
            }
            row = found.row(key, partial(measure, task, setting, method, flags.points.value))
            row = judged(row, method, setting)
            rate = row["learning_rates"][rate_that_counts(row)]
            print(f"{name:24} {label:30} {accuracy(row):6.2f} at {rate:g}", flush=True)
    rows = rows_to_show(found, methods, flags)
    text = tables(rows)
    print(f"\n{text}")
    found.write(text)
    if found.writes:
        draw_tasks(rows).savefig(found.path(".png"), dpi=150)


def rows_to_show(found: Study, methods: dict[str, Method], flags: Flags) -> list[Row]:
    """Those of these methods, as they are set now, on all tasks: also those that an earlier process
    has run. Of several grids of learning rates the widest, and of those the finest."""
    rows = []
    for task in TASKS:
        setting = flags.setting(task)
        for name, method in methods.items():
            key = plain(key_of(task, name, method, setting))
            fitting = [row for row in found.rows if all(row[part] == key[part] for part in key)]
            if fitting:
                widest = max(reversed(fitting), key=_width)  # of equals the last one
                rows.append(judged(widest, method, setting))
    return rows


def _width(row: Row) -> tuple[float, int]:
    """Of a grid: what it spans, in decades, and how many rates it has."""
    rates = row["learning_rates"]
    return round(float(np.log10(rates[-1] / rates[0])), 1), len(rates)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
