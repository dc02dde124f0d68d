"""From pictures to answers: the one predictor behind `leukoscope predict`, the demo and scripts.

A release comes from a folder or from the Hub, a picture from a path, PIL or an array; the picture goes through the
release's own preprocessing and once through the backbone, on the backend that suits this machine, and the head gives
the answer and, when asked, its reasons. Nothing here imports torch: only the torch backend does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.field_stain import looks_like_smear
from leukoscope.cells.images import EncodedImage, UnreadableImage, from_array, open_bytes, open_image, to_rgb
from leukoscope.inference.backends import AUTO, Backend, open_backend, usable_cores
from leukoscope.inference.decision import Checks, Decision, Thresholds
from leukoscope.inference.heatmaps import HeatMap, share_on_cell
from leukoscope.inference.hub_files import fetch_files, parse_hub_id
from leukoscope.inference.ood import OodDetector
from leukoscope.inference.patient import PatientPrediction, patient_rule
from leukoscope.inference.probabilities import softmax
from leukoscope.inference.views import disagreement, eight_views, turned_back
from leukoscope.models.release_files import OOD, ReleaseInfo, read_release

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | EncodedImage
BATCH = 16


@dataclass(frozen=True)
class Prediction:
    """What a release predicts for one picture, and what is decided from it.

    Attributes:
        decision: the outcome (a class, or why there is none) and its reasons.
        probabilities: class → probability, in the release's label order; sums to 1. Given for every picture, whatever
            the outcome: they are no result by themselves.
        source: the picture's path or, of an `EncodedImage`, its name; "image 3" for the third of those given without
            one.
        model, revision: folder or Hub id, and Hub commit ("" for a folder).
        seconds: from file to prediction, the batch's time shared evenly; without what was opened while the batch
            before it was predicted.
        heatmaps: class → Grad-CAM, when explanations were asked for.
        view_box: (left, top, right, bottom) of what the network saw, in pixels of the upright picture.
        checks: what the decision rests on beside the probabilities.
    """

    decision: Decision
    probabilities: dict[str, float]
    source: str
    model: str
    revision: str
    seconds: float
    heatmaps: dict[str, HeatMap] | None
    view_box: tuple[float, float, float, float]
    checks: Checks = field(default_factory=Checks)

    @property
    def outcome(self) -> str:
        """A class, "abstain", "out of distribution" or "not a cell"."""
        return self.decision.outcome

    @property
    def most_probable(self) -> str:
        """The class of the largest probability, whatever the outcome."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the heat maps and with the research notice."""
        return {
            "source": self.source,
            **self.decision.to_dict(),
            "probabilities": dict(self.probabilities),
            "ood_score": self.checks.ood_score,
            "disagreement": self.checks.disagreement,
            "model": self.model,
            "revision": self.revision,
            "seconds": self.seconds,
            "view_box": list(self.view_box),
            "notice": RESEARCH_NOTICE,
        }


@dataclass(frozen=True)
class _Framed:
    """A picture ready for the network: (S, S, 3) uint8 pixels, where they lay, and what is known of them."""

    pixels: np.ndarray
    source: str
    view_box: tuple[float, float, float, float]
    checks: Checks


class Predictor:
    """Answers for pictures with one release.

    Args:
        release: what it says of itself; a loaded `Release` spares the torch backend from loading it again.
        backend, device: as for `from_pretrained`.

    Attributes:
        release: as given.
        labels: class names in the order of the probabilities.
        backend: what computes its network.
        thresholds: what the release decides by.
        ood: the release's OOD detector; None where it has none.
    """

    def __init__(self, release: ReleaseInfo, *, backend: str = "", device: str = "cpu"):
        self.release = release
        self.labels = release.labels
        self.backend: Backend = open_backend(release, backend or default_backend(), device)
        self.thresholds = Thresholds.from_metrics(release.metrics)
        self.ood = _detector_of(release)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, revision: str | None = None, backend: str = "", device: str = "cpu"
    ) -> Predictor:
        """Load a release from wherever it lives; a path that exists wins over a Hub id.

        Args:
            model: a release folder, `owner/name` or `owner/name@revision`.
            revision: a Hub branch, tag or commit.
            backend: "torch", "openvino", "onnx", or "auto" for the first that suits this machine; "" asks the
                environment variable LEUKOSCOPE_BACKEND, and "auto" where it is not set.
            device: a torch device such as "cpu" or "cuda".

        Raises:
            LeukoscopeError: no such folder or repository, no access to it, no network and no cached copy, a damaged
                release, a backend that is unknown or not installed, or a device this machine lacks.
        """
        if Path(model).exists():
            if revision:
                raise LeukoscopeError(f"{model}: is a local folder, which has no revision {revision!r}; leave it out")
            return cls(read_release(model), backend=backend, device=device)
        return cls.from_hub(str(model), revision=revision, backend=backend, device=device)

    @classmethod
    def from_hub(
        cls,
        model: str,
        *,
        revision: str | None = None,
        backend: str = "",
        device: str = "cpu",
        anonymous: bool = False,
    ) -> Predictor:
        """Load a release from the Hub or its cache; a local path is never opened, whatever the name.

        Args:
            model: `owner/name` or `owner/name@revision`.
            revision, backend, device: as for `from_pretrained`.
            anonymous: ask the Hub as anybody, without this machine's token.

        Raises:
            LeukoscopeError: as `from_pretrained`; no message names a folder of this machine.
        """
        hub_id, revision = parse_hub_id(model, revision)
        folder = fetch_files(hub_id, revision, anonymous=anonymous)
        try:
            release = read_release(folder, name=hub_id, revision=folder.name)
            return cls(release, backend=backend, device=device)
        except LeukoscopeError as error:
            raise LeukoscopeError(str(error).replace(str(folder), hub_id)) from None

    @overload  # a str is a sequence of str as well, which the checker minds
    def __call__(  # type: ignore[overload-overlap]
        self, images: Picture, *, explain: bool = False, views: bool = False, batch_size: int = BATCH
    ) -> Prediction: ...
    @overload
    def __call__(
        self, images: Sequence[Picture], *, explain: bool = False, views: bool = False, batch_size: int = BATCH
    ) -> list[Prediction]: ...
    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        explain: bool = False,
        views: bool = False,
        batch_size: int = BATCH,
    ) -> Prediction | list[Prediction]:
        """Answer one picture, or a list of them in their order.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 array or an `EncodedImage`; or a list of those.
            explain: add every class's heat map.
            views: ask about each picture in its eight dihedral views, average them and say how far they disagree
                (test-time augmentation).
            batch_size: pictures that go through the network at once.

        Raises:
            UnreadableImage: for the first picture that cannot be used.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray | EncodedImage):
            return self([images], explain=explain, views=views, batch_size=1)[0]
        predictions = []
        for answer in self.answers(images, explain=explain, views=views, batch_size=batch_size):
            if isinstance(answer, UnreadableImage):
                raise answer
            predictions.append(answer)
        return predictions

    def answers(
        self, images: Sequence[Picture], *, explain: bool = False, views: bool = False, batch_size: int = BATCH
    ) -> Iterator[Prediction | UnreadableImage]:
        """Answer pictures batch by batch; one that cannot be used has its error in its place, the others go on.

        While the network answers one batch, the next is opened by other threads.
        """
        if batch_size < 1:
            raise LeukoscopeError(f"batch_size {batch_size}: give 1 picture at a time or more")
        batches = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
        if len(images) == 1:
            # A thread would cost more than it gains.
            start = time.perf_counter()
            yield from self._answer([self._open_and_frame(images[0], 1)], explain, views, start)
            return
        # As many as there are cores: more only take turns with the network's.
        with ThreadPoolExecutor(usable_cores()) as pool:

            def begin(number: int) -> Iterator[_Framed | UnreadableImage]:
                numbers = range(number * batch_size + 1, len(images) + 1)
                return pool.map(self._open_and_frame, batches[number], numbers)

            upcoming = begin(0) if batches else iter(())
            for number in range(len(batches)):
                start = time.perf_counter()
                framed = list(upcoming)
                upcoming = begin(number + 1) if number + 1 < len(batches) else iter(())
                yield from self._answer(framed, explain, views, start)

    def patient(self, images: Sequence[Picture], *, name: str = "", batch_size: int = BATCH) -> PatientPrediction:
        """One prediction for a person, from pictures of that person's cells.

        Args:
            images: as for a call; at least one.
            name: how the prediction names the person.
            batch_size: pictures that go through the network at once.

        Raises:
            LeukoscopeError: the release was not measured by person, or no picture.
            UnreadableImage: for the first picture that cannot be used.
        """
        rule = patient_rule(self)
        cells = self(list(images), batch_size=batch_size)
        probabilities = np.array([list(cell.probabilities.values()) for cell in cells])
        return rule.predict(probabilities, [cell.outcome for cell in cells], patient=name)

    def _open_and_frame(self, image: Picture, number: int) -> _Framed | UnreadableImage:
        source = _source_of(image, number)
        try:
            upright = _open(image, source)
        except UnreadableImage as error:
            return error
        preprocessing = self.release.preprocessing
        pixels = preprocessing.frame(upright)
        return _Framed(pixels, source, preprocessing.view_box(upright), self._checks(pixels, upright))

    def _checks(self, pixels: np.ndarray, upright: Image.Image) -> Checks:
        """What is known of a picture before the network has seen it."""
        if self.ood is None:
            return Checks()
        score = float(self.ood.scores(pixels[None])[0])
        if score <= 1:
            return Checks(ood_score=score)
        smear = self.release.takes_cut_outs is True and looks_like_smear(upright)
        return Checks(ood_score=score, ood_group=self.ood.farthest_group(pixels), field_of_view=smear)

    def _answer(
        self, framed: Sequence[_Framed | UnreadableImage], explain: bool, views: bool, start: float
    ) -> list[Prediction | UnreadableImage]:
        """Answer framed pictures, one batch; `start` is when it was begun."""
        cells = [cell for cell in framed if isinstance(cell, _Framed)]
        answered = iter(self._predictions(cells, explain, views, start) if cells else ())
        return [next(answered) if isinstance(cell, _Framed) else cell for cell in framed]

    def _predictions(self, cells: list[_Framed], explain: bool, views: bool, start: float) -> list[Prediction]:
        """One pass of the cells, or of all their views, through the network, and a decision for each."""
        pixels = np.stack([cell.pixels for cell in cells])
        answers = self.backend(eight_views(pixels) if views else pixels, explain=explain)
        each = softmax(answers.logits).reshape(len(cells), -1, len(self.labels))
        shares = each.mean(axis=1)
        maps = turned_back(answers.maps) if views and answers.maps is not None else answers.maps
        apart = disagreement(each) if views else None
        found = []
        for i, cell in enumerate(cells):
            checks = cell.checks
            if apart is not None:
                checks = replace(checks, disagreement=float(apart[i]))
            if maps is not None:
                checks = replace(checks, on_cell=share_on_cell(maps[i, shares[i].argmax()], cell.pixels))
            probabilities = dict(zip(self.labels, shares[i].tolist(), strict=True))
            found.append(
                Prediction(
                    decision=self.thresholds.decide(probabilities, checks),
                    probabilities=probabilities,
                    source=cell.source,
                    model=self.release.name,
                    revision=self.release.revision,
                    seconds=(time.perf_counter() - start) / len(cells),
                    heatmaps=None if maps is None else self._heatmaps(maps[i]),
                    view_box=cell.view_box,
                    checks=checks,
                )
            )
        return found

    def _heatmaps(self, maps: np.ndarray) -> dict[str, HeatMap]:
        # Copied, so that keeping one picture's map does not keep its whole batch in memory.
        return {label: HeatMap(maps[k].copy(), label) for k, label in enumerate(self.labels)}


def default_backend() -> str:
    """What LEUKOSCOPE_BACKEND names, else "auto"."""
    return os.environ.get("LEUKOSCOPE_BACKEND") or AUTO


def _detector_of(release: ReleaseInfo) -> OodDetector | None:
    if release.folder is None or not (release.folder / OOD).exists():
        return None
    return OodDetector.load(release.folder / OOD)


def _source_of(image: Picture, number: int) -> str:
    if isinstance(image, EncodedImage):
        return image.name
    return str(image) if isinstance(image, str | Path) else f"image {number}"


def _open(image: Picture, source: str) -> Image.Image:
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, EncodedImage):
        return open_bytes(image.data, image.name)
    if isinstance(image, np.ndarray):
        return from_array(image, source)
    if not isinstance(image, Image.Image):
        raise UnreadableImage(f"{source}: is a {type(image).__name__}; give a path, a PIL image or a uint8 array")
    return to_rgb(image, source)
