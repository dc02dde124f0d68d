"""The models that the demo asks: releases beside the app, and Hub repositories that are listed there or typed in.

The models used last stay in memory. What the owner of the demo lists may be private and is downloaded with this
machine's token; what a visitor types is downloaded without one, and deleted when it leaves the memory.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from threading import Lock
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from leukoscope import ConfigError, LeukoscopeError, ReleaseError
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.models.hub_download import (
    RELEASE_FILES,
    HubUnreachable,
    cached_repository,
    hub_model_info,
    parse_hub_id,
)
from leukoscope.models.release import (
    DEFAULT_RELEASE,
    WEIGHTS_FILE,
    ReleaseInfo,
    folder_name,
    read_release,
    release_folders,
)

MAX_WEIGHTS_IN_MEMORY = 600 * 2**20  # bytes, as below
MAX_DOWNLOAD = 400 * 2**20  # of one model that a visitor names
ZERO_GPU = "SPACES_ZERO_GPU"


def find_releases(root: Path) -> dict[str, Path]:
    """The releases of `release_folders` by name; first `DEFAULT_RELEASE`."""
    releases = {folder_name(folder): folder for folder in release_folders(root)}
    return dict(sorted(releases.items(), key=lambda release: release[0] != DEFAULT_RELEASE))


def listed_models(file: Path) -> list[str]:
    """The Hub ids that a text file names, one per line; [] where the file is missing."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


class Models:
    """Models of Hub ids and release folders, by name; the least recently used are dropped from memory for the next.

    Args:
        releases: name → folder of a release on this machine.
        hub_ids: models of the Hub that the demo offers.
        capacity: bytes of weights in memory; the model used last always stays.

    Attributes:
        names: of all models that the demo offers, the default first.
        drawn: model and example → card and stage, each computed once.
    """

    def __init__(
        self, releases: Mapping[str, Path], hub_ids: Sequence[str] = (), capacity: int = MAX_WEIGHTS_IN_MEMORY
    ) -> None:
        self.releases = dict(releases)
        self.names = [*hub_ids, *self.releases]
        self.capacity = capacity
        self.drawn: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()  # the longest unused first
        self._of_visitors: set[str] = set()  # repositories that were downloaded because a visitor named them
        self._lock = Lock()
        self._loading = Lock()
        self._downloading = Lock()

    def checked(self, name: object) -> str:
        """The name of a model that may be asked; "" means the first one.

        Raises:
            ConfigError: no model, or neither a name that is offered nor a Hub id.
        """
        name = str(name or "").strip() or next(iter(self.names), "")
        if not name:
            raise ConfigError("This demo comes with no model. Name one of the Hub, such as owner/name.")
        if name not in self.names:
            with suppress(LeukoscopeError):
                if parse_hub_id(name):
                    return name
            offered = ", ".join(self.names) or "none"
            raise ConfigError(
                f"{name!r} is no model name: give one of {offered}, or a Hub id like owner/name or owner/name@revision"
            )
        return name

    def predictor(self, name: str) -> Predictor:
        """The model of that name, loaded now unless it is in memory.

        Raises:
            LeukoscopeError: no such name, or a model that cannot be loaded.
        """
        name = self.checked(name)
        predictor = self._in_memory(name)
        if predictor is not None:
            return predictor
        with self._loading if name in self.releases else self._downloading:
            predictor = self._in_memory(name) or self._load(name)
            self._keep(name, predictor)
        return predictor

    def release(self, name: str) -> ReleaseInfo:
        """What is known of a model, without loading the network of one that comes along; errors as of `predictor`."""
        name = self.checked(name)
        if name in self.releases:
            return read_release(self.releases[name], name=name)
        return self.predictor(name).release

    def _in_memory(self, name: str) -> Predictor | None:
        with self._lock:
            if name not in self._loaded:
                return None
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def _load(self, name: str) -> Predictor:
        # On a ZeroGPU Space torch says that there is a GPU, but no thread of the server has it.
        runtime = Runtime(device="cpu" if ZERO_GPU in os.environ else "auto")
        if name in self.releases:
            folder = self.releases[name]
            try:
                return Predictor(read_release(folder, name=name), runtime)
            except LeukoscopeError as error:
                # This machine's folders mean nothing to a visitor.
                raise ReleaseError(str(error).replace(str(folder), name)) from None
        if name in self.names:  # its owner knows its size and may open it
            return Predictor.from_hub(name, runtime=runtime)
        # No token is sent: what it opens is the owner's to offer, and no visitor's to open by name.
        hub_id, revision = parse_hub_id(name)
        _require_small(name, hub_id, revision)
        if not cached_repository(hub_id).exists():
            self._of_visitors.add(hub_id)
        return Predictor.from_hub(name, runtime=runtime, anonymous=True)

    def _keep(self, name: str, predictor: Predictor) -> None:
        """Keep a model in memory, and drop the least recently used beyond the capacity, with what visitors named."""
        with self._lock:
            self._loaded[name] = predictor
            while len(self._loaded) > 1 and sum(map(_size, self._loaded.values())) > self.capacity:
                _, dropped = self._loaded.popitem(last=False)
                hub_id = dropped.release.name
                is_unused = all(other.release.name != hub_id for other in self._loaded.values())
                if hub_id in self._of_visitors and is_unused:
                    rmtree(cached_repository(hub_id), ignore_errors=True)
                    self._of_visitors.remove(hub_id)


def _size(predictor: Predictor) -> int:
    """Bytes of a model in memory: computed in float32, stored in half of that."""
    folder = predictor.release.folder
    with suppress(OSError):
        return 2 * (folder / WEIGHTS_FILE).stat().st_size if folder else 0
    return 0


def _require_small(name: str, hub_id: str, revision: str | None) -> None:
    """Refuse a Hub model whose release is larger than `MAX_DOWNLOAD`."""
    files: Iterable[Any] = ()
    with suppress(HubUnreachable, HfHubHTTPError):  # loading reports the problem
        files = hub_model_info(hub_id, revision, sizes=True, anonymous=True).siblings or ()
    size = sum(file.size or 0 for file in files if file.rfilename in RELEASE_FILES)
    if size > MAX_DOWNLOAD:
        raise ReleaseError(
            f"{name}: holds {size // 2**20} MB, more than the {MAX_DOWNLOAD // 2**20} MB downloaded for a visitor; "
            "run Leukoscope on your own machine for it, or name a smaller model"
        )
