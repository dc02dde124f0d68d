"""`leukoscope demo` hands its flags to `app.py` and ends as that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_it_runs_the_app_and_says_its_problems_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leukoscope", "demo", "--releases", str(tmp_path)]
    environment = os.environ | {"GRADIO_SERVER_PORT": "eighty"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "error: GRADIO_SERVER_PORT=eighty: is no port; give a number from 1 to 65535"
