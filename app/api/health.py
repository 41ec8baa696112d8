"""Liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from app.api.http import Answer, Request, json_answer
from app.api.table import ResponseDoc, Route
from app.errors import Unavailable
from app.identity import Scope
from app.observability.metrics import Metrics

_TAGS: Final = ("operation",)
_METRICS_TYPE: Final = CONTENT_TYPE_LATEST.encode()


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


_OK: Final = json_answer(Health())


def health_routes(
    ready: Callable[[], Awaitable[None]], metrics: Metrics, metrics_scope: Scope | None = None
) -> tuple[Route, ...]:
    """``ready`` returns when the worker can serve and raises ``Unavailable`` when it can't.

    ``metrics_scope`` None: whoever reaches the port may scrape; it shows load per route, never a tenant.
    """

    async def healthz(_services: Any, _request: Request, _body: None) -> Answer:
        return _OK

    async def readyz(_services: Any, _request: Request, _body: None) -> Answer:
        await ready()
        return _OK

    async def metricsz(_services: Any, _request: Request, _body: None) -> Answer:
        return Answer(200, metrics.render(), _METRICS_TYPE)

    healthy = {200: ResponseDoc("Yes.", Health)}
    text = {200: ResponseDoc("Prometheus text format, summed over all workers.", content_type="text/plain")}
    return (
        Route("GET", "/healthz", healthz, "healthz", "Is the process alive?", healthy, public=True, tags=_TAGS),
        Route(
            "GET",
            "/readyz",
            readyz,
            "readyz",
            "Can the worker serve?",
            healthy,
            public=True,
            tags=_TAGS,
            errors=(Unavailable,),
        ),
        Route(
            "GET",
            "/metrics",
            metricsz,
            "metrics",
            "Metrics.",
            text,
            scope=metrics_scope,
            public=metrics_scope is None,
            tags=_TAGS,
        ),
    )
