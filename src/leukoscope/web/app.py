"""The demo as one page: what stands round the tabs, and how it is served.

`app.py` calls `serve`. The page is served as soon as Gradio is imported; torch and the first model load in the
background. It listens on this machine only (a Space's container listens to its proxy), is never shared, and works
offline unless a visitor types a Hub id or wants real cells.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from threading import Thread, current_thread, main_thread
from urllib.parse import urlencode

import gradio as gr
from gradio.route_utils import API_PREFIX
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from leukoscope import LeukoscopeError, __version__
from leukoscope.web import panels, result
from leukoscope.web.address import Address
from leukoscope.web.batch_files import MAX_ZIP
from leukoscope.web.model_cache import ModelCache, find_releases, listed_models
from leukoscope.web.page import CSS, LAST, QUIET, build_theme
from leukoscope.web.tabs.cell import CellTab
from leukoscope.web.text import model_text, t
from leukoscope.web.upload import ANSWER_FOLDER, OWN_FOLDER, delete_old, keep_uploads_apart

CACHE_SECONDS = 3600
# A program fetches the picture it was promised at once.
ANSWER_SECONDS, SWEEP_SECONDS = 300, 60
# glibc's malloc.h. Each of many threads would keep what it freed in an arena of its own: 20 visitors took 1.7 GB, with
# two arenas 0.8 GB.
_M_ARENA_MAX, ARENAS = -8, 2
# Requests of one kind that are served at once, some of them waiting for a model; the model cache limits how many are
# computed at once.
# Beyond the queue, visitors would only wait in vain.
AT_ONCE, QUEUE = 16, 64
# Files open at once: one for each picture while it is uploaded, of several visitors. macOS allows no more.
OPEN_FILES = 10_240
# One visitor more, and the session that was idle longest is forgotten. What a session keeps is bounded by what an
# upload may hold: a few MB for cells; a full-size field or batch some 100 MB, most of it for half an hour. All of them
# at their largest then fit into the 16 GB of a free Space.
SESSIONS = 120
HEAD = f'<div class="lk-head"><h1>Leukoscope</h1><p>{escape(t("subtitle"))}</p></div>'


def build_demo(models: ModelCache) -> gr.Blocks:
    """The page with all its tabs, not yet served."""
    with gr.Blocks(title="Leukoscope", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        with gr.Row(elem_id="header"):
            gr.HTML(HEAD, elem_id="head", padding=False)
            model = gr.Dropdown(
                models.choices(),
                value=next(iter(models.names), None),
                allow_custom_value=True,
                label=t("model"),
                container=False,
                elem_id="model",
                scale=0,
                min_width=260,
            )
        gr.HTML(panels.notice(), elem_id="notice", padding=False)
        if not models.names:
            gr.HTML(panels.message(t("no_model_yet"), t("get_a_model")), padding=False)
        with gr.Tabs() as tabs:
            cell_tab = CellTab(models, model)
            _build_card(models, model)
        about = gr.HTML(describe(models, model.value), elem_id="about-model", padding=False)
        model.change(partial(describe, models), model, about, **QUIET)
        gr.HTML(_credits(), elem_id="about", padding=False)
        cell_tab.open_on_load(demo, tabs)
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=QUEUE, api_open=False)


def _build_card(models: ModelCache, model: gr.Dropdown) -> None:
    """The tab with the model card of the release that is chosen."""
    with gr.Tab(t("tab_evidence"), id="evidence") as tab:
        card = gr.Markdown(elem_id="card")
    gr.on([tab.select, model.change], lambda choice: card_text(models, choice), model, card, **LAST)


def card_text(models: ModelCache, choice: str | None) -> str:
    """A release's card without its metadata and its figures, which lie in the release's folder."""
    try:
        folder = models.releases.get(choice or "") or models.predictor(choice).release.folder
        text = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
    except (LeukoscopeError, OSError):
        return "This release comes without a card."
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)


def serves_mcp() -> bool:
    """Whether tools can be offered to MCP clients: Gradio's extra `mcp` is installed, in a version that fits it."""
    from gradio.mcp import GradioMCPServer

    # Its class body imports what the extra brings, and goes on without.
    return hasattr(GradioMCPServer, "StreamableHTTPSessionManager")


def _credits() -> str:
    privacy = panels.details(t("privacy"), panels.note(t("privacy_text")))
    return f'<div class="lk-note">{privacy}<p>{t("credits")}</p></div>'


def describe(models: ModelCache, choice: str | None) -> str:
    """What a model was trained on, how good it is on unseen subjects, its licence and where more stands, as HTML."""
    try:
        release = models.embedded(choice or "") or models.predictor(choice).release
    except LeukoscopeError:
        return ""  # the tabs say what is wrong
    on_hub = f"https://huggingface.co/{str(choice).split('@')[0]}"
    # The card's measurements are those of the tab; an embedded release has no page of its own.
    here = f"?{urlencode({'model': choice, 'tab': 'evidence'})}"
    more = here if choice in models.releases else on_hub
    text = escape(model_text(release.metrics))
    # In a window of its own: the page loaded anew would lose the visitor's results.
    link = f'<a href="{escape(more)}" target="_blank">{t("model_card")}</a>'
    return f'<p class="lk-note">{text}{" · " if text else ""}{link}</p>'


def routes() -> list[Route]:
    """Routes that the server handles itself, before Gradio does.

    Gradio would write a session's values, a visitor's picture among them, or a video to files that nothing deletes.
    """
    refused = (("deep_link", "GET"), ("process_recording", "POST"))
    return [
        Route("/healthz", _healthz),
        *(Route(f"{API_PREFIX}/{name}", _refuse, methods=[method]) for name, method in refused),
    ]


def serve(releases: Path, hub_ids: Path, address: Address) -> None:
    """Serve the demo until interrupted; an error where the port is taken.

    Args:
        releases: a release folder, or the folder whose sub-folders with a config.json are the embedded releases.
        hub_ids: text file of Hub ids to offer, one per line; it may be missing.
    """
    models = ModelCache(find_releases(releases), listed_models(hub_ids))
    # Of the events, each with its session and time, Gradio keeps ten thousand unless it is told otherwise.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    # Not by `launch`, whose older versions do not know it.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    limit_arenas()
    demo = build_demo(models)
    keep_uploads_apart(demo)
    delete_old(OWN_FOLDER, CACHE_SECONDS)
    allow_open_files()
    if current_thread() is main_thread():
        # As Ctrl-C does: the server then ends by itself, and deletes what visitors sent. Containers are stopped so.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            demo.launch(
                server_name=address.host,
                server_port=address.port,
                share=False,
                ssr_mode=False,
                mcp_server=serves_mcp(),
                app_kwargs={"routes": routes()},
                max_file_size=MAX_ZIP,
                # A thread for every request that may run: those that wait for a model hold up no others.
                max_threads=AT_ONCE * len(demo.fns),
                state_session_capacity=SESSIONS,
                theme=build_theme(),
                css=CSS,
                footer_links=["api"],
                enable_monitoring=False,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError:
            raise LeukoscopeError(f"port {address.port} is taken; set GRADIO_SERVER_PORT to a free one") from None
        print(f"Leukoscope is ready at http://{address.host}:{address.port}", flush=True)
        # Only now: loading torch beside Gradio's start would hold the page back.
        for work in (partial(_warm_up, models), _delete_answers):
            Thread(target=work, daemon=True).start()
        demo.block_thread()
    except KeyboardInterrupt:  # before `block_thread` began, which ends the server itself
        demo.close(verbose=False)


def allow_open_files() -> None:
    """Let this process have `OPEN_FILES` files open, or as many as the system allows; many begin with 256 or 1024."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def limit_arenas() -> None:
    """Let the threads of this process share two of glibc's arenas; does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


def _delete_answers() -> None:
    while True:
        delete_old(ANSWER_FOLDER, ANSWER_SECONDS)
        time.sleep(SWEEP_SECONDS)


async def _healthz(request: Request) -> JSONResponse:
    """Report that the server runs, whether or not a model is loaded yet, and without waiting for a thread."""
    return JSONResponse({"status": "ok", "version": __version__})


def _refuse(request: Request) -> JSONResponse:
    return JSONResponse({"detail": "This server keeps nothing of a visit; save the result from the page."}, 404)


def _warm_up(models: ModelCache) -> None:
    """Load the first model and predict once, so that the first visitor does not wait for imports."""
    if not models.names:
        return
    try:
        first = result.predict_cell(models, *result.example(0), models.names[0])
        first.pictures(first.prediction.most_probable, result.OPACITY)
    except LeukoscopeError as error:
        print(f"warning: {error}")
