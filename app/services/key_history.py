"""Whether a tenant's data could be opened, over time: from the transitions that the audit log has.

``sealed`` by the tenant, ``revoked`` by its KMS (or for want of a consent), ``unavailable`` while the KMS is out (keys
in memory serve until their lease ends), else ``available``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

ACTIONS: Final = ("key.seal", "key.unseal", "binding.state")
STATES: Final = ("available", "unavailable", "revoked", "sealed")


@dataclass(frozen=True, slots=True)
class Transition:
    """One event of ``ACTIONS``. ``binding`` and ``before`` are those of ``binding.state``; ``after`` is its too, and
    what an unsealing led to (none where nothing was sealed).
    """

    time: datetime
    action: str
    binding: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Period:
    """From ``since`` on, until the next one's."""

    since: datetime
    state: str


def periods(transitions: Iterable[Transition], since: datetime, until: datetime) -> list[Period]:
    """Key states of a window, the first as of ``since``. ``transitions``: in the log's order, earlier ones too.

    What a binding was before its first event is what that event says it was: the log may begin later than the binding.
    """
    known = list(transitions)
    bindings: dict[str, str] = {}
    for each in reversed(known):
        if each.binding is not None and each.before is not None:
            bindings[each.binding] = each.before
    switches = (each for each in known if each.action == "key.seal" or (each.action == "key.unseal" and each.after))
    sealed = next((each.action == "key.unseal" for each in switches), False)
    found = [Period(since, _state(bindings, sealed=sealed))]
    for each in known:
        if each.time >= until:
            break
        if each.action != "binding.state":
            sealed = each.action == "key.seal"
        elif each.binding is not None and each.after is not None:
            bindings[each.binding] = each.after
        state = _state(bindings, sealed=sealed)
        if each.time <= since:
            found = [Period(since, state)]
        elif state != found[-1].state:
            found.append(Period(each.time, state))
    return found


def cuts(found: Sequence[Period]) -> list[datetime]:
    """The moments within the window at which the state changed."""
    return [each.since for each in found[1:]]


def _state(bindings: dict[str, str], *, sealed: bool) -> str:
    if sealed:
        return "sealed"
    states = set(bindings.values())
    return next((state for state in ("revoked", "unavailable") if state in states), "available")
