"""The event's canonical bytes (RFC 8785), its strict parser, commitments and the OCSF form."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit import event
from app.audit.event import ACTIONS, FIELDS, REQUIRED, EventError, decode, encode
from tests.audit_pure.made_log import make_events, random_uuid

RNG = random.Random(4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGER = st.integers(-event.MAX_INTEGER, event.MAX_INTEGER)
UUIDS = st.builds(lambda seed: random_uuid(random.Random(seed)), st.integers(0, 1 << 32))
COUNTS = st.integers(0, event.MAX_INTEGER)
RANGES = st.tuples(COUNTS, COUNTS).map(sorted)
OPTIONAL = {
    "principal": UUIDS,
    "container": UUIDS,
    "objects": st.lists(st.lists(UUIDS, min_size=2, max_size=2), max_size=4),
    "turns": st.lists(RANGES, max_size=3),
    "commit": COUNTS,
    "grace": st.just(True),
    "purpose": st.sampled_from(["serve", "maintenance"]),
    "kms_error": st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30),
    "encryption_context": st.dictionaries(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=10), TEXT, max_size=4
    ),
    "detail": st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), TEXT | INTEGER, max_size=5),
}
EVENTS = st.builds(
    lambda seed, extra: {**make_events(random.Random(seed), 1, random_uuid(random.Random(seed)))[0], **extra},
    st.integers(0, 1 << 32),
    st.fixed_dictionaries({}, optional=OPTIONAL),
)


def sample(**fields: Any) -> dict[str, Any]:
    return {**make_events(random.Random(1), 1, random_uuid(random.Random(1)))[0], **fields}


def jcs(value: Any) -> str:
    """RFC 8785 written out from its sections 3.2.2 and 3.2.3, for the allowed kinds of value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
        return '"' + "".join(short.get(ord(c)) or (f"\\u{ord(c):04x}" if ord(c) < 32 else c) for c in value) + '"'
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{jcs(name)}:{jcs(value[name])}" for name in names) + "}"
    return "[" + ",".join(map(jcs, value)) + "]"


@given(EVENTS)
def test_an_entry_is_the_json_canonicalization_of_rfc_8785(made: dict[str, Any]) -> None:
    assert encode(made) == jcs(made).encode()


@given(EVENTS)
def test_an_entry_decodes_to_the_event_that_it_was_made_of(made: dict[str, Any]) -> None:
    entry = encode(made)
    assert decode(entry) == made
    assert b"\n" not in entry


@given(TEXT)
def test_control_characters_and_characters_beyond_the_bmp_have_one_spelling(text: str) -> None:
    made = sample(detail={"text": text})
    assert encode(made) == jcs(made).encode()


def test_every_control_character_has_the_spelling_of_rfc_8785() -> None:
    made = sample(detail={"text": "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028\ufeff\U0001f600'})
    assert encode(made) == jcs(made).encode()


@given(EVENTS, st.data())
def test_any_changed_byte_makes_another_entry_or_none(made: dict[str, Any], data: st.DataObject) -> None:
    entry = encode(made)
    at = data.draw(st.integers(0, len(entry) - 1))
    other = entry[:at] + bytes([data.draw(st.integers(0, 255).filter(lambda c: c != entry[at]))]) + entry[at + 1 :]
    with contextlib.suppress(EventError):
        assert encode(decode(other)) == other


WRONG: list[tuple[str, Any]] = [
    ("v", 2),
    ("v", True),
    ("v", "1"),
    ("id", random_uuid(RNG, 4)),
    ("id", random_uuid(RNG).upper()),
    ("id", random_uuid(RNG) + "\n"),
    ("id", "{" + random_uuid(RNG) + "}"),
    ("time", "2026-11-23T20:37:12Z"),
    ("time", "2026-11-23T20:37:12.123Z"),
    ("time", "2026-11-23T20:37:12.123456+00:00"),
    ("time", "2026-02-30T20:37:12.123456Z"),
    ("time", "2026-11-23T24:37:12.123456Z"),
    ("time", "2026-11-23T20:37:60.123456Z"),
    ("time", "2026-11-23 20:37:12.123456Z"),
    ("time", "\u0662026-11-23T20:37:12.123456Z"),
    ("tenant", random_uuid(RNG).replace("-", "")),
    ("tenant", 5),
    ("tenant", None),
    ("writer", b"x"),
    ("seq", 0),
    ("seq", 1.0),
    ("seq", True),
    ("seq", 1 << 53),
    ("action", "context.look"),
    ("action", ["context.read"]),
    ("outcome", "perhaps"),
    ("role", "root"),
    ("purpose", "training"),
    ("kind", "table"),
    ("objects", [[random_uuid(RNG)]]),
    ("objects", [random_uuid(RNG), random_uuid(RNG)]),
    ("objects", {}),
    ("objects", [[random_uuid(RNG), "7"]]),
    ("turns", [1, 2]),
    ("turns", [[2, 1]]),
    ("turns", [[1, 2, 3]]),
    ("turns", [[-1, 2]]),
    ("commit", -1),
    ("kek", "a b"),
    ("kek", ""),
    ("kek", "é"),
    ("grace", False),
    ("grace", 1),
    ("trace", "0" * 32),
    ("trace", "A" * 32),
    ("source", "192.0.2.1"),
    ("source", "A" * 42 + "B"),
    ("encryption_context", {"a": 1}),
    ("encryption_context", {"é": "a"}),
    ("encryption_context", [["a", "b"]]),
    ("detail", {"a": 1.5}),
    ("detail", {"a": None}),
    ("detail", {"a": True}),
    ("detail", {"a": ["b"]}),
    ("detail", {"A": "b"}),
    ("detail", {"a": 1 << 53}),
    ("detail", {"a": "\ud800"}),
    ("reason", "no-such-key"),
    ("request", "a b"),
    ("unheard_of", "x"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_the_format_does_not_have_is_refused(name: str, value: Any) -> None:
    with pytest.raises(EventError):
        encode(sample(**{name: value}))


@pytest.mark.parametrize("name", REQUIRED)
def test_an_event_lacks_no_required_field(name: str) -> None:
    made = sample()
    del made[name]
    with pytest.raises(EventError, match=name):
        encode(made)


@pytest.mark.parametrize("outcome", ["denied", "failed"])
def test_a_reason_stands_exactly_where_the_outcome_is_not_allowed(outcome: str) -> None:
    assert decode(encode(sample(outcome=outcome, reason="key-access-denied")))["reason"] == "key-access-denied"
    with pytest.raises(EventError, match="reason"):
        encode(sample(outcome=outcome))


def test_an_error_names_the_field_and_never_its_value() -> None:
    with pytest.raises(EventError) as caught:
        encode(sample(source="203.0.113.77"))
    assert "source" in str(caught.value)
    assert "203.0.113" not in str(caught.value)


def test_a_line_in_any_other_spelling_is_refused() -> None:
    made = sample(detail={"text": "é/\n"})
    entry = encode(made)
    spellings = [
        json.dumps(made).encode(),
        json.dumps(made, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(dict(sorted(made.items(), reverse=True)), separators=(",", ":"), ensure_ascii=False).encode(),
        entry.replace(b"/", b"\\/"),
        entry.replace(b"\\n", b"\\u000a"),
        entry.replace("é".encode(), b"\\u00e9"),
        entry.replace("é".encode(), b"\xe9"),
        entry.replace(b'"v":1', b'"v":1.0'),
        entry.replace(b'"v":1', b'"v":1,"v":1'),
        entry.replace(b'"v":1', b'"v":1e0'),
        entry.replace(b'"commit":0', b'"commit":-0'),
        entry + b" ",
        entry + b"\n",
        b"\xef\xbb\xbf" + entry,
        b"[" + entry + b"]",
        b"null",
        b"",
        b"[" * 100_000,
    ]
    for spelling in spellings:
        assert spelling != entry
        with pytest.raises(EventError):
            decode(spelling)


def test_an_entry_has_a_limit() -> None:
    with pytest.raises(EventError, match="larger"):
        encode(sample(detail={"text": "x" * event.MAX_ENTRY_BYTES}))
    with pytest.raises(EventError, match="larger"):
        decode(b"x" * (event.MAX_ENTRY_BYTES + 1))


def test_a_leaf_is_the_hash_of_a_zero_byte_and_the_line() -> None:
    entry = encode(sample())
    assert event.leaf_hash(entry) == hashlib.sha256(b"\0" + entry).digest()


def test_a_commitment_hides_and_binds_its_value() -> None:
    salt = bytes(range(16))
    assert event.commitment("192.0.2.1", salt) != event.commitment("192.0.2.1", bytes(16))
    assert event.commitment("192.0.2.1", salt) != event.commitment("192.0.2.2", salt)
    assert encode(sample(source=event.commitment("192.0.2.1", salt)))
    for length in (0, 15, 17, 32):
        with pytest.raises(ValueError, match="salt"):
            event.commitment("192.0.2.1", bytes(length))


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001
def test_a_time_is_utc_with_six_decimals(moment: datetime) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert datetime.fromisoformat(event.format_time(aware)) == aware
    assert encode(sample(time=event.format_time(aware)))


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        event.format_time(datetime.now(UTC).replace(tzinfo=None))


def test_an_ocsf_event_carries_the_entry_that_verifies() -> None:
    made = sample(outcome="denied", reason="key-access-denied", action="context.write")
    ocsf = event.to_ocsf(made)
    assert ocsf["raw_data"].encode() == encode(made)
    assert ocsf["unmapped"] == made
    assert (ocsf["class_uid"], ocsf["category_uid"], ocsf["activity_id"], ocsf["type_uid"]) == (6005, 6, 5, 600505)
    assert (ocsf["status_id"], ocsf["status_detail"]) == (2, "key-access-denied")
    assert ocsf["time"] == int(datetime.fromisoformat(made["time"]).timestamp() * 1000)


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_an_ocsf_form_with_what_the_class_requires(action: str) -> None:
    ocsf = event.to_ocsf(sample(action=action))
    assert ocsf["type_uid"] == 600500 + ocsf["activity_id"]
    required = {"activity_id", "actor", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint", "time"}
    assert required <= ocsf.keys()
    assert {"database", "databucket", "table"} & ocsf.keys()


def test_every_action_is_described_in_one_sentence() -> None:
    assert all(meaning.endswith(".") and len(meaning) < 120 for meaning in ACTIONS.values())
    assert all(field.meaning.endswith(".") for field in FIELDS.values())
