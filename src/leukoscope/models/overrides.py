"""Single values of a recipe replaced from text, `augmentation.scale=0.4`: how ablations and users vary a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from leukoscope import LeukoscopeError
from leukoscope.models.ingredients import Recipe

# What names a recipe rather than making it.
_FIXED = ("name", "about")


def with_overrides(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """The recipe with `key=value` assignments applied in order.

    Args:
        assignments: keys as in `Recipe`, those of its parts after a dot; values in YAML (0.4, true, null, [a, b]).

    Raises:
        LeukoscopeError: no such key, or a value that does not fit it.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise LeukoscopeError(f"--override {assignment}: write KEY=VALUE, e.g. augmentation.scale=0.4")
        recipe = _replaced(recipe, key.strip().split("."), _value(assignment, text), assignment)
    return recipe


def _value(assignment: str, text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise LeukoscopeError(f"--override {assignment}: {text!r} is no value; give e.g. 0.4, true or null") from None
    # YAML takes 1e-4, which everybody writes for a learning rate, for a word.
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def _replaced(part: Any, path: list[str], value: Any, assignment: str) -> Any:
    """A copy of a recipe, or of a part of it, with the value at the end of the path replaced."""
    kinds = get_type_hints(type(part))
    known = [field.name for field in fields(part) if field.name not in _FIXED]
    name, rest = path[0], path[1:]
    if name not in known:
        raise LeukoscopeError(f"--override {assignment}: {name} is unknown; choose one of {', '.join(known)}")
    now = getattr(part, name)
    if rest and now is None:
        # A part that a recipe does not have begins as its defaults.
        parts: list[Any] = [choice for choice in get_args(kinds[name]) if is_dataclass(choice)]
        now = parts[0]() if parts else None
    if rest:
        if not is_dataclass(now):
            raise LeukoscopeError(f"--override {assignment}: {name} is {now!r} and has no parts; assign it as a whole")
        return replace(part, **{name: _replaced(now, rest, value, assignment)})
    if is_dataclass(now):
        raise LeukoscopeError(
            f"--override {assignment}: {name} has parts; assign one, {name}.KEY=VALUE, of "
            f"{', '.join(field.name for field in fields(now))}"
        )
    return replace(part, **{name: _fitted(value, kinds[name], assignment)})


def _fitted(value: Any, kind: Any, assignment: str) -> Any:
    """The value as the field's type has it."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in choices:
            return value
        raise LeukoscopeError(f"--override {assignment}: choose one of {', '.join(map(str, choices))}")
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if value is None and type(None) in choices:
        return None
    plain = next((choice for choice in choices if choice is not type(None)), kind) if origin is not tuple else kind
    if plain is float and type(value) in (int, float):
        return float(value)
    if type(value) is plain:
        return value
    raise LeukoscopeError(f"--override {assignment}: {value!r} does not fit; give {_in_words(plain)}")


def _in_words(kind: Any) -> str:
    named = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    return named.get(kind, "a list, e.g. [0.5, 0.5, 0.5]")
