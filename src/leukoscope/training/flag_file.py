"""Flags from a YAML file (--config), such as an earlier run's args.yaml."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from leukoscope import ConfigError
from leukoscope.plain_yaml import kind, misread_number, read_yaml

# Of these flags `no` is a value, which YAML reads as false; of the second, a number of steps, too.
_TAKE_NO = ("mixed_precision", "checkpointing_steps")
_TAKE_NUMBER = ("checkpointing_steps",)


def read_flag_file(file: Path, text_flags: Collection[str]) -> dict[str, Any]:
    """The flags that a YAML file holds by name or, as args.yaml, under `flags`.

    Args:
        text_flags: the flags whose values are text.

    Raises:
        ConfigError: no such file, no YAML, a flag that is set twice, or a text or number that YAML reads as
            something else (`Yes` as true, 010 as 8).
    """
    try:
        text = file.read_text(encoding="utf-8")
        content, written = read_yaml(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace("\n", " ")
        raise ConfigError(f"--config {file}: cannot be read as YAML ({reason}); give a file of flags") from None
    if content is None:
        return {}
    if isinstance(content, dict) and "flags" in content:
        content = content["flags"]
        written = written["flags"]
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: holds no flags; write one per line, like `learning_rate: 1e-4`")
    for name, setting in content.items():
        if name not in written:
            continue  # `yes` as a name, which is no flag's
        if name not in text_flags or name in _TAKE_NUMBER:
            problem = misread_number(setting, written[name])
            if problem:
                raise ConfigError(f"--config {file}: {name}: {problem}")
        if name not in text_flags:
            continue
        if isinstance(setting, list):
            for part, written_part in zip(setting, written[name], strict=True):
                _require_text(file, name, part, written_part)
        elif setting is not None:  # as if the flag were left out
            _require_text(file, name, setting, written[name])
    return content


def _require_text(file: Path, name: str, setting: Any, written: Any) -> None:
    """Raise `ConfigError` where YAML did not read a value of a text flag, `written` in the file, as text."""
    if isinstance(setting, str):
        return
    if setting is False and name in _TAKE_NO:
        return
    if type(setting) is int and name in _TAKE_NUMBER:
        return
    if isinstance(setting, dict | list):
        raise ConfigError(f"--config {file}: {name}: holds `key: value`, where a text belongs; put it in quotes")
    raise ConfigError(f'--config {file}: {name}: YAML reads {written} as {kind(setting)}; quote it: "{written}"')
