"""Every route is on a page, and no page names a route that isn't there."""

from __future__ import annotations

import re

from tests.docs.routes_page import PAGE, page, routes
from tests.docs.test_pages import PAGES, ROOT

# Families of routes that pages describe ahead of the code; README.md says that they aren't there yet.
COMING = ("/v1/keys",)
NAMED = re.compile(r"\b(GET|PUT|POST|PATCH|DELETE) (/v1/[\w/{}.-]*[\w}])")


def test_the_page_of_routes_is_the_table() -> None:
    assert PAGE.read_text() == page(), "write it anew: .venv/bin/python -m tests.docs.routes_page"


def test_pages_name_only_routes_that_exist() -> None:
    known = {(route.method, skeleton(route.path)) for route in routes()}
    coming = tuple(family for family in COMING if not any(path.startswith(family) for _, path in known))
    unknown = []
    for name in PAGES:
        for method, path in NAMED.findall((ROOT / name).read_text()):
            if (method, skeleton(path)) not in known and not path.startswith(coming or "?"):
                unknown.append(f"{name}: {method} {path}")
    assert unknown == []


def skeleton(path: str) -> str:
    """A path without the names of its parameters; examples may stand in their place."""
    path = re.sub(r"/context/[^/]+/[^/]+$", "/context/{}/{}", path)
    return re.sub(r"\{[a-z_]+\}", "{}", path)
