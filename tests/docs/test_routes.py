"""Every route is on a page, and no page names a route that isn't there."""

from __future__ import annotations

import re

from tests.docs.routes_page import PAGE, page, routes
from tests.docs.test_pages import PAGES, ROOT

NAMED = re.compile(r"\b(GET|PUT|POST|PATCH|DELETE) (/[\w/{}.-]*[\w}])")
ROW = re.compile(r"^\| `([^`]+)` \|[^|]*(\|.*)$", re.MULTILINE)
AGAIN = "write docs/routes.md anew: .venv/bin/python -m tests.docs.routes_page"


def test_every_route_is_named_on_a_page() -> None:
    named = {(method, path) for name in PAGES for method, path in NAMED.findall((ROOT / name).read_text())}
    assert sorted({(route.method, route.path) for route in routes()} - named) == [], AGAIN


def test_the_page_of_routes_tells_their_scopes_and_purposes() -> None:
    true = dict(ROW.findall(page()))
    assert {route: rest for route, rest in ROW.findall(PAGE.read_text()) if true.get(route) != rest} == {}, AGAIN


def test_pages_name_only_routes_that_exist() -> None:
    known = {(route.method, skeleton(route.path)) for route in routes()}
    unknown = []
    for name in PAGES:
        for method, path in NAMED.findall((ROOT / name).read_text()):
            if path.startswith("/v1/") and (method, skeleton(path)) not in known:
                unknown.append(f"{name}: {method} {path}")
    assert unknown == []


def skeleton(path: str) -> str:
    """A path without the names of its parameters; examples may stand in their place."""
    path = re.sub(r"/context/[^/]+/[^/]+$", "/context/{}/{}", path)
    return re.sub(r"\{[a-z_]+\}", "{}", path)
