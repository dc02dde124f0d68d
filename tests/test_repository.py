"""The repository around the code: one list of dependencies, one version, verbs that work."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leukoscope"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Inside `make test`, an inner make would otherwise inherit the outer one's flags and variables.
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=outer | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _repository_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: clone the repository instead of unpacking an archive")
    listing = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    assert listing.returncode == 0, listing.stderr
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# --- dependencies ---------------------------------------------------------------------------------------------------


def test_requirements_txt_lists_what_the_extra_all_installs() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    assert everything == "leukoscope[demo,openvino]"
    wanted = [*project["dependencies"], *(line for name in ("demo", "openvino") for line in extras[name])]
    # The builds of torchvision and torch must fit each other, so the lists for pip name both.
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(listed) == sorted([*wanted, "torchvision>=0.21"])


def test_requirements_lock_pins_every_dependency_within_its_bounds_and_names_no_index() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pinned: dict[str, list[str]] = {}
    for line in lines:
        name, separator, rest = line.partition("==")
        assert separator and not re.search(r"://|@|\s--", line), f"{line}: neither an address nor an option of pip"
        pinned.setdefault(canonicalize_name(name), []).append(rest.partition(";")[0].strip())
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "leukoscope":
            versions = pinned[canonicalize_name(requirement.name)]
            assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: make lock"


# --- version, licence, paths ----------------------------------------------------------------------------------------


def test_version_is_semantic_and_the_same_everywhere() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (version,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest and newest[1] == version
    assert cited and cited[1] == version


def test_every_published_data_set_is_cited() -> None:
    import yaml

    from leukoscope.data.registry import DATASETS

    cited = [reference["title"] for reference in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]]
    published = [info for info in DATASETS.values() if info.url]
    missing = [info.name for info in published if not any(title in info.citation for title in cited)]
    assert published and not missing, "add the titles of their articles to CITATION.cff"


def test_no_file_mentions_a_path_of_one_machine() -> None:
    somebodys = re.compile(r"(?<![\w.~}>)-])/(?:work|root|home/\w+|Users/\w+)/[\w.]|\b[A-Z]:\\Users\\\w")
    assert somebodys.search('open("/' + 'home/ann/cells.bmp")')
    assert not somebodys.search("https://example.org/" + "work/cells")
    found = []
    for path in _repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        found += [f"{path.relative_to(ROOT)}: {match[0]}…" for match in somebodys.finditer(text)]
    assert not found, f"{found}: write the path relative to the repository, or take it from a flag"


# --- commands -------------------------------------------------------------------------------------------------------


def test_no_picture_carries_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "*.png"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split():
        with Image.open(ROOT / name) as picture:
            for text in getattr(picture, "text", {}).values():
                assert not re.search(r"(^|\s)/\w", text), f"{name}: {text}"


def test_text_is_read_and_written_as_utf_8_on_every_system() -> None:
    """Windows would otherwise take its own encoding, in which metrics.json of another system is garbled."""
    programs = (path for folder in ("research", "tools") for path in (ROOT / folder).rglob("*.py"))
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (*SOURCE.rglob("*.py"), ROOT / "app.py", ROOT / "train.py", *programs)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert calls == [], "name the encoding"


def test_make_demo_installs_once_again_after_a_failure_and_when_the_dependencies_change(tmp_path: Path) -> None:
    """In a checkout whose Python only notes what it is asked."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1, 1))
    _script(tmp_path / ".venv/bin/python", '#!/bin/sh\necho "$@" >> asked\nexit "${PYTHON_FAILS:-0}"\n')

    def asked(**environment: str) -> list[str]:
        (tmp_path / "asked").write_text("")
        _run("make", "demo", "UV=", cwd=tmp_path, **environment)
        return (tmp_path / "asked").read_text().splitlines()

    installing, starting = "-m pip install -e .[all]", "app.py"
    assert asked(PYTHON_FAILS="1") == [installing]
    assert asked() == [installing, starting]
    assert asked() == [starting]
    for changed in ("requirements.txt", "pyproject.toml"):
        newer = (tmp_path / ".venv/.installed").stat().st_mtime + 1
        os.utime(tmp_path / changed, (newer, newer))
        assert asked() == [installing, starting]
        os.utime(tmp_path / changed, (1, 1))


def test_make_demo_refuses_an_old_python_and_says_what_to_do(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    check = f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 9); $2"'
    old = _script(tmp_path / "python3.10", f'#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.9 && exit\n{check}\n')
    refused = _run("make", "demo", f"PYTHON={old}", cwd=tmp_path)
    assert refused.returncode != 0
    assert f"{old} is 'Python 3.10.9'; Leukoscope needs Python 3.11 or newer" in refused.stderr
    assert "make PYTHON=python3.12 demo" in refused.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("broken", ["test", "test-slow", "quality", ""])
def test_ci_runs_every_step_and_fails_when_one_does(tmp_path: Path, broken: str) -> None:
    if shutil.which("timeout") is None:
        pytest.skip("needs the command `timeout` (GNU coreutils)")
    _script(tmp_path / ".ci/run", (ROOT / ".ci/run").read_text())
    _script(tmp_path / "bin/chromium", "#!/bin/sh\n")
    # 5 is pytest's answer to a selection that holds no test.
    recipes = (
        f"{s}:\n\t@echo '=== 3 passed in 1.0s ==='; exit {5 * (s == broken)}\n"
        for s in ("test", "test-slow", "quality")
    )
    (tmp_path / "Makefile").write_text("".join(recipes))
    ran = _run(tmp_path / ".ci/run", cwd=tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert (ran.returncode != 0) == bool(broken)
    summary = ran.stdout.partition("=== summary")[2].splitlines()
    for verb in ("test", "test-slow", "quality"):
        outcome = "FAILED" if verb == broken else "passed"
        assert f"make {verb}: {outcome}  === 3 passed in 1.0s ===" in summary


def test_ci_says_how_to_get_a_browser_when_it_cannot(tmp_path: Path) -> None:
    _script(tmp_path / ".ci/run", (ROOT / ".ci/run").read_text())
    _script(tmp_path / "bin/apt-get", "#!/bin/sh\nexit 100\n")
    for name in ("bash", "dirname", "env", "mktemp", "rm"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    ran = _run(tmp_path / ".ci/run", cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert ran.returncode == 1
    assert ran.stderr == "error: Chromium is missing and cannot be installed; as root: apt-get install chromium\n"


# --- the order of the packages --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_import_against_the_flow_is_refused(tmp_path: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "*.pyi")
    shutil.copytree(SOURCE, tmp_path / "src/leukoscope", ignore=skip)
    shutil.copytree(ROOT / "research", tmp_path / "research", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    check = (Path(sys.executable).with_name("lint-imports"), "--no-cache")
    path = os.pathsep.join([str(tmp_path / "src"), str(tmp_path)])
    as_is = _run(*check, cwd=tmp_path, PYTHONPATH=path)
    assert as_is.returncode == 0, as_is.stdout
    (tmp_path / "src/leukoscope/data/against.py").write_text("import leukoscope.training.train\n")
    against = _run(*check, cwd=tmp_path, PYTHONPATH=path)
    assert against.returncode == 1
    assert "leukoscope.data is not allowed to import leukoscope.training" in against.stdout
