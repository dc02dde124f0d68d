"""Real cells that a visitor may try, streamed from the Hub's copy of the data set that a model was trained on."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from threading import Lock

from huggingface_hub import constants, get_session

from leukoscope import LeukoscopeError
from leukoscope.data.loading import StreamedCell, stream_cells
from leukoscope.data.registry import DatasetInfo, trained_on
from leukoscope.web.model_cache import ModelCache

HUB_SECONDS = 4  # until it is said that the Hub cannot be reached


class RealCells:
    """The cells downloaded so far, by data set."""

    def __init__(self) -> None:
        self._downloaded = cache(stream_cells)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def of(self, info: DatasetInfo) -> list[StreamedCell]:
        """Three cells of each class of a data set that has a copy on the Hub."""
        assert info.hub_id is not None
        with self._locks[info.name]:
            if not self._downloaded.cache_info().currsize:
                _require_hub(info.hub_id)
            return self._downloaded(info.hub_id)


def _require_hub(hub_id: str) -> None:
    """Say soon that the Hub cannot be reached: what streams from it tries again and again."""
    try:
        if not constants.HF_HUB_OFFLINE:
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
            return
    except Exception:  # of the client that huggingface_hub has, which changes with its version
        pass
    raise LeukoscopeError(f"{hub_id}: cannot be streamed from the Hub, which does not answer; try again later")


def source_of(models: ModelCache, name: str) -> DatasetInfo:
    """The data set that a model was trained on; an error where no copy of it is on the Hub."""
    info = trained_on(models.predictor(name).release.metrics)
    if info is None or info.hub_id is None:
        raise LeukoscopeError(
            f"{name}: was trained on data of which no copy on the Hub is known; upload a cell of your own"
        )
    return info
