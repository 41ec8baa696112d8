"""The OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1), made from the route table and from nothing else.

Beside the standard it says for each operation, as ``x-confide-scope``, ``x-confide-roles`` and ``x-confide-purposes``,
who may call it; tests of isolation are generated from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from app import errors
from app.api.parse import MAX_INTEGER, MAX_TEXT, MIN_INTEGER, base_of
from app.api.problems import PROBLEMS, TYPE_PREFIX, problem_of
from app.api.rules import Schema, with_rules
from app.api.schemas import In
from app.api.table import PURPOSE, TEXT_LIMITS, HeaderDoc, HeaderParam, QueryParam, RawBody, ResponseDoc, Route, is_id
from app.identity import ROLE_SCOPES, Scope

_REF: Final = "#/components/schemas/{name}"
_UUID_PATTERN: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_EXAMPLE_ID: Final = "01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f"
_NO_CONTROLS: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"
_DESCRIPTION: Final = (
    "An integer is written without fraction and exponent: 2, not 2.0. A field that is null counts as left out, but for"
    " `json`, where null is a value. Cursors are given back as they were answered. What a schema can't say (that a time"
    " lies ahead, that one query parameter excludes another) stands in the descriptions and is answered 422."
)
_CONTEXT: Final = frozenset({Scope.CONTEXT_READ, Scope.CONTEXT_WRITE, Scope.CONTEXT_EXPORT})

KEY_ERRORS: Final = (
    errors.TenantSealed,
    errors.KeyAccessDenied,
    errors.KeyMisconfigured,
    errors.KeyUnavailable,
    errors.Tampered,
)
"""What any use of a tenant's keys may end in; implied by the context scopes."""


def document(routes: Sequence[Route], *, version: str, server_url: str = "/") -> dict[str, Any]:
    """The whole document as JSON-ready builtins. ``version``: of the service."""
    shown = [route for route in routes if route.documented]
    models = _models(shown)
    schemas, components = msgspec.json.schema_components(models, ref_template=_REF)
    for name, rule in _rules(models).items():
        components[name] = with_rules(components[name], rule)
    refs = dict(zip(map(id, models), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Confide",
            "version": version,
            "summary": "A multi-tenant, sealed and audited store for dialogue context.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server_url}],
        "tags": [{"name": tag} for tag in sorted({tag for route in shown for tag in route.tags})],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _problem_schema()},
            "headers": _common_headers(),
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A Confide API key (RFC 6750)."}
            },
        },
    }


def _models(routes: Iterable[Route]) -> list[Any]:
    """Every type that stands in a body, once."""
    found: dict[int, Any] = {}
    for route in routes:
        kinds = [route.body, *(response.model for response in route.responses.values())]
        for kind in kinds:
            if kind is not None and not isinstance(kind, RawBody):
                found[id(kind)] = kind
    return list(found.values())


def _rules(models: Iterable[Any]) -> dict[str, Schema]:
    """What the parts of requests say beside their fields, by name."""
    found: dict[type, None] = {}

    def look(kind: Any) -> None:
        if isinstance(kind, inspect.StructType):
            if kind.cls in found:
                return
            found[kind.cls] = None
            for each in kind.fields:
                look(each.type)
        for below in (getattr(kind, "item_type", None), getattr(kind, "type", None), *getattr(kind, "types", ())):
            if isinstance(below, inspect.Type):
                look(below)

    for model in models:
        look(inspect.type_info(model))
    return {kind.__name__: kind.also for kind in found if issubclass(kind, In) and kind.also is not None}


def _operation(route: Route, refs: Mapping[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": list(route.tags),
        "parameters": _parameters(route),
        "responses": _responses(route, refs),
        "security": [] if route.public else [{"apiKey": []}],
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        operation["requestBody"] = _request_body(route, refs)
    if route.scope is not None:
        operation["x-confide-scope"] = route.scope.value
        operation["x-confide-roles"] = [role.value for role, scopes in ROLE_SCOPES.items() if route.scope in scopes]
    if route.purpose:
        operation["x-confide-purposes"] = [purpose.value for purpose in route.purposes]
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    path = [_path_parameter(name) for name in route.param_names]
    headers = [_header_parameter(route, param) for param in route.header_params]
    return [*path, *map(_query_parameter, route.query), *headers]


def _path_parameter(name: str) -> dict[str, Any]:
    if is_id(name):
        uuid = {"type": "string", "format": "uuid", "pattern": _UUID_PATTERN}
        return {"name": name, "in": "path", "required": True, "schema": uuid, "example": _EXAMPLE_ID}
    schema: dict[str, Any] = {
        "type": "string",
        "minLength": 1,
        "maxLength": TEXT_LIMITS.get(name, 256),
        "pattern": _NO_CONTROLS.replace("*", "+"),
    }
    text = "Percent-encoded UTF-8; a slash is %2F."
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _query_parameter(param: QueryParam) -> dict[str, Any]:
    schema = dict(msgspec.json.schema(param.kind))
    if "$ref" in schema:  # an enum: its definition is small enough to stand here
        schema = dict(schema["$defs"][schema["$ref"].rpartition("/")[2]])
    if base_of(param.kind) is str:
        schema.setdefault("maxLength", MAX_TEXT)
        schema.setdefault("pattern", _NO_CONTROLS)
    if base_of(param.kind) is int:
        schema.setdefault("minimum", MIN_INTEGER)
        schema.setdefault("maximum", MAX_INTEGER)
    if schema.get("format") == "uuid":
        schema.setdefault("pattern", _UUID_PATTERN)
    if param.default is not None and not param.many:
        schema["default"] = msgspec.to_builtins(param.default)
    if param.many:
        schema = {"type": "array", "items": schema, "maxItems": param.max_items}
    return {
        "name": param.name,
        "in": "query",
        "required": param.required,
        "description": param.description,
        "schema": schema,
    }


def _header_parameter(route: Route, param: HeaderParam) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if param is PURPOSE:
        schema["enum"] = [purpose.value for purpose in route.purposes]
    elif param.enum:
        schema["enum"] = list(param.enum)
    else:
        schema["pattern"] = param.pattern or r"^[\x20-\x7E]{0,1024}$"
    shown: dict[str, Any] = {
        "name": param.name,
        "in": "header",
        "required": param.required,
        "description": param.description,
        "schema": schema,
    }
    if param.example is not None:
        shown["example"] = param.example
    return shown


def _request_body(route: Route, refs: Mapping[int, Any]) -> dict[str, Any]:
    if isinstance(route.body, RawBody):
        content: dict[str, Any] = {kind: {"schema": {}} for kind in route.content_types}
        return {"description": route.body.description, "required": route.content_types != ("*/*",), "content": content}
    shown: dict[str, Any] = {"schema": refs[id(route.body)]}
    if route.request_example is not None:
        shown["example"] = route.request_example
    return {"required": route.body_required, "content": dict.fromkeys(route.content_types, shown)}


def _responses(route: Route, refs: Mapping[int, Any]) -> dict[str, Any]:
    responses = {str(status): _success(doc, refs) for status, doc in sorted(route.responses.items())}
    by_status: dict[int, list[type[errors.ConfideError]]] = {}
    for error in error_types(route):
        by_status.setdefault(problem_of(error).status, []).append(error)
    for status, kinds in sorted(by_status.items()):
        responses[str(status)] = _failure(status, kinds)
    return responses


def _success(doc: ResponseDoc, refs: Mapping[int, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": doc.description, "headers": _headers(doc.headers)}
    media_type = doc.media_type
    if media_type is not None:
        content: dict[str, Any] = {"schema": refs[id(doc.model)] if doc.model is not None else {}}
        if doc.example is not None:
            content["example"] = doc.example
        shown["content"] = {media_type: content}
    return shown


def error_types(route: Route) -> tuple[type[errors.ConfideError], ...]:
    """What the route may answer beside success: what its declaration implies, and what it names."""
    kinds: list[type[errors.ConfideError]] = [errors.BadRequest, errors.HeadTooLarge, errors.ConfideError]
    if not route.public:
        kinds += [errors.Unauthenticated, errors.Forbidden, errors.TenantSuspended, errors.WrongRegion]
        kinds += [errors.RateLimited, errors.Unavailable]
    if route.scope in _CONTEXT:
        kinds += KEY_ERRORS
    if route.param_names:
        kinds.append(errors.NotFound)
    if route.body is not None:
        kinds += [errors.TooLarge, errors.UnsupportedMediaType]
        if not isinstance(route.body, RawBody):
            kinds.append(errors.InvalidRequest)
    return tuple(dict.fromkeys((*kinds, *route.errors)))


def _failure(status: int, kinds: Sequence[type[errors.ConfideError]]) -> dict[str, Any]:
    slugs = [TYPE_PREFIX + problem_of(kind).slug for kind in kinds]
    schema = {
        "allOf": [{"$ref": _REF.format(name="Problem")}],
        "properties": {"type": {"enum": slugs}, "status": {"const": status}},
    }
    titles = dict.fromkeys(problem_of(kind).title for kind in kinds)
    return {
        "description": "; ".join(titles) + ".",
        "headers": _headers(_ERROR_HEADERS.get(status, ())),
        "content": {"application/problem+json": {"schema": schema}},
    }


_ERROR_HEADERS: Final[Mapping[int, tuple[HeaderDoc, ...]]] = {
    401: (HeaderDoc("WWW-Authenticate", "How to authenticate."),),
    412: (HeaderDoc("ETag", "The present version, where one is stored."),),
    429: (HeaderDoc("Retry-After", "Whole seconds to wait.", "^[0-9]+$"),),
    503: (HeaderDoc("Retry-After", "Whole seconds to wait.", "^[0-9]+$"),),
}


def _headers(docs: Sequence[HeaderDoc]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for doc in docs:
        schema = {"type": "string"} | ({"pattern": doc.pattern} if doc.pattern else {})
        shown[doc.name] = {"description": doc.description, "schema": schema}
    return shown | {name: {"$ref": f"#/components/headers/{name}"} for name in _common_headers()}


def _common_headers() -> dict[str, Any]:
    return {
        "Confide-Request-Id": {
            "description": "This request, in logs and problem documents.",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        },
        "Confide-Trace-Id": {
            "description": "The trace: taken from a valid traceparent, else new.",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        },
    }


def _problem_schema() -> dict[str, Any]:
    """RFC 9457, with Confide's own members."""
    text = {"type": "string"}
    return {
        "title": "Problem",
        "description": "RFC 9457 problem document. docs/problems.md says what each type means and what to do.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": {"type": "string", "enum": [TYPE_PREFIX + problem.slug for problem in PROBLEMS.values()]},
            "title": text,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": text,
            "instance": {"type": "string", "pattern": "^urn:uuid:"},
            "pointer": {"type": "string", "description": "JSON pointer (RFC 6901) to the field of the request."},
            "current": {"type": "string", "description": "The present ETag (412)."},
            "retry_after": {"type": "integer", "minimum": 0, "description": "Whole seconds (429, 503)."},
            "base_url": {"type": "string", "description": "The right cell's address (421)."},
        },
        "additionalProperties": False,
        "examples": [
            {
                "type": TYPE_PREFIX + "not-found",
                "title": "Not found",
                "status": 404,
                "detail": errors.NotFound.detail,
                "instance": f"urn:uuid:{_EXAMPLE_ID}",
            }
        ],
    }
