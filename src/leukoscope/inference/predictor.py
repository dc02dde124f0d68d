"""From pictures to predictions: the one predictor behind `leukoscope predict`, the demo and scripts.

A picture is framed as the release's preprocessing defines and goes once through the backbone; the head gives the logits
and, with `explain`, every class's map. Nothing here imports torch: only the torch backend does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import EncodedImage, UnreadableImage, from_array, open_bytes, open_image, pixel_hash, to_rgb
from leukoscope.inference.backends import (
    AUTO,
    BF16,
    F32,
    FAST,
    INT8,
    OPENVINO,
    PACKAGES,
    PRECISION_NAMES,
    NoGraph,
    Runtime,
    TorchBackend,
    is_installed,
    require_package,
    usable_cores,
)
from leukoscope.inference.gradcam import share_on_cell
from leukoscope.inference.ood import OodDetector
from leukoscope.inference.prediction import (
    EVIDENCE,
    METHODS,
    Checks,
    EvidenceScale,
    HeatMap,
    Prediction,
    Thresholds,
    softmax,
)
from leukoscope.inference.tta import VIEWS, disagreement, turned, turned_back
from leukoscope.models.release import OOD, ReleaseInfo, local_release, read_release

if TYPE_CHECKING:
    from leukoscope.inference.graph import ExportedBackend
    from leukoscope.inference.subject import SubjectPrediction
    from leukoscope.models.weights import Release

    Backend: TypeAlias = TorchBackend | ExportedBackend

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | EncodedImage | bytes
_PICTURES = "a path, a PIL image, a uint8 array, or the bytes of an image file"
BATCH = 16
# Cells that torch computes in about the time that OpenVINO's graph is made in.
_GRAPH_PAYS_OFF = 200
_log = logging.getLogger("leukoscope")


@dataclass(frozen=True)
class _Framed:
    """A picture ready for the network.

    Attributes:
        pixels: (S, S, 3) uint8.
        upright: the picture, kept only where it is to be explained: a batch of photographs would fill the memory.
    """

    pixels: np.ndarray
    source: str
    view_box: tuple[float, float, float, float]
    checks: Checks
    pixel_hash: str
    upright: Image.Image | None


class Predictor:
    """Predicts pictures with one release.

    Args:
        release: what is known of it; a loaded `Release` spares the torch backend from loading it again.
        runtime: what computes its network.

    Attributes:
        labels: class names in the order of the probabilities.
        ood: the release's OOD detector; None where it has none.
    """

    def __init__(self, release: ReleaseInfo, runtime: Runtime = Runtime()):
        if not isinstance(release, ReleaseInfo):
            raise LeukoscopeError(
                f"Predictor({_shown(release)}): takes a release that was read; give a folder or a Hub id to "
                "Predictor.from_pretrained"
            )
        self.release = release
        self.labels = release.labels
        self.backend: Backend = open_backend(release, runtime)
        self.thresholds = Thresholds.from_metrics(release.metrics)
        path = release.folder and release.folder / OOD
        self.ood = OodDetector.load(path) if path and path.exists() else None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        backend: str = "",
        device: str = AUTO,
        precision: str = AUTO,
    ) -> Predictor:
        """Load a release; a path that exists wins over a Hub id.

        Args:
            model: a release folder, the name of one that comes with Leukoscope, `owner/name` or `owner/name@revision`.
            revision: a Hub branch, tag or commit.
            backend, device, precision: of the `Runtime` that computes its network.

        Raises:
            LeukoscopeError: no such folder or repository, no access to it, no network and no cached copy, a damaged
                release, a backend that is unknown or not installed, a device this machine lacks, or "fast" where this
                machine or release cannot.
        """
        _require_name(model, "from_pretrained")
        runtime = Runtime(backend, device, precision)
        if (folder := local_release(str(model))) is None:
            return cls.from_hub(str(model), revision=revision, runtime=runtime)
        if revision:
            raise LeukoscopeError(f"{model}: is a local folder, which has no revision {revision!r}; leave it out")
        return cls(read_release(folder, name=str(model)), runtime)

    @classmethod
    def from_hub(
        cls, model: str, *, revision: str | None = None, runtime: Runtime = Runtime(), anonymous: bool = False
    ) -> Predictor:
        """Load a release from the Hub or its cache; a local path is never opened, whatever the name.

        Args:
            model: `owner/name` or `owner/name@revision`.
            revision: a Hub branch, tag or commit.
            anonymous: download without this machine's token.

        Raises:
            LeukoscopeError: as `from_pretrained`; no message names a folder of this machine.
        """
        from leukoscope.models.hub_download import fetch_files, parse_hub_id

        _require_name(model, "from_hub")
        hub_id, revision = parse_hub_id(str(model), revision)
        folder = fetch_files(hub_id, revision, anonymous=anonymous)
        try:
            return cls(read_release(folder, name=hub_id, revision=folder.name), runtime)
        except LeukoscopeError as error:
            raise LeukoscopeError(str(error).replace(str(folder), hub_id)) from None

    @overload  # a str is an iterable of str as well, which the checker minds
    def __call__(  # type: ignore[overload-overlap]
        self, images: Picture, *, explain: bool = ..., tta: bool = ..., batch_size: int = ..., method: str = ...
    ) -> Prediction: ...
    @overload
    def __call__(
        self,
        images: Iterable[Picture],
        *,
        explain: bool = ...,
        tta: bool = ...,
        batch_size: int = ...,
        method: str = ...,
    ) -> list[Prediction]: ...
    def __call__(
        self,
        images: Picture | Iterable[Picture],
        *,
        explain: bool = False,
        tta: bool = False,
        batch_size: int = BATCH,
        method: str = EVIDENCE,
    ) -> Prediction | list[Prediction]:
        """Predict one picture, or several in their order.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 array, the bytes of an image file or an `EncodedImage`; or
                an iterable of those.
            explain: add every class's map, the mean over the picture's eight dihedral views, turned back; and the
                probabilities of each view. The decision stays that of the upright view. The picture is kept, so that
                `Prediction.overlay` can draw it.
            tta: test-time augmentation: the probabilities are the mean over the eight views, and how far these
                disagree is measured.
            batch_size: pictures that go through the network at once.
            method: how maps are made: "evidence", relative to a blank picture, or "gradcam" as published.

        Raises:
            LeukoscopeError: neither a picture nor an iterable, or an unknown method.
            UnreadableImage: for the first picture that cannot be used.
        """
        found = []
        for prediction in self.iter_predictions(images, explain=explain, tta=tta, batch_size=batch_size, method=method):
            if isinstance(prediction, UnreadableImage):
                raise prediction
            found.append(prediction)
        return found[0] if _is_picture(images) else found

    def iter_predictions(
        self,
        images: Picture | Iterable[Picture],
        *,
        explain: bool = False,
        tta: bool = False,
        batch_size: int = BATCH,
        method: str = EVIDENCE,
    ) -> Iterator[Prediction | UnreadableImage]:
        """Predict pictures batch by batch; one that cannot be used has its error in its place.

        While the network computes one batch, threads open the next; no more of `images` is taken. PIL images are
        decoded at once, so that one image may be given twice. Arguments and errors as for a call.
        """
        if method not in METHODS:
            raise LeukoscopeError(f"method {method!r}: unknown; choose one of {', '.join(METHODS)}")
        if batch_size < 1:
            raise LeukoscopeError(f"batch_size {batch_size}: give 1 picture at a time or more")
        numbered, frame = map(_decoded, enumerate(_pictures(images), 1)), partial(self._frame, explain)
        # As many threads as there are cores: more only take turns with the network's.
        with ThreadPoolExecutor(usable_cores()) as pool:
            start = time.perf_counter()
            batch = list(islice(numbered, batch_size))
            # For one picture a thread would cost more than it gains.
            opened: Iterator[_Framed | UnreadableImage] = (map if len(batch) == 1 else pool.map)(frame, batch)
            while framed := list(opened):
                opened = pool.map(frame, list(islice(numbered, batch_size)))
                cells = [cell for cell in framed if isinstance(cell, _Framed)]
                predictions = iter(self._predict(cells, explain, tta, method, start) if cells else ())
                for cell in framed:
                    yield cell if isinstance(cell, UnreadableImage) else next(predictions)
                start = time.perf_counter()

    def predict_subject(
        self, images: Iterable[Picture], *, name: str = "", batch_size: int = BATCH
    ) -> SubjectPrediction:
        """Make one prediction for a subject, called `name`, from pictures of that subject's cells, as for a call.

        Raises:
            LeukoscopeError: the release was not measured by subject, or no picture.
            UnreadableImage: for the first picture that cannot be used.
        """
        from leukoscope.inference.subject import SubjectRule, without_copies

        rule = SubjectRule.of_release(self.release)
        predictions = self(_pictures(images), batch_size=batch_size)
        return rule.predict_cells([predictions[number] for number in without_copies(predictions)], subject=name)

    def _frame(self, keep: bool, numbered: tuple[int, Picture | UnreadableImage]) -> _Framed | UnreadableImage:
        """Open a picture, frame it, and check what can be checked before the network has seen it."""
        try:
            source, upright = _opened(*numbered)
        except UnreadableImage as error:
            return error
        preprocessing = self.release.preprocessing
        pixels, box, checks = preprocessing.frame(upright), preprocessing.view_box(upright), Checks()
        if self.thresholds.picture_side is not None:
            checks = replace(checks, shorter_side=min(upright.size))
        if self.ood is not None:
            checks = replace(checks, ood_score=(score := float(self.ood.scores(pixels[None])[0])))
            if score > 1:
                # Here, because scipy takes as long to import as a first prediction takes.
                from leukoscope.data.fields import looks_like_smear

                smear = self.release.takes_cut_outs is True and looks_like_smear(upright)
                checks = replace(checks, ood_group=self.ood.farthest_group(pixels), field_of_view=smear)
        return _Framed(pixels, source, box, checks, pixel_hash(upright), upright if keep else None)

    def _predict(
        self, cells: list[_Framed], explain: bool, tta: bool, method: str, start: float
    ) -> list[Prediction | UnreadableImage]:
        """Compute the cells, and with `explain` or `tta` their other views, and decide for each cell.

        Views are computed one after the other: eight of one cell at once would leave the processor's cache, and the
        upright view has, to the last bit, the probabilities that it has alone.
        """
        pixels = np.stack([cell.pixels for cell in cells])
        views = range(VIEWS if explain or tta else 1)
        outputs = [self.backend(turned(pixels, view), explain=explain, method=method) for view in views]
        logits = np.stack([output.logits for output in outputs], axis=1)  # (B, V, K)
        # Finite weights may compute numbers that are not.
        finite = np.isfinite(logits).all(axis=(1, 2))
        by_view = np.stack([softmax(view) for view in np.nan_to_num(logits).swapaxes(0, 1)], axis=1)
        shares, maps = by_view.mean(axis=1) if tta else by_view[:, 0], None
        if outputs[0].maps is not None:
            upright = [turned_back(one.maps, view) for view, one in enumerate(outputs) if one.maps is not None]
            # After the mean, so that evidence against a class in one view counts against that of another.
            maps = np.maximum(np.mean(upright, axis=0, dtype=np.float32), 0)
        disagreements = disagreement(by_view)
        peak = EvidenceScale.from_metrics(self.release.metrics, method).strong if explain else None
        predictions: list[Prediction | UnreadableImage] = []
        for i, cell in enumerate(cells):
            if not finite[i]:
                problem = f"{self.release.name} computes numbers for it that are not finite"
                predictions.append(UnreadableImage(f"{cell.source}: {problem}; download the release again"))
                continue
            checks, heatmaps = cell.checks, None
            if tta:
                checks = replace(checks, disagreement=float(disagreements[i]))
            if maps is not None:
                if method == EVIDENCE:  # what the limit was measured on
                    checks = replace(checks, on_cell=share_on_cell(maps[i, shares[i].argmax()], cell.pixels))
                # Copied, so that keeping one picture's maps does not keep its whole batch in memory.
                heatmaps = {label: HeatMap(maps[i, k].copy(), label) for k, label in enumerate(self.labels)}
            probabilities = self._named(shares[i])
            predictions.append(
                Prediction(
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
                    peak=peak,
                    pixel_hash=cell.pixel_hash,
                    views=tuple(map(self._named, by_view[i])) if len(views) > 1 else (),
                )
            )
        return predictions

    def _named(self, shares: np.ndarray) -> dict[str, float]:
        return dict(zip(self.labels, shares.tolist(), strict=True))


def _shown(value: object) -> str:
    """How a message names a value that may be anything: a text as it is, all else by its type."""
    return repr(value) if isinstance(value, str) else f"a value of type {type(value).__name__}"


def _require_name(model: object, method: str) -> None:
    if not isinstance(model, str | os.PathLike) or not isinstance(os.fspath(model), str) or not str(model).strip():
        raise LeukoscopeError(
            f"Predictor.{method}({_shown(model)}): names no release; give a release folder, a name that `leukoscope "
            "release list` shows, owner/name or owner/name@revision"
        )


def _is_picture(images: object) -> bool:
    """Whether something given is one picture, rather than several of them."""
    return isinstance(
        images, str | os.PathLike | Image.Image | np.ndarray | EncodedImage | bytes | bytearray | memoryview
    )


def _pictures(images: Any) -> Iterable[Picture]:
    """The pictures given; raises `LeukoscopeError` where there can be none."""
    if _is_picture(images):
        return [images]
    # Of a mapping the keys would be taken, of an open file the lines.
    if isinstance(images, Mapping) or hasattr(images, "read") or not isinstance(images, Iterable):
        raise LeukoscopeError(f"images: are of type {type(images).__name__}; give {_PICTURES}; or an iterable of these")
    return images


def _decoded(numbered: tuple[int, Any]) -> tuple[int, Picture | UnreadableImage]:
    """A PIL image upright and in RGB, or why it cannot be used; all else as it is."""
    number, image = numbered
    try:
        return number, to_rgb(image, f"image {number}") if isinstance(image, Image.Image) else image
    except UnreadableImage as error:
        return number, error


def _opened(number: int, image: Picture | UnreadableImage) -> tuple[str, Image.Image]:
    """The name and the upright RGB picture of what `_decoded` gave; raises `UnreadableImage`."""
    source = f"image {number}"
    if isinstance(image, UnreadableImage):
        raise image
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        return path, open_image(path)
    if isinstance(image, bytes | bytearray | memoryview):
        image = EncodedImage(bytes(image), source)
    if isinstance(image, EncodedImage):
        return image.name, open_bytes(image.data, image.name)
    if isinstance(image, np.ndarray):
        return source, from_array(image, source)
    if isinstance(image, Image.Image):
        return source, image
    raise UnreadableImage(f"{source}: is of type {type(image).__name__}; give {_PICTURES}")


# Backends


def open_backend(release: ReleaseInfo, runtime: Runtime = Runtime()) -> Backend:
    """Open the backend that computes a release's network; `name` and `precision` ("f32", "bf16", "int8") say how.

    "auto" takes OpenVINO, else ONNX Runtime, on a CPU where it is installed and its graph of this release gave torch's
    output when it was made; else torch.

    Raises:
        LeukoscopeError: no such backend, one whose package is not installed, that does not compute on that device or
            whose output differs from torch's; a damaged release; a device this machine lacks; or "fast" where it was
            not measured for the release, or this machine cannot.
    """
    runtime = runtime.chosen()
    if runtime.precision == FAST:
        return _open_exported(release, OPENVINO, _fast_precision(release, runtime))
    if runtime.backend in PACKAGES:
        if runtime.device != "cpu":
            raise LeukoscopeError(
                f"backend {runtime.backend!r}: computes on the CPU only; leave out device {runtime.device!r}"
            )
        require_package(runtime.backend)
        return _open_exported(release, runtime.backend, _default_precision(release, runtime.backend, runtime.precision))
    if runtime.backend == AUTO and runtime.device == "cpu":
        for name in filter(is_installed, PACKAGES):
            try:
                return _open_exported(release, name, _default_precision(release, name, runtime.precision))
            except NoGraph as reason:
                _log.warning("%s; another backend is used", reason)
    from leukoscope.models.weights import Release, load_release

    loaded = release if isinstance(release, Release) else load_release(release)
    return TorchBackend(loaded.network, loaded.preprocessing, runtime.device, blank_rgb=loaded.blank_rgb)


def float32_backend(release: Release, cells: int) -> Backend:
    """Open the fastest backend to compute that many cells in float32 on the CPU: OpenVINO, or torch for few.

    The release's folder, if it has one, holds the very weights of its network.
    """
    if cells >= _GRAPH_PAYS_OFF and release.folder and is_installed(OPENVINO):
        try:
            return _open_exported(release, OPENVINO, F32)
        except NoGraph as reason:
            _log.warning("%s; torch is used", reason)
    return TorchBackend(release.network, release.preprocessing, blank_rgb=release.blank_rgb)


def measured_precisions(release: ReleaseInfo) -> list[str]:
    """List the lower precisions a release may be computed in, as its metrics.json says, the fastest first."""
    block = release.metrics.get("precision", {})
    return [name for name in block.get("fast", ()) if name in (BF16, INT8) and block.get(name)]


def _default_precision(release: ReleaseInfo, backend: str, wanted: str) -> str:
    from leukoscope.inference.graph import computes

    default = release.metrics.get("precision", {}).get("default")
    lower = wanted == AUTO and backend == OPENVINO and default in measured_precisions(release) and computes(default)
    return default if lower else F32


def _fast_precision(release: ReleaseInfo, runtime: Runtime) -> str:
    """The fastest precision that was measured and that this processor computes; an error where there is none."""
    from leukoscope.inference.graph import computes

    measured = measured_precisions(release)
    if not measured:
        raise LeukoscopeError(f"precision 'fast': {release.name} was not measured in it; use 'exact'")
    if runtime.backend not in (AUTO, OPENVINO):
        raise LeukoscopeError(f"precision 'fast': OpenVINO computes it; leave out backend {runtime.backend!r}")
    if runtime.device != "cpu":
        raise LeukoscopeError(f"precision 'fast': is computed on the CPU; leave out device {runtime.device!r}")
    require_package(OPENVINO)
    if computed := [name for name in measured if computes(name)]:
        return computed[0]
    missing = " or ".join(PRECISION_NAMES[name] for name in measured)
    raise LeukoscopeError(f"precision 'fast': this processor has no units for {missing}; use 'exact'")


def _open_exported(release: ReleaseInfo, backend: str, precision: str) -> ExportedBackend:
    from leukoscope.inference.export import kept_graph
    from leukoscope.inference.graph import ExportedBackend

    measured = {} if precision == F32 else release.metrics["precision"][precision]
    shift, ranges = measured.get("logit_shift", 0.0), measured.get("ranges", ())
    if measured and len(shift) != len(release.labels):
        raise LeukoscopeError(
            f"{release.name}: precision.{precision}.logit_shift in metrics.json has {len(shift)} entries, and there "
            f"are {len(release.labels)} labels; restore the file from the release"
        )
    graph = kept_graph(release, backend)
    return ExportedBackend(graph, release, precision=precision, logit_shift=shift, ranges=ranges)
