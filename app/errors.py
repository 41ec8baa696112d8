"""The one error tree.

Every error that may reach a caller is a ``ConfideError`` with a ``detail`` that is safe to show: it never holds
content, names chosen by clients, secrets or SQL. ``app/api/problems.py`` maps the classes to HTTP in one table.

    ConfideError
    ├── BadRequest              the request can't be understood
    │   └── MethodUnknown       its method is none that the service knows
    ├── InvalidRequest          understood, but not valid
    │   ├── NumberNotRepresentable, IdempotencyMismatch
    ├── Unauthenticated         one and the same for every failure
    ├── Forbidden               role, scope or purpose
    │   ├── TenantSuspended, TenantSealed, KeyAccessDenied
    ├── NotFound                absent, expired, erased or somebody else's: equal
    ├── Conflict
    ├── PreconditionFailed, PreconditionRequired
    ├── TooLarge, HeadTooLarge, UnsupportedMediaType
    ├── WrongRegion
    ├── RateLimited
    ├── KeyMisconfigured        the tenant's key binding needs mending
    ├── Tampered                stored bytes are not what was written
    └── Unavailable             try again
        ├── OutcomeUnknown, KeyUnavailable
"""

from __future__ import annotations


class ConfideError(Exception):
    """Root of all errors that Confide raises on purpose. ``detail`` is safe to show to the caller."""

    detail = "The request could not be completed."

    def __init__(self, detail: str | None = None) -> None:
        if detail is not None:
            self.detail = detail
        super().__init__(self.detail)


class BadRequest(ConfideError):
    """The request is not well-formed: broken JSON, a bad id, a bad cursor, a bad header."""

    detail = "The request is not well-formed."


class MethodUnknown(BadRequest):
    """Where no resource has the method (RFC 9110 section 9.1); MethodNotAllowed where others have it."""

    detail = "No resource has this method. Methods are case-sensitive."


class InvalidRequest(ConfideError):
    """Well-formed, but a field has a value that isn't allowed. ``pointer`` names the place, never the value."""

    detail = "A field of the request is not valid."

    def __init__(self, detail: str | None = None, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.pointer = pointer


class NumberNotRepresentable(InvalidRequest):
    detail = (
        "A JSON number can't be kept exactly (RFC 7493: 64-bit integers and IEEE 754 doubles only). "
        "Send it as a string, or send the body as base64."
    )


class IdempotencyMismatch(InvalidRequest):
    detail = "This Idempotency-Key was used within 24 hours for a different request. Use a new key for a new request."


class Unauthenticated(ConfideError):
    """The same text for a missing, malformed, unknown, expired, revoked or misplaced API key."""

    detail = "A valid API key is needed: send it as 'Authorization: Bearer <API key>'."


class Forbidden(ConfideError):
    detail = "This API key may not do that."


class TenantSuspended(Forbidden):
    detail = "The tenant is suspended, or has left. The operator can say why, and can lift a suspension."


class TenantSealed(Forbidden):
    detail = "The tenant is sealed by its own administrator. POST /v1/keys/unseal opens it again."


class KeyAccessDenied(Forbidden):
    detail = (
        "The customer's key management service refuses the use of the key. "
        "When access is given back, service returns by itself within 60 s."
    )


class NotFound(ConfideError):
    """Absent, expired, erased or another tenant's: the caller can't tell which."""

    detail = "There is no such resource."


class MethodNotAllowed(ConfideError):
    """``allowed`` lists the methods that the resource has (RFC 9110 section 15.5.6)."""

    detail = "The resource doesn't have this method."

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self.allowed = allowed


class Conflict(ConfideError):
    detail = "The request conflicts with the present state of the resource."


class PreconditionFailed(ConfideError):
    """``current`` is the present version (the ETag's text), or None where nothing is stored."""

    detail = "The precondition does not hold. Load the present version, decide again, and send its ETag."

    def __init__(self, detail: str | None = None, current: str | None = None) -> None:
        super().__init__(detail)
        self.current = current


class PreconditionRequired(ConfideError):
    detail = "This tenant requires a precondition: send If-Match with the ETag, or If-None-Match: *."


class TooLarge(ConfideError):
    detail = "The request body is too large."


class HeadTooLarge(ConfideError):
    """Path, query and headers together."""

    detail = "The request's path, query and headers are too large."


class UnsupportedMediaType(ConfideError):
    detail = "This route doesn't take that content type."


class WrongRegion(ConfideError):
    """``base_url`` is the right cell's address where the deployment lists it."""

    detail = "This API key belongs to another region."

    def __init__(self, region: str, base_url: str | None) -> None:
        where = f" Send the request to {base_url}." if base_url else ""
        super().__init__(f"This API key belongs to region {region}.{where}")
        self.region = region
        self.base_url = base_url


class RateLimited(ConfideError):
    """``retry_after`` is in whole seconds."""

    detail = "The tenant's request rate is exceeded. Wait as Retry-After says."

    def __init__(self, detail: str | None = None, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class KeyMisconfigured(ConfideError):
    detail = "The tenant's key binding is not set up rightly. POST /v1/keys/bindings/{id}/check tells what to mend."


class Tampered(ConfideError):
    """Stored bytes do not authenticate as what they should be. Never served, never skipped."""

    detail = "A stored object failed authentication and was refused. The operator has been alarmed."


class Unavailable(ConfideError):
    """The database or the audit can't commit. ``retry_after`` is in whole seconds."""

    detail = "The service can't commit at the moment. Nothing was released or stored. Try again."

    def __init__(self, detail: str | None = None, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class OutcomeUnknown(Unavailable):
    detail = (
        "The connection to the database broke while the change was being committed: it may or may not be stored. "
        "Repeat the request with the same Idempotency-Key, or load and compare."
    )


class KeyUnavailable(Unavailable):
    detail = "The key management service doesn't answer and the lease on the cached key has ended. Try again."
