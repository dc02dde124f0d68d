"""What makes two runs the same run: flags, recipe, start weights and cells, files by their content.

It decides whether a checkpoint is resumed, a finished run folder is replaced, and a run of a protocol is done.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.files import content_hashes
from leukoscope.models.build import start_file
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import WEIGHTS_FILE
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig

# What these name is compared by content: the cells, their labels and subjects, their split, and the start weights.
_BY_CONTENT = (
    "train_dir",
    "labels",
    "subject_pattern",
    "image_column_name",
    "label_column_name",
    "subject_column",
    "split",
    "split_file",
    "pretrained_weights",
    "model_name_or_path",
)
# The positive label changes no weight: a finished run is kept where it is named afterwards.
_NOT_COMPARED = (*NOT_THE_RESULT, *_BY_CONTENT, "positive_label")
_FACTS = {
    "start": "the start weights' sha256",
    "data": "the data's fingerprint",
    "split": "the split's fingerprint",
    "precision": "--mixed_precision",
    "processes": "processes (accelerate launch --num_processes)",
}
"""What is known of a run besides its flags and its recipe, and how a message calls it."""


@dataclass(frozen=True)
class RunIdentity:
    """What determines the result of a run. What is None is not known yet, and not compared.

    Attributes:
        flags: as given, by name.
        recipe: the resolved recipe, by field.
        start: sha256 of the start weights, or of the weights of the release that is fine-tuned; "" for random ones.
        data, split: their fingerprints.
        precision: of training, as --mixed_precision names it.
        processes: how many train together.
    """

    flags: dict[str, Any]
    recipe: dict[str, Any]
    start: str | None = None
    data: str | None = None
    split: str | None = None
    precision: str | None = None
    processes: int | None = None

    @classmethod
    def of(cls, config: TrainingConfig, recipe: Recipe) -> RunIdentity:
        """The identity of a run before its cells are loaded; start weights on the Hub are downloaded."""
        start = None
        with suppress(LeukoscopeError):  # a training that needs them says why they cannot be had
            start = _start_sha256(config, recipe)
        return cls(plain(config.as_dict()), plain(asdict(recipe)), start)

    def facts(self) -> dict[str, Any]:
        """What is known besides flags and recipe."""
        return {name: getattr(self, name) for name in _FACTS if getattr(self, name) is not None}

    def differences(self, now: RunIdentity) -> list[str]:
        """What differs in the run that is to begin, as "name: the value here"; [] where it is the same run."""
        return [
            *_different_settings(self.flags, now.flags, ""),
            *_different_settings(self.recipe, now.recipe, "recipe's "),
            *_different_facts(self.facts(), now.facts()),
        ]


def _start_sha256(config: TrainingConfig, recipe: Recipe) -> str | None:
    """The sha256 of the start weights; "" where the network starts from random ones, None for an unreadable file."""
    release = config.model.model_name_or_path
    if release:
        folder, _, _ = find_release(release, KNOWN_CELLS)
        file: Path | None = folder / WEIGHTS_FILE
    else:
        file = start_file(recipe, config.start_weights)
    if file is None:
        return ""
    return content_hashes([file])[str(file)] or None


def _different_settings(then: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    """The settings that changed, each with its earlier value; one that either lacks counts as None."""
    names = [name for name in {**now, **then} if name not in _NOT_COMPARED]
    return [f"{prefix}{name}: {then.get(name)}" for name in names if then.get(name) != now.get(name)]


def _different_facts(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{words}: {str(then[name])[:12] or 'none'}"
        for name, words in _FACTS.items()
        if name in then and name in now and then[name] != now[name]
    ]


def plain(setting: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    return json.loads(json.dumps(setting))
