"""Read YAML whose numbers are what they look like: YAML 1.1 takes 010 for 8, 1:30 for 90, and the last of two keys."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, ClassVar

import yaml


class _AsWritten(yaml.SafeLoader):
    """Reads YAML with every scalar as the text that is written there; only `<<` keeps its meaning."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "<": yaml.SafeLoader.yaml_implicit_resolvers["<"]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises `ConstructorError` for a key that comes twice."""
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is set twice; leave one out", key.start_mark
                )
            names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> tuple[Any, Any]:
    """What a text holds as YAML, and the same with every scalar as it is written; raises `yaml.YAMLError`."""
    return yaml.safe_load(text), yaml.load(text, Loader=_AsWritten)


def misread_number(content: Any, written: Any) -> str:
    """Say which number YAML reads otherwise than a person does; "" where there is none.

    Arguments: a part of what `read_yaml` returns, in both forms.
    """
    for number, text in _numbers(content, written):
        try:
            is_plain = number == (int(text, 0) if isinstance(number, int) else float(text))
        except ValueError:
            is_plain = False
        if not is_plain:
            return f"YAML reads {text} as {kind(number)}; write a plain decimal number"
    return ""


def _numbers(content: Any, written: Any) -> Iterator[tuple[int | float, str]]:
    """Each number and its text; a key that is no text, and what stands below it, is passed over."""
    if isinstance(content, dict):
        for key, part in content.items():
            if key in written:
                yield from _numbers(part, written[key])
    elif isinstance(content, list):
        for part, written_part in zip(content, written, strict=True):
            yield from _numbers(part, written_part)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield content, written


def kind(content: Any) -> str:
    """What YAML made of a text, in words."""
    if content is None:
        return "nothing"
    if isinstance(content, bool):
        return str(content).lower()
    if isinstance(content, date):
        return f"the date {content}"
    return f"the number {content}"
