"""How the page looks, and the scripts in a visitor's browser; nothing of it is fetched from the internet.

The violet of a Giemsa stain marks what can be used, amber warns, and a class has its own colour everywhere; each is
dark enough on light and light enough on dark to be read at any size (WCAG AA).
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from leukoscope.reports.text import QUESTION

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# Seen before the page's scripts have come over a slow line; it moves nothing as it comes and goes.
HEAD = f"""<style>body:not(:has(.gradio-container h1))::before {{
  content: "Leukoscope. {QUESTION} For research only. The page is loading …";
  position: fixed; inset: 0 0 auto; padding: 1.2rem; font: 600 1.05rem/1.5 system-ui, sans-serif;
  color: #6b3fa0; }}</style>"""


def build_theme() -> gr.themes.Base:
    """The theme of the page: violet on neutral grey, flat, in the reader's own system fonts."""
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
    )


def script(name: str) -> str:
    """A file of JavaScript beside this one, without the comment at its beginning."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))
