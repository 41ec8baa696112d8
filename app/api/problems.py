"""Errors as RFC 9457 problem documents: one table from the error tree to HTTP.

A problem's ``type`` is ``urn:confide:problem:<slug>``; ``docs/problems.md`` says what each means and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

from app import errors
from app.api.http import Answer, Headers

PROBLEM_JSON: Final = b"application/problem+json"
TYPE_PREFIX: Final = "urn:confide:problem:"


class Problem(NamedTuple):
    """How a class of errors is answered."""

    status: int
    slug: str
    title: str


PROBLEMS: Final[Mapping[type[errors.ConfideError], Problem]] = MappingProxyType(
    {
        errors.ConfideError: Problem(500, "internal-error", "Internal error"),
        errors.BadRequest: Problem(400, "bad-request", "Bad request"),
        errors.MethodUnknown: Problem(501, "method-unknown", "Method unknown"),
        errors.InvalidRequest: Problem(422, "invalid-request", "Invalid request"),
        errors.NumberNotRepresentable: Problem(422, "number-not-representable", "Number not representable"),
        errors.IdempotencyMismatch: Problem(422, "idempotency-mismatch", "Idempotency key used before"),
        errors.Unauthenticated: Problem(401, "unauthenticated", "Not authenticated"),
        errors.Forbidden: Problem(403, "forbidden", "Forbidden"),
        errors.TenantSuspended: Problem(403, "tenant-suspended", "Tenant suspended"),
        errors.TenantSealed: Problem(403, "tenant-sealed", "Tenant sealed"),
        errors.KeyAccessDenied: Problem(403, "key-access-denied", "Key access denied"),
        errors.NotFound: Problem(404, "not-found", "Not found"),
        errors.MethodNotAllowed: Problem(405, "method-not-allowed", "Method not allowed"),
        errors.Conflict: Problem(409, "conflict", "Conflict"),
        errors.KeyMisconfigured: Problem(409, "key-misconfigured", "Key binding misconfigured"),
        errors.PreconditionFailed: Problem(412, "precondition-failed", "Precondition failed"),
        errors.TooLarge: Problem(413, "too-large", "Too large"),
        errors.HeadTooLarge: Problem(431, "head-too-large", "Request head too large"),
        errors.UnsupportedMediaType: Problem(415, "unsupported-media-type", "Unsupported media type"),
        errors.WrongRegion: Problem(421, "wrong-region", "Wrong region"),
        errors.PreconditionRequired: Problem(428, "precondition-required", "Precondition required"),
        errors.RateLimited: Problem(429, "rate-limited", "Too many requests"),
        errors.Tampered: Problem(500, "tampered", "Stored data failed authentication"),
        errors.Unavailable: Problem(503, "unavailable", "Unavailable"),
        errors.OutcomeUnknown: Problem(503, "outcome-unknown", "Outcome unknown"),
        errors.KeyUnavailable: Problem(503, "key-unavailable", "Key unavailable"),
    }
)

INTERNAL_DETAIL: Final = "The service failed. The failure is logged under this request's id."

# A text of its own would tell the caller why: absent or another tenant's, unknown key or revoked.
_ONE_TEXT: Final = (errors.NotFound, errors.Unauthenticated)

_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="confide"'),)


def problem_of(kind: type[errors.ConfideError]) -> Problem:
    """The table's row for a class, or for its nearest ancestor."""
    for ancestor in kind.__mro__:
        found = PROBLEMS.get(ancestor)
        if found is not None:
            return found
    raise TypeError("not an error of Confide's tree")


def problem_answer(error: errors.ConfideError, request_id: str) -> Answer:
    """``request_id``: the UUID's text; it becomes ``instance``."""
    problem = problem_of(type(error))
    if isinstance(error, _ONE_TEXT):
        error = type(error)()
    detail = INTERNAL_DETAIL if problem.slug == "internal-error" else error.detail
    extra, headers = _extras(error)
    return _answer(problem, detail, request_id, extra, headers)


def internal_answer(request_id: str) -> Answer:
    """For an exception that nobody foresaw: nothing of it is shown."""
    return _answer(PROBLEMS[errors.ConfideError], INTERNAL_DETAIL, request_id, {}, ())


def _answer(problem: Problem, detail: str, request_id: str, extra: dict[str, Any], headers: Headers) -> Answer:
    document = {
        "type": TYPE_PREFIX + problem.slug,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": "urn:uuid:" + request_id,
        **extra,
    }
    return Answer(problem.status, orjson.dumps(document), PROBLEM_JSON, headers)


def _extras(error: errors.ConfideError) -> tuple[dict[str, Any], Headers]:
    """Members and headers that an error adds (RFC 9110 sections 10.2.1, 10.2.3, 11.6.1)."""
    match error:
        case errors.InvalidRequest() if error.pointer is not None:
            return {"pointer": error.pointer}, ()
        case errors.PreconditionFailed() if error.current is not None:
            quoted = f'"{error.current}"'
            return {"current": quoted}, ((b"etag", quoted.encode()),)
        case errors.RateLimited() | errors.Unavailable():
            return {"retry_after": error.retry_after}, ((b"retry-after", b"%d" % error.retry_after),)
        case errors.Unauthenticated():
            return {}, _CHALLENGE
        case errors.MethodNotAllowed():
            return {}, ((b"allow", ", ".join(error.allowed).encode()),)
        case errors.WrongRegion() if error.base_url is not None:
            return {"base_url": error.base_url}, ()
    return {}, ()
