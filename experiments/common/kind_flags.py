"""Flags of a configuration that comes in several kinds: one for every field that a kind has.

Names, types, defaults and help are those of the dataclasses, so that a new kind, or a new field,
is a flag without being listed again.
"""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .flag_kinds import Flag, Section, shown


class KindFlags:
    """Which kind, and its fields."""

    def __init__(
        self,
        section: Section,
        name: str,
        defaults: Mapping[str, Any],
        help: str,
        leave_out: Collection[str] = (),
    ) -> None:
        """Define them.

        Args:
          section: where.
          name: of the flag that says which kind.
          defaults: a frozen dataclass for each kind, whose values are shown as its defaults.
          help: of the flag that says which kind.
          leave_out: fields that are no flags.
        """
        self._name, self._defaults = name, defaults
        self._kind = section.choice(name, defaults, help)
        self._fields: dict[str, Flag] = {}
        self._types = {kind: get_type_hints(type(value)) for kind, value in defaults.items()}
        for value in defaults.values():
            for field in fields(value):
                if field.name not in (*leave_out, *self._fields):
                    self._fields[field.name] = self._define(section, field.name)

    @property
    def kind(self) -> str | None:
        """Which kind, if it is given."""
        return self._kind.value

    def given(self, kind: str) -> dict[str, Any]:
        """The fields that were given, for a configuration of this kind.

        Raises:
          ValueError: for a field that the kind does not have, or a value that it cannot have.
        """
        values = {}
        for name, flag in self._fields.items():
            if flag.value is not None:
                self._check_has(kind, name)
                values[name] = _fitted(name, flag.value, self._types[kind][name])
        return values

    def _check_has(self, kind: str, name: str) -> None:
        own = [f"--{field}" for field in self._fields if field in self._types[kind]]
        if f"--{name}" not in own:
            others = [other for other in self._defaults if name in self._types[other]]
            raise ValueError(
                f"--{name} belongs to --{self._name}={'|'.join(others)}, but this run's is {kind}, "
                f"which has {', '.join(own)}."
            )

    def _define(self, section: Section, name: str) -> Flag:
        """The flag of a field, of the widest type that a kind has for it."""
        kinds = [kind for kind in self._defaults if name in self._types[kind]]
        types = list(dict.fromkeys(_without_none(self._types[kind][name]) for kind in kinds))
        help = self._help(name, kinds)
        literals = [type_ for type_ in types if get_origin(type_) is Literal]
        if literals:
            allowed = dict.fromkeys(word for type_ in literals for word in get_args(type_))
            return section.choice(name, allowed, help)
        for type_, define in (
            (tuple[float, ...], section.row),
            (tuple[int, ...], section.wholes),
            (float, section.number),
            (int, section.whole),
        ):
            if type_ in types:
                return define(name, help)
        return section.switch(name, help, None)

    def _help(self, name: str, kinds: list[str]) -> str:
        """What the docstrings say of a field, and its defaults, where they differ by kind."""
        texts = _by_value({kind: documented(type(self._defaults[kind]))[name] for kind in kinds})
        parts = [
            text[:1].upper() + text[1:]
            if kinds_with == list(self._defaults)
            else f"Of {', '.join(kinds_with)}: {text}"
            for text, kinds_with in texts.items()
        ]
        values = {kind: getattr(self._defaults[kind], name) for kind in kinds}
        defaults = _by_value(
            {kind: shown(value) or "none" for kind, value in values.items() if value is not None}
        )
        if len(defaults) == 1:
            parts.append(f"(default: {next(iter(defaults))})")
        elif defaults:
            of_each = (f"{', '.join(of)} {value}" for value, of in defaults.items())
            parts.append(f"(default: {'; '.join(of_each)})")
        return " ".join(parts)


def documented(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass say of its fields; the class that has one first counts."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        attributes = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        attributes = attributes.partition("\n\n")[0]
        for names, text in re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", attributes, re.M):
            for name in names.split(", "):
                texts.setdefault(name, " ".join(text.replace("`", "").split()))
    return texts


def _by_value(of_kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """{value: the kinds that have it}."""
    grouped: dict[str, list[str]] = {}
    for kind, value in of_kinds.items():
        grouped.setdefault(value, []).append(kind)
    return grouped


def _without_none(type_: Any) -> Any:
    """T of T | None."""
    if get_origin(type_) in (Union, UnionType):
        (type_,) = (member for member in get_args(type_) if member is not NoneType)
    return type_


def _fitted(name: str, value: Any, type_: Any) -> Any:
    """The value of a flag of several types as one of this type."""
    if _without_none(type_) is not int or not isinstance(value, tuple):
        return value
    if len(value) != 1:
        raise ValueError(f"--{name} is {shown(value)}, but must be one whole number here.")
    return value[0]
