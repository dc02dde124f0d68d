"""The models a visitor can pick: releases embedded beside the app, and Hub repositories listed there or typed in.

Stands between the model picker and `Predictor`: a name becomes a loaded model here, the models used last stay in
memory, and whatever cannot be loaded comes back as one `LeukoscopeError` that the page can show.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from math import prod
from pathlib import Path
from shutil import rmtree
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from huggingface_hub.errors import HfHubHTTPError

from leukoscope import LeukoscopeError
from leukoscope.inference.backends import Runtime
from leukoscope.inference.field import read_field
from leukoscope.models.hub_download import (
    RELEASE_FILES,
    HubUnreachable,
    cached_repository,
    hub_model_info,
    parse_hub_id,
)
from leukoscope.models.release import CONFIG, WEIGHTS, ReleaseInfo, folder_name, read_metrics, read_release
from leukoscope.web.text import purpose, t

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
# One cell takes well under a second; the rest is for a graphics card that has to start.
GPU_SECONDS = 15
_P = ParamSpec("_P")
_T = TypeVar("_T")


def find_releases(root: Path) -> dict[str, Path]:
    """Releases embedded under a folder, or the folder itself if it is one, by name; {} where the folder is missing.

    The first is what the demo opens with: the one with the highest AUROC by subject on subjects it has not seen. Those
    without such a metric follow in alphabetical order.
    """
    if (root / CONFIG).is_file():
        return {folder_name(root): root}
    folders = (config.parent for config in sorted(root.glob(f"*/{CONFIG}")))
    # A hidden folder is a release still being written or copied.
    found = {folder.name: folder for folder in folders if not folder.name.startswith(".")}
    return dict(sorted(found.items(), key=lambda item: -_auroc_of_unseen_subjects(item[1])))


def _auroc_of_unseen_subjects(release: Path) -> float:
    try:
        evaluations = read_metrics(release).get("evaluations") or [{}]
        if evaluations[0].get("split", {}).get("disjoint_by") == "subject":
            return float(evaluations[0]["metrics"].get("auroc_by_subject") or 0.0)
    except (LeukoscopeError, KeyError, AttributeError, TypeError, ValueError):
        pass  # shown when the release is chosen
    return 0.0


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
        self.predict = self._limited(_predict, ThreadPoolExecutor(PREDICTIONS_AT_ONCE))
        bounded = partial(read_field, most_cells=MOST_CELLS, seconds=FIELD_SECONDS, batch_size=FIELD_BATCH)
        self.read_field = self._limited(bounded, ThreadPoolExecutor(FIELDS_AT_ONCE))

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
            raise LeukoscopeError("No model is chosen: pick one." if self.names else t("get_a_model"))
        if not self.is_name(name):  # a visitor may name Hub repositories, but no folder of this machine
            known = ", ".join(self.names) or "none"
            raise LeukoscopeError(
                f"{name!r} is no model name: pick one ({known}) or type a Hub id like owner/name or owner/name@revision"
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

    def embedded(self, choice: str) -> ReleaseInfo | None:
        """An embedded release, read without loading its network; None of any other model."""
        try:
            return read_release(self.releases[choice])
        except (KeyError, LeukoscopeError):
            return None

    def takes_cut_outs(self, choice: str) -> bool | None:
        """Whether a model reads cells cut out on black, or pictures of a smear; None where that is not known yet."""
        with self._lock:
            loaded = self._loaded.get(choice)
        release = loaded[0].release if loaded else self.embedded(choice)
        return release.takes_cut_outs if release else None

    def choices(self) -> list[tuple[str, str]]:
        """For a menu of the models offered: a text that begins with what differs, and says what it is for; its name."""
        choices = []
        for name in self.names:
            text = name
            if release := self.embedded(name):
                about = purpose(release.labels, release.takes_cut_outs)
                text = f"{name.removeprefix('leukoscope-')} · {about}"
            choices.append((text, name))
        return choices

    def _limited(
        self, call: Callable[Concatenate[Predictor, _P], _T], line: ThreadPoolExecutor
    ) -> Callable[Concatenate[Predictor, _P], _T]:
        """`call`, whose first argument is a model, once a thread of the line is free."""
        borrowing = self._on_gpu(call)

        def wait_and_call(predictor: Predictor, /, *args: _P.args, **options: _P.kwargs) -> _T:
            return line.submit(copy_context().run, partial(borrowing, predictor, *args, **options)).result()

        return wait_and_call

    def _on_gpu(self, call: Callable[Concatenate[Predictor, _P], _T]) -> Callable[Concatenate[Predictor, _P], _T]:
        """`call` as it is, or, where the package `spaces` is installed, run while the Space's GPU is lent.

        On ZeroGPU it runs in a forked process, which what it takes and returns is pickled for: there a model is named.
        """
        try:
            import spaces
        except ImportError:
            return call

        def by_name(name: str, *args: _P.args, **options: _P.kwargs) -> _T:
            return call(self.predictor(name), *args, **options)

        borrowed = spaces.GPU(duration=GPU_SECONDS)(by_name)

        def with_gpu(predictor: Predictor, /, *args: _P.args, **options: _P.kwargs) -> _T:
            with self._lock:
                names = [name for name, (loaded, _) in self._loaded.items() if loaded is predictor]
            about = predictor.release
            unloaded = f"{about.name}@{about.revision}" if about.revision else about.name
            return borrowed(names[0] if names else unloaded, *args, **options)

        return with_gpu

    def _load(self, name: str) -> Predictor:
        """Load an embedded release, a repository that is offered, or one that a visitor named."""
        from leukoscope.inference.predictor import Predictor

        runtime = Runtime(device=best_device())
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


def _predict(predictor: Predictor, images: Sequence[Image.Image], *, explain: bool = False) -> list[Prediction]:
    return predictor(images, explain=explain)


def best_device() -> str:
    """ "cuda" on a ZeroGPU Space, whose driver is there only while its GPU is lent; elsewhere "auto"."""
    return "cuda" if "SPACES_ZERO_GPU" in os.environ else "auto"
