"""What follows from --model_name_or_path: the recipe, or a release that is fine-tuned on a user's own cells.

Of a release, the same classes keep its head, other classes get a new one. What it was trained on is recorded, and no
subject of it is tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leukoscope import ConfigError, DataError, LeukoscopeError, ReleaseError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.evaluation.overlap import Seen, seen_of
from leukoscope.models.build import NetworkStart, copy_weights
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.metrics import Metrics
from leukoscope.models.recipes import TIMM, Recipe, get_recipe, timm_recipe
from leukoscope.models.release import WEIGHTS_FILE, folder_name, local_release
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


def follow_model(flags: Any) -> dict[str, Any]:
    """The flags that follow from --model_name_or_path; for a model of timm, that flag itself becomes None.

    `flags` are `config.ModelArguments`, with `recipe` "" where not given.

    Raises:
        LeukoscopeError: another flag that names a start or a recipe, or no such model or release.
    """
    name = str(flags.model_name_or_path)
    if local_release(name) is None and ("/" not in name or name.startswith(TIMM)):
        _require_alone(flags, "recipe")
        return {"model_name_or_path": None, "recipe": timm_recipe(name, "--model_name_or_path").name}
    _require_alone(flags, "from_scratch", "pretrained_weights")
    release = open_release(name)
    recipe = flags.recipe
    settings: list[str] = []
    made_by = release.metrics.recipe.name
    if not recipe:
        try:
            followed = get_recipe(made_by)
        except LeukoscopeError:
            raise ConfigError(
                f"--model_name_or_path {name}: its recipe {made_by!r} is unknown here; name one of its architecture "
                "with --recipe"
            ) from None
        recipe = followed.name
        if followed.pooled_norm:  # the release was rewritten for timm
            settings = ["pooled_norm=false"]
    return {
        "model_name_or_path": f"{release.name}@{release.revision}" if release.revision else name,
        "recipe": recipe,
        "image_size": flags.image_size or release.preprocessing.image_size,
        "override": [*settings, *flags.override],
    }


def _require_alone(flags: Any, *others: str) -> None:
    beside = [f"--{flag}" for flag in others if getattr(flags, flag)]
    if beside:
        raise ConfigError(
            f"--model_name_or_path {flags.model_name_or_path} and {' and '.join(beside)} exclude each other; leave "
            "one out"
        )


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
    before = release.metrics.training.start_weights
    provenance = {
        "release": release.name if release.revision else name,
        "revision": release.revision,
        "weights_sha256": sha256((release.folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "kept_head": outputs is not None,
        "seen": [training.content() for training in release.metrics.trainings],
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
    network: nn.Module, metrics: Metrics, labels: Sequence[str], frequencies: torch.Tensor
) -> list[str]:
    """Undo a kept head's temperature, let it assume the (K,) `frequencies` of this training, and name both."""
    undone = []
    temperature = metrics.temperature * metrics.earlier_temperature
    if temperature != 1:
        rescale_classifier(network, 1 / temperature)
        undone.append(f"the temperature {temperature:.3f}")
    shares = metrics.training.output_frequencies
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
    held = _held(tested, unit)
    if held:
        raise DataError(
            f"--model_name_or_path {name}: its data hold {held} of this run's test side, so its metrics would be "
            "inflated; use --split all, which measures nothing, a --split_file that tests others, or other cells"
        )
    notes = []
    held = _held(validated, unit)
    if held:
        notes.append(f"the data of {name} hold {held} of the validation side: its metrics are too optimistic")
    if (split.test or split.validation) and not (tested.overlap.certain and validated.overlap.certain):
        notes.append(f"whether {name} was trained on some of these cells is unknown")
    return tuple(notes)


def _held(seen: Seen, unit: str) -> str:
    """How many subjects, or else cells, a release knows; "" for none."""
    if seen.subjects:
        return f"{len(seen.subjects):,} {unit}(s)"
    return f"{seen.cells:,} cells" if seen.cells else ""
