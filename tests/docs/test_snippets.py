"""What the pages tell a reader to type works as it stands, in the page's order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import asyncpg
import pytest

from tests.docs.conftest import ROOT, Demo

# The first test also starts the service; on a busy machine both take a while.
pytestmark = [pytest.mark.xdist_group("docs"), pytest.mark.timeout(240)]

PAGES = ["README.md", "docs/runtime-developers.md", "docs/tenant-admins.md"]
WITH_PYTHON = ["docs/runtime-developers.md"]


def snippets(page: Path, language: str) -> str:
    """All fenced blocks of that language, one after another: later ones use what earlier ones set."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES)
def test_shell_snippets_work_when_pasted(demo: Demo, page: str) -> None:
    script = snippets(ROOT / page, "sh")
    assert script
    done = demo.run("sh", "-eu", "-c", script)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "urn:confide:problem" not in done.stdout


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_snippets_work_when_run(demo: Demo, page: str) -> None:
    script = snippets(ROOT / page, "python")
    assert script
    done = demo.run("python", "-W", "error", "-c", script, **demo.values)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_answer_that_the_readme_shows_has_the_shape_of_the_real_one(demo: Demo) -> None:
    shown = json.loads(snippets(ROOT / "README.md", "json"))
    commit = snippets(ROOT / "README.md", "sh").split("\ncurl")[1].replace("call-7281", "call-of-this-test")
    done = demo.run("sh", "-eu", "-c", f". .confide/demo.env\ncurl {commit}")
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    assert shape(answered) == shape(shown)


def shape(value: object) -> object:
    """A value with its ids taken out."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "text" if isinstance(value, str) else value


def test_the_lines_that_make_run_prints_work(demo: Demo) -> None:
    for line in demo.printed:
        done = demo.run("sh", "-eu", "-c", line)
        assert done.returncode == 0, done.stdout + done.stderr


async def test_the_threat_model_lists_every_column_of_what_is_stored(demo: Demo) -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text()
    section = page.split("## What is in clear")[1].split("\n## ")[0]
    listed = {row[1]: set(re.findall(r"`([a-z_]+)`", row[0])) for row in rows(section)}
    connection = await asyncpg.connect((demo.folder / ".confide" / "database.url").read_text().strip())
    try:
        await connection.execute("SET ROLE confide_service")
        found = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'confide' AND table_name = ANY ($1)",
            list(listed),
        )
    finally:
        await connection.close()
    stored: dict[str, set[str]] = {}
    for row in found:
        stored.setdefault(row["table_name"], set()).add(row["column_name"])
    assert {table: columns - {table} for table, columns in listed.items()} == stored


def rows(section: str) -> list[tuple[str, str]]:
    """(the row, the table's name in its first cell)."""
    return [(match[0], match[1]) for match in re.finditer(r"^\| `([a-z_]+)` \|.*$", section, re.MULTILINE)]
