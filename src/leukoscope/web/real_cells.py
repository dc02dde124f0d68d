"""A row of real cells to try a model on: streamed from the Hub when a visitor asks for them, shown with their source.

They are kept in memory for all visitors, so that the Hub is asked once a data set.
"""

from __future__ import annotations

from collections import defaultdict
from threading import Lock

from leukoscope import LeukoscopeError
from leukoscope.cells.registry import DATASETS, DatasetInfo
from leukoscope.cells.streaming import StreamedCell, stream_cells
from leukoscope.web.shelf import Shelf


class RealCells:
    """The cells fetched so far, by data set."""

    def __init__(self) -> None:
        self._fetched: dict[str, list[StreamedCell]] = {}
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def of(self, info: DatasetInfo) -> list[StreamedCell]:
        """Three cells of each class of a data set that has a copy on the Hub.

        Raises:
            LeukoscopeError: the Hub cannot be reached, or has it no more.
        """
        assert info.hub_id is not None
        with self._locks[info.name]:
            if info.name not in self._fetched:
                self._fetched[info.name] = stream_cells(info.hub_id)
            return self._fetched[info.name]


def source_of(shelf: Shelf, choice: str | None) -> DatasetInfo:
    """The data set that a model was trained on.

    Raises:
        LeukoscopeError: the model cannot be used, or its data set has no copy on the Hub.
    """
    trained_on = shelf.predictor(choice).release.metrics.get("data", {})
    info = DATASETS.get(trained_on.get("name", ""))
    if info is None or info.hub_id is None:
        raise LeukoscopeError(
            f"{choice} was trained on data of which no copy on the Hub is known; upload a cell of your own"
        )
    return info


def attribution(info: DatasetInfo) -> str:
    """Where the cells come from, and what an answer to them is worth; Markdown."""
    return (
        f"Real cells of {info.title}, from [{info.hub_id}](https://huggingface.co/datasets/{info.hub_id}); "
        f"{info.licence}. {info.citation} The model was trained on such cells, perhaps on these: its answers to them "
        "prove nothing."
    )
