"""The models that the demo asks: releases embedded beside the app, and Hub repositories listed there or typed in.

A name becomes a loaded model here, the models used last stay in memory, and whatever cannot be loaded comes back as one
`LeukoscopeError` that the page can show. On a ZeroGPU Space models are loaded on the processor; a second one is made
on the card by the process that borrows it, and kept there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from shutil import rmtree
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from weakref import WeakValueDictionary

from huggingface_hub.errors import HfHubHTTPError

from leukoscope import LeukoscopeError
from leukoscope.inference.runtime import Runtime
from leukoscope.inference.smear import SmearReading, read_smear
from leukoscope.models.hub_download import (
    RELEASE_FILES,
    HubUnreachable,
    cached_repository,
    hub_model_info,
    parse_hub_id,
)
from leukoscope.models.release import CONFIG, DEFAULT_RELEASE, WEIGHTS, ReleaseInfo, folder_name, read_release

if TYPE_CHECKING:
    from PIL import Image

    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.predictor import Predictor

# Two predictions at a time keep a small machine responsive. Fields, which take seconds, wait in a line of their own, so
# that no cell waits for them.
PREDICTIONS_AT_ONCE, FIELDS_AT_ONCE, LOADED_AT_ONCE = 2, 1, 4
# Bytes; what a visitor names may be of any size.
MAX_WEIGHTS_IN_MEMORY = 600 * 2**20
MAX_DOWNLOAD = 400 * 2**20
MAX_DOWNLOADS = 2 * 2**30  # of all that visitors named, on disk
# Of one field: half a minute of a small machine.
MOST_CELLS, FIELD_SECONDS = 500, 60
# Cells of a field at once: a visitor's cell waits until these are through the network.
FIELD_BATCH = 2
# What a ZeroGPU card is borrowed for: a few seconds to load the model on it, then for each picture.
GPU_SECONDS, GPU_SECONDS_A_PICTURE, MOST_GPU_SECONDS = 15, 0.1, 60
NO_MODEL = "This demo comes with no model. Name one of the Hub under “More models”, such as owner/name."
_P = ParamSpec("_P")
_T = TypeVar("_T")


def find_releases(root: Path) -> dict[str, Path]:
    """Releases embedded under a folder, or the folder itself if it is one, by name; {} where the folder is missing.

    The first is what the demo opens with: `DEFAULT_RELEASE`, if it is there. The others follow in alphabetical order.
    """
    if (root / CONFIG).is_file():
        return {folder_name(root): root}
    folders = (config.parent for config in sorted(root.glob(f"*/{CONFIG}")))
    # A hidden folder is a release still being written or copied.
    found = {folder.name: folder for folder in folders if not folder.name.startswith(".")}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT_RELEASE))


def listed_models(file: Path) -> list[str]:
    """The Hub ids that a text file names, one per line; [] where the file is missing."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip()]


class ModelCache:
    """Loaded models by name; the least recently used ones are removed for the next.

    Args:
        releases: name → release folder.
        hub_ids: repositories to offer before them, `owner/name[@revision]`.
        capacity: bytes of weights that stay in memory at once; the model used last always stays.
    """

    def __init__(
        self, releases: Mapping[str, Path], hub_ids: Sequence[str] = (), capacity: int = MAX_WEIGHTS_IN_MEMORY
    ) -> None:
        self.releases = dict(releases)
        self.names = [*hub_ids, *self.releases]
        self.capacity = capacity
        # Each with the bytes of its weights: its files may be gone when the next model needs the memory.
        self._loaded: OrderedDict[str, tuple[Predictor, int]] = OrderedDict()
        # What visitors had downloaded: Hub id → bytes, the longest unused first.
        self._downloaded: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()
        # One lock a model: a slow download holds up only those who want the same model. Visitors may name anything: a
        # lock that nobody holds or awaits is not kept.
        self._model_locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        # A pool of threads takes those who wait in their order; a semaphore would not.
        self._loading = Semaphore(LOADED_AT_ONCE)
        self._predict = borrowing(_predict) if "SPACES_ZERO_GPU" in os.environ else _predict
        self.predict = _limited(self._predict, ThreadPoolExecutor(PREDICTIONS_AT_ONCE))
        self.read_smear = _limited(self._read_field, ThreadPoolExecutor(FIELDS_AT_ONCE))

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        with self._lock:
            return list(self._loaded)

    def predictor(self, choice: str | None) -> Predictor:
        """The model of that name, loaded now unless it is in memory.

        Args:
            choice: an embedded release's name, or a Hub id `owner/name[@revision]`.

        Raises:
            LeukoscopeError: nothing chosen, a name that is neither, or a model that cannot be loaded.
        """
        name = (choice or "").strip()
        if not name:
            raise LeukoscopeError("No model is chosen." if self.names else NO_MODEL)
        if not self.is_name(name):  # a visitor may name Hub repositories, but no folder of this machine
            known = ", ".join(self.names) or "none"
            raise LeukoscopeError(
                f"{name!r} is no model name: give one of {known}, or a Hub id like owner/name or owner/name@revision"
            )
        with self._lock:
            lock = self._model_locks.setdefault(name, Lock())
        with lock:
            with self._lock:
                if name in self._loaded:
                    self._loaded.move_to_end(name)
                    if (hub_id := _hub_id(name)) in self._downloaded:
                        self._downloaded.move_to_end(hub_id)
                    return self._loaded[name][0]
            with self._loading:
                predictor = self._load(name)
                size = weights_bytes(predictor)
            with self._lock:
                self._loaded[name] = predictor, size
                while len(self._loaded) > 1 and sum(size for _, size in self._loaded.values()) > self.capacity:
                    self._loaded.popitem(last=False)
            return predictor

    def is_name(self, choice: str) -> bool:
        """Whether that is an embedded release's name, or a Hub id `owner/name[@revision]` of a model that may exist."""
        try:
            return choice in self.releases or bool(parse_hub_id(choice))
        except LeukoscopeError:
            return False

    def takes_cut_outs(self, choice: str) -> bool | None:
        """Whether a model reads cells cut out on black, or pictures of a smear; None where that is not known yet."""
        with self._lock:
            loaded = self._loaded.get(choice)
        try:
            return (loaded[0].release if loaded else read_release(self.releases[choice])).takes_cut_outs
        except (KeyError, LeukoscopeError):
            return None

    def _read_field(
        self, predictor: Predictor, image: Image.Image, source: str, um_per_pixel: float | None
    ) -> SmearReading:
        """Read a smear; its cells are found before a card is borrowed for them."""
        asked = predictor
        if self._predict is not _predict:
            asked = cast("Predictor", _Lent(predictor, self._predict))
        return read_smear(
            asked, image, source, um_per_pixel=um_per_pixel, most_cells=MOST_CELLS, seconds=FIELD_SECONDS,
            batch_size=FIELD_BATCH,
        )  # fmt: skip

    def _load(self, name: str) -> Predictor:
        """Load an embedded release, a repository that is offered, or one that a visitor named."""
        from leukoscope.inference.predictor import Predictor

        # A ZeroGPU Space's own threads have no card: there the model computes what it must on the processor.
        runtime = Runtime(device="cpu" if "SPACES_ZERO_GPU" in os.environ else "auto")
        if name in self.releases:
            folder = self.releases[name]
            try:
                return Predictor(read_release(folder, name=name), runtime)
            except LeukoscopeError as error:
                # This machine's folders mean nothing to a visitor.
                raise LeukoscopeError(str(error).replace(str(folder), name)) from None
        if name in self.names:  # offered by whoever runs the demo, who knows its size
            return Predictor.from_hub(name, runtime=runtime)
        return self._download(name, runtime)

    def _download(self, name: str, runtime: Runtime) -> Predictor:
        """Load a Hub model that a visitor named, unless it is over 400 MB; beyond 2 GB, the longest unused are deleted.

        What lay in the Hub cache before is never deleted.
        """
        from leukoscope.inference.predictor import Predictor

        hub_id, revision = parse_hub_id(name)
        folder = cached_repository(hub_id)
        was_there = folder.exists()
        # A Space's token opens what its owner offers, and to visitors nothing else.
        anonymous = "SPACE_ID" in os.environ
        try:
            size = _download_bytes(hub_id, revision, anonymous)
            if size > MAX_DOWNLOAD:
                raise LeukoscopeError(
                    f"{name}: holds {size // 2**20} MB, more than the {MAX_DOWNLOAD // 2**20} MB downloaded for a "
                    "visitor; run Leukoscope on your own machine for it, or name a smaller model"
                )
            return Predictor.from_hub(name, runtime=runtime, anonymous=anonymous)
        finally:
            with self._lock:
                if folder.exists() and (hub_id in self._downloaded or not was_there):
                    self._downloaded[hub_id] = sum(file.stat().st_size for file in folder.glob("blobs/*"))
                    self._downloaded.move_to_end(hub_id)
                while len(self._downloaded) > 1 and sum(self._downloaded.values()) > MAX_DOWNLOADS:
                    oldest, _ = self._downloaded.popitem(last=False)
                    rmtree(cached_repository(oldest), ignore_errors=True)
                    # What reads its files later would find none.
                    for loaded in [one for one in self._loaded if _hub_id(one) == oldest]:
                        del self._loaded[loaded]


def _hub_id(name: str) -> str:
    """The repository of a model's name, without its revision."""
    return name.partition("@")[0]


def weights_bytes(predictor: Predictor) -> int:
    """How much memory a model's weights take in float32."""
    from safetensors import safe_open

    assert predictor.release.folder is not None
    with safe_open(predictor.release.folder / WEIGHTS, framework="numpy") as tensors:
        return 4 * sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _download_bytes(hub_id: str, revision: str | None, anonymous: bool) -> int:
    """Size of the files that would be downloaded; 0 where the Hub gives none: loading then reports the problem."""
    try:
        about = hub_model_info(hub_id, revision, sizes=True, anonymous=anonymous)
    except (HubUnreachable, HfHubHTTPError):
        return 0
    return sum(file.size or 0 for file in about.siblings or () if file.rfilename in RELEASE_FILES)


def _predict(
    predictor: Predictor, images: Iterable[Image.Image], *, explain: bool = False, batch_size: int = 16
) -> list[Prediction]:
    return predictor(images, explain=explain, batch_size=batch_size)


def _limited(call: Callable[_P, _T], line: ThreadPoolExecutor) -> Callable[_P, _T]:
    """`call`, once a thread of the line is free."""

    def wait_and_call(*args: _P.args, **options: _P.kwargs) -> _T:
        return line.submit(copy_context().run, partial(call, *args, **options)).result()

    return wait_and_call


@dataclass(frozen=True)
class _Lent:
    """A model whose predictions borrow the card; all else of it is that of the model on the processor."""

    predictor: Predictor
    predict: Callable[..., list[Prediction]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def __call__(self, images: Iterable[Image.Image], **options: Any) -> list[Prediction]:
        return self.predict(self.predictor, images, **options)


# In the process that has borrowed the card: release → its model there.
_on_card: dict[Path, Predictor] = {}


def borrowing(call: Callable[..., list[Prediction]]) -> Callable[..., list[Prediction]]:
    """`call`, whose first two arguments are a model and pictures, run while a ZeroGPU Space lends its card.

    It runs in a forked process, which what it takes and returns is pickled for. That process takes none of this one's
    locks, which another thread may have held as it was forked. An error comes back as a value: `spaces` would put its
    class's name in place of its words.
    """
    import spaces

    def seconds(release: ReleaseInfo, images: list[Image.Image], **options: Any) -> float:
        return min(MOST_GPU_SECONDS, GPU_SECONDS + GPU_SECONDS_A_PICTURE * len(images))

    @spaces.GPU(duration=seconds)  # type: ignore[untyped-decorator]
    def on_card(release: ReleaseInfo, images: list[Image.Image], **options: Any) -> list[Prediction] | LeukoscopeError:
        from leukoscope.inference.predictor import Predictor

        assert release.folder is not None
        try:
            if release.folder not in _on_card:
                _on_card[release.folder] = Predictor(release, Runtime(backend="torch", device="cuda"))
            return call(_on_card[release.folder], images, **options)
        except LeukoscopeError as error:
            return error

    def lent(predictor: Predictor, images: Iterable[Image.Image], **options: Any) -> list[Prediction]:
        # An information alone: a loaded release holds tensors of this process.
        release = ReleaseInfo(**{one.name: getattr(predictor.release, one.name) for one in fields(ReleaseInfo)})
        found = on_card(release, list(images), **options)
        if isinstance(found, LeukoscopeError):
            raise found
        return cast("list[Prediction]", found)

    return lent
