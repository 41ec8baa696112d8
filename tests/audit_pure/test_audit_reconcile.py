"""Reconciliation is exact on a set with planted differences."""

from __future__ import annotations

import gzip
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.identity import new_id

START = datetime(2026, 11, 1, tzinfo=UTC)
ARN = "arn:aws:kms:eu-central-1:111122223333:key/1"
VAULT = "https://acme.vault.azure.net/keys/confide/1"


def stamp(minute: float) -> str:
    return (START + timedelta(minutes=minute)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def call(number: int, kek: str, *, outcome: bool = True) -> list[dict[str, Any]]:
    """The two events of a call, as the log has them."""
    intent, context = str(new_id()), {"confide:half": "customer"}
    common = {
        "v": 1,
        "time": stamp(number),
        "kek": kek,
        "encryption_context": context,
        "detail": {"operation": "unwrap"},
    }
    events = [common | {"action": "key.intent", "id": intent}]
    if outcome:
        events.append(
            common | {"action": "key.outcome", "id": str(new_id()), "intent": intent, "kms_request_id": f"r-{number}"}
        )
    return events


def aws(number: int, intent: str, request: str | None = None) -> dict[str, Any]:
    return {
        "eventSource": "kms.amazonaws.com",
        "eventName": "Decrypt",
        "eventTime": stamp(number)[:19] + "Z",
        "requestID": request or f"r-{number}",
        "userAgent": f"Boto3/1.0 confide-intent/{intent}",
        "resources": [{"ARN": ARN}],
        "userIdentity": {"arn": "arn:aws:sts::111122223333:assumed-role/confide/session"},
    }


def azure(number: int, intent: str, request: str | None = None) -> dict[str, Any]:
    return {
        "time": stamp(number),
        "category": "AuditEvent",
        "operationName": "KeyUnwrap",
        "correlationId": intent,
        "properties": {"id": VAULT, "requestId": request or f"r-{number}"},
    }


def export(path: Path, events: list[list[dict[str, Any]]]) -> Path:
    path.write_text("#confide-audit-export/1 {}\n" + "".join(json.dumps(one) + "\n" for pair in events for one in pair))
    return path


@pytest.mark.parametrize(
    ("option", "kek", "record", "name"),
    [("--cloudtrail", ARN, aws, "Records"), ("--key-vault", VAULT, azure, "records")],
)
def test_g3_reconciliation_finds_exactly_the_planted_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, kek: str, record: Any, name: str
) -> None:
    events = [call(number, kek) for number in range(300)]
    events[50] = call(50, kek, outcome=False)  # crashed between the call and its outcome: the intent explains it
    events[60] = call(60, kek, outcome=False)  # crashed before the call left
    records = [record(number, events[number][0]["id"]) for number in range(300) if number not in {60, 70, 80, 299}]
    records.append(record(90, "nobody", "stolen-1"))
    records.append(record(91, str(new_id()), "stolen-2"))
    random.Random(7).shuffle(records)  # clouds deliver in any order
    half = len(records) // 2
    (tmp_path / "one.json").write_text(json.dumps({name: records[:half]}))
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(json.dumps({name: records[half:]}).encode()))
    arguments = [
        str(export(tmp_path / "export", events)),
        option,
        str(tmp_path / "one.json"),
        str(tmp_path / "two.json.gz"),
    ]
    assert main(["audit", "reconcile", *arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert sorted(one["request_id"] for one in found["unexplained"]) == ["stolen-1", "stolen-2"]
    assert sorted(one["request_id"] for one in found["unseen"]) == ["r-70", "r-80"]
    assert [one["event"] for one in found["open"]] == [events[60][0]["id"]]
    assert found["matched"] == 296
    assert found["pending"] == 1  # the last one: the cloud may still deliver it


def test_g3_an_honest_pair_reconciles_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [call(number, ARN) for number in range(100)]
    log = tmp_path / "trail.json"
    log.write_text(json.dumps({"Records": [aws(number, events[number][0]["id"]) for number in range(100)]}))
    assert main(["audit", "reconcile", str(export(tmp_path / "export", events)), "--cloudtrail", str(log)]) == 0
    assert "matched: 100" in capsys.readouterr().out


def test_a_file_of_another_kind_is_refused_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text("[1, 2]")
    assert (
        main(["audit", "reconcile", str(export(tmp_path / "export", [])), "--cloudtrail", str(tmp_path / "log")]) == 1
    )
    assert "can't be read" in capsys.readouterr().err
