"""Fine-tuning: a run that goes on from a published release, on a user's own cells.

The release lies in a folder or on the Hub and is rebuilt by our own code from config.json and safetensors; nothing
that comes with it is ever run. The same classes keep its head, other classes get a new one. What the release was
trained on goes on record, and a subject that it knows is never tested on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.cells.splits import Split
from leukoscope.evaluation.overlap import KnownCells, same_person
from leukoscope.models.build import continue_from, load_start_weights
from leukoscope.models.recipes import RECIPES, Recipe
from leukoscope.models.release import Release, rescale_classifier
from leukoscope.models.release_files import CONFIG, WEIGHTS
from leukoscope.training.objective import restore_class_frequencies

if TYPE_CHECKING:
    from leukoscope.training.config import ModelArguments, TrainingConfig


@dataclass(frozen=True)
class Started:
    """Where a network starts from, and what follows from it.

    Attributes:
        name: what its weights truly are, for the card.
        remarks: what a person should know, one line each.
        notes: what weakens the run's figures, one line each; they belong to the split.
        provenance: for the "training" block of metrics.json; {} unless it goes on from a release.
    """

    name: str
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def open_release(init_from: str) -> Release:
    """The release that --init_from names: a folder, `owner/name` or `owner/name@revision`.

    Raises:
        LeukoscopeError: as `Predictor.from_pretrained`, with the flag.
    """
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.torch_backend import TorchBackend

    try:
        predictor = Predictor.from_pretrained(init_from, backend="torch")
    except LeukoscopeError as error:
        raise LeukoscopeError(f"--init_from {error}") from None
    assert isinstance(predictor.backend, TorchBackend)
    return Release(**vars(predictor.release), network=predictor.backend.network)


def follow_release(model: ModelArguments, *, recipe_given: bool) -> ModelArguments:
    """The same arguments with what is left open taken from the release: recipe, image size, and the Hub's commit.

    Raises:
        LeukoscopeError: a release that cannot be opened or says of no known recipe that it made it.
    """
    release = open_release(model.init_from or "")
    made_by = release.metrics.get("recipe", {}).get("name")
    if not recipe_given and made_by not in RECIPES:
        said = f"was made by the recipe {made_by}, unknown here" if made_by else "does not say which recipe made it"
        raise LeukoscopeError(f"--init_from {model.init_from}: {said}; name one of its architecture with --recipe")
    return replace(
        model,
        recipe=model.recipe if recipe_given else made_by,
        image_size=model.image_size or release.preprocessing.image_size,
        init_from=f"{release.name}@{release.revision}" if release.revision else model.init_from,
    )


def start_network(
    network: nn.Module, recipe: Recipe, config: TrainingConfig, cells: FramedCells, split: Split
) -> Started:
    """Fill a new network with what the flags say it starts from.

    Args:
        network: as `build_network` made it for `recipe` and the classes of `cells`; filled in place.

    Raises:
        LeukoscopeError: as `load_start_weights`; a release of another network or standardisation than the recipe's;
            or one that was trained on subjects of this run's test side.
    """
    if not config.model.init_from:
        return Started(load_start_weights(network, recipe, config.start_weights))
    release = open_release(config.model.init_from)
    _require_same_build(release, network, recipe)
    notes = _refuse_known_subjects(release, cells, split)
    outputs = matching_outputs(release.labels, cells.data.info.labels)
    continue_from(network, release.network, outputs, source=f"--init_from {release.name}")
    if outputs is None:
        ours, theirs = ", ".join(cells.data.info.labels), ", ".join(release.labels)
        remark = f"a new head for {ours}: {name_of(release)} answers {theirs}"
    else:
        undone = _as_training_left(network, release.metrics, cells.data.info.labels)
        without = f", without {' and '.join(undone)} that training did not put there" if undone else ""
        remark = f"the head of {name_of(release)} goes on{without}"
    return Started(_in_words(release), (remark,), notes, _provenance(release, kept_head=outputs is not None))


def matching_outputs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes, which output of theirs it is; None where the two sets differ in more than case."""
    index = {label.casefold(): k for k, label in enumerate(theirs)}
    wanted = [label.casefold() for label in ours]
    if len(index) < len(theirs) or sorted(index) != sorted(wanted):
        return None
    return tuple(index[label] for label in wanted)


def name_of(release: Release) -> str:
    """What a release is called without saying where it lies: Hub id and commit, or its folder (a run's: the run)."""
    if release.revision:
        return f"{release.name}@{release.revision[:12]}"
    folder = Path(release.name).resolve()
    return folder.parent.name if folder.name == "release" else folder.name


def _require_same_build(release: Release, network: nn.Module, recipe: Recipe) -> None:
    """Refuse what would load and answer otherwise: twins with the same tensors, another pooling, other pixels."""
    assert release.folder is not None, "it was opened from files"
    architecture = json.loads((release.folder / CONFIG).read_text())["architecture"]
    head = [json.dumps(getattr(n, "head_settings", None)) for n in (release.network, network)]
    prepared = release.preprocessing
    for what, its, ours in (
        ("architecture", architecture, recipe.architecture),
        ("head", *head),
        ("standardisation (mean, std)", (prepared.mean, prepared.std), (recipe.mean, recipe.std)),
    ):
        if its != ours:
            raise LeukoscopeError(
                f"--init_from {release.name}: its {what} is {its}, that of --recipe {recipe.name} is {ours}; leave "
                "--recipe out to follow the release"
            )


def _as_training_left(network: nn.Module, metrics: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Take out of a kept head what was folded into it after training, and name it; this run folds in its own."""
    undone = []
    now = metrics.get("calibration", {}).get("temperature", 1.0)
    before = metrics.get("recalibration", {}).get("previous_temperature", 1.0)
    if (temperature := now * before) != 1:
        rescale_classifier(network, 1 / temperature)
        undone.append(f"the temperature {temperature:.3f}")
    shares = metrics.get("training", {}).get("class_frequencies", {})
    # Releases older than this entry were all trained with a weighted loss.
    if shares and metrics.get("recipe", {}).get("class_weighted", True):
        by_name = {label.casefold(): share for label, share in shares.items()}
        # Their inverse adds the negative logarithms, up to a constant that no softmax sees.
        restore_class_frequencies(network, 1 / torch.tensor([by_name[label.casefold()] for label in labels]))
        undone.append("the class frequencies")
    return undone


def _refuse_known_subjects(release: Release, cells: FramedCells, split: Split) -> tuple[str, ...]:
    """Notes on what the release knows of this run's cells; knowing the test side would inflate every figure."""
    name, unit = name_of(release), cells.data.info.group
    if tested := _known(release, cells, split.test):
        raise LeukoscopeError(
            f"--init_from {name}: was trained on {unit} {tested[0]} ({len(tested)} in all) of this run's test side, so "
            "its figures would be inflated; use --split all, which claims none, a --split_file that tests "
            f"{unit}s it never saw, or other cells"
        )
    if not split.test and not split.validation:
        return ()
    trained_on, known = release.metrics.get("data", {}).get("name"), KnownCells.of_release(release.folder)
    by_name = trained_on == cells.data.info.name != "imagefolder"
    if not by_name and (seen := known.among(split.test, cells.hashes_of(cells.rows(split.test)))):
        raise LeukoscopeError(
            f"--init_from {name}: was made from {seen:,} of the {len(split.test):,} cells of this run's test side, "
            "so its figures would be inflated; use --split all, which claims none, or other cells"
        )
    notes = []
    if validated := _known(release, cells, split.validation):
        notes.append(
            f"{name} was trained on {len(validated)} {unit}(s) of the validation side: validation figures are too good"
        )
    if not release.metrics.get("training"):
        notes.append(f"{name} does not say which cells it was trained on; it may know some of these")
    elif not by_name and trained_on != "imagefolder" and not known.by_pixels:
        notes.append(f"{name} was trained on another data set; whether it knows some of these cells cannot be told")
    elif any(_cannot_compare(seen, cells) for seen in _seen(release)):
        notes.append(f"{name} was trained on class folders, too; whether it knows some of these cells cannot be told")
    return tuple(notes)


def _seen(release: Release) -> list[dict[str, Any]]:
    """All cells that a release and those before it were trained on, one entry a training."""
    training = release.metrics.get("training")
    if not training:
        return []
    data = release.metrics["data"]
    own = {k: data[k] for k in ("name", "fingerprint", "unit")} | {"subjects": training["subjects"]}
    return [own, *training.get("started_from", {}).get("seen", [])]


def _known(release: Release, cells: FramedCells, cell_ids: tuple[str, ...]) -> list[str]:
    """Subjects of these cells that the release, or one before it, was trained on."""
    here = {cells.subjects[row] for row in cells.rows(cell_ids)}
    source = cells.data.info.name
    named = cells.data.info.name if cells.data.info.name != "imagefolder" else None
    same_data = (s for s in _seen(release) if s["fingerprint"] == cells.data.fingerprint or s["name"] == named)
    return sorted(here & {same_person(source, subject) for seen in same_data for subject in seen["subjects"]})


def _cannot_compare(seen: Mapping[str, Any], cells: FramedCells) -> bool:
    """Two different sets of class folders may number their subjects alike, or share cells under other names."""
    both = seen["name"] == cells.data.info.name == "imagefolder"
    return both and seen["fingerprint"] != cells.data.fingerprint


def _in_words(release: Release) -> str:
    before = release.metrics.get("training", {}).get("start_weights")
    return f"fine-tuned from {name_of(release)}" + (f", itself started from {before}" if before else "")


def _provenance(release: Release, *, kept_head: bool) -> dict[str, Any]:
    assert release.folder is not None, "it was opened from files"
    return {
        "started_from": {
            "release": release.name if release.revision else name_of(release),
            "revision": release.revision,
            "weights_sha256": sha256((release.folder / WEIGHTS).read_bytes()).hexdigest(),
            "kept_head": kept_head,
            "seen": _seen(release),
        }
    }
