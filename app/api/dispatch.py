"""The ASGI application: one request from its head to its answer, over the route table.

Per request nothing but this module runs between the server and the handler. The order is: find the route, know the
caller, the rate, the scope, the purpose, then the path, query and body, then the handler. A client that goes away
doesn't cancel the handler: work that is shared with others' requests must end in its own time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from time import perf_counter
from typing import Any, Final, Protocol
from uuid import UUID

import uuid_utils

from app.api.body import ClientGone, read_body, refuse_body
from app.api.http import Answer, Headers, ParamDecoder, Request, StreamAnswer
from app.api.lifespan import Lifespan, observed, run_lifespan
from app.api.parse import QueryParser, body_decoder, header_check
from app.api.problems import internal_answer, problem_answer
from app.api.send import BrokenStream, answer_headers, send_answer, send_stream
from app.api.table import BodyLimits, RawBody, Route, Table
from app.errors import (
    BadRequest,
    ConfideError,
    Forbidden,
    MethodNotAllowed,
    OutcomeUnknown,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from app.identity import Caller, Purpose
from app.observability.logs import RequestEntry, RequestLog, exception_shape
from app.observability.metrics import Metrics
from app.observability.tracing import trace_id_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SINGLE: Final = frozenset(
    {
        b"authorization",
        b"confide-purpose",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"traceparent",
    }
)
_PURPOSES: Final = {purpose.value.encode(): purpose for purpose in Purpose}
_STOPPED: Final = (
    "The service stopped before this request was done. Repeat it, with the same Idempotency-Key if it has one."
)
_CLIENT_GONE: Final = 499  # only ever logged: the client that would read it is gone
_log: Final = logging.getLogger("confide.http")


class Gate(Protocol):
    """Who may come in. Implemented by the services."""

    async def authenticate(self, authorization: bytes | None, client_address: str) -> Caller:
        """The caller of the Authorization header's raw value. Raises Unauthenticated, the same for every failure."""

    def admit(self, caller: Caller) -> None:
        """Raises RateLimited."""

    async def denied(self, caller: Caller, route_name: str, reason: str, request: Request) -> None:
        """Audits a denial before it is answered; ``reason`` is ``scope`` or ``purpose``."""

    def forget(self, key: UUID) -> None:
        """Told when a statement found an API key revoked or expired after the gate had let it in."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """What the dispatcher must be told."""

    limits: BodyLimits = field(default_factory=BodyLimits)
    trusted_proxies: int = 0
    """How many proxies of ours stand in front and append to X-Forwarded-For; 0: the peer is the client."""
    metrics_seconds: float = 1.0
    """How often a worker shares its metrics."""


class _Plan:
    """What is known of a route before any request."""

    __slots__ = ("check_headers", "decode", "limit", "media_types", "query", "route", "scope")

    def __init__(self, route: Route, limits: BodyLimits) -> None:
        self.route = route
        self.scope = route.scope
        self.query = QueryParser(route)
        self.check_headers = header_check(route) if route.header_params else None
        self.limit: int = getattr(limits, route.limit)
        self.media_types = frozenset(kind.encode() for kind in route.content_types)
        self.decode: Callable[[bytes], Any] = (
            _as_is if route.body is None or isinstance(route.body, RawBody) else body_decoder(route.body)
        )


def _as_is(body: bytes) -> bytes:
    return body


class _Exchange:
    """One request's way through: what is known of it so far, for its answer, log line and metrics."""

    __slots__ = ("receive", "request", "request_id", "route", "scope", "trace_id")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.request_id = str(uuid_utils.uuid7())
        self.trace_id = ""
        self.route: Route | None = None
        self.request: Request | None = None


class Api:
    """The ASGI application. ``lifespans``: entered at start-up in order, left in reverse at shutdown."""

    def __init__(
        self,
        routes: Sequence[Route],
        services: Any,
        gate: Gate,
        *,
        settings: ApiSettings | None = None,
        metrics: Metrics | None = None,
        request_log: RequestLog | None = None,
        lifespans: Sequence[Lifespan] = (),
    ) -> None:
        self._settings = settings or ApiSettings()
        self._table = Table(tuple(routes))
        self._plans = {route: _Plan(route, self._settings.limits) for route in self._table.routes}
        self._services = services
        self._gate = gate
        self._metrics = metrics or Metrics()
        self._request_log = request_log or RequestLog()
        own = partial(observed, self._metrics, self._request_log, self._settings.metrics_seconds)
        self._lifespans: tuple[Lifespan, ...] = (own, *lifespans)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(_Exchange(scope, receive), send)
        elif scope["type"] == "lifespan":
            await run_lifespan(receive, send, self._lifespans)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def refused(self, error: ConfideError) -> tuple[int, Headers, bytes]:
        """The answer to a request that the protocol couldn't parse, counted and logged like any other."""
        exchange = _Exchange({}, _no_body)
        exchange.trace_id = exchange.request_id.replace("-", "")
        answer = problem_answer(error, exchange.request_id)
        self._record(exchange, answer.status, 0.0)
        return answer.status, answer_headers(answer, exchange.request_id, exchange.trace_id), answer.body

    async def _http(self, exchange: _Exchange, send: Send) -> None:
        started = perf_counter()
        in_flight = self._metrics.http_in_flight.values
        in_flight[()] = in_flight.get((), 0) + 1
        status = _CLIENT_GONE
        try:
            try:
                answer = await self._answer(exchange)
            except asyncio.CancelledError:  # the drain's time is over; what was begun goes on without us
                status = await self._stopped(exchange, send)
                raise
            status = answer.status
            if isinstance(answer, StreamAnswer):
                await self._stream(exchange, answer, send)
            else:
                await send_answer(send, answer, exchange.scope["method"], exchange.request_id, exchange.trace_id)
        except ClientGone:
            status = _CLIENT_GONE
        finally:
            in_flight[()] -= 1
            self._record(exchange, status, perf_counter() - started)

    async def _stopped(self, exchange: _Exchange, send: Send) -> int:
        safe = exchange.scope["method"] in {"GET", "HEAD"}
        answer = problem_answer(Unavailable(_STOPPED) if safe else OutcomeUnknown(_STOPPED), exchange.request_id)
        await send_answer(send, answer, exchange.scope["method"], exchange.request_id, exchange.trace_id)
        return answer.status

    async def _stream(self, exchange: _Exchange, answer: StreamAnswer, send: Send) -> None:
        """A stream that breaks can't become a problem any more: the connection is cut, so that the client sees it."""
        ids = exchange.request_id, exchange.trace_id
        try:
            await send_stream(exchange.receive, send, answer, exchange.scope["method"], ids)
        except BrokenStream as error:
            self._report(exchange, error.__cause__ or error)
            raise BrokenStream from None

    async def _answer(self, exchange: _Exchange) -> Answer | StreamAnswer:
        """The handler's answer, or the problem that stands for its error."""
        try:
            return await self._handle(exchange)
        except MethodNotAllowed as error:
            if exchange.scope["method"] == "OPTIONS":
                return Answer(204, headers=((b"allow", ", ".join(error.allowed).encode()),))
            return problem_answer(error, exchange.request_id)
        except ConfideError as error:
            if type(error) is ConfideError:
                self._report(exchange, error)
            caller = exchange.request.caller_or_none if exchange.request is not None else None
            if caller is not None and isinstance(error, Unauthenticated):
                self._gate.forget(caller.api_key)
            return problem_answer(error, exchange.request_id)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  the last net: nothing of it may reach the client
            self._report(exchange, error)
            return internal_answer(exchange.request_id)

    async def _handle(self, exchange: _Exchange) -> Answer | StreamAnswer:
        scope = exchange.scope
        raw_headers = scope["headers"]
        headers: dict[bytes, bytes] = dict(raw_headers)
        traceparent = headers.get(b"traceparent")
        exchange.trace_id = (traceparent and trace_id_of(traceparent)) or exchange.request_id.replace("-", "")
        if len(headers) != len(raw_headers):
            _refuse_repeats(raw_headers)
        route, decoders, values = self._table.match(scope["method"], scope["raw_path"])
        exchange.route = route
        plan = self._plans[route]
        request = exchange.request = Request(
            scope["method"],
            route,
            headers,
            request_id_text=exchange.request_id,
            trace_id=exchange.trace_id,
            client_address=self._client_address(scope),
        )
        if not route.public:
            await self._admit(plan, request)
        if values:
            request.fill_path(_decoded(decoders, values))
        if plan.check_headers is not None:
            plan.check_headers(headers)
        query = scope["query_string"]
        if query or route.query:
            request.query = plan.query.parse(query)
        body = await self._body(plan, request, exchange.receive)
        return await route.handler(self._services, request, body)

    async def _admit(self, plan: _Plan, request: Request) -> None:
        """Identity, rate, scope, purpose, in this order: a denial costs an audit row, so floods are stopped before."""
        gate = self._gate
        caller = await gate.authenticate(request.headers.get(b"authorization"), request.client_address)
        request.caller_or_none = caller
        gate.admit(caller)
        if plan.scope is not None and plan.scope not in caller.scopes:
            await gate.denied(caller, plan.route.name, "scope", request)
            raise Forbidden
        if plan.route.purpose:
            purpose = _purpose(caller, plan.route, request.headers.get(b"confide-purpose"))
            if purpose is None:
                await gate.denied(caller, plan.route.name, "purpose", request)
                raise Forbidden("This API key may not open context for that purpose.")
            request.purpose_or_none = purpose

    @staticmethod
    async def _body(plan: _Plan, request: Request, receive: Receive) -> Any:
        """The decoded body; None where the route has none, or may be without and is."""
        route = plan.route
        headers = request.headers
        if route.body is None:
            refuse_body(headers)
            return None
        length = headers.get(b"content-length")
        if length in {None, b"0"} and b"transfer-encoding" not in headers and not isinstance(route.body, RawBody):
            if route.body_required:
                raise BadRequest("This route needs a body.")
            return None
        _check_media_type(plan, request)
        return plan.decode(await read_body(receive, headers, plan.limit))

    def _client_address(self, scope: Scope) -> str:
        client = scope.get("client")
        address: str = client[0] if client else ""
        if not self._settings.trusted_proxies:
            return address
        return _forwarded(scope["headers"], self._settings.trusted_proxies) or address

    def _record(self, exchange: _Exchange, status: int, seconds: float) -> None:
        metrics = self._metrics
        route = exchange.route
        method, path = (route.method, route.path) if route is not None else ("", "unmatched")
        metrics.http_requests.inc((method, path, str(status)))
        metrics.http_seconds.observe(seconds, (method, path))
        caller = exchange.request.caller_or_none if exchange.request is not None else None
        tenant, api_key = (caller.tenant, caller.api_key) if caller is not None else (None, None)
        entry = RequestEntry(path, method, status, seconds, exchange.request_id, exchange.trace_id, tenant, api_key)
        self._request_log.write(entry)

    def _report(self, exchange: _Exchange, error: BaseException) -> None:
        """An unforeseen failure, by type and place only: its text and arguments may hold content."""
        path = exchange.route.path if exchange.route is not None else "unmatched"
        self._metrics.internal_errors.inc((path,))
        fields = {"route": path, "request": exchange.request_id, "trace": exchange.trace_id}
        _log.error("internal error", extra={"fields": {**fields, "error": exception_shape(error)}})


async def _no_body() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}


def _decoded(decoders: tuple[ParamDecoder, ...], values: list[bytes]) -> tuple[Any, ...]:
    return tuple([decode(value) for decode, value in zip(decoders, values, strict=True)])


def _purpose(caller: Caller, route: Route, named: bytes | None) -> Purpose | None:
    """The purpose that counts, or None where the caller may not have it. Raises BadRequest where it can't be told."""
    if named is not None:
        purpose = _PURPOSES.get(named)
        if purpose is None:
            raise BadRequest("Confide-Purpose names no purpose that exists.")
        return purpose if purpose in caller.purposes and purpose in route.purposes else None
    possible = [purpose for purpose in caller.purposes if purpose in route.purposes]
    if len(possible) > 1:
        raise BadRequest("This API key carries several purposes: name one in Confide-Purpose.")
    return possible[0] if possible else None


def _check_media_type(plan: _Plan, request: Request) -> None:
    """Any well-formed type where the route takes ``*/*``; else exactly a declared one, with UTF-8 or no charset."""
    if b"*/*" in plan.media_types:
        request.content_type()
        return
    kind, _, parameters = request.headers.get(b"content-type", b"").partition(b";")
    utf8 = parameters.strip().lower() in {b"", b"charset=utf-8", b'charset="utf-8"'}
    if kind.strip().lower() not in plan.media_types or not utf8:
        raise UnsupportedMediaType


def _refuse_repeats(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """A header that must be single and isn't could be read one way here and another way by a proxy."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _SINGLE:
            raise BadRequest("A header that must stand once is repeated.")
        seen.add(name)


def _forwarded(headers: Sequence[tuple[bytes, bytes]], trusted: int) -> str | None:
    """The address that the outermost of ``trusted`` proxies saw: each appends its peer to X-Forwarded-For."""
    listed = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1").split(",")
    if len(listed) < trusted:
        return None
    try:
        return str(ip_address(listed[-trusted].strip()))
    except ValueError:
        return None
