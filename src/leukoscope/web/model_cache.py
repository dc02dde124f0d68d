"""The models that the demo asks: releases embedded beside the app, and Hub repositories listed there or typed in.

A name becomes a loaded model here, the models used last stay in memory, and whatever cannot be loaded comes back as one
`LeukoscopeError` that the page can show.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.inference.smear import read_smear
from leukoscope.models.hub_download import (
    RELEASE_FILES,
    HubUnreachable,
    cached_repository,
    hub_model_info,
    parse_hub_id,
)
from leukoscope.models.release import CONFIG, DEFAULT_RELEASE, WEIGHTS, folder_name, read_release

if TYPE_CHECKING:
    from leukoscope.inference.prediction import Prediction

# Two predictions at a time keep a small machine responsive. Fields, which take seconds, wait in a line of their own, so
# that no cell waits for them.
PREDICTIONS_AT_ONCE, LOADED_AT_ONCE = 2, 4
# Bytes; what a visitor names may be of any size.
MAX_WEIGHTS_IN_MEMORY = 600 * 2**20
MAX_DOWNLOAD = 400 * 2**20
MAX_DOWNLOADS = 2 * 2**30  # of all that visitors named, on disk
# Of one field: half a minute of a small machine; a visitor's cell waits until a batch of its cells is computed.
FIELD_LIMITS: dict[str, Any] = {"most_cells": 500, "seconds": 60, "batch_size": 2}
ZERO_GPU = "SPACES_ZERO_GPU"
NO_MODEL = "This demo comes with no model. Name one of the Hub under “More models”, such as owner/name."
_T = TypeVar("_T")


def find_releases(root: Path) -> dict[str, Path]:
    """Releases embedded under a folder, or the folder itself if it is one, by name; first `DEFAULT_RELEASE`."""
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
    """Models of Hub ids and release folders, by name; of those loaded, the least recently used go for the next.

    `capacity` is in bytes of weights in memory; the model used last always stays.
    """

    def __init__(
        self, releases: Mapping[str, Path], hub_ids: Sequence[str] = (), capacity: int = MAX_WEIGHTS_IN_MEMORY
    ) -> None:
        self.releases = dict(releases)
        self.names = [*hub_ids, *self.releases]
        self.capacity = capacity
        self.examples: dict[tuple[str, str, int], Any] = {}  # model, picture and its number → the answer
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
        self.predict = _limited(_predict, ThreadPoolExecutor(PREDICTIONS_AT_ONCE))
        # One view of a cell, which waits behind nobody's eight.
        self.decide = _limited(_predict, ThreadPoolExecutor(1))
        self.read_smear = _limited(partial(read_smear, **FIELD_LIMITS), ThreadPoolExecutor(1))

    def predictor(self, choice: str | None) -> Predictor:
        """The model of that name (`is_name`), loaded now unless it is in memory.

        Raises:
            LeukoscopeError: nothing chosen, no such name, or a model that cannot be loaded.
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
                    if (hub_id := name.partition("@")[0]) in self._downloaded:
                        self._downloaded.move_to_end(hub_id)
                    return self._loaded[name][0]
            with self._loading:
                predictor = self._load(name)
                assert predictor.release.folder is not None
                # Computed in float32, kept in half of that.
                size = 2 * (predictor.release.folder / WEIGHTS).stat().st_size
            with self._lock:
                self._loaded[name] = predictor, size
                while len(self._loaded) > 1 and sum(size for _, size in self._loaded.values()) > self.capacity:
                    self._loaded.popitem(last=False)
            return predictor

    def or_first(self, choice: str | None) -> str:
        """That name; the first model's where none is given, "" where the demo has no model."""
        return choice or next(iter(self.names), "")

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

    def _load(self, name: str) -> Predictor:
        """Load an embedded release, a repository that is offered, or one that a visitor named."""
        # On a ZeroGPU Space torch says that there is a GPU, but no thread of the server has it.
        runtime = Runtime(device="cpu" if ZERO_GPU in os.environ else "auto")
        if folder := self.releases.get(name):
            try:
                return Predictor(read_release(folder, name=name), runtime)
            except LeukoscopeError as error:
                # This machine's folders mean nothing to a visitor.
                raise LeukoscopeError(str(error).replace(str(folder), name)) from None
        if name in self.names:  # offered by whoever runs the demo, who knows its size
            return Predictor.from_hub(name, runtime=runtime)
        return self._download(name, runtime)

    def _download(self, name: str, runtime: Runtime) -> Predictor:
        """Load a Hub model that a visitor named; beyond 2 GB the longest unused are deleted, but none of before."""
        hub_id, revision = parse_hub_id(name)
        folder = cached_repository(hub_id)
        was_there = folder.exists()
        # A Space's token opens what its owner offers, and to visitors nothing else.
        anonymous = "SPACE_ID" in os.environ
        try:
            try:
                files = hub_model_info(hub_id, revision, sizes=True, anonymous=anonymous).siblings or ()
            except (HubUnreachable, HfHubHTTPError):
                files = ()  # loading reports the problem
            size = sum(file.size or 0 for file in files if file.rfilename in RELEASE_FILES)
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
                    for loaded in [one for one in self._loaded if one.partition("@")[0] == oldest]:
                        del self._loaded[loaded]


def _predict(predictor: Predictor, images: Iterable[Image.Image], **options: Any) -> list[Prediction]:
    return predictor(images, **options)


def _limited(call: Callable[..., _T], line: ThreadPoolExecutor) -> Callable[..., _T]:
    """`call`, once a thread of the line is free."""

    def wait_and_call(*args: Any, **options: Any) -> _T:
        return line.submit(copy_context().run, partial(call, *args, **options)).result()

    return wait_and_call
