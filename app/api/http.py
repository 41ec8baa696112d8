"""What a handler is given and what it gives back.

A handler is ``async def handler(services, request: Request, body) -> Answer | StreamAnswer``. By the time it runs, the
caller is authenticated and admitted, the path, query and body have been parsed strictly, and the purpose is settled.
It answers with bytes that are ready to send, or raises a ``ConfideError``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

import msgspec
import orjson

from app.errors import BadRequest, NotFound
from app.identity import NO_UUID, Caller, Purpose, Version, quick_id

if TYPE_CHECKING:
    from app.api.table import Route

Headers = Sequence[tuple[bytes, bytes]]

JSON: Final = b"application/json"
OCTETS: Final = b"application/octet-stream"
ANY: Final = "*"

_ENTITY_TAG: Final = re.compile(rb'(?:W/)?"[\x21\x23-\x7e]{0,255}"')
_ETAG: Final = re.compile(rb'(W/)?"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"')
_MEDIA_TYPE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*;[\x20-\x7e\t]*)?")
_IDEMPOTENCY_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_MAX_MEDIA_TYPE: Final = 255
_JSON_OPTIONS: Final = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
_encode_struct: Final = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, gc=False):
    """A whole response. ``content_type`` None means that there is no body (204, 304)."""

    status: int
    body: bytes = b""
    content_type: bytes | None = None
    headers: Headers = ()


class StreamAnswer(msgspec.Struct, gc=False):
    """A response sent in chunks. ``chunks`` is closed (``aclose``) when the client goes away."""

    status: int
    content_type: bytes
    headers: Headers
    chunks: AsyncIterator[bytes]


def json_answer(value: Any, status: int = 200, headers: Headers = ()) -> Answer:
    """``value``: a msgspec Struct, or builtins with UUID and datetime; times leave as UTC with ``Z``."""
    if isinstance(value, msgspec.Struct):
        return Answer(status, _encode_struct(value), JSON, headers)
    return Answer(status, orjson.dumps(value, _encode_other, _JSON_OPTIONS), JSON, headers)


def _encode_other(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value, builtin_types=(UUID,))
    if isinstance(value, UUID):  # the database driver's own kind
        return str(value)
    raise TypeError("a value in an answer has no JSON form")


def no_content(headers: Headers = ()) -> Answer:
    return Answer(204, b"", None, headers)


def etag(version: UUID | str) -> tuple[bytes, bytes]:
    """The response header that names a version (RFC 9110 section 8.8.3, strong)."""
    return (b"etag", b'"%s"' % str(version).encode())


def parse_etag(value: bytes, header: str, *, weak: bool) -> Version:
    """The version that one entity tag names. A tag that isn't of ours, or weak where ``weak`` is False, is the nil
    UUID, which no version equals (RFC 9110 section 8.8.3.2). What is no single tag: BadRequest.
    """
    match = _ETAG.fullmatch(value)
    if match is not None:
        return Version(UUID(match[2].decode()) if weak or match[1] is None else NO_UUID)
    if _ENTITY_TAG.fullmatch(value) is None:
        raise BadRequest(f"{header} must hold one ETag, or *.")
    return Version(NO_UUID)


class Request:
    """One request, as a handler sees it. Made by the dispatcher; ``caller`` is None on public routes only."""

    __slots__ = (
        "_params",
        "caller_or_none",
        "client_address",
        "headers",
        "method",
        "purpose_or_none",
        "query",
        "request_id_text",
        "route",
        "trace_id",
    )

    def __init__(
        self,
        method: str,
        route: Route,
        headers: dict[bytes, bytes],
        *,
        request_id_text: str,
        trace_id: str,
        client_address: str,
    ) -> None:
        self.method = method
        self.route = route
        self._params: tuple[UUID | str, ...] = ()
        self.headers = headers
        """Raw, by lower-case name. A repeated header that must be single was refused before."""
        self.request_id_text = request_id_text
        self.trace_id = trace_id
        """32 lower-case hexadecimal digits (W3C Trace Context)."""
        self.client_address = client_address
        self.query: Mapping[str, Any] = route.query_defaults
        """Every declared parameter by name, converted; absent ones have their declared default."""
        self.caller_or_none: Caller | None = None
        self.purpose_or_none: Purpose | None = None

    def fill_path(self, params: tuple[UUID | str, ...]) -> None:
        """The dispatcher's: decoded path parameters, in the template's order."""
        self._params = params

    @property
    def caller(self) -> Caller:
        """Who calls. Only a public route has none, and must not ask."""
        if self.caller_or_none is None:
            raise RuntimeError("a public route asked for its caller")
        return self.caller_or_none

    @property
    def purpose(self) -> Purpose:
        """What context is opened for; set on routes with ``purpose=True``."""
        if self.purpose_or_none is None:
            raise RuntimeError("a route without purpose=True asked for the purpose")
        return self.purpose_or_none

    @property
    def request_id(self) -> UUID:
        """UUIDv7, also sent to the client as Confide-Request-Id."""
        return UUID(self.request_id_text)

    @property
    def params(self) -> dict[str, UUID | str]:
        """Path parameters by name, for generic code; handlers use ``path_id`` and ``path_text``."""
        return dict(zip(self.route.param_names, self._params, strict=True))

    def path_id(self, name: str = "id") -> UUID:
        """The path's ``{id}``, ``{…_id}``: a UUID."""
        value = self._params[self.route.param_names.index(name)]
        if not isinstance(value, UUID):
            raise TypeError("this path parameter is not an id")
        return value

    def path_text(self, name: str) -> str:
        """The path's ``{collection}`` or ``{key}``: percent-decoded."""
        value = self._params[self.route.param_names.index(name)]
        if not isinstance(value, str):
            raise TypeError("this path parameter is not a text")
        return value

    def header(self, name: bytes) -> bytes | None:
        """``name`` in lower case."""
        return self.headers.get(name)

    def if_match(self) -> Version | Literal["*"] | None:
        """If-Match (RFC 9110 section 13.1.1): the version, ``*``, None, or nil for a tag that never matches."""
        value = self.headers.get(b"if-match")
        if value is None:
            return None
        return ANY if value == b"*" else parse_etag(value, "If-Match", weak=False)

    def if_none_match(self) -> Version | Literal["*"] | None:
        """If-None-Match (RFC 9110 section 13.1.2): the version, ``*``, None, or nil for a tag that never matches."""
        value = self.headers.get(b"if-none-match")
        if value is None:
            return None
        return ANY if value == b"*" else parse_etag(value, "If-None-Match", weak=True)

    def idempotency_key(self) -> bytes | None:
        """1 to 255 visible ASCII characters. It may carry the client's data: only its HMAC may be stored."""
        value = self.headers.get(b"idempotency-key")
        if value is not None and _IDEMPOTENCY_KEY.fullmatch(value) is None:
            raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.")
        return value

    def content_type(self) -> bytes:
        """The body's media type as sent; ``application/octet-stream`` where absent (RFC 9110 section 8.3)."""
        value = self.headers.get(b"content-type", OCTETS)
        if not _is_media_type(value):
            raise BadRequest("Content-Type is not a media type of at most 255 characters.")
        return value


@lru_cache(maxsize=256)  # clients send few
def _is_media_type(value: bytes) -> bool:
    return len(value) <= _MAX_MEDIA_TYPE and _MEDIA_TYPE.fullmatch(value) is not None


ParamDecoder = Callable[[bytes], "UUID | str"]


_UUID: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@lru_cache(maxsize=8192)  # a session's id comes back turn after turn
def decode_id(segment: bytes) -> UUID:
    """A path segment that must be a canonical UUID; anything else names nothing that exists: NotFound."""
    if _UUID.fullmatch(segment) is None:
        raise NotFound
    return quick_id(bytes.fromhex(segment.replace(b"-", b"").decode()))
