"""What the tabs share of the page: how it looks, how events are registered, and the scripts in a visitor's browser.

Nothing here is fetched from the internet. Two tones carry all meaning (the violet of a Giemsa stain for what the model
predicts, amber for a warning), each dark enough on light and light enough on dark to be read at any size (WCAG AA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

SESSION_SECONDS = 1800
# Of every event that is no part of the public API.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# The page itself dims what was there.
QUIET = PRIVATE | {"show_progress": "hidden"}
# The second of two quick clicks counts; where a click says which, "always_last" would send the first one's data again.
LAST, EACH = QUIET | {"trigger_mode": "always_last"}, QUIET | {"trigger_mode": "multiple"}
Updates = dict[Any, Any]
"""Component → its new value."""


CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def build_theme() -> gr.themes.Base:
    """The theme of all tabs: violet on neutral grey, flat, in the reader's own system fonts."""
    return gr.themes.Base(
        primary_hue="violet",
        secondary_hue="violet",
        neutral_hue="zinc",
        radius_size="sm",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    ).set(
        body_text_color="*neutral_900",
        body_text_color_subdued="*neutral_600",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_info_text_color="*neutral_700",
        block_shadow="none",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        slider_color="*primary_700",
        slider_color_dark="*primary_300",
    )


def script(name: str) -> str:
    """A file of JavaScript beside this one, without the comment at its beginning."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))


BOX = script("folder.js") + "\n" + script("box.js")

# Something else is asked for; then, its answer is there.
BUSY = "(...given) => { document.body.dataset.lkBusy = '1'; return given }"
READY = "() => { delete document.body.dataset.lkBusy; delete document.body.dataset.lkOffline }"

ADDRESS = script("address.js")

# Scrolls to what an event has shown, where it is out of sight, as a result on a phone is.
REVEAL = """() => {
  const many = [...document.querySelectorAll('#field-summary, #batch-summary')].find((one) => one.offsetParent)
  const waits = document.querySelector('#cell-summary .lk-empty') && !document.querySelector('#propose')?.offsetParent
  const shown = waits && many || document.getElementById('cell-summary')
  const top = shown.getBoundingClientRect().top
  const hidden = document.getElementById('notice').getBoundingClientRect().bottom
  if (top < hidden || top > innerHeight * 0.7) shown.scrollIntoView({behavior: 'smooth'})
}"""
