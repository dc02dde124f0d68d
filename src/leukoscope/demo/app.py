"""The page: head, tabs and what stands below them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.demo.batch import batch_tab
from leukoscope.demo.cell import cell_tab
from leukoscope.demo.components import PictureStrip
from leukoscope.demo.endpoints import add_endpoints
from leukoscope.demo.evidence import evidence_tab
from leukoscope.demo.models import Models
from leukoscope.demo.page import PRIVATE_EVENT, Page
from leukoscope.demo.pictures import CELL_NAMES, SMEAR_NAME, example_tile
from leukoscope.demo.smear import smear_tab
from leukoscope.demo.uploads import KEPT_SECONDS, OWN_NAME, Visit, as_example
from leukoscope.reports.words import short_name
from leukoscope.synthetic import EXAMPLE_CELLS

PEOPLE_NAME = "people"
TAB_NAMES = ("cell", "smear", "batch", "evidence")
TAB_OF_EXAMPLE = {**dict.fromkeys(CELL_NAMES, "cell"), SMEAR_NAME: "smear", PEOPLE_NAME: "batch"}
ABOUT = """
**ALL**: a blast, an immature white cell, of acute lymphoblastic leukaemia. **HEM**: a normal cell, a B-cell precursor.
"""
PRIVACY = """
An upload is deleted from this server’s disk once it is read; one that is never read, within two hours; all of them when
the server stops. Its pixels stay in this server’s memory for at most two hours. A picture that the API returns is
deleted within six minutes. No visit is logged and nothing is sent elsewhere: the Hugging Face Hub is asked only for
models that you name by their Hub id. Leukoscope is open software (Apache-2.0); each model’s card names its data,
licence and how to cite it. The synthetic pictures are drawn by Leukoscope.
"""
KEEP_MODEL_IN_ADDRESS = """(model) => {
  const address = new URL(location);
  address.searchParams.set("model", model);
  history.replaceState(null, "", address);
}"""
KEEP_TAB_IN_ADDRESS = """() => window.leukoscopeAddressIsRead && setTimeout(() => {
  const tab = document.querySelector("[role=tab].selected");
  if (!tab) return;
  const name = tab.dataset.tabId;
  // Keys go on from here, where what was pressed is in another tab.
  document.activeElement === document.body && tab.focus();
  const address = new URL(location);
  name === "cell" ? address.searchParams.delete("tab") : address.searchParams.set("tab", name);
  history.replaceState(null, "", address);
})"""
ADDRESS_IS_READ = """() => {
  window.leukoscopeAddressIsRead = true;
  document.querySelector("#name a").addEventListener("click", (event) => {
    event.preventDefault();
    document.querySelector("[role=tab].selected").focus();
  });
  // Arrow keys move between tabs.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const tabs = [...event.target.closest("[role=tablist]")?.querySelectorAll("[role=tab]") ?? []];
    const next = step && tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    next?.focus();
    next?.click();
  });
}"""
"""Gradio selects the first tab before it asks for what the address names."""


def build(models: Models) -> gr.Blocks:
    """The page, not yet served."""
    names = [(short_name(name), name) for name in models.names]
    cells = [example_tile(name, name, label) for name, (label, _) in zip(CELL_NAMES, EXAMPLE_CELLS, strict=True)]
    smears = [example_tile(SMEAR_NAME, SMEAR_NAME, "smear")]
    people = [example_tile(PEOPLE_NAME, CELL_NAMES[0], "two people")]
    with gr.Blocks(title="Leukoscope", fill_width=True, analytics_enabled=False) as demo:
        visit = gr.State(Visit(), time_to_live=KEPT_SECONDS)
        with gr.Row(elem_id="head"):
            gr.Markdown("[To the tabs](#pages)\n\n# Leukoscope", elem_id="name", container=False)
            gr.Markdown(RESEARCH_NOTICE, elem_id="notice", container=False)
            model = gr.Dropdown(
                names,
                value=next(iter(models.names), ""),
                allow_custom_value=True,
                label="Model: one that is listed, or any Hub id such as owner/name",
                show_label=False,
                container=False,
                elem_id="model",
            )
        strips = {
            "cell": PictureStrip(cells, "a cell", elem_id="cell-strip", render=False),
            "smear": PictureStrip(smears, "a stained smear", elem_id="smear-strip", render=False),
            "batch": PictureStrip(people, "cells, a folder, a zip", many=True, elem_id="batch-strip", render=False),
        }
        with gr.Tabs(elem_id="pages") as pages:
            page = Page(models, model, visit, pages, strips)
            with gr.Tab("Cell", id="cell"):
                cell_tab(page)
            with gr.Tab("Smear", id="smear") as smear:
                smear_tab(page, smear)
            with gr.Tab("Batch", id="batch"):
                batch_tab(page)
            with gr.Tab("Evidence", id="evidence") as evidence:
                evidence_tab(page, evidence)
        for strip in strips.values():
            strip.change(None, strip, js="(chosen) => window.leukoscope.keepInAddress(chosen)")
        model.change(None, model, js=KEEP_MODEL_IN_ADDRESS)
        pages.change(None, js=KEEP_TAB_IN_ADDRESS)
        with gr.Column(elem_id="foot"):
            gr.Markdown(ABOUT, container=False)
            with gr.Accordion("Privacy, licences and citation", open=False):
                gr.Markdown(PRIVACY, container=False)
        add_endpoints(demo, models)

        def open_named(visit: Visit, request: gr.Request) -> dict[Any, Any]:
            return open_address(page, visit, request)

        opened = demo.load(open_named, visit, [*strips.values(), model, pages], **PRIVATE_EVENT)
        opened.then(None, js=ADDRESS_IS_READ)
    return demo.queue(default_concurrency_limit=16, max_size=64, api_open=False)


def open_address(page: Page, visit: Visit, request: gr.Request) -> dict[Any, Any]:
    """Open what the page's address names: an example, the model and the tab; by default the first cell."""
    asked = request.query_params
    name = asked.get("example", "")
    tab_of_example = TAB_OF_EXAMPLE.get(name, "cell")
    number = asked.get("cell", "")
    if number.isdecimal():
        visit.wanted[tab_of_example] = int(number) - 1
    opened: dict[Any, Any] = {
        page.strips["cell"]: as_example(CELL_NAMES[0]),
        page.model: next(iter(page.models.names), ""),
    }
    with suppress(LeukoscopeError):
        opened[page.model] = page.models.checked(asked.get("model"))
    tab = asked.get("tab", tab_of_example)
    if tab in TAB_NAMES:
        opened[page.tabs] = gr.Tabs(selected=tab)
    if name in TAB_OF_EXAMPLE:
        opened[page.strips[tab_of_example]] = as_example(name)
    elif asked.get("own") and tab in page.strips:
        opened[page.strips[tab]] = as_example(OWN_NAME)
    elif name:
        gr.Info("The example that this address names is not here: this is the first one.")
    return opened
