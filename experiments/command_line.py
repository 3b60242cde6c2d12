"""What the binaries share: help in groups, and one sentence for what a user can mend."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from ocresnet.training.loop import NonFiniteLossError

MENDABLE = (ValueError, OSError, ImportError, NonFiniteLossError)


def run(
    main: Callable[[], None],
    doc: str,
    groups: Mapping[str, Sequence[flags.FlagHolder]],
) -> None:
    """Parse the flags and call `main`; errors of bad input become one line and exit status 1.

    Args:
      main: the program.
      doc: its description, the first part of `--help`.
      groups: its flags under their headings, the second part of `--help`.
    """
    if {"--help", "-help", "-h", "--helpshort", "-?"} & set(sys.argv[1:]):
        print(help_text(doc, groups))
        return

    own = {holder.name for holders in groups.values() for holder in holders}

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            fail(error)
        # Modules that are shared define flags too, but only this program's have an effect.
        for module, defined in flags.FLAGS.flags_by_module_dict().items():
            for flag in defined:
                if module.startswith("experiments") and flag.present and flag.name not in own:
                    fail(f"--{flag.name} is not a flag of this program; see --help.")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; see --help.")
        return rest

    def guarded(arguments: list[str]) -> None:
        del arguments
        logging.set_verbosity(logging.ERROR)
        try:
            main()
        except MENDABLE as error:
            fail(error)

    app.run(guarded, flags_parser=parse)


def fail(message: object) -> NoReturn:
    """Print one line on stderr and end with exit status 1."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(1)


def help_text(doc: str, groups: Mapping[str, Sequence[flags.FlagHolder]]) -> str:
    """The description and every flag with its meaning and default, in groups."""
    lines = [doc.strip()]
    for title, holders in groups.items():
        lines += ["", f"{title}:"]
        for holder in holders:
            flag = flags.FLAGS[holder.name]
            values = getattr(flag.parser, "enum_values", None)
            value = "|".join(values) if values else flag.flag_type()
            spelling = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}=<{value}>"
            default = "" if flag.default is None else f" (default: {flag.default})"
            lines += [f"  {spelling}", f"      {flag.help}{default}"]
    return "\n".join(lines)
