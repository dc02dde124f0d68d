"""Read YAML, and name the numbers that it reads otherwise than a person does.

YAML 1.1 reads 010 as 8 and 1:30 as 90; of a key that is set twice it takes the last.
"""

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
        if not _is_plain(number, text):
            return f"YAML reads {text} as {kind(number)}; write a plain decimal number"
    return ""


def _is_plain(number: float, text: str) -> bool:
    """Whether Python reads the text as the same number."""
    try:
        if isinstance(number, int):
            return number == int(text, 0)  # base 0 refuses 010, and reads 0x10 as YAML does
        return number == float(text)
    except ValueError:
        return False


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
