"""What the binaries share: help in groups, and one sentence for what a user can mend."""

import sys
from collections.abc import Callable, Mapping, Sequence

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

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            print(f"error: unexpected argument {argv[1]!r}; see --help.", file=sys.stderr)
            sys.exit(1)
        logging.set_verbosity(logging.ERROR)
        try:
            main()
        except MENDABLE as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)


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
