"""How every binary starts: parsing, help in sections, one sentence for what a user can mend."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags, logging

from ocresnet.training.loop import NonFiniteLossError

from .flag_kinds import FlagValues, did_you_mean, shown
from .interrupts import INTERRUPTED, LINE

MENDABLE = (ValueError, OSError, ImportError, NonFiniteLossError)
"""Errors that say in a sentence what a user can do about them."""

LONG = 80
"""Characters of a list of names that no longer stands behind its flag in `--help`."""

INDENT: dict[str, Any] = {"initial_indent": 6 * " ", "subsequent_indent": 6 * " "}

HELP = {"--help", "-help", "-h", "--helpshort", "-?"}

Flags = TypeVar("Flags")


def run(
    program: Callable[[Flags], int | None],
    define: Callable[[FlagValues], Flags],
    doc: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """Parse the arguments and call the program; bad input becomes one line on stderr.

    The flags belong to this call alone: binaries run one after another in one process.

    Args:
      program: what to do with the parsed flags; returns the exit status, None for 0. Where a
        signal stopped it, it raises KeyboardInterrupt, as Ctrl-C does.
      define: makes the program's flags on the values it is given.
      doc: the program's description, the first part of `--help`.
      arguments: the command line after the program's name; None is that of this process.

    Returns:
      The exit status: 0, 1 after an error that was printed, 130 after an
      interruption.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    values = FlagValues()
    defined = define(values)
    logging.set_verbosity(logging.ERROR)
    try:
        if HELP & set(arguments):
            print(help_text(doc or "", values))
            return 0
        parse(values, arguments)
        return program(defined) or 0
    except BrokenPipeError:
        # Whoever read the output has gone; what is left of it is flushed into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MENDABLE as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(LINE, file=sys.stderr)
        return INTERRUPTED


def parse(values: FlagValues, arguments: Sequence[str]) -> None:
    """Give the flags the values on the command line.

    Raises:
      ValueError: for unknown flags, impossible values and arguments that are no flags.
    """
    try:
        _, *rest = values(["program", *arguments])
    except flags.UnrecognizedFlagError as error:
        likely = did_you_mean(error.flagname, list(values))
        raise ValueError(
            f"--{error.flagname} is not a flag of this program.{likely} See --help."
        ) from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; see --help.")


def sentence(error: Exception) -> str:
    """An error in one line; a package that is missing is named for a checkout too."""
    line = " ".join(str(error).split())
    return re.sub(
        r"pip install 'ocresnet(\[\w+\])'", r"\g<0>, or in a checkout pip install '.\1'", line
    )


def help_text(doc: str, values: FlagValues) -> str:
    """The description and every flag with its meaning and default, in sections."""
    lines = [doc.strip()]
    for title, section in values.flags_by_module_dict().items():
        lines += ["", f"{title}:"]
        for flag in section:
            value, text = flag.parser.flag_type(), flag.help
            if allowed := getattr(flag.parser, "enum_values", None):
                value = "|".join(allowed)
                if len(value) > LONG:
                    value, text = "name", f"{text} Names: {', '.join(allowed)}."
            spelling = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}=<{value}>"
            default = "" if flag.default is None else f" (default: {shown(flag.default)})"
            lines += [f"  {spelling}", *textwrap.wrap(text + default, 100, **INDENT)]
    return "\n".join(lines)
