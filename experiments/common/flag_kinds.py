"""The kinds of flags that binaries have, defined on the `FlagValues` of one binary."""

import difflib
import math
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from absl.flags import FlagValues

__all__ = ["Flag", "FlagValues", "Section", "did_you_mean", "given", "shown"]

Flag = flags.FlagHolder[Any]

LARGEST = 2**31 - 1
"""Whole numbers beyond it are mistyped, and XLA cannot take them."""


class Section:
    """Flags under one heading of `--help`."""

    def __init__(self, values: FlagValues, title: str) -> None:
        """Flags of `values` under the heading `title`; the same title continues a section."""
        # absl groups flags by the module that defined them: here by the heading.
        self._where: dict[str, Any] = {"flag_values": values, "module_name": title}

    def text(self, name: str, help: str, default: str | None = None) -> Flag:
        """Any text."""
        return flags.DEFINE_string(name, default, help, **self._where)

    def switch(self, name: str, help: str, default: bool | None = False) -> Flag:
        """--name or --noname."""
        return flags.DEFINE_boolean(name, default, help, **self._where)

    def whole(
        self, name: str, help: str, default: int | None = None, least: int = -LARGEST
    ) -> Flag:
        """A whole number of at least `least`."""
        parser = flags.IntegerParser(least, LARGEST)
        return flags.DEFINE(parser, name, default, help, **self._where)

    def wholes(self, name: str, help: str, default: Sequence[int] | None = None) -> Flag:
        """Whole numbers separated by commas: a tuple."""
        return flags.DEFINE(_WholesParser(), name, default, help, **self._where)

    def row(self, name: str, help: str) -> Flag:
        """Finite numbers separated by commas, whole ones where written so: a tuple."""
        return flags.DEFINE(_RowParser(), name, None, help, **self._where)

    def number(self, name: str, help: str, default: float | None = None) -> Flag:
        """A finite number."""
        return flags.DEFINE(_NumberParser(), name, default, help, **self._where)

    def numbers(self, name: str, help: str, default: Sequence[float]) -> Flag:
        """A finite number, repeatable: a list."""
        return self._repeatable(_NumberParser(), name, default, help)

    def share(self, name: str, help: str, default: float | None = None) -> Flag:
        """A share in (0, 1]."""
        return flags.DEFINE(_ShareParser(), name, default, help, **self._where)

    def choice(
        self, name: str, allowed: Collection[str], help: str, default: str | None = None
    ) -> Flag:
        """One of a few words."""
        return flags.DEFINE(_ChoiceParser(allowed), name, default, help, **self._where)

    def choices(
        self, name: str, allowed: Collection[str], help: str, default: Collection[str] | None
    ) -> Flag:
        """One of a few words, repeatable: a list."""
        return self._repeatable(_ChoiceParser(allowed), name, default, help)

    def texts(self, name: str, help: str) -> Flag:
        """Any text, repeatable: a list, or None."""
        return flags.DEFINE_multi_string(name, None, help, **self._where)

    def _repeatable(
        self,
        parser: flags.ArgumentParser[Any],
        name: str,
        default: Collection[Any] | None,
        help: str,
    ) -> Flag:
        default = None if default is None else list(default)
        flag: flags.MultiFlag[Any] = flags.MultiFlag(
            parser, flags.ArgumentSerializer(), name, default, help
        )
        return flags.DEFINE_flag(flag, **self._where)


def given(**holders: Flag) -> dict[str, Any]:
    """The values of the flags that were given or have a default, by the names of the arguments."""
    return {name: holder.value for name, holder in holders.items() if holder.value is not None}


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    several = isinstance(value, (list, tuple))
    return ",".join(map(str, value)) if several else str(value)  # type: ignore[call-overload]


def did_you_mean(word: str, allowed: Collection[str]) -> str:
    """What follows a sentence about a word that is not allowed: the likely one, if any."""
    near = difflib.get_close_matches(word, allowed, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class _NumberParser(flags.FloatParser):
    def parse(self, argument: Any) -> float:
        value = super().parse(argument)
        if not math.isfinite(value):
            raise ValueError(f"{argument} is not a finite number.")
        return value


class _ShareParser(_NumberParser):
    def parse(self, argument: Any) -> float:
        value = super().parse(argument)
        if not 0 < value <= 1:
            percent = f": {value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
            raise ValueError(f"{argument} is not a share in (0, 1]{percent}.")
        return value

    def flag_type(self) -> str:
        return "share in (0, 1]"


class _WholesParser(flags.ArgumentParser[tuple[int, ...]]):
    def parse(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, tuple):  # a default
            return argument
        parts = argument.split(",") if argument else []
        try:
            values = tuple(int(part) for part in parts)
        except ValueError:
            raise ValueError("it must be whole numbers separated by commas.") from None
        if any(abs(value) > LARGEST for value in values):
            raise ValueError(f"its numbers must not be larger than {LARGEST}.")
        return values

    def flag_type(self) -> str:
        return "int,int,..."


class _RowParser(flags.ArgumentParser[tuple[float, ...]]):
    def parse(self, argument: Any) -> tuple[float, ...]:
        if isinstance(argument, tuple):  # a default
            return argument
        parts = argument.split(",") if argument else []
        try:
            values = [float(part) for part in parts]
        except ValueError:
            raise ValueError("it must be numbers separated by commas.") from None
        for value in values:
            if not abs(value) <= LARGEST:
                raise ValueError(f"its numbers must be finite and not be larger than {LARGEST}.")
        written = zip(parts, values, strict=True)
        return tuple(int(part) if part.strip().isdecimal() else value for part, value in written)

    def flag_type(self) -> str:
        return "number,number,..."


class _ChoiceParser(flags.EnumParser):
    def __init__(self, allowed: Collection[str]) -> None:
        super().__init__(list(allowed))

    def parse(self, argument: str) -> str:
        if argument not in self.enum_values:
            names = ", ".join(self.enum_values)
            raise ValueError(
                f"there is no such choice.{did_you_mean(argument, self.enum_values)} It must be "
                f"one of {names}."
            )
        return argument
