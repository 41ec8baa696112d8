"""The pages hold together: links lead somewhere, named files exist, and every page is in the index."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:app|tests|migrations|docs|bench)/[\w./*-]+[\w*]")


def tracked(pattern: str) -> list[Path]:
    """The project's files. Where there is no git (an unpacked archive), all that aren't hidden."""
    listed = subprocess.run(["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob(Path(pattern).name) if not re.search(r"/\.", f"/{path.relative_to(ROOT)}")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


PAGES = [page.relative_to(ROOT).as_posix() for page in tracked("*.md")]


def anchors(page: Path) -> set[str]:
    """The ids that the usual renderers give to headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = LINK.sub("", heading) if heading.startswith("[") else heading
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    dead = []
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


MADE_BY_RUNS = ("bench/results/",)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text())
    named = {name for code in CODE.findall(text) if FILE.fullmatch(name := code.strip())}
    absent = sorted(name for name in named if not name.startswith(MADE_BY_RUNS) and not list(ROOT.glob(name)))
    assert absent == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [ROOT / "docs" / "README.md"]
    while ahead:
        page = ahead.pop()
        if page.is_dir():
            ahead += page.glob("*.md")
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text())]
    assert sorted(page.relative_to(ROOT).as_posix() for page in set(tracked("docs/*.md")) - reached) == []
