"""JSON logs on standard error, one object a line, that can't hold content.

What Confide itself logs is a fixed message with ids and numbers. What a library logs is cut to its logger, level and
place, because such messages carry SQL parameters, URLs and bodies; and an exception, anybody's, is cut to the types
and places of its chain, because its text and arguments may hold what a client sent.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple, TextIO
from uuid import UUID

import orjson
from typing_extensions import override

OWN: Final = "confide"

_TRUSTED: Final = frozenset({"uvicorn.error"})
"""Its messages at INFO and above are about the server itself: address, start, stop."""

_MAX_FRAMES: Final = 30

SERVER_ERROR: Final = 500


def exception_shape(error: BaseException | None) -> list[dict[str, Any]]:
    """The exception and its causes, outermost first: type and ``module:line`` of each frame; never text or values."""
    chain: list[dict[str, Any]] = []
    while error is not None and len(chain) < _MAX_FRAMES:
        frames = traceback.walk_tb(error.__traceback__)
        places = [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in frames]
        chain.append({"type": f"{type(error).__module__}.{type(error).__qualname__}", "at": places[-_MAX_FRAMES:]})
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


class JsonFormatter(logging.Formatter):
    """``extra={"fields": {...}}`` on Confide's own loggers adds members; they must be ids and numbers."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name.partition(".")[0] == OWN:
            line["message"] = record.getMessage()
            line.update(getattr(record, "fields", {}))
        elif record.name in _TRUSTED:
            line["message"] = record.getMessage()
        else:
            line["at"] = f"{record.module}:{record.lineno}"
        if record.exc_info is not None:
            line["error"] = exception_shape(record.exc_info[1])
        return orjson.dumps(line, default=_type_name, option=orjson.OPT_UTC_Z).decode()


def _type_name(value: object) -> str:
    """A value without JSON form is never shown: its type stands in."""
    return type(value).__qualname__


def configure(level: str = "INFO") -> None:
    """Set up logging and the hooks for uncaught exceptions for this process. Libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(OWN).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        library = logging.getLogger(name)
        library.handlers[:] = []
        library.propagate = name != "uvicorn.access"
        library.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True
    logging.raiseExceptions = False  # it would print the record's arguments
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda what: _log_uncaught(what.exc_value)
    threading.excepthook = lambda what: _log_uncaught(what.exc_value)


def _uncaught(kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    _log_uncaught(error)


def _log_uncaught(error: BaseException | None) -> None:
    logging.getLogger(OWN).critical("uncaught exception", extra={"fields": {"error": exception_shape(error)}})


class RequestEntry(NamedTuple):
    """What is logged of a request. ``route`` is the template; nothing here was chosen by the client."""

    route: str
    method: str
    status: int
    seconds: float
    request_id: str
    trace_id: str
    tenant: UUID | None
    api_key: UUID | None


class RequestLog:
    """One line a request. Lines of the same few milliseconds leave in one write; failures (5xx) leave at once.

    ``share``: which part of the requests that didn't fail is logged, 0 to 1. Failures always are.
    """

    def __init__(
        self,
        share: float = 1.0,
        stream: TextIO | None = None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError("the share of logged requests lies between 0 and 1")
        self._share = share
        self._credit = 0.0
        self._stream = stream
        self._later = later
        self._lines: list[str] = []

    def use_loop(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        """``later`` is the running loop's ``call_later``; without one every line is written at once."""
        self._later = later

    def write(self, entry: RequestEntry) -> None:
        failed = entry.status >= SERVER_ERROR
        if not failed:
            self._credit += self._share
            if self._credit < 1:
                return
            self._credit -= 1
        self._lines.append(_line(entry))
        if failed or self._later is None:
            self.flush()
        elif len(self._lines) == 1:
            self._later(0.02, self.flush)

    def flush(self) -> None:
        if self._lines:
            text = "".join(self._lines)
            self._lines.clear()
            stream = self._stream or sys.stderr
            stream.write(text)
            stream.flush()


def _line(entry: RequestEntry) -> str:
    """All members are ids, numbers, or texts of the route table, so none needs escaping."""
    now = time.time()
    second = int(now)
    return (
        f'{{"time":"{_second(second)}.{int((now - second) * 1_000_000):06d}Z",'
        f'"level":"{"error" if entry.status >= SERVER_ERROR else "info"}","logger":"confide.request",'
        f'"route":"{entry.route}","method":"{entry.method}","status":{entry.status},"ms":{entry.seconds * 1000:.3f},'
        f'"request":"{entry.request_id}","trace":"{entry.trace_id}",'
        f'"tenant":{_id(entry.tenant)},"api_key":{_id(entry.api_key)}}}\n'
    )


@lru_cache(maxsize=4096)  # callers come back; a UUID's text costs a microsecond
def _id_text(value: int) -> str:
    return f'"{UUID(int=value)}"'


def _id(value: UUID | None) -> str:
    return "null" if value is None else _id_text(value.int)


@lru_cache(maxsize=1)
def _second(now: int) -> str:
    """``2026-01-31T12:00:00``, made once a second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
