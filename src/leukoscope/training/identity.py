"""What makes two runs the same run: the recipe, a few flags, and the content of start weights, cells and split.

It decides whether a checkpoint is resumed, and whether the run in a folder is the one that is asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leukoscope.cache import content_hashes
from leukoscope.models.build import start_file
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import WEIGHTS_FILE
from leukoscope.training.config import TrainingConfig

RESULT_FLAGS = ("seed", "deterministic", "gradient_accumulation_steps", "class_frequencies")
"""What changes a result and is neither in the recipe nor a fact below, by which all other flags are compared."""
_FACTS = {
    "start": "the start weights' sha256",
    "data": "the data's fingerprint",
    "split": "the split's fingerprint",
    "precision": "--mixed_precision",
    "processes": "processes (accelerate launch --num_processes)",
}
"""What determines a run besides flags and recipe, and how a message calls it."""


@dataclass(frozen=True)
class RunIdentity:
    """What determines the result of a run.

    Attributes:
        flags: those of `RESULT_FLAGS`; in what an earlier version wrote, all.
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
    def of(cls, config: TrainingConfig, recipe: Recipe, **facts: Any) -> RunIdentity:
        """The identity of a run with these flags, this recipe and these `facts`: start, data, split, …"""
        flags = config.as_dict()
        return cls(plain({name: flags[name] for name in RESULT_FLAGS}), plain(asdict(recipe)), **facts)

    def facts(self) -> dict[str, Any]:
        """What determines the run besides flags and recipe."""
        return {name: getattr(self, name) for name in _FACTS}

    def settings(self) -> dict[str, Any]:
        """Flags, recipe and facts, each as a message calls it."""
        flags = {name: self.flags.get(name) for name in RESULT_FLAGS}
        recipe = {f"recipe's {name}": setting for name, setting in self.recipe.items()}
        facts = {words: str(getattr(self, name))[:12] or "none" for name, words in _FACTS.items()}
        return {**flags, **recipe, **facts}

    def differences(self, now: RunIdentity) -> list[str]:
        """What differs from the run that is to begin, as "name: … instead of …"; [] where it is the same run."""
        here = self.settings()
        asked_for = now.settings()
        names = {**asked_for, **here}
        return [
            f"{name}: {here.get(name)} instead of {asked_for.get(name)}"
            for name in names
            if here.get(name) != asked_for.get(name)
        ]


def start_sha256(config: TrainingConfig, recipe: Recipe) -> str:
    """The sha256 of a run's start weights, downloaded first where they are on the Hub; "" for random ones.

    Raises:
        ReleaseError: weights that cannot be had.
    """
    release = config.model.model_name_or_path
    if release:
        file: Path | None = find_release(release, KNOWN_CELLS)[0] / WEIGHTS_FILE
    else:
        file = start_file(recipe, config.start_weights)
    if file is None:
        return ""
    return content_hashes([file])[str(file)]


def plain(setting: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    return json.loads(json.dumps(setting))
