"""The demo: what stands round the tabs, the public API at /predict, /field and /batch, and how all is served.

`app.py` calls `serve`. The page is served as soon as Gradio is imported; torch and the first model load in the
background. It listens on this machine only (a Space's container listens to its proxy), is never shared, and works
offline unless a visitor types a Hub id or wants real cells.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread, current_thread, main_thread
from typing import Any

import gradio as gr
from gradio.mcp import GradioMCPServer
from gradio.route_utils import API_PREFIX
from gradio.themes.utils.fonts import LocalFont
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from leukoscope import RESEARCH_NOTICE, ConfigError, LeukoscopeError, __version__
from leukoscope.inference.smear import draw_reading
from leukoscope.reports.text import meanings_text
from leukoscope.synthetic import EXAMPLE_CELLS
from leukoscope.web import export, stage, upload
from leukoscope.web.answer import Picture, ask, example, under_small_changes
from leukoscope.web.batch import columns, label_metrics, predict_files
from leukoscope.web.batch_files import MAX_ZIP
from leukoscope.web.content_policy import ContentPolicy
from leukoscope.web.drawing import part, render
from leukoscope.web.evidence import evidence
from leukoscope.web.link_preview import PREVIEW_PATH, PREVIEW_PICTURE, LinkPreview
from leukoscope.web.memory import limit_arenas
from leukoscope.web.model_cache import BATCHES_AT_ONCE, ZERO_GPU, ModelCache, find_releases, listed_models
from leukoscope.web.page import PAGE_EVENT, Page
from leukoscope.web.request_checks import RequestChecks, check_inputs
from leukoscope.web.smear import read_smear
from leukoscope.web.upload import ANSWER_FOLDER, OWN_FOLDER, delete_old, keep_uploads_apart
from leukoscope.web.visit import Visit
from leukoscope.web.work_queue import WARM_UP, Question, asking

CACHE_SECONDS = 3600
ANSWER_SECONDS = 300  # a program fetches the picture of its answer at once
SWEEP_SECONDS = 60
# Requests of one kind that are served at once, some of them waiting for a model; the model cache limits how many are
# computed at once. Beyond the queue, visitors would only wait in vain.
AT_ONCE = 16
QUEUE = 64
# Files open at once: one for each picture while it is uploaded, of several visitors. macOS allows no more.
OPEN_FILES = 10_240
# One visitor more, and the session that was idle longest is forgotten. A session keeps a few MB for cells, some 100 MB
# for the largest field or batch: all of them together fit into the 16 GB of a free Space.
SESSIONS = 120
# Seen before the page's scripts have come over a slow line; it moves nothing as it comes and goes.
_LOADING = "Leukoscope. For research only. The page is loading …"
_PRIVACY = {
    "Uploads": (
        "An upload is deleted from this server's disk once it is read. One that breaks off, is never read or comes "
        "from an assistant is deleted within two hours."
    ),
    "API": "A picture that it returns is deleted within six minutes.",
    "Your visit": (
        "It stays in memory for half an hour after the last answer, or an hour once you close the page. What the page "
        "shows stays until later sessions replace yours or the server stops, and in this tab of your browser."
    ),
    "Elsewhere": (
        "No visit is logged, and nothing is sent elsewhere. The Hugging Face Hub is asked only for models named by Hub "
        "id, which stay in this server's cache, and for real cells on request."
    ),
}


def build_demo(models: ModelCache) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="Leukoscope", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        # Without a model, those of the examples.
        labels = models.first_labels() or tuple(dict.fromkeys(label for label, _ in EXAMPLE_CELLS))
        top = part(stage.head(labels), "head", "head.js")
        with gr.Column(elem_id="cells"):
            page = Page(models)
            add_endpoints(models)
            part(render("foot.html", classes=meanings_text(labels), privacy=_PRIVACY), "about")
        with gr.Column(elem_id="evidence-page"):
            table = part("", "evidence", "act.js", "reading.js")
            card = gr.Markdown(elem_id="card")
        with gr.Column(elem_id="api-page"):
            part(api_page(models.names), "api", "reading.js")

        def on_evidence(visit: Visit, event: gr.EventData) -> tuple[str, str]:
            """The page of all models, with the card of the one that is named, or whose answer is shown."""
            _, _, named = str(getattr(event, "value", "")).partition(":")
            return evidence(models, [*models.names, *visit.added], named or visit.scene.model)

        for component in (top, table):
            component.select(on_evidence, page.visit, [table, card], **PAGE_EVENT)
        page.open_on_load(demo)
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=QUEUE, api_open=False)


def api_page(names: Sequence[str]) -> str:
    """The calls that a program needs, to be copied; they ask the first of these models."""
    model = next(iter(names), "owner/name")
    source, _, _ = model.partition("@")
    if "/" not in source:
        source = f"path/to/{source}"
    return render("api.html", names=names, model=model, source=source)


class Endpoints:
    """The public API, which Gradio describes by these signatures and docstrings, and offers to assistants."""

    def __init__(self, models: ModelCache) -> None:
        self.models = models

    def predict(
        self, image: str | None, model: str | None
    ) -> tuple[str, dict[str, float], str | None, str, dict[str, Any]]:
        """Classify one white blood cell, with the model's map of the most probable class. For research only.

        Args:
            image: the picture of one cell, cut out or from a smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        with upload.gradio_errors():
            row = ask(Picture.opened(*upload.read_upload(image)), self.models, self.models.or_first(model))
            summary = row.summary()
            _, overlaid = row.pictures(row.known.most_probable)
            decision = {**row.known.decision.to_dict(), "ood_score": row.known.checks.ood_score}
            decision["map_check"] = row.known.map_check.to_dict() if row.maps else None
            grad_cam = export.png_answer(overlaid) if overlaid else None
        return decision["outcome"], row.known.probabilities, grad_cam, summary, decision

    def field(
        self, image: str | None, model: str | None, um_per_pixel: float | None = None
    ) -> tuple[dict[str, Any], str]:
        """Find and classify the white blood cells of a field of view. For research only.

        Args:
            image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
            um_per_pixel: micrometres per pixel; 0 has the scale guessed from its red cells or nuclei.
        """
        with upload.gradio_errors():
            picture = Picture.opened(*upload.read_upload(image, upload.FIELD_LIMIT), um_per_pixel=um_per_pixel)
            smear = read_smear(self.models, picture, self.models.or_first(model))
            boxes = export.png_answer(draw_reading(smear.picture.image, smear.reading))
        return smear.reading.to_dict(), boxes

    def batch(self, files: list[str] | None, model: str | None) -> dict[str, Any]:
        """Classify many cells, with one prediction for each subject where subjects are known. For research only.

        Args:
            files: pictures of single cells, or zips of them; a table among them (.csv, .tsv, .jsonl, .parquet) may name
                subjects and classes, and so may folders.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        with upload.gradio_errors():
            predicted = predict_files(self.models, files, self.models.or_first(model))
            measured, notes = label_metrics(predicted)
        columns_by_name = columns(predicted)
        rows = zip(*columns_by_name.values(), strict=True)
        return {
            "cells": [dict(zip(columns_by_name, row, strict=True)) for row in rows],
            "subject_predictions": [subject.to_dict() for subject in predicted.subject_predictions],
            "figures": [list(row) for row in measured],
            "notes": [*predicted.warnings, *notes, *predicted.problems],
            "notice": RESEARCH_NOTICE,
        }


def add_endpoints(models: ModelCache) -> None:
    """Add the named endpoints to the Blocks being built."""
    endpoints = Endpoints(models)
    with gr.Group(visible=False):
        chosen = gr.Dropdown(models.names, value=next(iter(models.names), None), allow_custom_value=True, label="model")
        answers = [
            gr.Textbox(label="outcome"), gr.JSON(label="probabilities"), gr.Image(label="grad_cam", format="png"),
            gr.Textbox(label="text"), gr.JSON(label="decision"),
        ]  # fmt: skip
        cell = upload.cell_upload(label="image")
        picture = upload.cell_upload(label="image")
        gr.Button("predict").click(endpoints.predict, [cell, chosen], answers, api_name="predict")
        inputs = [picture, chosen, gr.Number(0, label="um_per_pixel")]
        boxes = [gr.JSON(label="reading"), gr.Image(label="boxes", format="png")]
        gr.Button("field").click(endpoints.field, inputs, boxes, api_name="field")
        files = upload.files_upload(label="files")
        gr.Button("batch").click(
            endpoints.batch, [files, chosen], gr.JSON(label="answers"), api_name="batch", concurrency_id="batch",
            concurrency_limit=BATCHES_AT_ONCE,
        )  # fmt: skip


def page_head() -> str:
    """The page's style, in the document's head: Gradio would scope a rule given to it to inside its own elements."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    loading = f'body:not([data-lk-fonts])::before {{ content: "{_LOADING}"; }}'
    return f"<style>{style}\n{loading}</style>"


def build_theme() -> gr.themes.Base:
    """The page's own colours for what Gradio draws, and the font that Gradio brings: nothing is fetched."""
    return gr.themes.Base(
        primary_hue="violet",
        secondary_hue="violet",
        neutral_hue="zinc",
        radius_size="none",
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="var(--lk-ground)",
        body_background_fill_dark="var(--lk-ground)",
        body_text_color="var(--lk-ink)",
        body_text_color_dark="var(--lk-ink)",
        body_text_color_subdued="var(--lk-quiet)",
        body_text_color_subdued_dark="var(--lk-quiet)",
        background_fill_primary="var(--lk-panel)",
        background_fill_primary_dark="var(--lk-panel)",
        background_fill_secondary="var(--lk-ground)",
        background_fill_secondary_dark="var(--lk-ground)",
        border_color_primary="var(--lk-line)",
        border_color_primary_dark="var(--lk-line)",
        block_background_fill="none",
        block_background_fill_dark="none",
        block_border_width="0",
        block_border_width_dark="0",
        block_padding="0",
        block_shadow="none",
        block_shadow_dark="none",
        block_radius="0",
        layout_gap="0",
        link_text_color="var(--lk-accent)",
        link_text_color_dark="var(--lk-accent)",
        link_text_color_visited="var(--lk-accent)",
        link_text_color_visited_dark="var(--lk-accent)",
        link_text_color_hover="var(--lk-accent)",
        link_text_color_hover_dark="var(--lk-accent)",
        color_accent="var(--lk-accent)",
        table_border_color="var(--lk-line)",
        table_border_color_dark="var(--lk-line)",
        code_background_fill="var(--lk-ground)",
        code_background_fill_dark="var(--lk-ground)",
    )


def build_words() -> gr.I18n:
    """What Gradio tells a screen reader when an answer has come: it has no words for it, and would tell the key."""
    return gr.I18n(en={"common.complete": "Done"})


def routes() -> list[Route]:
    """Routes that the server handles itself, before Gradio does.

    Gradio would write a session's values, a visitor's picture among them, or a video to files that nothing deletes.
    """
    refused = {"deep_link": "GET", "process_recording": "POST"}
    closed = [Route(f"{API_PREFIX}/{name}", _refuse, methods=[method]) for name, method in refused.items()]
    return [Route("/healthz", _healthz), Route(PREVIEW_PATH, _preview_picture), *closed]


def app_options(demo: gr.Blocks) -> dict[str, Any]:
    """What the server adds to Gradio's: its own routes, headers and tags, and checks of every request."""
    layers = [Middleware(ContentPolicy), Middleware(LinkPreview), Middleware(RequestChecks, demo=demo)]
    return {"routes": routes(), "middleware": layers}


def serve(releases: Path, hub_ids: Path, host: str, port: int) -> None:
    """Serve the demo until interrupted, with the models of `find_releases` and `listed_models`.

    Raises:
        LeukoscopeError: the address cannot be listened at, the folder for uploads cannot be written, or the installed
            Gradio is not supported.
        SystemExit: with code 143, after SIGTERM.
    """
    require_upload_folder()
    if ZERO_GPU in os.environ:
        import spaces

        # The Hub stops a ZeroGPU Space that has no such function. It never runs: the processor answers at once, and
        # what a GPU is borrowed for is counted against the visitor.
        spaces.GPU(_warm_up)
    models = ModelCache(find_releases(releases), listed_models(hub_ids))
    # Gradio keeps ten thousand events, each with its session and time, and in newer versions the runs.
    os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_RUN_HISTORY": "False"}
    limit_arenas()
    demo = build_demo(models)
    keep_uploads_apart(demo)
    check_inputs(demo)
    require_free_address(host, port)
    delete_old(OWN_FOLDER, CACHE_SECONDS)
    allow_open_files()
    if current_thread() is main_thread():
        # As Ctrl-C does: the server then ends by itself, and deletes what visitors sent. Containers are stopped so.
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _launch(demo, host, port)
        print(f"Leukoscope is ready at http://{host}:{port}", flush=True)
        # Only now: loading torch beside Gradio's start would hold the page back.
        for work in (partial(_warm_up, models), _delete_answers):
            Thread(target=work, daemon=True).start()
        demo.block_thread()
    except KeyboardInterrupt:  # before `block_thread` began, which ends the server itself
        demo.close(verbose=False)
    if _terminated:
        raise SystemExit(_terminated.pop())


def _launch(demo: gr.Blocks, host: str, port: int) -> None:
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            # Where Gradio's extra `mcp` is installed: the class's body imports what it brings, and goes on without.
            mcp_server=hasattr(GradioMCPServer, "StreamableHTTPSessionManager"),
            app_kwargs=app_options(demo),
            max_file_size=MAX_ZIP,
            # A thread for every request that may run: those that wait for a model hold up no others.
            max_threads=AT_ONCE * len(demo.fns),
            state_session_capacity=SESSIONS,
            theme=build_theme(),
            head=page_head(),
            i18n=build_words(),
            footer_links=["api"],
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        require_free_address(host, port)
        raise LeukoscopeError(f"the server cannot start ({error})") from None


_terminated: list[int] = []


def _terminate(number: int, frame: object) -> None:
    _terminated.append(128 + number)
    raise KeyboardInterrupt


def require_upload_folder() -> None:
    """Make the folder that uploads are written to; an error where it belongs to another user."""
    folder = Path(get_upload_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder}: uploads cannot be written there ({error.strerror}); set GRADIO_TEMP_DIR to a folder of yours"
        ) from None


def require_free_address(host: str, port: int) -> None:
    """Check that the server can listen at an address; Gradio calls every reason a taken port.

    Raises:
        LeukoscopeError: the port is taken or reserved, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as the server does; on Windows, it would share a port that is taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(_address_problem(error, host, port)) from None


def _address_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; set GRADIO_SERVER_PORT to a free one"
    if error.errno == errno.EACCES:
        return f"port {port}: this user may not listen there; set GRADIO_SERVER_PORT to 1024 or more"
    return f"{host}: is no address of this machine ({error.strerror}); give one, such as 127.0.0.1"


def allow_open_files() -> None:
    """Let this process have `OPEN_FILES` files open, or as many as the system allows; many begin with 256 or 1024."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _delete_answers() -> None:
    while True:
        delete_old(ANSWER_FOLDER, ANSWER_SECONDS)
        time.sleep(SWEEP_SECONDS)


async def _healthz(request: Request) -> JSONResponse:
    """Report that the server runs, whether or not a model is loaded yet, and without waiting for a thread."""
    return JSONResponse({"status": "ok", "version": __version__})


async def _preview_picture(request: Request) -> FileResponse:
    """The picture that another site shows of a link to the page."""
    return FileResponse(PREVIEW_PICTURE)


def _refuse(request: Request) -> JSONResponse:
    return JSONResponse({"detail": "This server keeps nothing of a visit; save the result from the page."}, 404)


def _warm_up(models: ModelCache) -> None:
    """Load the models and predict once with each, for which no visitor should wait: decisions, maps, small changes."""
    asking.set(Question(WARM_UP))
    names = models.soonest_first(models.names)
    failed = set()
    for explain in (False, True):
        for name in names:
            if name in failed:
                continue
            try:
                ask(example(1), models, name, explain=explain)
            except LeukoscopeError as error:
                failed.add(name)
                print(f"warning: {error}")
    # The first of these loads torch, which takes seconds.
    for name in names:
        if name not in failed:
            row = ask(example(1), models, name)
            if row.changes_pending:
                under_small_changes(row, models)
