"""The route table: what the dispatcher runs and what the OpenAPI document says, from one declaration.

Path parameters: ``{id}`` and ``{…_id}`` are UUIDs in canonical lower-case text (anything else is the same 404 as an
absent resource); every other name is a percent-decoded text, with its own length limit in ``TEXT_LIMITS``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from app.api.http import Answer, ParamDecoder, Request, StreamAnswer, decode_id
from app.errors import BadRequest, ConfideError, MethodNotAllowed, NotFound
from app.identity import Purpose, Scope

Handler = Callable[[Any, Request, Any], Awaitable[Answer | StreamAnswer]]
Method = Literal["GET", "PUT", "POST", "PATCH", "DELETE"]
LimitName = Literal["json", "envelope", "object"]

TEXT_LIMITS: Final[Mapping[str, int]] = MappingProxyType({"collection": 256, "key": 512})

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The largest request body in bytes, by the name that a route gives. Passed in from the settings."""

    json: int = 64 * 1024
    """Small documents: create a session, change a setting."""
    envelope: int = 16 * 1024 * 1024
    """load, commit and batch: JSON that carries many objects."""
    object: int = 1024 * 1024
    """One opaque object."""


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body that the handler takes as bytes. ``content_types`` may be ``("*/*",)``: any, kept as it was sent."""

    content_types: tuple[str, ...] = ("*/*",)
    description: str = "The object's bytes."


@dataclass(frozen=True, slots=True)
class QueryParam:
    """One query parameter. ``kind`` is str, int, bool, UUID, an Enum or datetime, plain or ``Annotated`` with
    ``msgspec.Meta``; it gives both the check and the schema. ``many`` allows repeats (the value is then a tuple).
    """

    name: str
    kind: Any
    description: str
    default: Any = None
    required: bool = False
    many: bool = False
    max_items: int = 64


@dataclass(frozen=True, slots=True)
class HeaderParam:
    """A request header for the document; ``pattern`` is what the code accepts, anchored."""

    name: str
    description: str
    pattern: str | None = None
    example: str | None = None
    required: bool = False
    enum: tuple[str, ...] = ()


_VERSION: Final = r'"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"'
_ENTITY_TAG: Final = r'^(\*|(W/)?"[\x21\x23-\x7E]{0,255}")$'
_EXAMPLE_ETAG: Final = '"01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f"'

IF_MATCH: Final = HeaderParam("If-Match", "The ETag that must be current, or *.", _ENTITY_TAG, _EXAMPLE_ETAG)
IF_NONE_MATCH: Final = HeaderParam(
    "If-None-Match",
    "An ETag that must not be current, or *: nothing may be stored yet.",
    _ENTITY_TAG,
    _EXAMPLE_ETAG,
)
NOT_STORED: Final = HeaderParam("If-None-Match", "Only *: nothing may be stored yet.", r"^\*$", "*")
IDEMPOTENCY_KEY: Final = HeaderParam(
    "Idempotency-Key",
    "Chosen by the client, one per intended change. A retry within 24 h gets the first answer.",
    r"^[\x21-\x7E]{1,255}$",
    "turn-0001",
)
PURPOSE: Final = HeaderParam(
    "Confide-Purpose",
    "What context is opened for. May be left out where the API key carries exactly one purpose.",
    example="serve",
    enum=tuple(purpose.value for purpose in Purpose),
)


@dataclass(frozen=True, slots=True)
class HeaderDoc:
    """A response header for the document."""

    name: str
    description: str
    pattern: str | None = None


ETAG: Final = HeaderDoc("ETag", "The stored version.", rf"^{_VERSION}$")
LOCATION: Final = HeaderDoc("Location", "Path of the resource.")


@dataclass(frozen=True, slots=True)
class ResponseDoc:
    """A success of the route. ``model`` None with ``content_type`` None: no body; None with one: raw bytes."""

    description: str
    model: Any = None
    content_type: str | None = None
    headers: tuple[HeaderDoc, ...] = ()
    example: Any = None

    @property
    def media_type(self) -> str | None:
        """``content_type``, or JSON where there is a model."""
        return self.content_type or ("application/json" if self.model is not None else None)


@dataclass(frozen=True, eq=False)
class Route:
    """One operation. ``scope`` None with ``public`` False: any authenticated caller."""

    method: Method
    path: str
    handler: Handler
    name: str
    """The operationId, also given to ``Gate.denied``: lower_snake_case."""
    summary: str
    responses: Mapping[int, ResponseDoc]
    scope: Scope | None = None
    public: bool = False
    description: str = ""
    tags: tuple[str, ...] = ()
    body: type[msgspec.Struct] | RawBody | None = None
    body_required: bool = True
    """False: an absent body reaches the handler as None."""
    limit: LimitName = "json"
    query: tuple[QueryParam, ...] = ()
    headers: tuple[HeaderParam, ...] = ()
    errors: tuple[type[ConfideError], ...] = ()
    """Beyond those that the declaration implies (authentication, sizes, schema, rate, unavailability)."""
    purpose: bool = False
    """True: the route opens context, and the dispatcher settles ``request.purpose``."""
    purposes: tuple[Purpose, ...] = tuple(Purpose)
    """The purposes that this route serves, where ``purpose`` is True."""
    documented: bool = True
    """False: left out of the OpenAPI document (the documentation page's own files)."""
    request_example: Any = field(default=None, compare=False)

    @cached_property
    def param_names(self) -> tuple[str, ...]:
        return tuple(_PLACEHOLDER.findall(self.path))

    @cached_property
    def query_defaults(self) -> Mapping[str, Any]:
        return MappingProxyType({p.name: () if p.many and p.default is None else p.default for p in self.query})

    @cached_property
    def header_params(self) -> tuple[HeaderParam, ...]:
        """The declared request headers, with Confide-Purpose where the route opens context."""
        return self.headers if not self.purpose or PURPOSE in self.headers else (*self.headers, PURPOSE)

    @cached_property
    def content_types(self) -> tuple[str, ...]:
        if isinstance(self.body, RawBody):
            return self.body.content_types
        return ("application/json",) if self.body is not None else ()


def is_id(name: str) -> bool:
    return name == "id" or name.endswith("_id")


def text_decoder(name: str) -> ParamDecoder:
    """The strict decoder of a text segment. Raises BadRequest; the message never holds the segment."""
    limit = TEXT_LIMITS.get(name, 256)
    message = f"The path's {name} must be 1 to {limit} characters of percent-encoded UTF-8 without control characters."

    def decode(segment: bytes) -> str:
        if b"%" not in segment and segment.isascii() and len(segment) <= limit:
            plain = segment.decode()
            if plain.isprintable() and plain:
                return plain
        if b"%" in segment:
            if _BAD_PERCENT.search(segment):
                raise BadRequest(message)
            segment = unquote_to_bytes(segment)
        try:
            text = segment.decode()
        except UnicodeDecodeError:
            raise BadRequest(message) from None
        if not 1 <= len(text) <= limit or _CONTROL.search(text):
            raise BadRequest(message)
        return text

    return decode


class _Node:
    """A place in the tree of path segments."""

    __slots__ = ("literals", "param", "param_kind", "routes")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.param: _Node | None = None
        self.param_kind = ""
        self.routes: dict[str, tuple[Route, tuple[ParamDecoder, ...]]] = {}


class Table:
    """Finds the route of a method and a raw path. Built once; refuses ambiguous declarations with ValueError."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._root = _Node()
        names = [route.name for route in routes]
        if len(set(names)) != len(names):
            raise ValueError("two routes have the same name")
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        decoders: list[ParamDecoder] = []
        for segment in route.path.split("/")[1:]:
            placeholder = _PLACEHOLDER.fullmatch(segment)
            if placeholder is None:
                node = _literal(node, segment)
                continue
            name = placeholder[1]
            decoders.append(decode_id if is_id(name) else text_decoder(name))
            node = _param(node, "id" if is_id(name) else name)
        if route.method in node.routes:
            raise ValueError(f"two routes for {route.method} {route.path}")
        node.routes[route.method] = (route, tuple(decoders))
        if route.method == "GET":
            node.routes["HEAD"] = node.routes["GET"]

    def match(self, method: str, raw_path: bytes) -> tuple[Route, tuple[ParamDecoder, ...], list[bytes]]:
        """The route, its decoders and the raw parameters, undecoded: that waits until the caller is known.

        Raises NotFound, or MethodNotAllowed with what the path has.
        """
        node = self._root
        values: list[bytes] = []
        for segment in raw_path.split(b"/")[1:]:
            below = node.literals.get(segment)
            if below is None:
                below = node.param
                if below is None or not segment:
                    raise NotFound
                values.append(segment)
            node = below
        found = node.routes.get(method)
        if found is None:
            if not node.routes:
                raise NotFound
            raise MethodNotAllowed((*sorted(node.routes), "OPTIONS"))
        return found[0], found[1], values


def _literal(node: _Node, segment: str) -> _Node:
    if node.param is not None and node.param_kind != "id":
        raise ValueError(f"/{segment} is ambiguous beside {{{node.param_kind}}}")
    return node.literals.setdefault(segment.encode(), _Node())


def _param(node: _Node, kind: str) -> _Node:
    if kind != "id" and node.literals:
        raise ValueError(f"{{{kind}}} is ambiguous beside literal segments")
    if node.param is None:
        node.param, node.param_kind = _Node(), kind
    elif node.param_kind != kind:
        raise ValueError(f"{{{kind}}} stands where {{{node.param_kind}}} does")
    return node.param
