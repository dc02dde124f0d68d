"""Events of a Gradio page, found by the function they call."""

from __future__ import annotations

from typing import Any

import gradio as gr


def event(demo: gr.Blocks, name: str) -> Any:
    """The one event whose function has this name; an error where none or several have it."""
    (found,) = (one for one in demo.fns.values() if getattr(one.fn, "__name__", "") == name)
    return found
