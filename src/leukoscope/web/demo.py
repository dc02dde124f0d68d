"""The demo as one page: what stands round the tabs, and how it is served.

`app.py` calls `serve`. The page answers as soon as Gradio is imported; torch and the first model load behind it. It
listens on this machine only (a Space's container listens to its proxy), is never shared, and asks nothing of the
internet unless a visitor types a Hub id or asks for real cells.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import gradio as gr
from gradio.route_utils import API_PREFIX
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from leukoscope import LeukoscopeError, __version__
from leukoscope.web import batch, evidence, field_of_view, look, one_cell, panels, use_from_code
from leukoscope.web.address import Address
from leukoscope.web.batch_files import MAX_ZIP
from leukoscope.web.shelf import HOW_TO_GET_ONE, Shelf, find_releases, listed_models
from leukoscope.web.theme import CSS, build_theme
from leukoscope.web.upload import keep_uploads_apart

CACHE_SECONDS = 3600
# Requests of one kind that are served at once, some of them waiting for a model; the shelf holds how many are computed.
# Beyond the queue, visitors would only wait in vain.
AT_ONCE, QUEUE = 16, 64
# One visitor more, and the session that was idle longest is forgotten. What a session keeps is bounded by what an
# upload may hold: a few MB for cells; a full-size field or batch some 100 MB, most of it for half an hour. All of them
# at their largest then fit into the 16 GB of a free Space.
SESSIONS = 120
HEAD = """<div class="lk-head"><h1>Leukoscope</h1>
<p>What a classifier says about white blood cells, where it looked, and how far to trust it.</p></div>"""
PRIVACY = (
    "What you upload lies on this server's disk until it has been read, and is then deleted. An upload that is broken "
    "off, a picture that the API is given by a web address or by an assistant, and a picture that the API answers with "
    "are deleted within two hours. In memory, pictures and answers are kept for half an hour after the last answer, or "
    "for an hour if you close the page; what the page shows, your picture among it, stays in the server's memory until "
    "later visitors' sessions push yours out or the server stops. What you save goes to your browser without touching "
    "the server's disk. No log of visits is written. No picture is sent elsewhere: the server asks the Hugging Face "
    "Hub for nothing but a model named by Hub id, which stays in its Hub cache on disk, and for a few real "
    "cells when a visitor wants them."
)
# Gradio names some buttons otherwise than what is written on them, which who speaks to the computer cannot know.
NAMED_AS_WRITTEN = """() => {
  const rename = () => document.querySelectorAll('.upload-container[aria-label], .thumbnail-item[aria-label]')
    .forEach((button) => button.removeAttribute('aria-label'))
  new MutationObserver(rename).observe(document.body, {subtree: true, childList: true})
  rename()
}"""
CREDITS = (
    'Leukoscope is open software under the <a href="https://www.apache.org/licenses/LICENSE-2.0">Apache Licence '
    "2.0</a>. What each model was trained on, its licence and how to cite it stand under “Evidence”."
)


def build_demo(shelf: Shelf) -> gr.Blocks:
    """The page with all its tabs, not yet served."""
    with gr.Blocks(title="Leukoscope", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        gr.HTML(HEAD, padding=False)
        gr.HTML(panels.notice(), elem_id="notice", padding=False)
        model = gr.Dropdown(
            shelf.names,
            value=next(iter(shelf.names), None),
            allow_custom_value=True,
            label="Model",
            info="A release that comes with the app, or any Hub id: owner/name or owner/name@revision",
        )
        if not shelf.names:
            gr.HTML(panels.message("No model yet", HOW_TO_GET_ONE), padding=False)
        with gr.Tabs() as tabs:
            cell_view = one_cell.build_tab(shelf, model)
            field_of_view.build_tab(shelf, model, tabs, cell_view)
            batch.build_tab(shelf, model, tabs, cell_view)
            evidence.build_tab(shelf, model)
            use_from_code.build_tab(demo, model)
        gr.HTML(f'<p class="lk-note">{PRIVACY}</p><p class="lk-note">{CREDITS}</p>', padding=False)
        demo.load(None, js=NAMED_AS_WRITTEN, api_visibility="private")
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=QUEUE, api_open=False)


def routes() -> list[Route]:
    """What the server answers itself, before Gradio does.

    Gradio would write a session's values, a visitor's picture among them, or a video to files that nothing deletes.
    """
    refused = (("deep_link", "GET"), ("process_recording", "POST"))
    return [
        Route("/healthz", _healthz),
        *(Route(f"{API_PREFIX}/{name}", _refuse, methods=[method]) for name, method in refused),
    ]


def serve(releases: Path, models: Path, address: Address) -> None:
    """Serve the demo until interrupted.

    Args:
        releases: folder whose sub-folders with a config.json are the embedded releases.
        models: text file of Hub ids to offer, one a line; it may be missing.

    Raises:
        LeukoscopeError: the port is taken.
    """
    shelf = Shelf(find_releases(releases), listed_models(models))
    # Of the events, each with its session and time, Gradio keeps ten thousand unless it is told otherwise.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    demo = build_demo(shelf)
    keep_uploads_apart(demo)
    try:
        demo.launch(
            server_name=address.host,
            server_port=address.port,
            share=False,
            ssr_mode=False,
            mcp_server=use_from_code.serves_mcp(),
            app_kwargs={"routes": routes()},
            max_file_size=MAX_ZIP,
            state_session_capacity=SESSIONS,
            theme=build_theme(),
            css=CSS,
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError:
        raise LeukoscopeError(f"port {address.port} is taken; set GRADIO_SERVER_PORT to a free one") from None
    print(f"Leukoscope is ready at http://{address.host}:{address.port}", flush=True)
    # Only now: loading torch beside Gradio's start would hold the page back.
    Thread(target=_warm_up, args=(shelf,), daemon=True).start()
    demo.block_thread()


def _healthz(request: Request) -> JSONResponse:
    """For whatever watches the server: it answers, whether or not a model is loaded yet."""
    return JSONResponse({"status": "ok", "version": __version__})


def _refuse(request: Request) -> JSONResponse:
    return JSONResponse({"detail": "This server keeps nothing of a visit; save the result from the page."}, 404)


def _warm_up(shelf: Shelf) -> None:
    """Load the first model and answer once, so that the first visitor does not wait for imports."""
    if not shelf.names:
        return
    name = shelf.names[0]
    try:
        first = look.examine(shelf, *look.example(0), name)
        look.draw(first, first.prediction.most_probable, look.OPACITY)
    except LeukoscopeError as error:
        print(f"warning: {error}")
