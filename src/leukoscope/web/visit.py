"""What one visitor is shown, and how a step of a question changes it; lives in the session, in memory only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.web import upload
from leukoscope.web.answer import Answer, Picture, Row
from leukoscope.web.batch import BatchResult
from leukoscope.web.smear import Smear

# Keep the last pictures of a visit: together as many pixels as one cell's upload may have.
RECENT_CELLS = 8
RECENT_PIXELS = upload.CELL_LIMIT.pixels
DELETED = "A result is deleted after half an hour, or when the server starts anew. Give the picture again."
EXAMPLE_SMEAR = "smear"  # source of the synthetic smear, which has a tile of its own
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
        forms: what the model says of the cell without each part.
        source: the act that the content came by, such as "example:1"; "" for an upload.
        readings: the same batch as other models read it.
    """

    content: Content | None = None
    behind: Smear | BatchResult | None = None
    cell: int | None = None
    opened: int | None = None
    view: str = ""
    label: str = ""
    forms: Mapping[str, Row] = field(default_factory=dict)
    source: str = ""
    readings: tuple[BatchResult, ...] = ()

    def open_row(self, number: int) -> Scene:
        """Open a row of the answer, in the view that it opens with."""
        return replace(self, opened=number, view="", label="", forms={})

    def showing(self, kind: type[_T]) -> _T:
        """The content; an error where it is not of this kind any more."""
        if not isinstance(self.content, kind):
            raise LeukoscopeError(DELETED)
        return self.content

    @property
    def row(self) -> Row:
        """The open row; an error where nothing is open any more."""
        rows = self.showing(Answer).rows
        if self.opened is None or self.opened >= len(rows):
            raise LeukoscopeError(DELETED)
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
    def back(self) -> str:
        """What a cell was opened from, in a word; of a whole smear, its cells; "" for nothing."""
        if self.behind is None:
            return ""
        if isinstance(self.behind, Smear) and self.cell is not None:
            return "smear"
        return "cells"


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

    asked: int = 0  # number of the newest question
    clicked: int = 0  # number that the page gave the newest click
    scene: Scene = field(default_factory=Scene)
    recent: list[Scene] = field(default_factory=list)  # of the last pictures, the newest first
    added: list[str] = field(default_factory=list)  # Hub ids of models that the visitor named
    real: str = ""  # Hub id of the data set whose real cells are offered

    def show(self, scene: Scene) -> None:
        """Show a scene, and keep it once its answer is complete, unless its cell is opened from a smear or batch."""
        self.scene = scene
        content = scene.content
        if isinstance(content, Smear) or (isinstance(content, Answer) and content.rows and content.complete):
            if scene.cell is None and scene.source != EXAMPLE_SMEAR:
                self.remember(scene)
        elif isinstance(content, BatchResult):
            self._forget(least=0)  # a session holds a large smear or a large batch, not both

    def remember(self, scene: Scene) -> None:
        """Keep the scene of a picture, once for each."""
        others = [other for other in self.recent if _image(other) is not _image(scene)]
        self.recent = [replace(scene, view="", label="", forms={}), *others][:RECENT_CELLS]
        self._forget(least=1)

    def _forget(self, least: int) -> None:
        """Forget the oldest pictures until the rest is small enough, or `least` are left."""
        while len(self.recent) > least and sum(math.prod(_image(scene).size) for scene in self.recent) > RECENT_PIXELS:
            self.recent.pop()


def _image(scene: Scene) -> Image.Image:
    """The pixels of a scene that is kept."""
    assert scene.picture is not None  # neither many cells nor nothing is kept
    return scene.picture.image
