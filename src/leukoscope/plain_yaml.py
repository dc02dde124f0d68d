"""Read YAML with every scalar as the text that is written, except null: the type of a setting says what it means.

YAML 1.1 itself reads 010 as 8, 1:30 as 90, `no` as false and 1e-4 as a text.
"""

from __future__ import annotations

from typing import Any, ClassVar

import yaml


class _AsWritten(yaml.SafeLoader):
    """Reads scalars as text; `null`, `~` and nothing as None."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises `ConstructorError` for a key that comes twice, of which YAML takes the last."""
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is set twice; leave one out", key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a text holds as YAML: None, texts, lists and mappings of them; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_AsWritten)
