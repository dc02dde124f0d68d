"""What the tabs that predict have in common: one result, which a message replaces when there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.text import t
from leukoscope.web.upload import file_name

SESSION_SECONDS = 1800
# Of every event that is no part of the public API.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
Updates = dict[Any, Any]
"""Component → its new value."""


_REFUSAL = """const refuse = (event) => {
  const file = (event.dataTransfer ?? event.target).files?.[0]
  if (!file || !event.target.closest('#UPLOAD') || file.type.startsWith('image/')) return
  event.preventDefault(), event.stopImmediatePropagation()
  if (event.type == 'change') event.target.value = ''
  trigger('select', {index: 0, value: file.name})
}
for (const kind of ['drop', 'change']) document.addEventListener(kind, refuse, true)"""


def refusal(upload: str) -> str:
    """JavaScript of an HTML component: tell its `select` of a file that is no picture, before Gradio drops it silently.

    Args:
        upload: id of the element that files are given to.
    """
    return _REFUSAL.replace("UPLOAD", upload)


_REVEAL = """() => {
  const shown = document.getElementById('SHOWN'), top = shown.getBoundingClientRect().top
  const covered = document.getElementById('notice').getBoundingClientRect().bottom
  if (top < covered || top > innerHeight * 0.7) shown.scrollIntoView({behavior: 'smooth'})
}"""


def reveal(shown: str) -> str:
    """JavaScript that scrolls to the element of this id where it is out of sight, as a result on a phone is."""
    return _REVEAL.replace("SHOWN", shown)


class ResultTab:
    """A tab that shows one result at a time; each kind of result has its own subclass.

    Args:
        models: where models come from.
        model: the picker that all tabs share.

    Attributes:
        hint: key of the text that says what to do for a result.
        result: the result shown; lives in a visitor's session, in memory only.
        summary: the result in a sentence, or a message in its place.
        outputs: every component that a new result changes.
    """

    hint: str
    result: gr.State
    summary: gr.HTML
    outputs: list[Any]

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        self.models, self.model = models, model

    def clear(self, html: str) -> Updates:
        """Updates that show HTML in place of a result, which is deleted."""
        raise NotImplementedError

    def attempt(self, predict: Callable[[], Updates]) -> Updates:
        """Updates that show a result, or why there is none."""
        try:
            return predict()
        except LeukoscopeError as error:
            return self.clear(panels.message(t("failed"), str(error)))

    def refuse_others(self) -> None:
        """Say in the result's place that a file is no picture; the summary has the JavaScript of `refusal`."""

        def refuse(given: gr.EventData) -> Updates:
            return self.clear(panels.message(t("failed"), t("not_an_image", name=file_name(str(given.value)))))

        self.summary.select(refuse, None, self.outputs, show_progress="hidden", **PRIVATE)

    def clear_on_model_change(self, running: Sequence[Any] = ()) -> None:
        """Delete the result of the model chosen before; it would stand below the name of another.

        Args:
            running: events to cancel.
        """

        def clear(choice: str | None) -> Updates:
            return self.clear(panels.placeholder(t("model_is_now", model=choice, hint=t(self.hint))))

        self.model.change(clear, self.model, self.outputs, cancels=list(running), show_progress="hidden", **PRIVATE)
