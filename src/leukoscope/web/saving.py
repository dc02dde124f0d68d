"""Saving a result from the page without a file on the server: the bytes travel with the answer, the browser keeps them.

A button's handler gives a `File`; a script on the page, the only one of its kind, hands it to the browser's downloads.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gradio as gr
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.web.words import TOO_LONG_AGO

# Through a Blob, because browsers refuse to save long data: addresses.
_SAVE = """(file) => {
  if (!file || !file.name) return
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.kind}))
  link.download = file.name
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}"""


@dataclass(frozen=True)
class File:
    """A file to be saved by the visitor: its name, media type and content."""

    name: str
    kind: str
    content: bytes

    def to_dict(self) -> dict[str, str]:
        """As it travels to the page."""
        return {"name": self.name, "kind": self.kind, "content": base64.b64encode(self.content).decode()}


def save_button(label: str, make: Callable[..., File], inputs: list[Any], **options: Any) -> gr.Button:
    """A button that saves what `make` gives for its inputs, the first of which is the result.

    An error is told in passing, since there is no result to stand in its place; so is a result that was forgotten.
    """
    button = gr.Button(label, size="sm", min_width=120, **options)
    # By a class of ours: Gradio shows a hidden component again, as an empty box, when its value changes.
    parcel = gr.JSON(container=False, elem_classes="lk-parcel")

    def pack(*values: Any) -> dict[str, str]:
        try:
            if values[0] is None:
                raise LeukoscopeError(TOO_LONG_AGO)
            return make(*values).to_dict()
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    packed = button.click(pack, inputs, parcel, **hidden)
    # Emptied afterwards: a file of megabytes need not stay in the page.
    packed.then(None, parcel, js=_SAVE, api_visibility="private").then(lambda: None, None, parcel, **hidden)
    return button


def in_a_file_of_its_own(image: Image.Image) -> Image.Image:
    """A copy that Gradio's cache shares with no other answer, and that carries the research notice.

    Gradio names a picture's file by its bytes, PNG texts among them, and writes an equal one anew, which breaks off the
    download of whoever is being sent it.
    """
    own = image.copy()
    own.info |= {"Disclaimer": RESEARCH_NOTICE, "Answer": uuid4().hex}
    return own
