"""What one visitor is shown and has been shown; lives in the session, in memory only."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DatasetInfo
from leukoscope.web import upload
from leukoscope.web.answer import Answer, Row
from leukoscope.web.batch import BatchResult
from leukoscope.web.smear import Smear

# Of a visit's cells, those shown last are kept: together as many pixels as one upload may have.
KEPT_CELLS, KEPT_PIXELS = 8, upload.CELL.pixels
DELETED = "A result is deleted after half an hour, or when the server starts anew. Give the picture again."
_T = TypeVar("_T")


@dataclass
class Visit:
    """What one visitor is shown; lives in the session, in memory only.

    Attributes:
        asked: number of the newest question.
        shown: what stands on the stage, and `behind` it what a cell was opened from.
        opened, view, label, forms: of an answer, the open row, and what its picture shows.
        kept: answers of this visit, the newest first.
        added: Hub ids of models that the visitor named.
        real: what the real cells that are shown come from.
    """

    asked: int = 0
    shown: Answer | Smear | BatchResult | None = None
    behind: Smear | BatchResult | None = None
    opened: int | None = None
    view: str = "map"
    label: str = ""
    forms: dict[str, Row] = field(default_factory=dict)
    kept: list[Answer] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    real: DatasetInfo | None = None

    def showing(self, kind: type[_T]) -> _T:
        """What is shown, where it is of this kind.

        Raises:
            LeukoscopeError: it is not any more.
        """
        if not isinstance(self.shown, kind):
            raise LeukoscopeError(DELETED)
        return self.shown

    @property
    def row(self) -> Row:
        """The open row; an error where nothing is open any more."""
        rows = self.showing(Answer).rows
        if self.opened is None or self.opened >= len(rows):
            raise LeukoscopeError(DELETED)
        return rows[self.opened]

    @property
    def model(self) -> str:
        """Name of the model whose answer is open; "" of none."""
        if isinstance(self.shown, Smear):
            return self.shown.reading.model
        if isinstance(self.shown, BatchResult):
            return self.shown.model
        with suppress(LeukoscopeError):
            return self.row.model
        return ""

    def show(self, **changes: Any) -> None:
        """Put something else on the stage, with its map in front."""
        for name, value in {"view": "map", "label": "", "forms": {}, "opened": None, **changes}.items():
            setattr(self, name, value)

    def keep(self, answer: Answer) -> None:
        """Keep an answer that is complete, once for each picture."""
        others = [one for one in self.kept if one.picture.image is not answer.picture.image]
        self.kept = [answer, *others][:KEPT_CELLS]
        while (
            len(self.kept) > 1
            and sum(one.picture.image.width * one.picture.image.height for one in self.kept) > KEPT_PIXELS
        ):
            self.kept.pop()
