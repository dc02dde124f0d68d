"""A `python` that starts with torch imported: each command is forked from a server that has imported it once.

Such a process has its own words, folder, environment and output, as any other; what libraries read from the environment
when they are imported, such as HF_HOME, is the server's. SIGTERM is passed on; `Warm` sends other signals, too.
"""

from __future__ import annotations

import ast
import gc
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = (
    "multiprocessing.spawn",  # notes which Python to start: not the client, which passes on three files alone
    *("leukoscope.training.train", "leukoscope.inference.predictor", "leukoscope.evaluation.evaluate", "timm"),
)
CLIENT = """
import os, signal, socket, sys
noted = os.environ.pop("WARM_PROCESS", "")
server = socket.socket(socket.AF_UNIX)
server.connect(ADDRESS)
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(repr((sys.argv[1:], os.getcwd(), dict(os.environ))).encode())
server.shutdown(socket.SHUT_WR)
told = server.makefile()
process = int(told.readline())
signal.signal(signal.SIGTERM, lambda number, _: os.kill(process, number))
if noted:
    with open(noted, "w") as file:
        file.write(f"{process}\\n")
code = int(told.readline() or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


class Warm(subprocess.Popen[str]):
    """A command of such a `python`: signals reach the process that does the work."""

    def __init__(self, words: Sequence[str | Path], environment: Mapping[str, str], **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            process = Path(folder) / "process"
            own = dict(environment) | {"WARM_PROCESS": str(process)}
            super().__init__(words, env=own, text=True, **options)
            while not (process.is_file() and process.read_text().endswith("\n")):
                assert self.poll() is None
                time.sleep(0.001)
            self.working = int(process.read_text())

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.working, sig)


@contextmanager
def warm_python(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Write the program `python` into a folder; it works as long as the context is open."""
    with tempfile.TemporaryDirectory() as short:  # a socket's address has at most some hundred characters
        address, python = str(Path(short) / "server"), folder / "python"
        (folder / "client.py").write_text(CLIENT.replace("ADDRESS", repr(address)))
        words = map(shlex.quote, (sys.executable, "-IS", str(folder / "client.py")))
        python.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
        python.chmod(0o755)
        server = subprocess.Popen(
            [sys.executable, __file__, address, str(python)],
            env=dict(environment),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield python
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()


def _words(address: str) -> list[str]:
    """Wait for commands; return in a new process for each of them, which is to run these words."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose code is told to the client by a process of its own
        asked, _ = listening.accept()
        while os.fork():
            asked.close()
            asked, _ = listening.accept()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(asked, 1, 3)
    told = b"".join(iter(lambda: asked.recv(1 << 16), b""))
    if child := os.fork():
        with suppress(BrokenPipeError):
            asked.sendall(f"{child}\n".encode())
            asked.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    asked.close()
    words, folder, environment = ast.literal_eval(told.decode())
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # The server's own remember what kind of file they were.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return words


def _main(address: str, python: str) -> None:
    for module in IMPORTED:
        import_module(module)
    gc.freeze()
    words = _words(address)
    gc.unfreeze()  # what is frozen stays at the end, and nanobind (triton) lists it as leaked on stderr
    sys.executable = python
    words = words[1:] if words[0] == "-u" else words  # as torchrun asks; what is written comes at the end
    kind, *rest = words
    sys.argv = rest if kind == "-m" else words
    sys.path[0] = str(Path(kind).resolve().parent) if kind.endswith(".py") else ""
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _main(*sys.argv[1:])
