"""The models that the demo asks: releases embedded beside the app, and Hub repositories listed there or typed in.

A name becomes a loaded model here, and the models used last stay in memory. A model that cannot be loaded raises a
`LeukoscopeError` that the page can show. What the owner of the demo lists may be private, and is downloaded with this
machine's token; what a visitor types is downloaded without one.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from leukoscope import ConfigError, LeukoscopeError, ReleaseError
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.inference.smear import read_smear
from leukoscope.inference.subject import SubjectRule
from leukoscope.models.hub_download import (
    RELEASE_FILES,
    HubUnreachable,
    cached_repository,
    hub_model_info,
    parse_hub_id,
)
from leukoscope.models.map_check import EVIDENCE_METHOD
from leukoscope.models.release import CONFIG_FILE, DEFAULT_RELEASE, WEIGHTS_FILE, folder_name, read_release
from leukoscope.reports import trust
from leukoscope.web.memory import give_back_freed_memory
from leukoscope.web.work_queue import Question, Threads, WorkQueue, asking

if TYPE_CHECKING:
    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.smear import SmearReading
    from leukoscope.models.release import ReleaseInfo

# Two predictions at a time keep a small machine responsive. Fields, which take seconds, wait in a line of their own, so
# that no cell waits for them.
PREDICTIONS_AT_ONCE = 2
BATCHES_AT_ONCE = 2  # a part of a batch holds hundreds of megabytes while it is read
DOWNLOADS_AT_ONCE = 4
# Bytes; what a visitor names may be of any size.
MAX_WEIGHTS_IN_MEMORY = 600 * 2**20
MAX_DOWNLOAD = 400 * 2**20
MAX_DOWNLOADS = 2 * 2**30  # of all that visitors named, on disk
# Of one field: half a minute of a small machine; a visitor's cell waits until a batch of its cells is computed.
FIELD_LIMITS: dict[str, Any] = {"most_cells": 500, "seconds": 60, "batch_size": 2}
ZERO_GPU = "SPACES_ZERO_GPU"
NO_MODEL = "This demo comes with no model. Name one of the Hub, such as owner/name."


def find_releases(root: Path) -> dict[str, Path]:
    """Releases embedded under a folder, or the folder itself if it is one, by name; first `DEFAULT_RELEASE`."""
    if (root / CONFIG_FILE).is_file():
        return {folder_name(root): root}
    folders = (config.parent for config in sorted(root.glob(f"*/{CONFIG_FILE}")))
    # A hidden folder is a release still being written or copied.
    releases = {folder.name: folder for folder in folders if not folder.name.startswith(".")}
    return dict(sorted(releases.items(), key=lambda release: release[0] != DEFAULT_RELEASE))


def listed_models(file: Path) -> list[str]:
    """The Hub ids that a text file names, one per line; [] where the file is missing."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


class VisitorDownloads:
    """The Hub repositories that visitors had downloaded, in the Hub's cache.

    Beyond `MAX_DOWNLOADS` bytes the longest unused are deleted. A repository is kept while a thread loads files of it,
    if it was in the cache before any visitor named it, and if the owner of the demo offers it.

    Args:
        offered: Hub ids that the owner of the demo offers.
    """

    def __init__(self, offered: Iterable[str] = ()) -> None:
        self._offered = frozenset(offered)
        self._sizes: OrderedDict[str, int] = OrderedDict()  # Hub id → bytes, the longest unused first
        self._leases: Counter[str] = Counter()  # Hub id → threads that load files of it now
        self._lock = Lock()

    @contextmanager
    def lease(self, hub_id: str) -> Iterator[None]:
        """Keep the files of a repository while a thread loads them, whether or not they are downloaded for it."""
        folder = cached_repository(hub_id)
        with self._lock:
            self._leases[hub_id] += 1
            was_there = folder.exists()
        try:
            yield
        finally:
            with self._lock:
                self._leases[hub_id] -= 1
                is_visitors = hub_id in self._sizes or not (was_there or hub_id in self._offered)
                if folder.exists() and is_visitors:
                    self._sizes[hub_id] = _size_of(folder)
                    self._sizes.move_to_end(hub_id)

    def touch(self, hub_id: str) -> None:
        """Note that a repository was used just now."""
        with self._lock:
            if hub_id in self._sizes:
                self._sizes.move_to_end(hub_id)

    def make_room(self) -> list[str]:
        """Delete the longest unused repositories beyond the limit, except the one used last; return their Hub ids."""
        deleted = []
        with self._lock:
            for hub_id in list(self._sizes)[:-1]:
                if sum(self._sizes.values()) <= MAX_DOWNLOADS:
                    break
                if self._leases[hub_id] > 0:
                    continue
                # While the lock is held, so that no thread begins to load it meanwhile.
                rmtree(cached_repository(hub_id), ignore_errors=True)
                del self._sizes[hub_id]
                deleted.append(hub_id)
        return deleted


class _Loaded(NamedTuple):
    predictor: Predictor
    size: int  # bytes in memory; its files may be gone when the next model needs the memory


class ModelCache:
    """Models of Hub ids and release folders, by name; the least recently used are dropped from memory for the next.

    Args:
        releases: name → folder of a release on this machine.
        hub_ids: models of the Hub that the demo offers.
        capacity: bytes of weights in memory; the model used last always stays.

    Attributes:
        names: of all models that the demo offers, the best first.
        examples: model, picture and its number → the answer.
    """

    def __init__(
        self, releases: Mapping[str, Path], hub_ids: Sequence[str] = (), capacity: int = MAX_WEIGHTS_IN_MEMORY
    ) -> None:
        self.releases = dict(releases)
        self.names = [*hub_ids, *self.releases]
        self.capacity = capacity
        self.examples: dict[tuple[str, str, int], Any] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the longest unused first
        self._downloads = VisitorDownloads(_repository(name) for name in hub_ids)
        self._lock = Lock()
        # One lock a model: a slow download holds up only those who want the same model. Visitors may name anything: a
        # lock that nobody holds or awaits is not kept.
        self._model_locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._downloading = Semaphore(DOWNLOADS_AT_ONCE)
        # A pool of threads takes those who wait in their order; a semaphore would not.
        predictions = Threads(PREDICTIONS_AT_ONCE)
        self.predict = WorkQueue(_predict, predictions)
        self.map_by_covering = WorkQueue(Predictor.map_by_covering, predictions)
        self.with_small_changes = WorkQueue(Predictor.with_small_changes, predictions)
        # One view of a cell, which waits behind nobody's eight.
        self.decide = WorkQueue(_predict, Threads(1))
        self.read_smear = WorkQueue(_read_smear, Threads(1))
        self.next_part = WorkQueue(_next_part, Threads(BATCHES_AT_ONCE))

    def predictor(self, choice: str | None) -> Predictor:
        """The model of that name (`is_name`), loaded now unless it is in memory.

        Raises:
            LeukoscopeError: nothing chosen, no such name, or a model that cannot be loaded.
        """
        name = self._checked_name(choice)
        with self._lock:
            lock = self._model_locks.setdefault(name, Lock())
        with lock:
            predictor = self._in_memory(name)
            if predictor is None:
                predictor = self._load(name)
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

    def soonest_first(self, names: Iterable[str]) -> list[str]:
        """These names by how soon their models can answer: in memory, on this machine, on the Hub; else as they come.

        Whoever asks several models asks them in this order, so that a first visit sees an answer as soon as one model
        is loaded; after each answer the order may have changed. It does not say which model is the best: that is the
        order of `names`, in which answers are shown.
        """
        with self._lock:
            loaded = set(self._loaded)
        return sorted(names, key=lambda name: (name not in loaded, name not in self.releases))

    def takes_cut_outs(self, choice: str) -> bool | None:
        """Whether a model reads cells cut out on black, or pictures of a smear; None where that is not known yet."""
        release = self._known_release(choice)
        return release.takes_cut_outs if release else None

    def maps_passed(self, choice: str) -> bool | None:
        """Whether a model's maps passed their checks; None where they were not checked, or that is not known yet."""
        release = self._known_release(choice)
        return trust.maps_passed(release.metrics) if release else None

    def least_cells(self, choice: str) -> int | None:
        """How many cells of a person a model's answer needs; None where it gives none, or that is not known yet."""
        release = self._known_release(choice)
        rule = SubjectRule.from_metrics(release.metrics, release.labels) if release else None
        return rule.least_cells if rule else None

    def _known_release(self, choice: str) -> ReleaseInfo | None:
        """A model's release where it is loaded, or on this machine; None for one of the Hub that is not loaded."""
        with self._lock:
            loaded = self._loaded.get(choice)
        if loaded is not None:
            return loaded.predictor.release
        try:
            return read_release(self.releases[choice])
        except (KeyError, LeukoscopeError):
            return None

    def first_labels(self) -> tuple[str, ...]:
        """The classes of the model that a visitor meets first, one of cut-out cells if there is one; () for none."""
        readable = []
        for folder in self.releases.values():
            with suppress(LeukoscopeError):
                readable.append(read_release(folder))
        readable.sort(key=lambda release: release.takes_cut_outs is False)
        return tuple(readable[0].labels) if readable else ()

    def _checked_name(self, choice: str | None) -> str:
        name = (choice or "").strip()
        if not name:
            raise ConfigError("No model is chosen." if self.names else NO_MODEL)
        if not self.is_name(name):  # a visitor may name Hub repositories, but no folder of this machine
            offered = ", ".join(self.names) or "none"
            raise ConfigError(
                f"{name!r} is no model name: give one of {offered}, or a Hub id like owner/name or owner/name@revision"
            )
        return name

    def _in_memory(self, name: str) -> Predictor | None:
        with self._lock:
            if name not in self._loaded:
                return None
            self._loaded.move_to_end(name)
            predictor = self._loaded[name].predictor
        self._downloads.touch(_repository(name))
        return predictor

    def _load(self, name: str) -> Predictor:
        """Load an embedded release, a repository that is offered, or one that a visitor named, and keep it."""
        # On a ZeroGPU Space torch says that there is a GPU, but no thread of the server has it.
        runtime = Runtime(device="cpu" if ZERO_GPU in os.environ else "auto")
        if name in self.releases:
            predictor = self._embedded(name, runtime)
            self._keep(name, predictor)
            return predictor
        hub_id = _repository(name)
        try:
            with self._downloads.lease(hub_id):
                if name in self.names:  # offered by whoever runs the demo, who knows its size and may open it
                    predictor = Predictor.from_hub(name, runtime=runtime)
                else:
                    with self._downloading:
                        predictor = _downloaded(name, runtime)
                self._keep(name, predictor)
        finally:
            self._forget(self._downloads.make_room())
        return predictor

    def _forget(self, hub_ids: Sequence[str]) -> None:
        """Drop models whose files were deleted: their cards could not be read any more."""
        with self._lock:
            for name in list(self._loaded):
                if _repository(name) in hub_ids:
                    del self._loaded[name]

    def _embedded(self, name: str, runtime: Runtime) -> Predictor:
        folder = self.releases[name]
        try:
            return Predictor(read_release(folder, name=name), runtime)
        except LeukoscopeError as error:
            # This machine's folders mean nothing to a visitor.
            raise ReleaseError(str(error).replace(str(folder), name)) from None

    def _keep(self, name: str, predictor: Predictor) -> None:
        """Keep a model in memory, and drop the least recently used beyond the capacity."""
        assert predictor.release.folder is not None
        # Computed in float32, kept in half of that.
        size = 2 * (predictor.release.folder / WEIGHTS_FILE).stat().st_size
        with self._lock:
            self._loaded[name] = _Loaded(predictor, size)
            while len(self._loaded) > 1 and sum(loaded.size for loaded in self._loaded.values()) > self.capacity:
                self._loaded.popitem(last=False)


def _downloaded(name: str, runtime: Runtime) -> Predictor:
    """Load a Hub model that a visitor named.

    No token is sent: what this machine's token opens is its owner's to offer, and no visitor's to open by its name.
    """
    hub_id, revision = parse_hub_id(name)
    try:
        files = hub_model_info(hub_id, revision, sizes=True, anonymous=True).siblings or ()
    except (HubUnreachable, HfHubHTTPError):
        files = ()  # loading reports the problem
    size = sum(file.size or 0 for file in files if file.rfilename in RELEASE_FILES)
    if size > MAX_DOWNLOAD:
        raise ReleaseError(
            f"{name}: holds {size // 2**20} MB, more than the {MAX_DOWNLOAD // 2**20} MB downloaded for a "
            "visitor; run Leukoscope on your own machine for it, or name a smaller model"
        )
    return Predictor.from_hub(name, runtime=runtime, anonymous=True)


def _repository(name: str) -> str:
    """The Hub id of a model's name, without its revision."""
    return name.partition("@")[0]


def _size_of(repository: Path) -> int:
    """Bytes of a repository's files in the Hub's cache."""
    size = 0
    for file in repository.glob("blobs/*"):
        with suppress(OSError):  # another thread renames it when it is downloaded
            size += file.stat().st_size
    return size


def _predict(predictor: Predictor, images: Iterable[Image.Image], **options: Any) -> list[Prediction]:
    # Of a release that shows maps by covering, `map_by_covering` computes these afterwards.
    return predictor(images, method=EVIDENCE_METHOD, **options)


def _next_part(steps: Iterator[Any]) -> Any:
    """A batch after its next part is read; None at its end."""
    return next(steps, None)


def _read_smear(*arguments: Any, **options: Any) -> SmearReading:
    question = asking.get() or Question()
    options = {**FIELD_LIMITS, "stopped": lambda: question.abandoned, **options}
    try:
        return read_smear(*arguments, **options)
    finally:
        give_back_freed_memory()  # a field takes hundreds of megabytes
