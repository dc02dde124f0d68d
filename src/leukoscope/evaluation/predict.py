"""The loop that predicts a table of cells, with a release or any model that transformers' `pipeline` loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from leukoscope import ConfigError, DataError, ReleaseError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import Change
from leukoscope.data.images import RgbColour, UnreadableImage, cell_area, is_cut_out, open_encoded, pixel_hash
from leukoscope.data.splits import groups_of
from leukoscope.evaluation.overlap import ForeignModel
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import Prediction
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.models.hub_download import KNOWN_CELLS, HubUnreachable, find_release, hub_model_info, parse_hub_id
from leukoscope.models.metrics import METRICS_FILE
from leukoscope.models.release import ReleaseInfo, folder_name, local_release, read_release
from leukoscope.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

_AREA_SIDE = 224


class PipelineAnswer(NamedTuple):
    """What a `PipelineModel` answers for a picture: class → probability, and the most probable class."""

    probabilities: dict[str, float]
    outcome: str


class PipelineModel:
    """A model that transformers' `pipeline` loads from safetensors; it answers as a `Predictor` and never abstains.

    Raises:
        ReleaseError: `pipeline` cannot load it.
    """

    def __init__(self, model: str, device: str = "auto"):
        from transformers import pipeline

        self.release = ForeignModel(model)
        try:
            self._classify: Any = pipeline(
                "image-classification",
                model=model,
                device=None if device == "auto" else device,
                model_kwargs={"use_safetensors": True},  # pickled weights can run code
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ReleaseError(
                f"{model}: transformers' pipeline cannot load it ({reason}); give another model"
            ) from None
        self.labels = tuple(str(label) for label in (self._classify.model.config.id2label or {}).values())

    def __call__(self, pictures: list[Image.Image], *, batch_size: int) -> list[PipelineAnswer]:
        """Answer for some pictures."""
        answers = self._classify(pictures, batch_size=batch_size, top_k=len(self.labels), function_to_apply="softmax")
        of_pictures = []
        for scores in answers:  # the most probable class first
            score_of = {score["label"]: score["score"] for score in scores}
            of_pictures.append(PipelineAnswer(score_of, scores[0]["label"]))
        return of_pictures


def open_model(model: str | Path, device: str = "auto") -> Predictor:
    """Open a release with the list of the cells that it knows; names and errors as of `Predictor.from_pretrained`."""
    folder, name, revision = find_release(str(model), KNOWN_CELLS)
    return Predictor(read_release(folder, name=name, revision=revision), Runtime(device=device))


def open_any_model(model: str, device: str = "auto") -> Predictor | PipelineModel:
    """Open a release or, where a folder or Hub id holds none, a model for `pipeline`."""
    folder = local_release(model)
    if folder is not None:
        is_release = (folder / METRICS_FILE).is_file()
    else:
        try:
            siblings = hub_model_info(*parse_hub_id(model)).siblings or ()
            is_release = any(file.rfilename == METRICS_FILE for file in siblings)
        except HubUnreachable:
            is_release = True  # whose error says what to do
    if is_release:
        return open_model(model, device)
    return PipelineModel(model, device)


def public_name_of(release: ReleaseInfo | ForeignModel) -> str:
    """Return a model's name; for a folder only its last part, because the rest of the path is private."""
    folder = Path(release.name)
    return folder_name(folder) if folder.exists() else release.name


def match_labels(name: str, theirs: Sequence[str], ours: Sequence[str], label_map: Mapping[str, str]) -> dict[str, str]:
    """Match a model's classes to those of a data set: theirs → ours, in their order; several may be one of ours.

    `label_map` is theirs → ours, for those whose names differ.

    Raises:
        LeukoscopeError: a class without a counterpart, or a renamed one that the model does not have.
    """
    for their, our in label_map.items():
        if their not in theirs:
            raise ConfigError(
                f"--label_map {their}={our}: {their!r} is not a class of the model, which has "
                f"{', '.join(theirs)}; correct or leave it out"
            )
    named = {label: label_map.get(label, label) for label in theirs}
    if set(named.values()) != set(ours):
        raise DataError(
            f"{name}: its classes are {', '.join(theirs)}, but the data set has {', '.join(ours)}; rename the classes "
            "of the data set (`leukoscope evaluate` does so by --label_map THEIRS=OURS, once per class), and leave out "
            "the cells of classes that the model lacks"
        )
    return named


def predict_cells(
    model: Predictor | PipelineModel,
    data: LoadedCells,
    cell_ids: Iterable[str],
    *,
    label_map: Mapping[str, str] | None = None,
    batch_size: int = 16,
    change: Change | None = None,
) -> CellPredictions:
    """Predict some cells of a data set, in its order and with its names of classes.

    Args:
        label_map: the model's name of a class → the data set's.
        change: of each picture, before the model sees it.

    Raises:
        LeukoscopeError: before any cell is opened, what `match_labels` raises.
    """
    labels = data.info.labels
    our_name = match_labels(model.release.name, model.labels, labels, label_map or {})
    to_ours = np.eye(len(labels))[[labels.index(our) for our in our_name.values()]]
    wanted = set(cell_ids)
    rows = data.rows
    rows = rows.select([row for row, cell in enumerate(rows["cell_id"][:]) if cell in wanted])
    readable = list[int]()
    left_out = list[str]()
    answers = list[Prediction | PipelineAnswer]()
    hashes = list[str]()
    areas = list[float]()
    for batch in _opened_batches(rows, batch_size, model.release.blank_rgb, left_out):
        readable += batch
        hashes += map(pixel_hash, batch.values())
        areas += map(_area, batch.values())
        pictures = list(batch.values())
        if change is not None:
            pictures = [change(picture, black=is_cut_out(picture)) for picture in pictures]
        answers += model(pictures, batch_size=len(pictures))
    rows = rows.select(readable)
    cells = tuple(rows["cell_id"][:])
    units = groups_of(data, data.info.group)
    probabilities = [answer.probabilities[label] for answer in answers for label in model.labels]
    return CellPredictions(
        cells,
        tuple(units[cell] for cell in cells),
        np.asarray(rows["label"][:], dtype=int),
        np.reshape(probabilities, (-1, len(to_ours))) @ to_ours,
        labels,
        np.asarray(areas) if data.info.background == "black" else None,
        tuple(hashes),
        outcomes=tuple(our_name.get(answer.outcome, answer.outcome) for answer in answers),
        left_out=tuple(left_out),
    )


def _opened_batches(
    rows: Dataset, batch_size: int, ground: RgbColour, left_out: list[str]
) -> Iterator[dict[int, Image.Image]]:
    """Open the pictures of cells batch by batch: number of the row → picture.

    Why a picture cannot be used is added to `left_out`. A batch without a usable picture is skipped.
    """
    encoded = rows.select_columns(["image", "cell_id"])
    with progress("predicting cells", len(rows)) as advance:
        for first in range(0, len(rows), batch_size):
            batch = encoded[first : first + batch_size]
            pictures = {}
            for row, (image, cell) in enumerate(zip(batch["image"], batch["cell_id"], strict=True), first):
                try:
                    pictures[row] = open_encoded(image, cell, ground=ground)
                except UnreadableImage as error:
                    left_out.append(str(error))
            if pictures:
                yield pictures
            advance(len(batch["cell_id"]))


def _area(picture: Image.Image) -> float:
    """The share of its picture that a cell on black covers, which needs no fine detail."""
    small = picture.resize((_AREA_SIDE, _AREA_SIDE), Image.Resampling.NEAREST)
    return cell_area(np.asarray(small))
