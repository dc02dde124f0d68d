"""Which run this is: flags, recipe, start weights and cells, files by their content.

It decides whether a checkpoint is resumed, a finished run folder is replaced, and a run of a protocol is done.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from leukoscope import LeukoscopeError, __version__
from leukoscope.files import content_hashes, write_atomic
from leukoscope.models.build import start_file
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import WEIGHTS
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig

ARGS = "args.yaml"
# What these name is compared by content: the cells, their labels and subjects, their split, and the start weights.
_BY_CONTENT = (
    *("train_dir", "labels", "subject_pattern", "image_column_name", "label_column_name", "subject_column"),
    *("split", "split_file", "pretrained_weights", "model_name_or_path"),
)
# It changes no weight: a finished run is kept where it is named afterwards.
_NOT_COMPARED = (*NOT_THE_RESULT, *_BY_CONTENT, "positive_label")
_WORDS = {
    "start": "the start weights' sha256",
    "data": "the data's fingerprint",
    "split": "the split's fingerprint",
    "precision": "--mixed_precision",
    "processes": "processes (accelerate launch --num_processes)",
}


@dataclass(frozen=True)
class RunIdentity:
    """What determines the result of a run. What is None is not known yet, and not compared.

    Attributes:
        start: sha256 of the start weights, or of the weights of the release that is fine-tuned; "" for random ones.
        data, split: their fingerprints.
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
            if name := config.model.model_name_or_path:
                file: Path | None = find_release(name, KNOWN_CELLS)[0] / WEIGHTS
            else:
                file = start_file(recipe, config.start_weights)
            start = "" if file is None else content_hashes([file])[str(file)] or None
        return cls(plain(config.as_dict()), plain(asdict(recipe)), start)

    def save(self, run_folder: Path) -> None:
        """Write args.yaml: the flags as given, the resolved recipe, and what else is known."""
        known = {name: getattr(self, name) for name in _WORDS if getattr(self, name) is not None}
        content = {"flags": self.flags, "resolved_recipe": self.recipe, "identity": known, "leukoscope": __version__}
        write_atomic(run_folder / ARGS, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def differences(self, now: RunIdentity) -> list[str]:
        """What differs in the run that is to begin, as "name: the value here"; [] where it is the same run."""
        different = []
        for prefix, made, wanted in (("", self.flags, now.flags), ("recipe's ", self.recipe, now.recipe)):
            names = [name for name in {**wanted, **made} if name not in _NOT_COMPARED]
            different += [f"{prefix}{name}: {made.get(name)}" for name in names if made.get(name) != wanted.get(name)]
        for name, words in _WORDS.items():
            then, here = getattr(self, name), getattr(now, name)
            if None not in (then, here) and then != here:
                different.append(f"{words}: {str(then)[:12] or 'none'}")
        return different

    def differences_in(self, run_folder: Path) -> list[str]:
        """What differs in the finished run of a folder, as `differences` says it."""
        if not (args := run_folder / ARGS).is_file():
            return [f"no {ARGS} names them"]
        made = yaml.safe_load(args.read_text(encoding="utf-8"))
        return RunIdentity(made["flags"], made["resolved_recipe"], **made.get("identity", {})).differences(self)


def plain(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    return json.loads(json.dumps(value))
