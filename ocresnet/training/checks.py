"""Refusing impossible values in one sentence."""

import math
from typing import Any


def require(name: str, value: Any, holds: bool, what: str) -> None:
    """Refuse `value` unless it `holds`.

    Raises:
      ValueError: saying what it is and what it must be.
    """
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {what}.")


def is_number(value: Any) -> bool:
    """Whether it is a finite number (and not a truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number (and not a truth value)."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_positive(name: str, value: Any) -> None:
    """Refuse what is not a number above 0."""
    require(name, value, is_number(value) and value > 0, "a positive number")


def require_at_least_zero(name: str, value: Any) -> None:
    """Refuse what is not a number of at least 0."""
    require(name, value, is_number(value) and value >= 0, "a number, at least 0")


def require_share(name: str, value: Any) -> None:
    """Refuse what is not a number in [0, 1)."""
    require(name, value, is_number(value) and 0 <= value < 1, "a number in [0, 1)")
