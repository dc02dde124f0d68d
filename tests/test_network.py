"""What this machine does stays on this machine: no command asks another server unless it is told to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from drawn import save_cell

ROOT = Path(__file__).parents[1]
# Python runs it at the start of each process. CPython tells an audit hook of every socket, whoever opens it.
GUARD = """
import os, sys
def note(event, args):
    host = None
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    if host and str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{host}\\n")
sys.addaudithook(note)
"""
COMMANDS = (
    ("predict", "RELEASE", "cell.bmp"),
    ("score", "RELEASE", "--input", "cells", "--output", "scores.csv"),
    ("release", "export", "RELEASE", "--output", "exported"),
    (
        *("train", "--output_dir", "run", "--num_train_epochs", "1", "--max_train_samples", "32"),
        *("--max_eval_samples", "16", "--image_size", "32", "--report_to", "trackio"),
    ),
)
RUN = """
from leukoscope.cli import app
for words in COMMANDS:
    assert not app(words, standalone_mode=False), words
"""
DEMO = """
import _thread, os, signal, subprocess, sys, threading, time, urllib.request
from pathlib import Path
sys.path.insert(0, "ROOT")
import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit that it is ignored
VISITOR = '''
from gradio_client import Client, handle_file
Client("http://127.0.0.1:PORT/", verbose=False).predict(handle_file("cell.bmp"), "NAME", api_name="/predict")
'''
def visit():
    for _ in range(1000):
        time.sleep(.3)
        try:
            urllib.request.urlopen("http://127.0.0.1:PORT/config").read()
            break
        except OSError:
            pass
    try:
        # Gradio's client asks the Hub; what the visitor's process asks is not watched.
        unwatched = {"PYTHONPATH": "", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        subprocess.run([sys.executable, "-c", VISITOR], env=os.environ | unwatched, check=True)
        Path("answered").touch()
    finally:
        _thread.interrupt_main()
threading.Thread(target=visit, daemon=True).start()
app.run(Path("RELEASE"))
"""


def asked(command: list[str], folder: Path) -> list[str]:
    """The hosts beyond loopback that a command asks for."""
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    log = folder / "asked.txt"
    log.touch()
    # With CI set, OpenVINO reports nothing of its own accord; told to be offline, the Hub's client asks nobody.
    unset = ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "LEUKOSCOPE_BACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    source = str(ROOT / "src")
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), source]),
        "ASKED": str(log),
        "LEUKOSCOPE_CACHE": str(folder / "cache"),
    }
    # Of a home of its own: a consent file there would decide.
    environment |= {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return log.read_text().splitlines()


@pytest.mark.slow
def test_no_command_asks_another_server(tiny_release: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "cell.bmp", tmp_path / "cells" / "cell.bmp"):
        save_cell(path, size=450)
    words = [[str(tiny_release) if word == "RELEASE" else word for word in command] for command in COMMANDS]
    assert asked([sys.executable, "-c", RUN.replace("COMMANDS", repr(words))], tmp_path) == []


@pytest.mark.slow
def test_the_demo_asks_no_other_server(tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cell(tmp_path / "cell.bmp", size=450)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    program = DEMO.replace("RELEASE", str(tiny_release)).replace("NAME", tiny_release.name).replace("PORT", port)
    assert asked([sys.executable, "-c", program.replace("ROOT", str(ROOT))], tmp_path) == []
    assert (tmp_path / "answered").is_file()


def test_openvino_has_nothing_to_report_with() -> None:
    program = (
        "import sys; from leukoscope.inference.graph import import_openvino; import_openvino();"
        "import openvino.tools.ovc.telemetry_utils as used, openvino.tools.ovc.convert_impl as conversion;"
        "print(used.tm.__name__, conversion.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["openvino.tools.ovc.telemetry_stub"] * 2 + ["False"]


def test_importing_leukoscope_changes_no_module_of_others() -> None:
    program = (
        "import sys, leukoscope, leukoscope.inference.predictor; assert 'openvino_telemetry' not in sys.modules;"
        "import openvino_telemetry; print(openvino_telemetry.__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "openvino_telemetry", ran.stderr
