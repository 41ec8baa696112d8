"""What the statements' statuses mean: one table from status to error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from app.errors import (
    ConfideError,
    Conflict,
    IdempotencyMismatch,
    KeyAccessDenied,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    TenantSealed,
    TenantSuspended,
    Unauthenticated,
    Unavailable,
)

STALE: Final = frozenset({"epoch", "key", "head", "meta", "exists", "gone"})
"""What this worker believed isn't so any more: look again and try again."""

WIPES: Final = frozenset({"suspended", "sealed", "revoked"})
"""The tenant's keys may not be used any more: they are wiped at once."""


def _hold() -> ConfideError:
    return Conflict(
        "A legal hold stands on this container: nothing in it can be removed, only added and replaced. A runtime lifts"
        ' its own hold with PATCH and "hold": false; an administrator\'s is released by an administrator: GET'
        " /v1/privacy/holds, DELETE /v1/privacy/holds/{id}."
    )


_ERRORS: Final[dict[str, Callable[[], ConfideError]]] = {
    "api-key": Unauthenticated,
    "suspended": TenantSuspended,
    "sealed": TenantSealed,
    "revoked": KeyAccessDenied,
    "absent": NotFound,
    "no-object": NotFound,
    "mismatch": IdempotencyMismatch,
    "guard": PreconditionRequired,
    "hold": _hold,
}


def refusal(status: str, head: Any) -> ConfideError:
    """The error for a status that isn't ``ok``, ``replay`` or stale. ``head`` is the target's 'h' row."""
    if status == "precondition":
        return PreconditionFailed(current=orjson.loads(head["extra"] or b"{}").get("current"))
    if status == "commit":
        return PreconditionFailed(
            f"The commit number is {head['commit_number'] or 0} now. Load again, decide again, and send that number."
        )
    make = _ERRORS.get(status)
    return make() if make is not None else Unavailable()
