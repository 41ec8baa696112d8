"""Strict parsing of what a route declares: query parameters and bodies. No message ever holds what was sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Final, get_args, get_origin
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec

from app.api.table import HeaderParam, QueryParam, Route
from app.errors import BadRequest, InvalidRequest

_BAD_PERCENT: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MAX_QUERY: Final = 8192

MAX_TEXT: Final = 1024
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1

# The wordings of msgspec that hold only the schema's own words. Anything else might hold what was sent.
_SAFE: Final = re.compile(
    r"Expected `[a-z0-9| -]+`(?:, got `[a-z0-9 -]+`| (?:[<>]=? )-?[0-9.e+-]+"
    r"| of length [<>]?=? ?[0-9]+| that's a multiple of [0-9.]+| with a timezone component)?"
    r"|Object missing required field `[a-z0-9_]+`|Number out of range|Integer value out of range"
)
_PLACE: Final = re.compile(r"(?P<what>.*?) - at (?:`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL)
_STEP: Final = re.compile(r"\.([A-Za-z0-9_]+)|\[([0-9]+)\]|\[\.\.\.\]")


def is_meant(moment: datetime) -> bool:
    """Whether a time as written lies in the years 2000 to 2199, with which every calculation here is safe."""
    return 2000 <= moment.year <= 2199


def base_of(kind: Any) -> Any:
    """``int`` of ``Annotated[int, Meta(...)]``."""
    return get_args(kind)[0] if get_origin(kind) is not None and hasattr(kind, "__metadata__") else kind


class QueryParser:
    """The query of one route: declared parameters only, each once (unless ``many``), every value checked."""

    def __init__(self, route: Route) -> None:
        self._defaults = route.query_defaults
        self._params = {param.name: (param, _converter(param)) for param in route.query}
        self._required = tuple(param.name for param in route.query if param.required)

    def parse(self, raw: bytes) -> Mapping[str, Any]:
        """``raw``: the query string without ``?``. Raises BadRequest."""
        if not raw and not self._required:
            return self._defaults
        if len(raw) > _MAX_QUERY:
            raise BadRequest(f"The query is longer than {_MAX_QUERY} bytes.")
        found: dict[str, list[Any]] = {}
        for pair in raw.split(b"&") if raw else ():
            name, _, value = pair.partition(b"=")
            known = self._params.get(name.decode("ascii", "replace"))
            if known is None:
                raise BadRequest("The query holds a parameter that this route doesn't have.")
            param, convert = known
            found.setdefault(param.name, []).append(convert(_unquote(value, param.name)))
        return self._settled(found)

    def _settled(self, found: Mapping[str, list[Any]]) -> Mapping[str, Any]:
        values = dict(self._defaults)
        for name, items in found.items():
            param = self._params[name][0]
            if len(items) > (param.max_items if param.many else 1):
                raise BadRequest(f"The query parameter {name} is repeated too often.")
            values[name] = tuple(items) if param.many else items[0]
        for name in self._required:
            if name not in found:
                raise BadRequest(f"The query parameter {name} is missing.")
        return values


def _unquote(value: bytes, name: str) -> str:
    """Percent-decoded UTF-8, ``+`` as space, no control characters."""
    text = value.decode("latin-1")
    if _BAD_PERCENT.search(text):
        raise BadRequest(f"The query parameter {name} is not percent-encoded UTF-8.")
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeError:
        raise BadRequest(f"The query parameter {name} is not percent-encoded UTF-8.") from None
    if len(decoded) > MAX_TEXT or _CONTROL.search(decoded):
        raise BadRequest(f"The query parameter {name} is too long or holds control characters.")
    return decoded


def _converter(param: QueryParam) -> Callable[[str], Any]:
    """Text to the declared kind; the kind's constraints are msgspec's."""
    base = base_of(param.kind)

    def convert(text: str) -> Any:
        try:
            value = msgspec.convert(_plain(base, text), param.kind, str_keys=True)
            return value if base is not datetime or is_meant(value) else _refuse()
        except ValueError:
            raise BadRequest(f"The query parameter {param.name} has a value that isn't allowed.") from None

    return convert


def _plain(base: Any, text: str) -> Any:
    """The JSON value that the text stands for. Raises ValueError where the text isn't its one spelling."""
    if base is bool:
        return {"true": True, "false": False}[text] if text in {"true", "false"} else _refuse()
    if base is int:
        fits = _INTEGER.fullmatch(text) and text != "-0" and MIN_INTEGER <= int(text) <= MAX_INTEGER
        return int(text) if fits else _refuse()
    if base is UUID:
        return text if _UUID.fullmatch(text) else _refuse()
    if isinstance(base, type) and issubclass(base, Enum):
        return text
    return text


def _refuse() -> Any:
    raise ValueError


def header_check(route: Route) -> Callable[[Mapping[bytes, bytes]], None]:
    """A check of the declared request headers: presence and form. It raises BadRequest."""
    checks = [(p.name, p.name.lower().encode(), _header_pattern(p), p.required) for p in route.header_params]

    def check(headers: Mapping[bytes, bytes]) -> None:
        for name, key, pattern, required in checks:
            value = headers.get(key)
            if value is None:
                if required:
                    raise BadRequest(f"The header {name} is missing.")
            elif pattern.fullmatch(value) is None:
                raise BadRequest(f"The header {name} has a value that isn't allowed.")

    return check


def _header_pattern(param: HeaderParam) -> re.Pattern[bytes]:
    if param.enum:
        return re.compile("|".join(map(re.escape, param.enum)).encode())
    return re.compile((param.pattern or r"[\x20-\x7e]{0,1024}").encode())


def body_decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """Strict JSON into ``kind``. Malformed: BadRequest; against the schema: InvalidRequest with a pointer."""
    decode = msgspec.json.Decoder(kind).decode

    def strict(body: bytes) -> Any:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise invalid(str(error)) from None
        except (ValueError, RecursionError):
            raise BadRequest("The body is not well-formed JSON (RFC 8259).") from None

    return strict


def invalid(message: str) -> InvalidRequest:
    """msgspec's message, cut to what holds no input, and its place as a JSON pointer (RFC 6901)."""
    what, pointer = message, ""
    place = _PLACE.fullmatch(message)
    if place is not None:
        what, pointer = place["what"], _pointer(place["path"])
    if what.startswith("Object contains unknown field"):
        return InvalidRequest("The object has a field that isn't known here.", pointer)
    if _SAFE.fullmatch(what) is None:
        return InvalidRequest("The value isn't allowed here.", pointer)
    return InvalidRequest(what.replace("`", "'") + ".", pointer)


def _pointer(path: str) -> str:
    """``.puts[3].key`` as ``/puts/3/key``; it ends where a key that the client chose would stand."""
    steps = []
    position = 0
    while (step := _STEP.match(path, position)) is not None and (step[1] or step[2]):
        steps.append("/" + (step[1] or step[2]))
        position = step.end()
    return "".join(steps)
