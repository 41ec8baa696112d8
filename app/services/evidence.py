"""Evidence for controls: a query is run, its result signed with the period, the leaves and the checkpoint it stands on.

An auditor verifies the note and the checkpoint offline, and can run the same questions over an export of the log.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import orjson

from app.errors import NotFound
from app.identity import Caller
from app.services.attesting import Attestor
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.erasure import Checkpoints
from app.services.evidence_controls import CONTROLS, Control
from app.store import evidence as rows
from app.store.ledger import Ledger, Transaction
from app.store.privacy_records import dropped

MOMENT: Final = timedelta(microseconds=1)
READ_ME: Final = (
    "Each .note is a signed note (C2SP signed-note, Ed25519): its second line is the evidence as canonical JSON.\n"
    "verifier.txt has the public key, checkpoint.txt the audit log's signed checkpoint. Compare the key with the one\n"
    "that you were given, and verify this archive as it is:\n"
    '  confide audit verify confide-evidence.zip --key "$(cat verifier.txt)"\n'
    "To verify the log itself, export it (GET /v1/audit/export) and run:\n"
    '  confide audit verify EXPORT --key "$(cat verifier.txt)" --checkpoint checkpoint.txt\n'
)


class Evidence:
    """One control, or all of them as a ZIP."""

    def __init__(
        self,
        region: str,
        control: ControlPlane,
        ledger: Ledger,
        attestor: Attestor,
        checkpoints: Checkpoints,
        documents: Sequence[Mapping[str, str]],
    ) -> None:
        """``documents``: what tenants must have accepted (``app/services/trust.py``, ``terms``)."""
        self.documents = documents
        self._region = region
        self._control = control
        self._ledger = ledger
        self._attestor = attestor
        self._checkpoints = checkpoints

    async def one(self, caller: Caller, name: str, since: datetime, until: datetime, trace: Trace) -> dict[str, Any]:
        """Raises NotFound for a control that isn't listed."""
        control = CONTROLS.get(name)
        async with self._control.act(caller, trace, "evidence.export", control=name) as act:
            if control is None:
                raise NotFound
            found = await self._look(act.tx, caller, name, control, since, until)
            act.detail["result"] = found["result"]
        checkpoint = await self._checkpoint(caller)
        return {"evidence": found, "note": self._attestor.sign("evidence", found), "checkpoint": checkpoint}

    async def archive(self, caller: Caller, since: datetime, until: datetime, trace: Trace) -> bytes:
        """Every control of the table, with a list of results and of what is not evidenced."""
        results: dict[str, dict[str, Any]] = {}
        async with self._control.act(caller, trace, "evidence.export", control="all") as act:
            for name, control in CONTROLS.items():
                results[name] = await self._look(act.tx, caller, name, control, since, until)
            act.detail["controls"] = len(results)
        checkpoint = await self._checkpoint(caller)
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, found in results.items():
                archive.writestr(f"controls/{name}.note", self._attestor.sign("evidence", found))
            summary = {
                name: {"title": found["title"], "result": found["result"], "not_evidenced": found["not_evidenced"]}
                for name, found in results.items()
            }
            archive.writestr("summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
            archive.writestr("verifier.txt", self._attestor.verifier + "\n")
            archive.writestr("checkpoint.txt", checkpoint or "")
            archive.writestr("README.txt", READ_ME)
        return made.getvalue()

    async def _look(
        self, tx: Transaction, caller: Caller, name: str, control: Control, since: datetime, until: datetime
    ) -> dict[str, Any]:
        gone = await dropped(tx, [caller.tenant], since, until)
        # What is left of the log is looked at, and said to be a part.
        stored_from = max([since, *(each["newest"] + MOMENT for each in gone)])
        checks = []
        for each in control.checks:
            check = rows.CHECKS[each]
            partial = bool(gone) and check.reads_log
            begin = stored_from if partial else since
            population, failures = await rows.run(tx, check, caller.tenant, begin, until, self.documents)
            found = "broken" if failures else "incomplete" if partial else "kept" if population else "empty"
            checks.append(
                {"check": each, "question": check.question, "query": check.failures, "population": population,
                 "failures": failures, "result": found}
                | ({"looked_from": begin} if partial else {})
                | ({"documents": self.documents} if "$4" in check.failures else {})
            )  # fmt: skip
        return {
            "control": name,
            "title": control.title,
            "tenant": caller.tenant,
            "region": self._region,
            "from": since,
            "to": until,
            "result": _overall([str(check["result"]) for check in checks]),
            "checks": checks,
            "not_evidenced": control.beyond,
            "leaves": await rows.leaves(tx, caller.tenant, since, until),
            "dropped": [{name: each[name] for name in ("epoch", "first", "beyond")} for each in gone],
        }

    async def _checkpoint(self, caller: Caller) -> str | None:
        found = await self._checkpoints.checkpoint(caller.tenant)
        return bytes(found["note"]).decode() if found is not None else None


def _overall(results: list[str]) -> str:
    """Broken if one is; incomplete where retention has dropped events of the period; not-evidenced without a query;
    empty where there was nothing to look at.
    """
    if not results:
        return "not-evidenced"
    for worst in ("broken", "incomplete"):
        if worst in results:
            return worst
    return "kept" if "kept" in results else "empty"
