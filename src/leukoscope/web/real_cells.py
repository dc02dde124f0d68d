"""Real cells that a visitor may try, streamed from the Hub's copy of the data set that a model was trained on."""

from __future__ import annotations

from threading import Lock

from huggingface_hub import constants, get_session

from leukoscope import LeukoscopeError
from leukoscope.data.loading import StreamedCell, stream_cells
from leukoscope.data.registry import DatasetInfo, trained_on
from leukoscope.web.model_cache import ModelCache

HUB_SECONDS = 4  # until it is said that the Hub cannot be reached
_downloaded: dict[str, list[StreamedCell]] = {}
_lock = Lock()


def real_cells(info: DatasetInfo) -> list[StreamedCell]:
    """Three cells of each class of a data set that has a copy on the Hub, downloaded once.

    Raises:
        LeukoscopeError: the Hub does not answer; said soon, as what streams from it tries again and again.
    """
    assert info.hub_id is not None
    with _lock:
        if info.hub_id not in _downloaded:
            try:
                if constants.HF_HUB_OFFLINE:
                    raise OSError
                get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
            except Exception:  # of the client that huggingface_hub has, which changes with its version
                said = f"{info.hub_id}: cannot be streamed from the Hub, which does not answer; try again later"
                raise LeukoscopeError(said) from None
            _downloaded[info.hub_id] = stream_cells(info.hub_id)
        return _downloaded[info.hub_id]


def source_of(models: ModelCache, name: str) -> DatasetInfo:
    """The data set that a model was trained on; an error where no copy of it is on the Hub."""
    info = trained_on(models.predictor(name).release.metrics)
    if info is None or info.hub_id is None:
        raise LeukoscopeError(
            f"{name}: was trained on data of which no copy on the Hub is known; upload a cell of your own"
        )
    return info
