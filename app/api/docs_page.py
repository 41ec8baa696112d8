"""/openapi.json and /docs: the document, and Swagger UI on it, served from this process alone.

The page loads nothing from elsewhere and its content security policy allows nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import orjson

from app.api.http import JSON, Answer, Request
from app.api.openapi import document
from app.api.table import Handler, ResponseDoc, Route

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Confide API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START: Final = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  validatorUrl: null,
});
"""
_ASSETS_OF: Final = "fastapi-offline"  # the wheel that carries Swagger UI's files; none of its code is imported


def docs_routes(routes: Sequence[Route], *, version: str) -> tuple[Route, ...]:
    """``routes``: all others of the table. Reads the assets once."""
    parts: tuple[tuple[str, str, bytes, bytes], ...] = (
        ("/docs", "docs_page", b"text/html; charset=utf-8", _PAGE),
        ("/docs/start.js", "docs_start", b"text/javascript; charset=utf-8", _START),
        ("/docs/swagger-ui.css", "docs_style", b"text/css; charset=utf-8", _asset("swagger-ui.css")),
        (
            "/docs/swagger-ui-bundle.js",
            "docs_script",
            b"text/javascript; charset=utf-8",
            _asset("swagger-ui-bundle.js"),
        ),
    )
    pages = tuple(
        Route(
            "GET",
            path,
            _fixed(Answer(200, body, content_type, _HEADERS)),
            name,
            "Part of the documentation page.",
            {200: ResponseDoc("The file.", content_type=content_type.decode())},
            public=True,
            documented=False,
        )
        for path, name, content_type, body in parts
    )
    return (_document_route(routes, version), *pages)


def _document_route(routes: Sequence[Route], version: str) -> Route:
    answers: list[Answer] = []

    async def openapi(_services: Any, _request: Request, _body: None) -> Answer:
        return answers[0]

    described = Route(
        "GET",
        "/openapi.json",
        openapi,
        "openapi",
        "This document.",
        {200: ResponseDoc("OpenAPI 3.1.", model=dict[str, Any])},
        public=True,
        tags=("operation",),
    )
    answers.append(Answer(200, orjson.dumps(document((*routes, described), version=version)), JSON))
    return described


def _fixed(answer: Answer) -> Handler:
    async def serve(_services: Any, _request: Request, _body: None) -> Answer:
        return answer

    return serve


@cache
def _asset(name: str) -> bytes:
    path = Path(str(distribution(_ASSETS_OF).locate_file(f"fastapi_offline/static/{name}")))
    return path.read_bytes()
