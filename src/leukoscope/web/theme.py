"""How the demo looks: one theme and one style sheet for every tab, made of system fonts and colours on the page itself.

Nothing here is fetched from the internet. Two tones carry all meaning (the violet of a Giemsa stain for what the model
predicts, amber for a warning), each dark enough on light and light enough on dark to be read at any size (WCAG AA).
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def build_theme() -> gr.themes.Base:
    """The theme of all tabs: violet on neutral grey, flat, in the reader's own system fonts."""
    return gr.themes.Base(
        primary_hue="violet",
        secondary_hue="violet",
        neutral_hue="zinc",
        radius_size="sm",
        font=SYSTEM_FONTS,
        font_mono=SYSTEM_MONO,
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
