"""The signed account of every opening of a period, by purpose, principal, action and region.

It is computed from sealed events only, holds nothing that depends on when it is asked for, and Ed25519 is
deterministic: the same period gives the same bytes. The ranges of leaves say what it was computed from, and the sums
equal their counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from app.errors import InvalidRequest, Unavailable
from app.identity import Caller, Purpose
from app.services.attesting import Attestor
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.erasure import Checkpoints
from app.store import privacy_records as rows

LONGEST: Final = timedelta(days=400)
USE: Final = (
    "Context is opened for the purposes listed here and no other. Training a model is not among the purposes that"
    " exist, and no setting can add one."
)


class Statements:
    """``make`` answers the document, its signed note, and the checkpoint to verify the leaves against."""

    def __init__(self, region: str, control: ControlPlane, attestor: Attestor, checkpoints: Checkpoints) -> None:
        self._region = region
        self._control = control
        self._attestor = attestor
        self._checkpoints = checkpoints

    async def make(self, caller: Caller, since: datetime, until: datetime, trace: Trace) -> dict[str, Any]:
        """Raises InvalidRequest; Unavailable while events of the period wait to be sealed (seconds)."""
        if not since < until <= datetime.now(UTC) or until - since > LONGEST:
            raise InvalidRequest("from must be before to, to not in the future, and the period at most 400 days.")
        async with self._control.act(caller, trace, "privacy.statement") as act:
            gone = await rows.dropped(act.tx, [caller.tenant], since, until)
            if gone:
                raise InvalidRequest(
                    "Retention has dropped events of that period: its account can't be complete any more. Ask for a"
                    f" time after {max(each['newest'] for each in gone):%Y-%m-%dT%H:%M:%SZ}; exports hold the rest.",
                    "/from",
                )
            groups, ranges, waiting = await rows.account(act.tx, caller.tenant, since, until)
            act.detail["openings"] = sum(row["openings"] for row in groups)
        if waiting:
            raise Unavailable("Events of that period are being sealed. Try again in some seconds.", retry_after=5)
        document = {
            "tenant": caller.tenant,
            "region": self._region,
            "from": since,
            "to": until,
            "purposes": [purpose.value for purpose in Purpose],
            "use": USE,
            "openings": [dict(row) for row in groups],
            "total": sum(row["openings"] for row in groups),
            "by_purpose": _sums(groups, "purpose"),
            "by_job": _by_job(groups),
            "leaves": [dict(row) for row in ranges],
        }
        found = await self._checkpoints.checkpoint(caller.tenant)
        return {
            "statement": document,
            "note": self._attestor.sign("purpose-statement", document),
            "checkpoint": bytes(found["note"]).decode() if found is not None else None,
        }


def _by_job(groups: list[Any]) -> dict[str, dict[str, Any]]:
    """Openings of each job, and who issued it: a principal; ``service`` for one that nobody asked for."""
    jobs: dict[str, dict[str, Any]] = {}
    for row in groups:
        if row["job"]:
            known = jobs.setdefault(row["job"], {"issuer": row["principal"] or "service", "openings": 0})
            known["openings"] += row["openings"]
    return jobs


def _sums(groups: list[Any], column: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in groups:
        sums[row[column]] = sums.get(row[column], 0) + row["openings"]
    return sums
