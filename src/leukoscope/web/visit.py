"""What one visitor is shown, and how a step of a question changes it; lives in the session, in memory only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DatasetInfo
from leukoscope.web import upload
from leukoscope.web.answer import Answer, Picture, Row
from leukoscope.web.batch import MAX_KEPT, BatchResult
from leukoscope.web.smear import Smear

# What a visit keeps of what was given: so many, and together no more bytes than the pictures of the largest batch and
# those of the largest cell.
RECENT_TILES = 8
RECENT_BYTES = MAX_KEPT + 3 * upload.CELL_LIMIT.pixels
RESULT_DELETED = "A result is deleted after half an hour, or when the server starts anew. Give the picture again."
# Sources of what has a tile of its own.
EXAMPLE_SMEAR = "smear"
EXAMPLE_PEOPLE = "people"
Content = Answer | Smear | BatchResult
_T = TypeVar("_T", Answer, Smear, BatchResult)


@dataclass(frozen=True)
class Scene:
    """What stands on the stage.

    Attributes:
        content: the answer, smear or batch; None for nothing.
        behind: what a cell was opened from, to go back to.
        cell: number of the cell that was opened from it; None where the whole picture was.
        opened: number of an answer's open row; None until it is decided which.
        view: name of the view that the visitor chose; "" for the one that the row opens with.
        label: the class whose map is shown; "" for the called one.
        forms: what the model says of the cell without each part; None until it is computed.
        number: of what was given in this visit, from 1, whichever model reads it; 0 until it is shown.
        source: the act that the content came by, such as "example:1"; "" for an upload.
        readings: the same batch as other models read it.
        smear_readings: the same smear as other models read it.
    """

    content: Content | None = None
    behind: Smear | BatchResult | None = None
    cell: int | None = None
    opened: int | None = None
    view: str = ""
    label: str = ""
    forms: Mapping[str, Row] | None = None
    number: int = 0
    source: str = ""
    readings: tuple[BatchResult, ...] = ()
    smear_readings: tuple[Smear, ...] = ()

    def of_reading(self, model: str) -> Scene:
        """The same with the smear behind it as this model read it; as it is where that one has not read it."""
        for reading in self.smear_readings:
            if reading.reading.model == model and isinstance(self.behind, Smear):
                others = readings_but(model, self.smear_readings)
                return replace(self, behind=reading, smear_readings=(*others, self.behind))
        return self

    def showing(self, kind: type[_T]) -> _T:
        """The content; an error where it is not of this kind any more."""
        if not isinstance(self.content, kind):
            raise LeukoscopeError(RESULT_DELETED)
        return self.content

    @property
    def row(self) -> Row:
        """The open row; an error where nothing is open any more."""
        rows = self.showing(Answer).rows
        if self.opened is None or self.opened >= len(rows):
            raise LeukoscopeError(RESULT_DELETED)
        return rows[self.opened]

    @property
    def picture(self) -> Picture | None:
        """The picture of an answer or a smear; None for many cells, or nothing."""
        if isinstance(self.content, Answer | Smear):
            return self.content.picture
        return None

    @property
    def model(self) -> str:
        """Name of the model whose answer is open; "" for none."""
        if isinstance(self.content, Smear):
            return self.content.reading.model
        if isinstance(self.content, BatchResult):
            return self.content.model
        if isinstance(self.content, Answer) and self.opened is not None and self.opened < len(self.content.rows):
            return self.row.model
        return ""

    @property
    def smear(self) -> Smear | None:
        """The smear that is shown, or that a cell or the answer to the whole picture was opened from."""
        for content in (self.content, self.behind):
            if isinstance(content, Smear):
                return content
        return None

    @property
    def smear_cell(self) -> tuple[Smear, int] | None:
        """The smear and the number of its cell that is open; None for any other picture."""
        if isinstance(self.behind, Smear) and self.cell is not None:
            return self.behind, self.cell
        return None

    @property
    def whole(self) -> Content | None:
        """What was given: the smear or batch that is shown, or that a cell was opened from, or the answer's picture."""
        return self.behind or self.content

    @property
    def memory(self) -> int:
        """Bytes that its picture, or those of its batch and what other models made of it, have."""
        if isinstance(self.content, BatchResult):
            # Another model's reading has the same pictures, and thumbnails of its own.
            thumbnails = sum(len(row.thumbnail) for reading in self.readings for row in reading.rows)
            return self.content.memory + thumbnails
        return 3 * math.prod(self.picture.image.size) if self.picture else 0

    @property
    def back(self) -> str:
        """What a cell was opened from, in a word; of a whole smear, its cells; "" for nothing."""
        if self.behind is None:
            return ""
        if isinstance(self.behind, Smear) and self.cell is not None:
            return "smear"
        return "cells"


def readings_but(model: str, readings: Sequence[Smear]) -> tuple[Smear, ...]:
    """The readings of a smear by other models than this one."""
    return tuple(reading for reading in readings if reading.reading.model != model)


def given_by(scene: Scene) -> object:
    """What sets apart the picture or the batch that was given, whichever model reads it and whichever cell is open."""
    if isinstance(scene.whole, BatchResult):
        return scene.whole.given.key
    return id(scene.whole.picture) if scene.whole else None


@dataclass(frozen=True)
class Update:
    """One step of a question: what the stage shows from now on, and what the page gets beside it.

    Attributes:
        scene: the stage; None leaves it as it is.
        picture, answer: HTML in place of what `scene` draws.
        parcel: a file for the visitor to save, as HTML.
    """

    scene: Scene | None = None
    picture: str | None = None
    answer: str | None = None
    parcel: str | None = None


@dataclass
class Visit:
    """A visitor's session."""

    given: int = 0  # how many pictures and batches were given
    asked: int = 0  # number of the newest question
    clicked: int = 0  # number that the page gave the newest click
    scene: Scene = field(default_factory=Scene)
    recent: list[Scene] = field(default_factory=list)  # of what was given last, the newest first; at most one batch
    added: list[str] = field(default_factory=list)  # Hub ids of models that the visitor named
    chosen: str = ""  # name of the model that the visitor opened last; "" for none yet
    real: DatasetInfo | None = None  # the data set on the Hub whose real cells are offered

    def chosen_or_first(self, names: Sequence[str]) -> str:
        """Of these models the one that the visitor opened last, or the first."""
        return self.chosen if self.chosen in names else names[0]

    def show(self, scene: Scene) -> None:
        """Show a scene, and keep it once its answer is complete, unless its cell is opened from a smear or batch.

        Of batches only the newest is kept: with its pictures, so that its cells open and another model can read it.
        """
        if scene.content is not None and not scene.number:
            number = self.scene.number
            if given_by(scene) != given_by(self.scene):
                self.given += 1
                number = self.given
            scene = replace(scene, number=number)
        self.scene = scene
        content = scene.content
        if scene.cell is not None or scene.source in (EXAMPLE_SMEAR, EXAMPLE_PEOPLE):
            return
        if isinstance(content, BatchResult) and content.is_reading:
            if not scene.readings:
                self.recent = [other for other in self.recent if not isinstance(other.content, BatchResult)]
            self._forget(RECENT_BYTES - scene.memory)
        elif isinstance(content, BatchResult):
            if content.rows:
                self.remember(scene)
        elif isinstance(content, Smear) or (isinstance(content, Answer) and content.rows and content.complete):
            self.remember(scene)

    def remember(self, scene: Scene) -> None:
        """Keep a scene: of a picture, once for each; of a batch, in place of the one before."""
        others = [other for other in self.recent if _kept_for(other) is not _kept_for(scene)]
        self.recent = [replace(scene, view="", label="", forms=None), *others][:RECENT_TILES]
        self._forget(RECENT_BYTES, least=1)

    def _forget(self, size: int, least: int = 0) -> None:
        """Forget the oldest scenes until the rest has at most `size` bytes, or `least` are left."""
        while len(self.recent) > least and sum(scene.memory for scene in self.recent) > size:
            self.recent.pop()


def _kept_for(scene: Scene) -> object:
    """What a visit keeps one scene for: the pixels of a picture; any batch."""
    return scene.picture.image if scene.picture else BatchResult
