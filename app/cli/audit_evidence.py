"""``confide audit verify`` on an evidence archive: every signature, and that the archive says what its notes say."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from app.cli.output import OK, emit

BROKEN: Final = 1
NOTHING: Final = 2
INCOMPLETE: Final = 3
LARGEST: Final = 64 << 20
"""Bytes of one file of an archive, unpacked: ours are far smaller."""


def is_archive(path: str) -> bool:
    """Whether a file is a ZIP, which no export of the log is."""
    return Path(path).is_file() and zipfile.is_zipfile(path)


def verify(path: str, vkeys: Sequence[str], *, as_json: bool) -> int:
    """Exit status: 0 verified; 1 a mismatch; 2 nothing can be said; 3 a control is missing.

    That the evidence is true of the log is another question: verify an export of it against ``checkpoint.txt``.
    """
    from app.audit.checkpoint import NoteError, VerifierKey  # noqa: PLC0415

    try:
        keys = [VerifierKey.parse(each.strip()) for each in vkeys]
        with zipfile.ZipFile(path) as archive:
            files = {each.filename: archive.read(each) for each in archive.infolist() if each.file_size <= LARGEST}
    except (NoteError, ValueError, OSError, zipfile.BadZipFile) as error:
        emit({"verified": False, "faults": [f"it can't be read ({type(error).__name__})"]}, as_json=as_json)
        return NOTHING
    documents, faults = _documents(files, keys)
    faults += _checkpoint(files, documents, keys)
    faults += _summary(files, documents)
    missing = _missing(documents)
    results = dict(Counter(str(each["result"]) for each in documents.values()))
    told: dict[str, Any] = {"verified": not faults and not missing, "controls": len(documents), "results": results}
    told |= {"faults": faults, "missing": missing}
    emit(told, as_json=as_json)
    return BROKEN if faults else INCOMPLETE if missing else OK


def _documents(files: dict[str, bytes], keys: Sequence[Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The evidence by control. It must be of one tenant, cell and period, each under its own name."""
    from app.audit.checkpoint import NoteError  # noqa: PLC0415
    from app.services.attesting import open_document  # noqa: PLC0415

    documents: dict[str, dict[str, Any]] = {}
    faults = []
    for name, content in sorted(files.items()):
        if not name.endswith(".note"):
            continue
        control = Path(name).stem
        try:
            kind, document = open_document(content.decode(), keys)
        except (NoteError, ValueError):
            faults.append(f"{name}: no note that a given key signed")
            continue
        if kind != "evidence" or document["control"] != control:
            faults.append(f"{name}: it is signed as something else")
            continue
        documents[control] = document
    about = {tuple(each[field] for field in ("tenant", "region", "from", "to")) for each in documents.values()}
    if len(about) > 1:
        faults.append("the notes are of more than one tenant, region or period")
    return documents, faults


def _checkpoint(files: dict[str, bytes], documents: dict[str, dict[str, Any]], keys: Sequence[Any]) -> list[str]:
    """The newest origin's leaves that the evidence names must lie below the checkpoint."""
    from app.audit.checkpoint import Checkpoint, NoteError  # noqa: PLC0415

    ranges = [each for document in documents.values() for each in document["leaves"]]
    if not ranges:
        return []
    try:
        size = Checkpoint.open(files.get("checkpoint.txt", b""), keys).size
    except NoteError:
        return ["checkpoint.txt: no checkpoint that a given key signed"]
    newest = max(each["epoch"] for each in ranges)
    beyond = [each for each in ranges if each["epoch"] == newest and each["last"] >= size]
    return ["checkpoint.txt: the evidence names leaves beyond it"] if beyond else []


def _summary(files: dict[str, bytes], documents: dict[str, dict[str, Any]]) -> list[str]:
    """The summary isn't signed: it must say what the notes say."""
    try:
        told = {name: each["result"] for name, each in json.loads(files["summary.json"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return ["summary.json: missing, or not ours"]
    signed = {name: each["result"] for name, each in documents.items()}
    return [] if told == signed else ["summary.json: it doesn't say what the notes say"]


def _missing(documents: dict[str, dict[str, Any]]) -> list[str]:
    from app.services.evidence_controls import CONTROLS  # noqa: PLC0415

    return sorted(CONTROLS.keys() - documents.keys())
