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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.images import EncodedImage, UnreadableImage, from_array, open_bytes, open_image, to_rgb
from leukoscope.inference.backends import AUTO, Backend, open_backend, usable_cores
from leukoscope.inference.guard import Guard
from leukoscope.inference.heatmaps import HeatMap
from leukoscope.inference.hub_files import fetch_files, parse_hub_id
from leukoscope.inference.probabilities import softmax
from leukoscope.inference.views import VIEWS, disagreement, eight_views, turned_back
from leukoscope.models.release_files import GUARD, ReleaseInfo, read_release

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | EncodedImage
BATCH = 16


@dataclass(frozen=True)
class Prediction:
    """A release's answer to one picture.

    Attributes:
        label: the most probable class.
        probabilities: class → probability, in the release's label order; sums to 1.
        source: the picture's path or, of an `EncodedImage`, its name; "image 3" for the third of those given without
            one.
        model, revision: folder or Hub id, and Hub commit ("" for a folder).
        seconds: from file to answer, the batch's time shared evenly; without what was opened while the batch before
            it was answered.
        heatmaps: class → Grad-CAM, when explanations were asked for.
        view_box: (left, top, right, bottom) of what the network saw, in pixels of the upright picture.
        guard_score: how familiar the picture looks to the release, at most 1; None where it has no guard.
        recognised: whether that is enough (0 or more) for the answer to mean anything; None where it has no guard.
        disagreement: share of the picture's eight views that name another class than their average, which is the answer
            given; None where only the upright view was asked.
    """

    label: str
    probabilities: dict[str, float]
    source: str
    model: str
    revision: str
    seconds: float
    heatmaps: dict[str, HeatMap] | None
    view_box: tuple[float, float, float, float]
    guard_score: float | None = None
    recognised: bool | None = None
    disagreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the heat maps and with the research notice."""
        return {
            "source": self.source,
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "model": self.model,
            "revision": self.revision,
            "seconds": self.seconds,
            "view_box": list(self.view_box),
            "guard_score": self.guard_score,
            "recognised": self.recognised,
            "disagreement": self.disagreement,
            "notice": RESEARCH_NOTICE,
        }


@dataclass(frozen=True)
class _Framed:
    """A picture ready for the network: (S, S, 3) uint8 pixels and where they lay."""

    pixels: np.ndarray
    source: str
    view_box: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Said:
    """What a batch of B pictures got: (B, K) probabilities, (B, K, h, w) maps, (B,) guard scores and disagreement."""

    probabilities: np.ndarray
    maps: np.ndarray | None
    familiarity: np.ndarray | None
    disagreement: np.ndarray | None


class Predictor:
    """Answers for pictures with one release.

    Args:
        release: what it says of itself; a loaded `Release` spares the torch backend from loading it again.
        backend, device: as for `from_pretrained`.

    Attributes:
        release: as given.
        labels: class names in the order of the probabilities.
        backend: what computes its network.
        guard: the release's input guard; None where it has none.
    """

    def __init__(self, release: ReleaseInfo, *, backend: str = "", device: str = "cpu"):
        self.release = release
        self.labels = release.labels
        self.backend: Backend = open_backend(release, backend or default_backend(), device)
        self.guard = _guard_of(release)

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

    def _open_and_frame(self, image: Picture, number: int) -> _Framed | UnreadableImage:
        source = _source_of(image, number)
        try:
            upright = _open(image, source)
        except UnreadableImage as error:
            return error
        preprocessing = self.release.preprocessing
        return _Framed(preprocessing.frame(upright), source, preprocessing.view_box(upright))

    def _answer(
        self, framed: Sequence[_Framed | UnreadableImage], explain: bool, views: bool, start: float
    ) -> list[Prediction | UnreadableImage]:
        """Answer framed pictures, one batch; `start` is when it was begun."""
        cells = [cell for cell in framed if isinstance(cell, _Framed)]
        answered = iter(self._predictions(cells, explain, views, start) if cells else ())
        return [next(answered) if isinstance(cell, _Framed) else cell for cell in framed]

    def _predictions(self, cells: list[_Framed], explain: bool, views: bool, start: float) -> list[Prediction]:
        said = self._ask(np.stack([cell.pixels for cell in cells]), explain, views)
        seconds = (time.perf_counter() - start) / len(cells)
        return [
            Prediction(
                label=self.labels[int(said.probabilities[i].argmax())],
                probabilities=dict(zip(self.labels, said.probabilities[i].tolist(), strict=True)),
                source=cell.source,
                model=self.release.name,
                revision=self.release.revision,
                seconds=seconds,
                heatmaps=None if said.maps is None else self._heatmaps(said.maps[i]),
                view_box=cell.view_box,
                guard_score=None if said.familiarity is None else float(said.familiarity[i]),
                recognised=None if said.familiarity is None else bool(said.familiarity[i] >= 0),
                disagreement=None if said.disagreement is None else float(said.disagreement[i]),
            )
            for i, cell in enumerate(cells)
        ]

    def _ask(self, pixels: np.ndarray, explain: bool, views: bool) -> _Said:
        """One pass of (B, S, S, 3) uint8 pixels, or of all their views, through the network."""
        answers = self.backend(eight_views(pixels) if views else pixels, explain=explain)
        each = softmax(answers.logits).reshape(len(pixels), -1, len(self.labels))
        maps = turned_back(answers.maps) if views and answers.maps is not None else answers.maps
        familiarity = None
        if self.guard is not None:
            assert answers.pooled is not None, "a guard is fitted on a map of channels"
            # Asked of the upright view: its limit was fitted on cells as they lie.
            familiarity = self.guard.scores(answers.pooled[:: VIEWS if views else 1])
        return _Said(each.mean(axis=1), maps, familiarity, disagreement(each) if views else None)

    def _heatmaps(self, maps: np.ndarray) -> dict[str, HeatMap]:
        # Copied, so that keeping one picture's map does not keep its whole batch in memory.
        return {label: HeatMap(maps[k].copy(), label) for k, label in enumerate(self.labels)}


def default_backend() -> str:
    """What LEUKOSCOPE_BACKEND names, else "auto"."""
    return os.environ.get("LEUKOSCOPE_BACKEND") or AUTO


def _guard_of(release: ReleaseInfo) -> Guard | None:
    if release.folder is None or not (release.folder / GUARD).exists():
        return None
    return Guard.load(release.folder / GUARD, release.num_features)


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
