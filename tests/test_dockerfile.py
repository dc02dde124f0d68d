"""The Dockerfile, read rather than built: what it copies is there, it runs what `make demo` runs, and not as root."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
STEPS = [(step, rest.strip()) for line in LINES if line and line[0] != "#" for step, _, rest in [line.partition(" ")]]


def _all(step: str) -> list[str]:
    return [rest for name, rest in STEPS if name == step]


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    sources = [word for rest in _all("COPY") for word in rest.split()[:-1]]
    assert {"requirements.txt", "requirements.lock", "app.py", "src/", "model_card/"} <= set(sources)
    assert not [name for name in sources if not (ROOT / name).exists()]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {f"!{name.rstrip('/')}" for name in sources} <= set(ignored)


def test_it_installs_and_starts_what_make_demo_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert '$(INSTALL) -e ".[all]"' in makefile and "$(RUN)/python -m pip install" in makefile
    # The app alone, without the command: the list of the extra "all".
    assert "python -m pip install --requirement requirements.txt --constraint requirements.lock" in _all("RUN")
    assert "\t$(RUN)/python app.py\n" in makefile
    assert _all("CMD") == ['["python", "app.py"]']


def test_torch_is_asked_for_as_the_list_asks_for_it() -> None:
    listed = (ROOT / "requirements.txt").read_text().splitlines()
    (cpu,) = (shlex.split(rest) for rest in _all("RUN") if "--index-url" in rest)
    assert "--constraint" in cpu, "the CPU builds have the locked versions, too"
    assert [line for line in listed if re.match(r"torch(vision)?\b", line)] == [word for word in cpu if ">=" in word]


def test_its_python_is_one_that_we_support() -> None:
    (base,) = _all("FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", base)
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert version and (int(version[1]), int(version[2])) >= tuple(map(int, least.split(".")))


def test_it_runs_without_rights_and_tells_its_health() -> None:
    names = [name for name, _ in STEPS]
    (user,) = _all("USER")
    assert user != "root" and f"useradd --create-home {user}" in _all("RUN")
    assert names.index("USER") < names.index("CMD") and "USER" not in names[names.index("USER") + 1 :]
    (health,) = _all("HEALTHCHECK")
    check = ast.literal_eval(health.partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
