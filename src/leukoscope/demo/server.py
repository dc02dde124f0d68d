"""How the page is served: its address, its own routes, its start and its end.

It listens on this machine only (a Space's container listens to its proxy), is never shared, and works offline unless a
visitor names a model of the Hub. Torch and the models load in the background.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread, current_thread, main_thread

import gradio as gr
from gradio.mcp import GradioMCPServer
from gradio.route_utils import API_PREFIX, upload_fn
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from leukoscope import ConfigError, LeukoscopeError, __version__
from leukoscope.demo import uploads
from leukoscope.demo.app import build
from leukoscope.demo.cell import answers
from leukoscope.demo.components import DEMO_FOLDER
from leukoscope.demo.guard import PREVIEW_ROUTE, Guard
from leukoscope.demo.models import ZERO_GPU, Models, find_releases, listed_models
from leukoscope.demo.pictures import CELL_NAMES, examples
from leukoscope.demo.theme import build_theme

AT_ONCE = 16  # events of one kind; the queues of cells, smears and batches have limits of their own
SESSIONS = 120
_M_ARENA_MAX = -8  # of malloc.h


async def _upload(request: Request) -> Response:
    """Receive files, each request's in a folder with a random name that only its sender is told."""
    folder = uploads.folder() / secrets.token_hex(16)
    try:
        files, _, _ = await upload_fn(request, str(folder), uploads.MAX_ZIP, None, force_move=True)
    except (MultiPartException, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return JSONResponse({"detail": str(error)}, 413 if "size" in str(error) else 400)
    return JSONResponse([str(file) for file in files])


async def _healthz(request: Request) -> Response:
    """Report that the server runs, whether or not a model is loaded yet."""
    return JSONResponse({"status": "ok", "version": __version__})


async def _preview(request: Request) -> Response:
    """The picture that another site shows of a link to the page."""
    return FileResponse(DEMO_FOLDER / "preview.jpg")


async def _closed(request: Request) -> Response:
    """Gradio would write a session's values or a video to files, or ask another server."""
    return JSONResponse({"detail": "This server keeps nothing of a visit; save the result from the page."}, 404)


def routes() -> list[Route]:
    """Routes that the server handles itself, before Gradio does."""
    return [
        Route("/healthz", _healthz),
        Route(PREVIEW_ROUTE, _preview),
        Route(f"{API_PREFIX}/upload", _upload, methods=["POST"]),
        Route(f"{API_PREFIX}/deep_link", _closed),
        Route(f"{API_PREFIX}/process_recording", _closed, methods=["POST"]),
        Route(f"{API_PREFIX}/proxy={{address:path}}", _closed),
    ]


def serve(releases: Path, hub_ids: Path, host: str, port: int) -> None:
    """Serve the demo until interrupted, with the models of `find_releases` and `listed_models`.

    Raises:
        LeukoscopeError: the address cannot be listened at, or uploads cannot be written.
        SystemExit: with code 143, after SIGTERM.
    """
    require_free_address(host, port)
    folder = uploads.own_folder()
    if ZERO_GPU in os.environ:
        import spaces

        # The Hub stops a ZeroGPU Space that has no such function. It never runs: the processor answers at once.
        spaces.GPU(warm_up)
    # Gradio keeps ten thousand events, each with its session and time.
    os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_RUN_HISTORY": "False"}
    limit_memory()
    models = Models(find_releases(releases), listed_models(hub_ids))
    if current_thread() is main_thread():  # containers are stopped so
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    demo = build(models)
    try:
        launch(demo, host, port)
        print(f"Leukoscope is ready at http://{host}:{port}", flush=True)
        Thread(target=warm_up, args=(models,), daemon=True).start()
        Thread(target=uploads.sweep, daemon=True).start()
        demo.block_thread()
    except KeyboardInterrupt:  # before `block_thread` began, which ends the server itself
        pass
    finally:
        demo.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)


def launch(demo: gr.Blocks, host: str, port: int) -> None:
    """Start the server in threads of its own."""
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            # Where Gradio's extra `mcp` is installed.
            mcp_server=hasattr(GradioMCPServer, "StreamableHTTPSessionManager"),
            app_kwargs={"routes": routes(), "middleware": [Middleware(Guard, demo=demo)]},
            max_file_size=uploads.MAX_ZIP,
            max_threads=4 * AT_ONCE,
            state_session_capacity=SESSIONS,
            theme=build_theme(),
            footer_links=["api"],
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        require_free_address(host, port)
        raise LeukoscopeError(f"the server cannot start ({error})") from None


def require_free_address(host: str, port: int) -> None:
    """Check that the server can listen at an address; Gradio calls every reason a taken port.

    Raises:
        ConfigError: the port is taken or reserved, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as the server does; on Windows, it would share a port that is taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        problem = f"{host}: is no address of this machine ({error.strerror}); give one, such as 127.0.0.1"
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} is taken; set GRADIO_SERVER_PORT to a free one"
        elif error.errno == errno.EACCES:
            problem = f"port {port}: this user may not listen there; set GRADIO_SERVER_PORT to 1024 or more"
        raise ConfigError(problem) from None


def limit_memory() -> None:
    """Let all threads share two of glibc's arenas: with one each, 20 visitors took a gigabyte more."""
    with suppress(AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def warm_up(models: Models) -> None:
    """Load the models and ask each once, for which no visitor should wait."""
    for name in models.names:
        try:
            for _ in answers(models, examples()[CELL_NAMES[0]], name):
                pass
        except LeukoscopeError as error:
            print(f"warning: {error}")
