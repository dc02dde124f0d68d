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
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread, current_thread, main_thread

import gradio as gr
from gradio.route_utils import API_PREFIX
from gradio.utils import get_upload_folder
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from leukoscope import LeukoscopeError, __version__
from leukoscope.reports.text import QUESTION
from leukoscope.web import stage
from leukoscope.web.answer import ask, example
from leukoscope.web.batch_files import MAX_ZIP
from leukoscope.web.endpoints import add_endpoints
from leukoscope.web.model_cache import ModelCache, find_releases, listed_models
from leukoscope.web.page import EVENT, Page
from leukoscope.web.theme import CSS, HEAD, build_theme
from leukoscope.web.upload import ANSWER_FOLDER, OWN_FOLDER, delete_old, keep_uploads_apart
from leukoscope.web.visit import Visit

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
_HEAD = f'<div class="lk-head"><h1>Leukoscope</h1><p>{QUESTION}</p></div>'
_PRIVACY = (
    "An upload lies on this server's disk until it is read, then it is deleted; one that breaks off, is never read or "
    "comes from an assistant, within two hours; a picture that the API returns, within six minutes. Your visit stays "
    "in memory for half an hour after the last answer, or an hour once you close the page; what the page shows, until "
    "later sessions replace yours or the server stops, and in this tab of your browser. No visit is logged. Nothing is "
    "sent elsewhere; the Hugging Face Hub is asked only for models named by Hub id, which stay in this server's cache, "
    "and for real cells on request."
)
_CREDITS = (
    "<p>ALL: a leukaemic blast of acute lymphoblastic leukaemia. HEM: a normal precursor cell. Leukoscope is open "
    'software (<a href="https://www.apache.org/licenses/LICENSE-2.0">Apache Licence 2.0</a>); licence and citation of '
    "each model stand on its card.</p>"
)


def build_demo(models: ModelCache) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="Leukoscope", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        gr.HTML(_HEAD, elem_id="head")
        gr.HTML(stage.NOTICE, elem_id="notice")
        with gr.Tabs() as tabs:
            with gr.Tab("Cells", id="cell"):
                page = Page(models)
                add_endpoints(models)
            with gr.Tab("Evidence", id="evidence") as evidence:
                card = gr.Markdown(elem_id="card")
        evidence.select(partial(_card, models), page.visit, card, **EVENT)
        gr.HTML(
            f'<div class="lk-note">{_CREDITS}{stage.details("Privacy", stage.note(_PRIVACY))}</div>', elem_id="about"
        )
        page.open_on_load(demo, tabs)
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=QUEUE, api_open=False)


def _card(models: ModelCache, visit: Visit) -> str:
    """The card of the release whose answer is shown, without its metadata and its figures, which lie in its folder."""
    name = visit.model or next(iter(models.names), "")
    try:
        folder = models.releases.get(name) or models.predictor(name).release.folder
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


def routes() -> list[Route]:
    """Routes that the server handles itself, before Gradio does.

    Gradio would write a session's values, a visitor's picture among them, or a video to files that nothing deletes.
    """
    refused = (("deep_link", "GET"), ("process_recording", "POST"))
    return [
        Route("/healthz", _healthz),
        *(Route(f"{API_PREFIX}/{name}", _refuse, methods=[method]) for name, method in refused),
    ]


def serve(releases: Path, hub_ids: Path, host: str, port: int) -> None:
    """Serve the demo until interrupted.

    Args:
        releases: a release folder, or the folder whose sub-folders with a config.json are the embedded releases.
        hub_ids: text file of Hub ids to offer, one per line; it may be missing.
        host, port: where to listen.

    Raises:
        LeukoscopeError: the port is taken, or the folder for uploads cannot be written.
        SystemExit: with code 143, after SIGTERM.
    """
    require_upload_folder()
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
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            demo.launch(
                server_name=host,
                server_port=port,
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
                head=HEAD,
                footer_links=["api"],
                enable_monitoring=False,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError:
            raise LeukoscopeError(f"port {port} is taken; set GRADIO_SERVER_PORT to a free one") from None
        print(f"Leukoscope is ready at http://{host}:{port}", flush=True)
        # Only now: loading torch beside Gradio's start would hold the page back.
        for work in (partial(_warm_up, models), _delete_answers):
            Thread(target=work, daemon=True).start()
        demo.block_thread()
    except KeyboardInterrupt:  # before `block_thread` began, which ends the server itself
        demo.close(verbose=False)
    if _terminated:
        raise SystemExit(_terminated.pop())


_terminated: list[int] = []


def _terminate(number: int, frame: object) -> None:
    _terminated.append(128 + number)
    raise KeyboardInterrupt


def require_upload_folder() -> None:
    """Make the folder that uploads are written to.

    Raises:
        LeukoscopeError: it cannot be written, as one below the temporary folder that belongs to another user.
    """
    folder = Path(get_upload_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LeukoscopeError(
            f"{folder}: uploads cannot be written there ({error.strerror}); set GRADIO_TEMP_DIR to a folder of yours"
        ) from None


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
    """Load the models and predict once with each, so that the first visitor does not wait for it.

    On a ZeroGPU Space they are only loaded: a card is borrowed for visitors alone.
    """
    for name in models.names:
        try:
            if "SPACES_ZERO_GPU" in os.environ:
                models.predictor(name)
            else:
                ask(example(1), models, name)
        except LeukoscopeError as error:
            print(f"warning: {error}")
