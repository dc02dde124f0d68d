"""What the tabs that predict have in common: one result, which a message replaces when there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache

SESSION_SECONDS = 1800
# Of every event that is no part of the public API.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
Updates = dict[Any, Any]
"""Component → its new value."""


class ResultTab:
    """A tab that shows one result at a time; each kind of result has its own subclass.

    Args:
        models: where models come from.
        model: the picker that all tabs share.

    Attributes:
        result: the result shown; lives in a visitor's session, in memory only.
        summary: the result in a sentence, or a message in its place.
        outputs: every component that a new result changes.
        hint: what to do for a result.
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
            return self.clear(panels.message("This did not work", str(error)))

    def clear_on_model_change(self, running: Sequence[Any] = ()) -> None:
        """Delete the result of the model chosen before; it would stand below the name of another.

        Args:
            running: events to cancel.
        """

        def clear(choice: str | None) -> Updates:
            return self.clear(panels.placeholder(f"The model is now {choice}. {self.hint}"))

        self.model.change(clear, self.model, self.outputs, cancels=list(running), show_progress="hidden", **PRIVATE)
