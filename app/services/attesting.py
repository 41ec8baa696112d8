"""Documents that Confide puts its name to: receipts, certificates, statements, evidence.

A document is a C2SP signed note: the first line says what it is, the second is its canonical JSON. It verifies offline
with the same verifier key as the audit log's checkpoints, and can't be taken for one: the first line differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.audit.checkpoint import NoteError, Signer, VerifierKey, open_note, sign_note
from app.audit.event import format_time

KINDS: Final = frozenset({"erasure-receipt", "offboarding-certificate", "purpose-statement", "evidence"})


class Attestor:
    """Signs with the cell's audit signing key."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    @property
    def verifier(self) -> str:
        """What auditors are given: the key's text form."""
        return self._signer.verifier.text()

    def sign(self, kind: str, document: Mapping[str, Any]) -> str:
        """The signed note over ``document``, which holds ids, codes, times and counts."""
        if kind not in KINDS:
            raise ValueError("not a kind of document")
        return sign_note(_text(kind, document), [self._signer]).decode()


def open_document(note: str, keys: Sequence[VerifierKey]) -> tuple[str, dict[str, Any]]:
    """Kind and document of a note that one of ``keys`` signed. Raises NoteError."""
    lines = open_note(note.encode(), keys).decode().split("\n")
    kind = lines[0].removeprefix("confide/").removesuffix("/v1")
    if len(lines) != 3 or kind not in KINDS:
        raise NoteError("the note isn't a document of Confide's")
    document: dict[str, Any] = orjson.loads(lines[1])
    return kind, document


def _text(kind: str, document: Mapping[str, Any]) -> bytes:
    body = orjson.dumps(document, _plain, orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)
    return b"confide/%s/v1\n%s\n" % (kind.encode(), body)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError("a value in a document has no JSON form")
