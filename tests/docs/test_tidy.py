"""Rules of the house that a reader relies on: small modules, small functions, telling names, nothing of one machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, tracked

MODULE_LINES = 400
FUNCTION_LINES = 70

# Longer than the rule, with what they may have at most; none may be added.
LONGER = {
    "tests/dialogue/test_load_commit.py": 500,
    "tests/dialogue/test_objects.py": 500,
    "tests/replay/test_replay.py": 500,
}
LONG_FUNCTIONS = {"app/assembly.py:assemble"}

NAMELESS = {"base", "common", "helper", "helpers", "manager", "util", "utils"}
MARKS = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
ONE_MACHINE = re.compile(
    r"(?<![\w.<}~-])/(?:work|root|opt/pypi|Users|home/[a-z])[\w-]*/"
    r"|\bpypi\.org/simple|pythonhosted\.org|registry\.npmjs|--(?:extra-)?index-url[ =]|--find-links[ =]"
)
SOURCES = [path.relative_to(ROOT).as_posix() for path in tracked("*.py")]


@pytest.mark.parametrize("folder", ["app", "tests", "migrations", "bench", "sdk"])
def test_modules_fit_in_one_reading(folder: str) -> None:
    long = {}
    for name in SOURCES:
        lines = (ROOT / name).read_text().count("\n")
        if name.startswith(f"{folder}/") and lines > LONGER.get(name, MODULE_LINES):
            long[name] = lines
    assert long == {}


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{name}:{function.name}"
        for name in SOURCES
        for function in functions(ROOT / name)
        if function.end_lineno is not None and function.end_lineno - function.lineno >= FUNCTION_LINES
    }
    assert long - LONG_FUNCTIONS == set()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_file_has_a_telling_name() -> None:
    assert [name for name in SOURCES if Path(name).stem in NAMELESS] == []


def test_nothing_unfinished_is_marked_in_the_text() -> None:
    assert [name for name, text in texts() if MARKS.search(text)] == []


def test_no_path_or_package_registry_of_one_machine_is_in_the_text() -> None:
    found = {name: match[0] for name, text in texts() if (match := ONE_MACHINE.search(text))}
    assert found == {}


def texts() -> Iterator[tuple[str, str]]:
    """All files but this one, as text where they are text."""
    for path in tracked("*"):
        if path == Path(__file__):
            continue
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
