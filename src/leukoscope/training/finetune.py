"""What follows from --model_name_or_path: the recipe, or a release that is fine-tuned on a user's own cells.

Of a release, the same classes keep its head, other classes get a new one. What it was trained on is recorded, and no
subject of it is tested on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from leukoscope import ConfigError, DataError, LeukoscopeError, ReleaseError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split
from leukoscope.evaluation.overlap import Overlap, seen_of, trainings_of
from leukoscope.models.build import NetworkStart, copy_weights
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.recipes import TIMM, Recipe, get_recipe, timm_recipe
from leukoscope.models.release import CONFIG_FILE, WEIGHTS_FILE, folder_name, local_release
from leukoscope.models.weights import (
    Release,
    load_release,
    rescale_classifier,
    shift_class_frequencies,
    training_frequencies,
)


def open_release(name: str) -> Release:
    """Open the release that --model_name_or_path names; errors as of `Predictor.from_pretrained`, with the flag."""
    try:
        folder, name, revision = find_release(name, KNOWN_CELLS)
        return load_release(folder, name=name, revision=revision)
    except LeukoscopeError as error:
        raise ReleaseError(f"--model_name_or_path {error}") from None


def follow_model(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that follow from --model_name_or_path; but for a release, that flag itself becomes None.

    Of `flags`, those of `ModelArguments`, `recipe` and `image_size` are None where not given.

    Raises:
        LeukoscopeError: another flag that names a start or a recipe, no such model, or one that cannot be opened.
    """
    name = flags["model_name_or_path"].removeprefix("hf-hub:")  # so timm's cards write a Hub id
    if local_release(name) is None and ("/" not in name or name.startswith(TIMM)):
        _require_alone(flags, "recipe")
        return {"model_name_or_path": None, "recipe": timm_recipe(name, "--model_name_or_path").name}
    _require_alone(flags, "from_scratch", "pretrained_weights")
    if Path(name).is_file():
        raise ReleaseError(
            f"--model_name_or_path {name}: is a file; give the folder of a release, or for weights alone --recipe and "
            "--pretrained_weights"
        )
    try:
        folder, _, revision = find_release(name, (CONFIG_FILE, WEIGHTS_FILE))
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except LeukoscopeError as error:
        raise ReleaseError(f"--model_name_or_path {error}") from None
    except (OSError, ValueError) as error:
        raise ReleaseError(f"--model_name_or_path {name}: cannot be opened ({error})") from None
    if not isinstance(config, dict) or config.get("label_names"):
        return _follow_release(name, flags)
    _require_alone(flags, "recipe")
    architecture = str(config.get("architecture"))
    cfg = config.get("pretrained_cfg")
    if not isinstance(cfg, dict) or not timm.is_model(architecture):
        raise ReleaseError(f"--model_name_or_path {name}: its config.json names no model of timm; give another")
    try:
        prepared = Preprocessing.from_pretrained_cfg(cfg)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ReleaseError(f"--model_name_or_path {name}: its pretrained_cfg is not supported ({error})") from None
    recipe = timm_recipe(architecture, "--model_name_or_path")
    differ = [k for k in ("mean", "std", "interpolation") if getattr(prepared, k) != getattr(recipe, k)]
    settings = [f"{k}={json.dumps(getattr(prepared, k))}" for k in differ]
    at = f"@{revision[:12]}" if revision else ""
    return {
        "model_name_or_path": None,
        "recipe": recipe.name,
        "pretrained_weights": str(folder / WEIGHTS_FILE),
        "pretrained_name": flags["pretrained_name"] or f"{cfg.get('tag') or architecture} of {Path(name).name}{at}",
        "image_size": prepared.image_size if flags["image_size"] is None else flags["image_size"],
        "override": [*settings, *flags["override"]],
    }


def _require_alone(flags: Mapping[str, Any], *others: str) -> None:
    beside = [f"--{flag}" for flag in others if flags[flag]]
    if beside:
        raise ConfigError(
            f"--model_name_or_path {flags['model_name_or_path']} and {' and '.join(beside)} exclude each other; leave "
            "one out"
        )


def _follow_release(name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    release = open_release(name)
    recipe = flags["recipe"]
    settings: list[str] = []
    made_by = release.metrics.get("recipe", {}).get("name")
    if recipe is None:
        try:
            followed = get_recipe(made_by or "")
        except LeukoscopeError:
            reason = f"its recipe {made_by} is unknown here" if made_by else "it does not say which recipe made it"
            raise ConfigError(
                f"--model_name_or_path {name}: {reason}; name one of its architecture with --recipe"
            ) from None
        recipe = followed.name
        if followed.pooled_norm:  # the release was rewritten for timm
            settings = ["pooled_norm=false"]
    return {
        "model_name_or_path": f"{release.name}@{release.revision}" if release.revision else name,
        "recipe": recipe,
        "image_size": release.preprocessing.image_size if flags["image_size"] is None else flags["image_size"],
        "override": [*settings, *flags["override"]],
    }


def start_from_release(network: nn.Module, recipe: Recipe, name: str, cells: FramedCells, split: Split) -> NetworkStart:
    """Load the weights of a release, named as by --model_name_or_path, into a new `network` of `recipe`, in place.

    Raises:
        LeukoscopeError: another network or standardisation, or a release trained on subjects of this run's test side.
    """
    release = open_release(name)
    labels = cells.data.info.labels
    assert release.folder is not None, "it was opened from files"
    # These would load and predict differently: same tensors in another network, other pixels.
    prepared = release.preprocessing
    for what, its, ours in (
        ("architecture", release.config["architecture"], recipe.architecture),
        ("standardisation (mean, std)", (prepared.mean, prepared.std), (recipe.mean, recipe.std)),
    ):
        if its != ours:
            raise ConfigError(
                f"--model_name_or_path {release.name}: its {what} is {its}, that of --recipe {recipe.name} is {ours}; "
                "leave --recipe out to follow the release"
            )
    notes = _check_seen_cells(release, cells, split)
    outputs = matching_outputs(release.labels, labels)
    copy_weights(network, release.network, outputs, source=f"--model_name_or_path {release.name}")
    name = name_of(release)
    if outputs is None:
        remark = f"a new head for {', '.join(labels)}: {name} predicts {', '.join(release.labels)}"
    else:
        counts = np.bincount(cells.labels[cells.rows(split.train)], minlength=len(labels))
        frequencies = training_frequencies(recipe, torch.tensor(counts, dtype=torch.float32))
        undone = _undo_corrections(network, release.metrics, labels, frequencies)
        without = f", without {' and '.join(undone)}" if undone else ""
        remark = f"the head of {name} is kept{without}"
    before = release.metrics.get("training", {}).get("start_weights")
    provenance = {
        "release": release.name if release.revision else name,
        "revision": release.revision,
        "weights_sha256": sha256((release.folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "kept_head": outputs is not None,
        "seen": trainings_of(release.metrics),
    }
    described = f"fine-tuned from {name}" + (f", itself started from {before}" if before else "")
    return NetworkStart(described, (remark,), notes, {"started_from": provenance})


def matching_outputs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes, the number of their output; None where the two sets differ in more than case."""
    index = {label.casefold(): k for k, label in enumerate(theirs)}
    wanted = [label.casefold() for label in ours]
    if len(index) < len(theirs) or sorted(index) != sorted(wanted):
        return None
    return tuple(index[label] for label in wanted)


def name_of(release: Release) -> str:
    """A release's name without its path: Hub id and commit, or its folder (for a run's release, the run folder)."""
    return f"{release.name}@{release.revision[:12]}" if release.revision else folder_name(Path(release.name))


def _undo_corrections(
    network: nn.Module, metrics: Mapping[str, Any], labels: Sequence[str], frequencies: torch.Tensor
) -> list[str]:
    """Undo a kept head's temperature, let it assume the (K,) `frequencies` of this training, and name both."""
    undone = []
    now = metrics.get("calibration", {}).get("temperature", 1.0)
    before = metrics.get("recalibration", {}).get("previous_temperature", 1.0)
    temperature = now * before
    if temperature != 1:
        rescale_classifier(network, 1 / temperature)
        undone.append(f"the temperature {temperature:.3f}")
    training = metrics.get("training", {})
    # Without stated class frequencies, assume those of the training cells.
    shares = training.get("output_frequencies") or training.get("class_frequencies")
    if shares:
        by_name = {label.casefold(): share for label, share in shares.items()}
        assumed = torch.tensor([by_name[label.casefold()] for label in labels])
        if not torch.allclose(assumed, frequencies, atol=1e-4):
            shift_class_frequencies(network, assumed, frequencies)
            undone.append("its class frequencies")
    return undone


def _check_seen_cells(release: Release, cells: FramedCells, split: Split) -> tuple[str, ...]:
    """Refuse a release that was trained on this run's test side; notes on what else it was trained on."""
    name = name_of(release)
    unit = cells.data.info.group
    tested, validated = (
        seen_of(release, cells, ids, split_fingerprints=(split.fingerprint,)) for ids in (split.test, split.validation)
    )
    if tested.subjects:
        raise DataError(
            f"--model_name_or_path {name}: was trained on {unit} {tested.subjects[0]} ({len(tested.subjects)} in all) "
            "of this run's test side, so its metrics would be inflated; use --split all, which measures nothing, a "
            f"--split_file that tests other {unit}s, or other cells"
        )
    if tested.cells:
        raise DataError(
            f"--model_name_or_path {name}: its own data contain {tested.cells:,} of the {len(split.test):,} cells of "
            "this run's test side, so its metrics would be inflated; use --split all, which measures nothing, or other "
            "cells"
        )
    if not split.test and not split.validation:
        return ()
    notes = []
    too_good = "of the validation side: the validation metrics are too optimistic"
    if validated.subjects:
        notes.append(f"{name} was trained on {len(validated.subjects)} {unit}(s) {too_good}")
    elif validated.cells:
        notes.append(f"the data of {name} contain {validated.cells:,} cells {too_good}")
    if tested.overlap is Overlap.NOT_RECORDED:
        notes.append(f"{name} does not say which cells it was trained on; it may have seen some of these")
    elif not (tested.overlap.certain and validated.overlap.certain):
        notes.append(f"{name} was trained on other cells; whether some of these are among them is unknown")
    return tuple(notes)
