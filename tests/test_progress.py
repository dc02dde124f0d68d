"""Long work says how far it is: a line now and then in a pipe, a bar on a terminal, nothing when quiet."""

from __future__ import annotations

import gc
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from leukoscope import progress
from leukoscope.cli import app

ON_A_TERMINAL = (
    "import sys, time; from leukoscope.progress import track\n"
    "for number in track(range(40), 'counting'):\n    time.sleep(.03)\nprint('result')"
)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # the error of an earlier test may still hold work that was not ended
    monkeypatch.setattr(progress, "EVERY", 0.05)


def slowly(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    for _ in progress.track(range(4), "counting", **options):
        time.sleep(0.06)
    return capsys.readouterr().err


def test_a_pipe_gets_a_line_now_and_then_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = slowly(capsys).splitlines()
    assert len(lines) > 1, lines
    assert re.fullmatch(r"counting: [0-4] of 4 cells(, [\d.]+/s)?(, about \d+ s left)?", lines[0])
    assert re.search(r"cells, [\d.]+/s, about \d+ s left$", lines[-1])


def test_the_first_part_gives_a_rate_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("computing", 8, unit="pictures") as advance:
        time.sleep(0.02)
        advance(2)
        time.sleep(0.12)
    line = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"computing: 2 of 8 pictures, [\d.]+/s, about \d+ s left", line)


def test_what_was_done_before_counts_and_nothing_is_printed_after_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    first = slowly(capsys, total=1004, done=1000).splitlines()[0]
    assert first.startswith("counting: 1,00") and "of 1,004 cells" in first
    time.sleep(0.12)
    assert capsys.readouterr().err == ""


def test_of_unknown_length_the_time_so_far_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("downloading"):
        time.sleep(0.12)
    assert capsys.readouterr().err.splitlines()[0] == "downloading: 0 s so far"


def test_quiet_says_nothing_and_ends_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.quiet():
        assert slowly(capsys) == ""
        progress.note("a note")
        assert capsys.readouterr().out == ""
    with progress.quiet(False):
        assert slowly(capsys) != ""
        progress.note("a note")
        assert capsys.readouterr().out == "a note\n"


def test_only_the_first_process_of_a_launcher_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.note("a note")
    assert capsys.readouterr().out == "a note\n"
    monkeypatch.setenv("RANK", "1")
    progress.note("a note")
    assert capsys.readouterr().out == "" and slowly(capsys) == ""


def test_work_within_other_work_shows_no_second_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("outer"):
        said = slowly(capsys)
    assert "outer" in said and "counting" not in said


def test_times_are_short() -> None:
    for seconds, text in {4.4: "4 s", 89: "89 s", 100: "2 min", 5340: "89 min", 12000: "3 h 20 min"}.items():
        assert progress.duration(seconds) == text


def on_a_terminal(**environment: str) -> str:
    """What a terminal of 80 columns receives on stderr, and on stdout after it."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    variables.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stderr=theirs, stdout=subprocess.PIPE, env=variables, text=True
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            if not (part := os.read(ours, 4096)):
                break
            seen += part
        except OSError:  # the child closed its side
            break
    assert child.communicate()[0] == "result\n", "results stay on stdout while a bar is shown"
    os.close(ours)
    return seen.decode()


def test_a_terminal_gets_a_bar_with_the_time_left_in_colour_or_without() -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        seen = on_a_terminal(**environment)
        assert "counting" in seen and "━" in seen and re.search(r"\d+/40", seen) and "0:00:0" in seen
        assert bool(re.search(r"\x1b\[[\d;]*3\dm|\x1b\[38;", seen)) is coloured


def test_every_long_command_can_be_quiet() -> None:
    for command in (*("train", "score", "evaluate", "protocol", "patient", "smear", "audit"), "release recalibrate"):
        shown = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*command.split(), "--help"])
        assert "--quiet" in shown.output, command


def test_a_library_logs_its_notes_and_prints_nothing_until_it_is_asked_to() -> None:
    """Handlers are the program's own business; the commands print notes to the stream that each names."""
    script = (
        "import logging, sys\n"
        "from leukoscope import progress\n"
        "progress.note('unseen')\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(name)s %(levelname)s %(message)s')\n"
        "progress.note('100 % logged')\n"
        "progress.print_notes()\n"
        "progress.print_notes()\n"
        "progress.note('printed once')\n"
        "progress.note('aside', err=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "leukoscope INFO 100 % logged\nprinted once\n"
    assert done.stderr == "aside\n"
