"""From pictures to predictions: the one predictor behind `leukoscope predict`, the demo and scripts.

A picture is framed as the release's preprocessing defines and goes once through the backbone; the head gives the logits
and, with `explain`, every class's map. Nothing here imports torch: only the torch backend does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from PIL import Image

from leukoscope import ConfigError, LeukoscopeError, ReleaseError
from leukoscope.data.changes import most_telling
from leukoscope.data.images import (
    FILLED_WITH,
    RgbColour,
    UnreadableImage,
    from_array,
    is_cut_out,
    open_bytes,
    open_image,
    pixel_hash,
    to_rgb,
)
from leukoscope.inference.gradcam import share_on_cell
from leukoscope.inference.graph import OpenVinoBackend, openvino_backend
from leukoscope.inference.ood import OodDetector
from leukoscope.inference.prediction import (
    NUM_VIEWS,
    ChangedAnswer,
    Checks,
    HeatMap,
    Prediction,
    Thresholds,
    disagreement,
    softmax,
    turned,
    turned_back,
)
from leukoscope.inference.runtime import (
    AUTO_RUNTIME,
    F32,
    OPENVINO,
    NoGraph,
    Runtime,
    TorchBackend,
    require_package,
    torch_backend,
    usable_cores,
)
from leukoscope.models.release import OOD_FILE, ReleaseInfo, local_release, read_release

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | bytes
_SINGLE = (str, os.PathLike, Image.Image, np.ndarray, bytes)
_PICTURES = "a path, a PIL image, a uint8 array, or the bytes of an image file"
DEFAULT_BATCH_SIZE = 16
_Opened: TypeAlias = tuple[str, Image.Image]  # a picture's path or name, and the picture, upright and in RGB
_Waiting: TypeAlias = _Opened | UnreadableImage | Callable[[], _Opened | UnreadableImage]
Backend: TypeAlias = TorchBackend | OpenVinoBackend
_log = logging.getLogger("leukoscope")


def open_backend(release: ReleaseInfo, runtime: Runtime = Runtime()) -> Backend:
    """Open the backend that computes a release's network; its `name` and `precision` say how.

    Raises:
        ConfigError: no such backend, one whose package is not installed, that does not compute on that device or
            whose output differs from torch's; a damaged release; a device that this machine lacks.
    """
    runtime = runtime.resolved()
    if runtime.backend == OPENVINO:
        if runtime.device != "cpu":
            raise ConfigError(f"backend {OPENVINO!r}: computes on the CPU only; leave out device {runtime.device!r}")
        require_package(OPENVINO)
        return openvino_backend(release, runtime.precision)
    if runtime.backend == AUTO_RUNTIME and runtime.device == "cpu" and find_spec(OPENVINO):
        try:
            return openvino_backend(release, runtime.precision)
        except NoGraph as reason:
            _log.warning("%s; torch is used", reason)
    return torch_backend(release, runtime)


@dataclass(frozen=True)
class _Framed:
    """A picture ready for the network: `pixels` are (S, S, 3) uint8."""

    pixels: np.ndarray
    source: str
    view_box: tuple[float, float, float, float]
    checks: Checks
    pixel_hash: str
    upright: Image.Image | None  # only where it is to be explained: a batch of photographs would fill the memory


class Predictor:
    """Predicts pictures with one release.

    Args:
        release: what is known of it; a loaded `Release` spares the torch backend from loading it again.
        runtime: what computes its network.

    Attributes:
        ood: the release's OOD detector; None where it has none.
    """

    def __init__(self, release: ReleaseInfo, runtime: Runtime = Runtime()):
        self.release = release
        self.labels = release.labels
        self.backend = open_backend(release, runtime)
        self.thresholds = Thresholds.from_metrics(release.metrics)
        path = release.folder and release.folder / OOD_FILE
        self.ood = None
        if path and path.exists():
            self.ood = OodDetector.load(path)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, backend: str = "", device: str = AUTO_RUNTIME, precision: str = F32
    ) -> Predictor:
        """Load a release; a path that exists wins over a Hub id.

        Args:
            model: a release folder, the name of one that comes with Leukoscope, `owner/name` or `owner/name@revision`
                (a branch, tag or commit).
            backend, device, precision: of the `Runtime` that computes its network.

        Raises:
            ReleaseError: no such folder or repository, no access to it, no network and no cached copy, a damaged
                release, a backend that is unknown or not installed, a device or precision this machine lacks.
        """
        runtime = Runtime(backend, device, precision)
        folder = local_release(str(model))
        if folder is None:
            return cls.from_hub(str(model), runtime=runtime)
        return cls(read_release(folder, name=str(model)), runtime)

    @classmethod
    def from_hub(cls, model: str, *, runtime: Runtime = Runtime(), anonymous: bool = False) -> Predictor:
        """Load `owner/name[@revision]` from the Hub or its cache, with `anonymous` without this machine's token.

        A local path is never opened, whatever the name.

        Raises:
            ReleaseError: as `from_pretrained`; no message names a folder of this machine.
        """
        from leukoscope.models.hub_download import fetch_files, parse_hub_id

        hub_id, revision = parse_hub_id(str(model))
        folder = fetch_files(hub_id, revision, anonymous=anonymous)
        try:
            return cls(read_release(folder, name=hub_id, revision=folder.name), runtime)
        except LeukoscopeError as error:
            raise ReleaseError(str(error).replace(str(folder), hub_id)) from None

    @overload  # a str is an iterable of str as well, which the checker minds
    def __call__(  # type: ignore[overload-overlap]
        self, images: Picture, *, explain: bool = ..., tta: bool = ..., batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def __call__(
        self, images: Iterable[Picture], *, explain: bool = ..., tta: bool = ..., batch_size: int = ...
    ) -> list[Prediction]: ...
    def __call__(
        self,
        images: Picture | Iterable[Picture],
        *,
        explain: bool = False,
        tta: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Prediction | list[Prediction]:
        """Predict one picture, or several in their order.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 array, the bytes of an image file; or an iterable of
                those.
            explain: add every class's map, the mean over the picture's eight dihedral views, turned back; and the
                probabilities of each view. The decision stays that of the upright view. The picture is kept, so that
                `Prediction.overlay` can draw it.
            tta: test-time augmentation: the probabilities are the mean over the eight views, and how far these
                disagree is measured.
            batch_size: pictures that go through the network at once.

        Raises:
            ConfigError: neither a picture nor an iterable.
            ReleaseError: the network computes numbers that are not finite.
            UnreadableImage: for the first picture that cannot be used.
        """
        predictions = []
        for prediction in self.iter_predictions(images, explain=explain, tta=tta, batch_size=batch_size):
            if isinstance(prediction, UnreadableImage):
                raise prediction
            predictions.append(prediction)
        if isinstance(images, _SINGLE):
            return predictions[0]
        return predictions

    def iter_predictions(
        self,
        images: Picture | Iterable[Picture],
        *,
        explain: bool = False,
        tta: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[Prediction | UnreadableImage]:
        """Predict pictures batch by batch; one that cannot be used has its error in its place.

        While the network computes one batch, threads open the next; no more of `images` is taken. PIL images are
        decoded at once, so that one image may be given twice. Arguments and errors as for a call.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: give 1 picture at a time or more")
        if isinstance(images, _SINGLE):
            images = [images]
        # Of a mapping the keys would be taken, of an open file the lines.
        elif isinstance(images, Mapping) or hasattr(images, "read") or not isinstance(images, Iterable):
            raise ConfigError(f"images: are of type {type(images).__name__}; give {_PICTURES}; or an iterable of these")
        pictures = _waiting_pictures(images, self.release.blank_rgb)
        frame = partial(self._frame, explain)
        # As many threads as there are cores: more only take turns with the network's.
        with ThreadPoolExecutor(usable_cores()) as pool:
            start = time.perf_counter()
            framed = list(pool.map(frame, islice(pictures, batch_size)))
            while framed:
                opening = pool.map(frame, list(islice(pictures, batch_size)))
                predictions = iter(self._predict(framed, explain, tta, start))
                for cell in framed:
                    if isinstance(cell, UnreadableImage):
                        yield cell
                    else:
                        yield next(predictions)
                start = time.perf_counter()
                framed = list(opening)

    def _frame(self, keep: bool, picture: _Waiting) -> _Framed | UnreadableImage:
        """Open a picture, frame it, and check what can be checked before the network has seen it."""
        if callable(picture):
            picture = picture()
        if isinstance(picture, UnreadableImage):
            return picture
        source, upright = picture
        preprocessing = self.release.preprocessing
        pixels = preprocessing.frame(upright)
        checks = Checks(shorter_side=min(upright.size), filled_with=upright.info.get(FILLED_WITH))
        if self.ood is not None:
            ood_score = float(self.ood.scores(pixels[None])[0])
            checks = replace(checks, ood_score=ood_score)
            if ood_score > 1:
                # Here, because scipy takes as long to import as a first prediction takes.
                from leukoscope.data.smear import looks_like_smear

                smear = self.release.takes_cut_outs is True and looks_like_smear(upright)
                checks = replace(checks, ood_group=self.ood.farthest_group(pixels), field_of_view=smear)
        return _Framed(
            pixels=pixels,
            source=source,
            view_box=preprocessing.view_box(upright),
            checks=checks,
            pixel_hash=pixel_hash(upright),
            upright=upright if keep else None,
        )

    def _predict(
        self, framed: Sequence[_Framed | UnreadableImage], explain: bool, tta: bool, start: float
    ) -> list[Prediction]:
        """Compute what could be opened, with `explain` or `tta` its other views, and decide for each cell."""
        cells = [cell for cell in framed if isinstance(cell, _Framed)]
        if not cells:
            return []
        all_views = explain or tta
        pixels = np.stack([cell.pixels for cell in cells])
        by_view, maps = self._compute_views(pixels, explain, NUM_VIEWS if all_views else 1)
        shares = by_view[:, 0]
        if tta:
            shares = by_view.mean(axis=1)
        disagreements = disagreement(by_view)
        predictions = []
        for number, cell in enumerate(cells):
            checks = cell.checks
            if tta:
                checks = replace(checks, disagreement=float(disagreements[number]))
            heatmaps = None
            if maps is not None:
                most_probable = shares[number].argmax()
                checks = replace(checks, on_cell=share_on_cell(maps[number, most_probable], cell.pixels))
                # Copied: keeping one picture's maps must not keep those of its whole batch.
                heatmaps = {label: HeatMap(maps[number, k].copy(), label) for k, label in enumerate(self.labels)}
            probabilities = self._named(shares[number])
            prediction = Prediction(
                decision=self.thresholds.decide(probabilities, checks),
                probabilities=probabilities,
                source=cell.source,
                model=self.release.name,
                revision=self.release.revision,
                seconds=(time.perf_counter() - start) / len(cells),
                heatmaps=heatmaps,
                view_box=cell.view_box,
                checks=checks,
                picture=cell.upright,
                peak=self.thresholds.strong_evidence if explain else None,
                pixel_hash=cell.pixel_hash,
                views=tuple(map(self._named, by_view[number])) if all_views else (),
                map_check=self.release.map_check,
            )
            predictions.append(prediction)
        return predictions

    def _compute_views(self, pixels: np.ndarray, explain: bool, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute the first V views of pictures (B, S, S, 3), one view after the other.

        Eight of one cell at once would leave the processor's cache, and the upright view has, to the last bit, the
        probabilities that it has alone.

        Returns:
            probabilities (B, V, K); and maps (B, K, h, w), ≥ 0, the mean over the views, turned back, or None.
        """
        outputs = [self.backend(turned(pixels, view), explain=explain) for view in range(number)]
        logits = np.stack([output.logits for output in outputs], axis=1)
        if not np.isfinite(logits).all():  # finite weights may compute others
            raise ReleaseError(f"{self.release.name}: computes numbers that are not finite; download the release again")
        by_view = [turned_back(output.maps, view) for view, output in enumerate(outputs) if output.maps is not None]
        if not by_view:
            return softmax(logits), None
        # After the mean, so that evidence against a class in one view counts against that of another.
        return softmax(logits), np.maximum(np.mean(by_view, axis=0, dtype=np.float32), 0)

    def with_small_changes(self, prediction: Prediction) -> Prediction:
        """Add the release's answers for the picture under eight small changes.

        Args:
            prediction: of this release, predicted with `explain=True`, so that it holds its picture.

        Returns:
            the prediction with `changed`; all else stays.

        Raises:
            ConfigError: a prediction without its picture.
        """
        if prediction.picture is None:
            raise ConfigError(f"{prediction.source}: has no picture to change; predict it with explain=True")
        changes = most_telling(self.release.metrics.class_changes)
        black = is_cut_out(prediction.picture)
        changed = []
        # As fast as eight at once on a CPU, and another prediction by the same network waits for one pass only.
        answers = self([change(prediction.picture, black=black) for change in changes], batch_size=1)
        for change, answer in zip(changes, answers, strict=True):
            if prediction.checks.field_share is not None:
                answer = answer.in_field(prediction.checks.field_share, self.thresholds)
            changed.append(ChangedAnswer(change, answer.decision, answer.probabilities))
        return replace(prediction, changed=tuple(changed))

    def _named(self, shares: np.ndarray) -> dict[str, float]:
        return dict(zip(self.labels, shares.tolist(), strict=True))


def _waiting_pictures(images: Iterable[Any], ground: RgbColour) -> Iterator[_Waiting]:
    """Yield what opens each picture, numbered from 1; PIL images are decoded at once, so that one may come twice."""
    for number, image in enumerate(images, 1):
        if isinstance(image, Image.Image):
            yield _open(number, image, ground)
        else:
            yield partial(_open, number, image, ground)


def _open(number: int, image: Any, ground: RgbColour) -> _Opened | UnreadableImage:
    """Open whatever was given as the picture of that number, transparent parts filled, or say why it cannot be used."""
    source = f"image {number}"
    try:
        if isinstance(image, str | os.PathLike):
            source = os.fsdecode(image)
            return source, open_image(source, ground=ground)
        if isinstance(image, bytes):
            return source, open_bytes(image, source, ground=ground)
        if isinstance(image, np.ndarray):
            return source, from_array(image, source)
        if isinstance(image, Image.Image):
            return source, to_rgb(image, source, ground=ground)
        raise UnreadableImage(f"{source}: is of type {type(image).__name__}; give {_PICTURES}")
    except UnreadableImage as error:
        return error
