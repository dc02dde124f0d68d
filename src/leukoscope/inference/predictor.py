"""From pictures to answers: the one predictor behind `leukoscope predict`, the demo and scripts.

A release comes from a folder or from the Hub, a picture from a path, PIL or an array; the picture goes through the
release's own preprocessing and once through the backbone, and the head gives the answer and, when asked, its reasons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.images import UnreadableImage, from_array, open_image, to_rgb
from leukoscope.inference.gradcam import HeatMap, explain_features
from leukoscope.inference.guard import Guard, pool
from leukoscope.inference.hub_files import fetch_files, parse_hub_id
from leukoscope.models.release import GUARD, Release, load_release

Picture: TypeAlias = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """A release's answer to one picture.

    Attributes:
        label: the most probable class.
        probabilities: class → probability, in the release's label order; sums to 1.
        source: the picture's path, or "image 3" for the third of those given without one.
        model, revision: folder or Hub id, and Hub commit ("" for a folder).
        seconds: from file to answer, the batch's time shared evenly.
        heatmaps: class → Grad-CAM, when explanations were asked for.
        view_box: (left, top, right, bottom) of what the network saw, in pixels of the upright picture.
        guard_score: how familiar the picture looks to the release, at most 1; None where it has no guard.
        recognised: whether that is enough (0 or more) for the answer to mean anything; None where it has no guard.
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
            "notice": RESEARCH_NOTICE,
        }


@dataclass(frozen=True)
class _Framed:
    """A picture ready for the network: (S, S, 3) uint8 pixels and where they lay."""

    pixels: np.ndarray
    source: str
    view_box: tuple[float, float, float, float]


class Predictor:
    """Answers for pictures with one release.

    Attributes:
        release: the loaded release, its network on `device`.
        labels: class names in the order of the probabilities.
        guard: the release's input guard; None where it has none.
    """

    def __init__(self, release: Release, *, device: str = "cpu"):
        self._device = _device(device)
        release.network.to(self._device)
        self.release = release
        self.labels = release.labels
        self._frame = release.preprocessing.framer()
        guard = _guard_of(release)
        self.guard = guard and guard.to(self._device)

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None, device: str = "cpu") -> Predictor:
        """Load a release from wherever it lives; a path that exists wins over a Hub id.

        Args:
            model: a release folder, `owner/name` or `owner/name@revision`.
            revision: a Hub branch, tag or commit.
            device: a torch device such as "cpu" or "cuda".

        Raises:
            LeukoscopeError: no such folder or repository, no access to it, no network and no cached copy, a damaged
                release, or a device this machine lacks.
        """
        if Path(model).exists():
            if revision:
                raise LeukoscopeError(f"{model}: is a local folder, which has no revision {revision!r}; leave it out")
            return cls(load_release(model), device=device)
        return cls.from_hub(str(model), revision=revision, device=device)

    @classmethod
    def from_hub(cls, model: str, *, revision: str | None = None, device: str = "cpu") -> Predictor:
        """Load a release from the Hub or its cache; a local path is never opened, whatever the name.

        Args:
            model: `owner/name` or `owner/name@revision`.
            revision, device: as for `from_pretrained`.

        Raises:
            LeukoscopeError: as `from_pretrained`; no message names a folder of this machine.
        """
        hub_id, revision = parse_hub_id(model, revision)
        folder = fetch_files(hub_id, revision)
        try:
            return cls(load_release(folder, name=hub_id, revision=folder.name), device=device)
        except LeukoscopeError as error:
            raise LeukoscopeError(str(error).replace(str(folder), hub_id)) from None

    @overload  # a str is a sequence of str as well, which the checker minds
    def __call__(  # type: ignore[overload-overlap]
        self, images: Picture, *, explain: bool = False, batch_size: int = 16
    ) -> Prediction: ...
    @overload
    def __call__(
        self, images: Sequence[Picture], *, explain: bool = False, batch_size: int = 16
    ) -> list[Prediction]: ...
    def __call__(
        self, images: Picture | Sequence[Picture], *, explain: bool = False, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """Answer one picture, or a list of them in their order.

        Args:
            images: a path, a PIL image or an (H, W, 3) uint8 array; or a list of those.
            explain: add every class's heat map.
            batch_size: pictures that go through the network at once.

        Raises:
            UnreadableImage: for the first picture that cannot be used.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return self([images], explain=explain, batch_size=1)[0]
        predictions = []
        for answer in self.answers(images, explain=explain, batch_size=batch_size):
            if isinstance(answer, UnreadableImage):
                raise answer
            predictions.append(answer)
        return predictions

    def answers(
        self, images: Sequence[Picture], *, explain: bool = False, batch_size: int = 16
    ) -> Iterator[Prediction | UnreadableImage]:
        """Answer pictures batch by batch; one that cannot be used has its error in its place, the others go on."""
        if batch_size < 1:
            raise LeukoscopeError(f"batch_size {batch_size}: give 1 picture at a time or more")
        for first in range(0, len(images), batch_size):
            start = time.perf_counter()
            batch = images[first : first + batch_size]
            framed = [self._open_and_frame(image, number) for number, image in enumerate(batch, start=first + 1)]
            usable = [cell for cell in framed if isinstance(cell, _Framed)]
            answered = iter(self._answer(usable, explain, start) if usable else ())
            for cell in framed:
                yield next(answered) if isinstance(cell, _Framed) else cell

    def _open_and_frame(self, image: Picture, number: int) -> _Framed | UnreadableImage:
        source = str(image) if isinstance(image, str | Path) else f"image {number}"
        try:
            upright = _open(image, source)
        except UnreadableImage as error:
            return error
        return _Framed(self._frame(upright), source, self.release.preprocessing.view_box(*upright.size))

    def _answer(self, cells: list[_Framed], explain: bool, start: float) -> list[Prediction]:
        """Answer framed pictures, one batch; `start` is when the first of them was opened."""
        logits, maps, familiarity = self._run(np.stack([cell.pixels for cell in cells]), explain)
        probabilities = logits.double().softmax(dim=1).cpu().numpy()
        seconds = (time.perf_counter() - start) / len(cells)
        return [
            Prediction(
                label=self.labels[int(shares.argmax())],
                probabilities=dict(zip(self.labels, shares.tolist(), strict=True)),
                source=cell.source,
                model=self.release.name,
                revision=self.release.revision,
                seconds=seconds,
                heatmaps=None if maps is None else self._heatmaps(maps[i]),
                view_box=cell.view_box,
                guard_score=score,
                recognised=None if score is None else score >= 0,
            )
            for i, (cell, shares, score) in enumerate(zip(cells, probabilities, familiarity, strict=True))
        ]

    def _run(self, pixels: np.ndarray, explain: bool) -> tuple[torch.Tensor, np.ndarray | None, Sequence[float | None]]:
        """(B, S, S, 3) uint8 → logits (B, K), Grad-CAM (B, K, h, w) when asked, and B guard scores, in one pass."""
        network = self.release.network
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
            features = network.forward_features(self.release.preprocessing.normalise(inputs))  # type: ignore[operator]
            scores = self.guard.scores(pool(features)).tolist() if self.guard else [None] * len(pixels)
            if not explain:
                return network.forward_head(features), None, scores  # type: ignore[operator]
        logits, maps = explain_features(network, features)
        return logits, maps.cpu().numpy(), scores

    def _heatmaps(self, maps: np.ndarray) -> dict[str, HeatMap]:
        # Copied, so that keeping one picture's map does not keep its whole batch in memory.
        return {label: HeatMap(maps[k].copy(), label) for k, label in enumerate(self.labels)}


def _guard_of(release: Release) -> Guard | None:
    if release.folder is None or not (release.folder / GUARD).exists():
        return None
    return Guard.load(release.folder / GUARD, release.network.num_features)  # type: ignore[arg-type]


def _open(image: Picture, source: str) -> Image.Image:
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, np.ndarray):
        return from_array(image, source)
    if not isinstance(image, Image.Image):
        raise UnreadableImage(f"{source}: is a {type(image).__name__}; give a path, a PIL image or a uint8 array")
    try:
        return to_rgb(image, source)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableImage(f"{source}: the image is damaged or cut short ({error}); export it again") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise LeukoscopeError(f"device {name!r}: torch cannot compute there on this machine; use {found}") from None
    return device
