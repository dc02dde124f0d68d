"""The source has no import circle, and `make structure` counts what it says."""

from __future__ import annotations

import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import density
import grimp
import packed
import pytest
import structure


def test_no_import_is_part_of_a_circle() -> None:
    """None of a lazy import either, nor of one for type checkers."""
    graph = grimp.build_graph("leukoscope", cache_dir=None)
    # What `leukoscope` itself offers by name, it imports when asked for: nothing depends on that.
    names = graph.modules - {"leukoscope"}
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in names}).prepare()


def test_long_functions_are_found(tmp_path: Path) -> None:
    longer = "def long():\n" + structure.LONG_FUNCTION * "    call()\n"
    shorter = longer.replace("long", "short").replace("    call()\n", "", 1)
    (tmp_path / "m.py").write_text(longer + shorter)
    assert list(structure.long_functions(tmp_path / "m.py")) == [("long", structure.LONG_FUNCTION + 1)]


def _source(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_densities_count_statements_packing_and_names_by_package(tmp_path: Path) -> None:
    packed_code = '''"""A docstring is a statement."""
a, b = 1, 2
c, d = pair()
if (n := len(x)) > 1:
    found = 1 if a else 2
for one in [[y for y in z] for z in x]:
    value = lambda said: said
self.told = f(given=1)
'''
    source = _source(tmp_path, data__packed=packed_code, data__plain="a = 1\n", top="b = 2\n")
    counted = density.densities(source, scripts=())
    assert list(counted) == ["data", "top", "all"]
    expected = {
        "nodes": 84,
        "statements": 9,
        "several values": 1,
        "walrus": 1,
        "conditional": 1,
        "nested": 1,
        "placeholders": 3,  # found, one, said
        "generic": 1,
    }
    assert +counted["data"].counts == expected
    assert (counted["data"].files, counted["top"].files, counted["all"].files) == (2, 1, 3)
    assert counted["all"].counts["statements"] == 10
    assert counted["all"].per_thousand("walrus") == 100


def test_each_limit_of_density_is_checked_by_itself() -> None:
    within = density.Density(1, Counter(statements=2000))
    for kind, limit in density.LIMITS.items():
        within.counts[kind] = int(2 * limit)
    within.counts["placeholders"] = density.MOST_PLACEHOLDERS
    assert density.faults_of_density(within) == []
    within.counts["nodes"] = int(2000 * density.MOST_NODES_PER_STATEMENT)
    assert density.faults_of_density(within) == []
    for kind in (*density.LIMITS, "placeholders", "nodes"):
        above = density.Density(1, within.counts + Counter([kind]))
        assert len(density.faults_of_density(above)) == 1, kind


def test_a_package_keeps_its_ceiling_of_nodes(tmp_path: Path) -> None:
    source = _source(tmp_path, data__cells="a = 1\n", audit="b = 2\n", evaluation__plots="c = 3\n", files="d = 4\n")
    nodes = density.nodes_by_group(source, scripts=())
    assert {group: count for group, count in nodes.items() if count} == {"data": 5, "evaluation": 10, "top": 5}
    assert density.faults_of_size(nodes) == []
    nodes["data"] = density.NODE_CEILINGS["data"] + 1
    assert density.faults_of_size(nodes) == [
        f"data: {nodes['data']:,} nodes of the syntax tree, at most {nodes['data'] - 1:,}"
    ]


def test_a_constant_has_one_value_and_names_its_owner_where_it_is_imported(tmp_path: Path) -> None:
    source = _source(
        tmp_path,
        one_value="MIN_SUBJECTS = 3\nSIDE, _TRIES = 4, 1\nDATASETS = {}\n",
        other="MIN_SUBJECTS: int = 5\n_TRIES = 2\nSHOWN = 1\n",
        user="from leukoscope.one_value import DATASETS, MIN_SUBJECTS, SIDE\n",
    )
    assert density.faults_of_constants(source) == [
        "MIN_SUBJECTS has 2 values, in one_value.py, other.py: name what each belongs to",
        "SIDE of one_value.py is imported elsewhere: name what it belongs to",
    ]


def test_errors_say_what_cannot_be_used_by_their_class() -> None:
    """Only errors of the disk, and of a server that cannot start, are a bare `LeukoscopeError`."""
    may = {"files.py", "inference/scoring.py", "demo/server.py"}
    bare = {
        path.relative_to(density.SOURCE).as_posix()
        for path in density.SOURCE.rglob("*.py")
        if "raise LeukoscopeError(" in path.read_text(encoding="utf-8")
    }
    assert bare <= may


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("a.css", "a {\n  color: red;\n}\n@media print {\n  a,\n  b {\n    margin: 0\n  }\n}\n", []),
        ("a.css", "a { color: red; }\n", [1]),
        ("a.css", "a {\n  color: red; margin: 0;\n}\n", [2]),
        ("a.css", "a {\n  color: red;\n} b {\n}\n", [3]),
        ("a.css", 'a {\n  content: "; } {";\n  /* b { c } */\n  background: url(data:image/png;base64,x);\n}\n', []),
        ("a.js", "a(); b()\n", [1]),
        ("a.js", "a();\n;[b].forEach(c);\n", []),
        ("a.js", "const f = () => { a(); b() }\n", [1]),
        ("a.js", "const f = () => { a() }\nfor (let i = 0; i < 3; i++) {\n  f(i)\n}\n", []),
        ("a.js", "const s = 'a; b' // c; d\nconst t = `x; ${f('y')}; w`\n", []),
        ("a.js", f"const t = {'a' * 120}\n", [1]),
    ],
)
def test_packed_lines_are_found(tmp_path: Path, name: str, text: str, numbers: list[int]) -> None:
    (tmp_path / name).write_text(text)
    assert packed.packed_lines(tmp_path / name) == numbers


def test_text_beside_the_source_keeps_its_ceiling(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/static_space.md").write_text(structure.TEXT_CEILINGS["hub/static_space.*"] * "line\n")
    assert structure.faults_of_pages(tmp_path) == []
    (tmp_path / "hub/static_space.html").write_text("line\n")
    assert structure.faults_of_pages(tmp_path) == ["hub/static_space.*: 451 lines, at most 450"]


def test_the_check_fails_with_the_faults_and_passes_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["structure.py", "--check"])
    monkeypatch.setattr(structure, "all_faults", lambda: ["page.css: 2 lines"])
    assert structure.main() == 1
    assert capsys.readouterr().out == "page.css: 2 lines\n"
    monkeypatch.setattr(structure, "all_faults", list)
    assert structure.main() == 0
