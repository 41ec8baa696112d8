"""A token that a client plants anywhere is found neither in an error's body or headers nor in logs and metrics (G1)."""

from __future__ import annotations

import base64
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from app import errors
from app.observability import logs

TOKEN = "PlantedTokenQ7x"
FORMS = [
    TOKEN.encode(),
    TOKEN.lower().encode(),
    TOKEN.encode("utf-16-le"),
    TOKEN.encode().hex().encode(),
    *(base64.b64encode(b"." * offset + TOKEN.encode())[4:-4] for offset in range(3)),
]


@pytest.fixture
def process_log() -> Iterator[io.StringIO]:
    """What the process writes to its log, with logging set up as in production and then put back."""
    root, hooks = logging.getLogger(), (sys.excepthook, sys.unraisablehook, logging.raiseExceptions)
    handlers, level, stderr = root.handlers[:], root.level, sys.stderr
    stream = sys.stderr = io.StringIO()
    logs.configure()
    yield stream
    logging.captureWarnings(False)
    sys.stderr = stderr
    root.handlers[:], root.level = handlers, level
    sys.excepthook, sys.unraisablehook, logging.raiseExceptions = hooks
    logging.getLogger("uvicorn.access").disabled = False


def _assert_clean(*texts: bytes | str) -> None:
    for text in texts:
        raw = text.encode() if isinstance(text, str) else text
        for form in FORMS:
            assert form not in raw


T = TOKEN
JSON = {"content-type": "application/json"}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", f"/{T}", {}),
    ("GET", f"/v1/notes/{T}", {}),
    ("GET", f"/v1/notes?{T}=1", {}),
    ("GET", f"/v1/notes?limit={T}", {}),
    ("GET", f"/v1/notes?order={T}", {}),
    ("GET", f"/v1/notes?tag={T}", {}),
    ("GET", f"/v1/notes?tag=%00{T}", {}),
    ("GET", f"/v1/notes?limit=1&limit={T}", {}),
    (T, "/v1/notes", {}),
    ("GET", "/v1/notes", {"role": T}),
    ("GET", f"/v1/notes/{UUID(int=1)}/context/{T}%00/{T}", {}),
    ("GET", f"/v1/notes/{UUID(int=1)}/context/{T}/%zz{T}", {}),
    ("GET", f"/v1/notes/{UUID(int=1)}/context/a/b", {"headers": {"confide-purpose": T}}),
    ("GET", f"/v1/notes/{UUID(int=1)}/context/a/b", {"headers": {"if-none-match": T}}),
    ("GET", f"/v1/notes/{UUID(int=1)}", {"headers": {"traceparent": T, "user-agent": T, "x-forwarded-for": T}}),
    ("POST", "/v1/notes", {"headers": [("idempotency-key", T), ("idempotency-key", T)]}),
    ("POST", "/v1/notes", {"headers": {"idempotency-key": f"{T} {T}"}, "json": {"title": T}}),
    ("POST", "/v1/notes", {"headers": {"content-type": T}, "body": b"{}"}),
    ("POST", "/v1/notes", {"headers": JSON, "body": f"{{{T}".encode()}),
    ("POST", "/v1/notes", {"headers": JSON, "body": f'{{"title":"{T}\xff"}}'.encode("latin-1")}),
    ("POST", "/v1/notes", {"headers": JSON, "body": T.encode() * 1000}),
    ("POST", "/v1/notes", {"json": {T: 1}}),
    ("POST", "/v1/notes", {"json": {"title": T * 10}}),
    ("POST", "/v1/notes", {"json": {"title": [T]}}),
    ("POST", "/v1/notes", {"json": {"title": "a", "order": T}}),
    ("POST", "/v1/notes", {"json": {"title": "a", "labels": {T: T}}}),
    ("POST", "/v1/notes", {"json": {"title": "a", "parts": [{"key": T}]}}),
    ("POST", "/v1/notes", {"json": {"title": "a", "parts": [{"key": "a", T: T}]}}),
    ("GET", "/v1/notes", {"body": T.encode()}),
    ("PUT", f"/v1/notes/{UUID(int=1)}/context/a/b", {"body": b"x", "headers": {"content-type": f"a/b {T}"}}),
    ("PUT", f"/v1/notes/{UUID(int=1)}/context/{T}/{T}", {"body": T.encode() * 500}),
]


@pytest.mark.parametrize(("method", "target", "options"), REQUESTS)
async def test_no_refusal_repeats_what_was_sent(
    world: Any, process_log: io.StringIO, method: str, target: str, options: dict[str, Any]
) -> None:
    reply = await world.call(method, target, **options)
    assert 400 <= reply.status < 500
    _assert_clean(reply.body, repr(reply.headers), world.log.getvalue(), process_log.getvalue(), world.metrics.render())
    assert world.log.getvalue()


def _chained() -> Exception:
    try:
        try:
            raise KeyError(T)
        except KeyError as inner:
            raise ValueError(f"could not parse {T}") from inner
    except ValueError as outer:
        return outer


class LoudError(Exception):
    def __str__(self) -> str:
        return T

    __repr__ = __str__


class Odd(errors.ConfideError):
    detail = T


@pytest.mark.parametrize(
    "error",
    [RuntimeError(T), UnicodeDecodeError("utf-8", T.encode(), 0, 1, T), _chained(), LoudError(),
     ExceptionGroup(T, [OSError(T)]), Odd()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_crash_shows_and_logs_types_and_places_only(
    world: Any, process_log: io.StringIO, error: Exception
) -> None:
    def fail(_: str) -> Any:
        raise error

    world.services.fail = fail
    reply = await world.call("GET", f"/v1/fail/{T}")
    assert reply.status == 500
    _assert_clean(reply.body, repr(reply.headers), world.log.getvalue(), process_log.getvalue(), world.metrics.render())
    if not isinstance(error, Odd):
        assert type(error).__name__ in process_log.getvalue()
        assert "test_no_echo:" in process_log.getvalue()


async def test_a_stream_that_breaks_says_nothing_either(world: Any, process_log: io.StringIO) -> None:
    world.services.stream_error = ValueError(T)
    with pytest.raises(Exception, match=r"^$") as caught:
        await world.call("GET", "/v1/stream")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "ValueError" in process_log.getvalue()
    _assert_clean(world.log.getvalue(), process_log.getvalue())


def test_a_librarys_message_is_cut_to_its_place(process_log: io.StringIO) -> None:
    for name in ("asyncpg", "botocore.endpoint", "azure.core.pipeline", "asyncio", "py.warnings", "httpx2"):
        try:
            raise RuntimeError(T)
        except RuntimeError:
            logging.getLogger(name).warning("request %s", T, exc_info=True, extra={"fields": {"q": T}})
    logging.getLogger("botocore").info("body %s", T)
    logging.getLogger("uvicorn.access").info("GET /%s", T)
    try:
        raise RuntimeError(T)
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    _assert_clean(process_log.getvalue())
    assert process_log.getvalue().count("\n") == 7


def test_an_uncaught_exception_shows_no_text(process_log: io.StringIO) -> None:
    try:
        raise RuntimeError(T)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    _assert_clean(process_log.getvalue())
    assert "RuntimeError" in process_log.getvalue()


def test_a_value_without_json_form_is_logged_as_its_type(process_log: io.StringIO) -> None:
    logging.getLogger("confide.x").warning("odd", extra={"fields": {"value": LoudError()}})
    _assert_clean(process_log.getvalue())
    assert '"value":"LoudError"' in process_log.getvalue()
