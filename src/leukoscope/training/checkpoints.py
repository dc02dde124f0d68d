"""Checkpoints of a run folder: written whole or not at all, recognised when damaged, refused to another run.

A checkpoint is a folder with two files and no pickle: tensors as safetensors, the rest as JSON with a digest over both.
What goes into them, and how a run takes it up again, is the business of `state`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import Recipe
from leukoscope.models.release_files import METRICS
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig, file_name
from leukoscope.training.record import plain

FOLDER = "checkpoints"
LATEST = "latest"
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"(\d{5})-epoch-\d+-step-\d+")


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        tensors: by name, on the CPU; the part before the first "/" says what they belong to.
        values: all else, in plain JSON values.
    """

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors below `name`/, by the rest of their names."""
        return {k.removeprefix(f"{name}/"): v for k, v in self.tensors.items() if k.startswith(f"{name}/")}


class DamagedCheckpoint(LeukoscopeError):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        resumed: the checkpoint that the run goes on from, once `resume` has found one.
    """

    def __init__(self, run_folder: Path, settings: Mapping[str, Any], *, steps: str = "epoch", limit: int = 2):
        """Keep checkpoints below a run folder.

        Args:
            settings: what makes the result of this run, as `run_settings` gives it.
            steps: "epoch" to save when an epoch ends, "no" to save only when asked to stop, or a number of steps.
            limit: how many are kept.
        """
        self.folder, self.settings, self.limit = run_folder / FOLDER, plain(dict(settings)), limit
        self.each_epoch = steps == "epoch"
        self.every_steps = int(steps) if steps.isdecimal() else None
        self.resumed: Checkpoint | None = None

    def due(self, step: int) -> bool:
        """True where a checkpoint is wanted after that many optimiser steps of the run."""
        return self.every_steps is not None and step % self.every_steps == 0

    def save(self, checkpoint: Checkpoint, epoch: int, step: int) -> Path:
        """Write a checkpoint, then remove those beyond the limit.

        Args:
            epoch: the epoch under way, counted from 1.
            step: optimiser steps done in it.

        Raises:
            LeukoscopeError: it cannot be written; the earlier ones are untouched.
        """
        from safetensors import SafetensorError

        earlier = checkpoints_in(self.folder)
        number = int(earlier[-1].name[:5]) + 1 if earlier else 1
        target = self.folder / f"{number:05d}-epoch-{epoch}-step-{step}"
        aside = self.folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            self._remove_unfinished()
            aside.mkdir(parents=True)
            _write(aside, checkpoint, self.settings)
            aside.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise LeukoscopeError(
                f"{target}: the checkpoint cannot be written ({error}); free some space and go on from the one before "
                "with --resume_from_checkpoint latest"
            ) from None
        for path in [*earlier, target][: -self.limit]:
            shutil.rmtree(path)
        return target

    def resume(self, which: str, say: Callable[[str], None] = print) -> None:
        """Read the checkpoint to go on from into `resumed`.

        Args:
            which: "latest" or the folder of one; of the latest, a damaged one gives way to the one before it.
            say: told what was found.

        Raises:
            LeukoscopeError: the checkpoint named is damaged, or the run is another one.
        """
        named = [Path(which)] if which != LATEST else list(reversed(checkpoints_in(self.folder)))
        for path in named:
            try:
                checkpoint, settings = _read(path)
            except DamagedCheckpoint as error:
                if which != LATEST:
                    raise
                say(f"{error}; it is passed over for the one before it")
                continue
            self._require_same(settings, path)
            self.resumed = checkpoint
            say(f"going on from {path}")
            return
        say(f"{self.folder}: no whole checkpoint; starting at the beginning")

    def remove(self) -> None:
        """Drop all: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _require_same(self, then: Mapping[str, Any], path: Path) -> None:
        different = other_settings(then, self.settings)
        if different:
            raise LeukoscopeError(
                f"{path}: a checkpoint of a run with other settings ({', '.join(different)}); give these again, or "
                "start anew in another --output_dir"
            )

    def _remove_unfinished(self) -> None:
        """What a killed process was writing."""
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path)


def run_settings(config: TrainingConfig, recipe: Recipe, **more: Any) -> dict[str, Any]:
    """What makes the result of a run: its flags, the recipe they came to, and `more` of the same kind."""
    return {"flags": config.as_dict(), "resolved_recipe": plain(asdict(recipe)), **more}


def other_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What an earlier run was made with that this one is not, as "name: the value then".

    Of the start weights the file's name counts, not its folder.

    Args:
        then: as `run_settings` gave it or args.yaml holds it. A flag or a recipe's field that it lacks is newer than
            the run and stands for its default: what was done before there was a choice.
        now: as `run_settings` gives it.
    """
    defaults = {"flags": TrainingConfig().as_dict(), "resolved_recipe": plain(asdict(Recipe("", "", "")))}
    groups = (("flags", ""), ("resolved_recipe", "recipe's "))
    different = []
    for group, prefix in groups:
        made = {**defaults[group], **then[group]}
        names = [k for k in now[group] if group != "flags" or k not in NOT_THE_RESULT]
        different += [f"{prefix}{k}: {made.get(k)}" for k in names if made.get(k) != now[group][k]]
    weights = file_name(then["flags"].get("pretrained_weights"))
    if weights != file_name(now["flags"].get("pretrained_weights")):
        different.append(f"pretrained_weights: {weights}")
    rest = now.keys() - {group for group, _ in groups}
    return different + [f"{k}: {then.get(k)}" for k in sorted(rest) if then.get(k) != now[k]]


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; what was never finished is not among them."""
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def check_resume(run_folder: Path, which: str | None) -> None:
    """Refuse, before anything is loaded, to go on where there is nothing or to overwrite what could be gone on from.

    Args:
        which: --resume_from_checkpoint.

    Raises:
        LeukoscopeError: says what to do instead.
    """
    complete = (run_folder / "release" / METRICS).exists()
    if which == LATEST and complete:
        raise LeukoscopeError(
            f"--resume_from_checkpoint latest: the run in {run_folder} is complete; give another --output_dir, or "
            "leave the flag out to make the run anew"
        )
    if which not in (None, LATEST) and not (Path(str(which)) / _STATE).exists():
        raise LeukoscopeError(
            f"--resume_from_checkpoint {which}: no checkpoint; give latest, or one of the folders in "
            f"{run_folder / FOLDER}"
        )
    if which is None and not complete and (kept := checkpoints_in(run_folder / FOLDER)):
        raise LeukoscopeError(
            f"--output_dir {run_folder}: holds an unfinished run ({kept[-1].name}); go on with "
            f"--resume_from_checkpoint latest, or remove {run_folder / FOLDER} to start anew"
        )


def _write(folder: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, folder / _TENSORS)
    record = {"settings": settings, "values": checkpoint.values}
    digest = _digest(folder / _TENSORS, record)
    (folder / _STATE).write_text(json.dumps({**record, "sha256": digest}, indent=1))


def _read(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint and the settings of its run.

    Raises:
        DamagedCheckpoint: its files are not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / _STATE).read_text())
        digest = record.pop("sha256")
        if digest == _digest(folder / _TENSORS, record):
            # Cloned, because what is loaded stays tied to its file, which will be removed in time.
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / _TENSORS).items()}
            return Checkpoint(tensors, record["values"]), record["settings"]
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError):
        pass
    raise DamagedCheckpoint(f"{folder}: a damaged checkpoint")


def _digest(tensors: Path, record: Mapping[str, Any]) -> str:
    """sha256 over the tensors' file and everything else."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()
