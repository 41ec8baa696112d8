"""The service as the replay sees it: HTTP calls that are measured, and repeated while the service asks for patience."""

from __future__ import annotations

import asyncio
import ssl
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import SystemRandom
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import msgspec
import orjson

RETRIED: Final = frozenset({429, 502, 503, 504})
"""503 and 429 are the service's; 502 and 504 are a proxy's while the service behind it restarts."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_random: Final = SystemRandom()
_Body = TypeVar("_Body", bound=msgspec.Struct)


class ServiceError(Exception):
    """The service refused, kept failing, or answered what the API doesn't promise. The text holds no content."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One operation. ``kind`` is the name that its latencies are counted under."""

    kind: str
    method: str
    path: str
    body: Mapping[str, Any] | None = None
    idempotency_key: str | None = None


class Answer(msgspec.Struct, frozen=True, gc=False):
    call: Call
    status: int
    content: bytes

    def decoded(self, kind: type[_Body]) -> _Body:
        """The body of a success. Raises ServiceError for any other status and for a body of another shape."""
        if self.status not in {200, 201}:
            raise ServiceError(f"{self.call.method} {_template(self.call)} answered {self.status}{self._problem()}")
        try:
            return msgspec.json.decode(self.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ServiceError(f"{self.call.method} {_template(self.call)} answered no {kind.__name__}") from None

    def _problem(self) -> str:
        """A problem document's type and detail, which are made to be shown; nothing of any other body."""
        try:
            problem = msgspec.json.decode(self.content, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        shown = "".join(
            char for char in f" ({problem.type.rpartition(':')[2]}): {problem.detail}" if char.isprintable()
        )
        return shown[:400]


class _Problem(msgspec.Struct):
    type: str
    detail: str = ""


class Client:
    """Calls with one API key over a pool of ``connections``. ``retry_for``: how long one call may keep failing."""

    def __init__(
        self,
        url: str,
        api_key: str,
        connections: int,
        *,
        purpose: str | None = None,
        retry_for: float = 60.0,
        call_timeout: float = 30.0,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} | ({"Confide-Purpose": purpose} if purpose else {})
        self._connections = connections
        self._retry_for = retry_for
        self._timeout = aiohttp.ClientTimeout(total=call_timeout)
        self._notice = notice
        self._troubled = False
        self._exits = AsyncExitStack()
        self.latencies: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        """Seconds of each HTTP call that was answered for good, by the call's kind."""
        self.retries: Counter[str] = Counter()
        """How many calls were repeated, by the status, or ``connection``."""

    async def __aenter__(self) -> Self:
        self._session = await self._exits.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                headers=self._headers,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def call(self, call: Call) -> Answer:
        """The first answer that isn't a request to come back later. Each repeat carries the same Idempotency-Key."""
        failing_since: float | None = None
        pause = _FIRST_PAUSE
        while True:
            cause, answer, asked = await self._attempt(call)
            if answer is not None:
                self._troubled = False
                return answer
            if failing_since is None:
                failing_since = monotonic()
            wait = pause if asked is None else asked
            if monotonic() + wait > failing_since + self._retry_for:
                raise ServiceError(self._given_up(call, cause, wait))
            self._report_trouble(cause)
            self.retries[cause] += 1
            # Spread, so that all that were turned away together don't come back together.
            await asyncio.sleep(wait * (1 + _random.random() / 4))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(self, call: Call) -> tuple[str, Answer | None, float | None]:
        """The cause for a repeat, the answer if there's none, and the pause that the service asks for."""
        headers = {"Idempotency-Key": call.idempotency_key} if call.idempotency_key else {}
        data = None
        if call.body is not None:
            data = orjson.dumps(call.body)
            headers["Content-Type"] = "application/json"
        started = perf_counter()
        try:
            # A redirect could carry the API key and the content to somebody else.
            async with self._session.request(
                call.method, self._url + call.path, data=data, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise ServiceError(f"no trusted connection to the service: {type(error).__name__}") from error
        except (aiohttp.ClientError, TimeoutError, OSError):
            return "connection", None, None
        if response.status in RETRIED:
            return str(response.status), None, retry_after(response.headers.get("Retry-After"))
        self.latencies[call.kind].append(perf_counter() - started)
        return "", Answer(call, response.status, content), None

    def _report_trouble(self, cause: str) -> None:
        """Once for each outage, not for each call."""
        if not self._troubled:
            self._troubled = True
            what = "no connection to the service" if cause == "connection" else f"the service answers {cause}"
            self._notice(f"{what}; trying again for up to {self._retry_for:g} s")

    def _given_up(self, call: Call, cause: str, wait: float) -> str:
        what = "no answer" if cause == "connection" else f"status {cause}"
        next_one = f" and a pause of {wait:g} s asked for" if wait > self._retry_for else ""
        return f"{call.method} {_template(call)}: {what} for {self._retry_for:g} s{next_one}"


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After field (RFC 9110 section 10.2.3), None where it says nothing usable."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _template(call: Call) -> str:
    """The path without its query, as in the documentation of the call's kind."""
    return call.path.partition("?")[0]
