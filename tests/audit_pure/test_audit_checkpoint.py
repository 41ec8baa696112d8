"""C2SP signed-note and tlog-checkpoint: strict, against the specification's own examples and the second parser."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit import checkpoint, verify
from app.audit.checkpoint import Checkpoint, NoteError, Signer, VerifierKey

NUMBERS = {"number 1": 1, "number 9223372036854775807": (1 << 63) - 1}
SIGNER = Signer("confide.example/eu-central-1/audit", bytes(range(32)))
OTHER = Signer("witness.example/w1", bytes(32))
IMPOSTOR = Signer(SIGNER.verifier.name, bytes(32))
POINT = Checkpoint(
    "confide.example/eu-central-1/audit/0192f3a0-0000-7000-8000-000000000001", 20852163, bytes(range(32))
)
KEYS = [SIGNER.verifier]

# The first example of golang.org/x/mod/sumdb/note: key, text and signature were made by another implementation.
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()


def second(note: bytes, keys: list[VerifierKey]) -> verify.Checkpoint | None:
    """What the second implementation, the offline verifier's, makes of a note."""
    try:
        opened = verify.parse_checkpoint(note, [verify.parse_key(key.text()) for key in keys])
    except ValueError:
        return None
    return opened if opened.signed else None


def test_a_note_that_another_implementation_signed_opens() -> None:
    key = VerifierKey.parse(NEUMANN_KEY)
    assert checkpoint.open_note(NEUMANN_NOTE, [key]).endswith(b"your problem is.\n")
    assert key.text() == NEUMANN_KEY


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.integers(0, (1 << 63) - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
        | st.sampled_from(
            ["number 1", "number 9223372036854775807", "number 0", "number 01", "number -1", "number 1 "]
        ),
        max_size=2,
    ),
)
def test_a_checkpoint_round_trips_and_both_parsers_agree(origin: str, size: int, root: bytes, more: list[str]) -> None:
    point = Checkpoint(origin, size, root, tuple(more))
    note = point.sign(SIGNER, OTHER)
    assert Checkpoint.open(note, KEYS) == point
    assert second(note, KEYS) == (origin, size, root, True)
    said = [NUMBERS[line] for line in more if line in NUMBERS]
    assert point.number == (said[0] if len(said) == 1 else 0)


@given(st.data())
def test_no_changed_byte_of_the_text_goes_unnoticed(data: st.DataObject) -> None:
    note = POINT.sign(SIGNER)
    at = data.draw(st.integers(0, len(note) - 1))
    other = note[:at] + bytes([data.draw(st.integers(0, 255).filter(lambda c: c != note[at]))]) + note[at + 1 :]
    with pytest.raises(NoteError):
        Checkpoint.open(other, KEYS)
    assert second(other, KEYS) is None


def test_the_layout_is_that_of_the_specification() -> None:
    text, signature = POINT.sign(SIGNER).decode().split("\n\n")
    assert text.split("\n") == [POINT.origin, "20852163", b64encode(POINT.root).decode()]
    assert signature.startswith("\u2014 confide.example/eu-central-1/audit ")


def test_unknown_signatures_are_ignored_also_with_a_known_name() -> None:
    note = POINT.sign(OTHER, IMPOSTOR, SIGNER)
    assert Checkpoint.open(note, KEYS) == POINT
    assert second(note, KEYS) is not None


def test_a_wrong_signature_of_a_known_key_condemns_the_note() -> None:
    good = POINT.sign(OTHER)
    forged = SIGNER.line(b"another text\n")
    with pytest.raises(NoteError, match="wrong"):
        Checkpoint.open(good + forged, [OTHER.verifier, SIGNER.verifier])
    assert second(good + forged, [OTHER.verifier, SIGNER.verifier]) is None


def test_without_a_trusted_signature_nothing_opens() -> None:
    for note in (POINT.sign(OTHER), POINT.sign(IMPOSTOR)):
        with pytest.raises(NoteError, match="no trusted key"):
            Checkpoint.open(note, KEYS)
        assert second(note, KEYS) is None
    with pytest.raises(NoteError):
        POINT.sign()


def test_an_impostor_with_a_colliding_key_id_is_refused() -> None:
    line = IMPOSTOR.line(POINT.text()).decode()
    encoded = b64encode(SIGNER.verifier.id + b"\0" * 64).decode()
    forged = line[: line.rindex(" ") + 1] + encoded + "\n"
    with pytest.raises(NoteError, match="wrong"):
        Checkpoint.open(POINT.text() + b"\n" + forged.encode(), KEYS)


ROOT = b64encode(bytes(32)).decode()
MALFORMED = [
    f"\n5\n{ROOT}\n",
    f"origin\n05\n{ROOT}\n",
    f"origin\n-5\n{ROOT}\n",
    f"origin\n+5\n{ROOT}\n",
    f"origin\n5 \n{ROOT}\n",
    f"origin\n\u0665\n{ROOT}\n",
    f"origin\n\n{ROOT}\n",
    f"origin\n9223372036854775808\n{ROOT}\n",
    f"origin\n5\n{ROOT[:-1]}\n",
    f"origin\n5\n{ROOT[:-2]}B=\n",
    f"origin\n5\n{ROOT}=\n",
    f"origin\n5\n{ROOT[:-4]}\n",
    "origin\n5\n\n",
    "origin\n5\n",
    f"origin\n5\n{ROOT}\n\n",
    f"origin\n5\n{ROOT}\nx\n\ny\n",
    f"origin\r\n5\r\n{ROOT}\r\n",
    f"ori\x00gin\n5\n{ROOT}\n",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_checkpoint_is_refused_although_it_is_signed(text: str) -> None:
    note = text.encode() + b"\n" + SIGNER.line(text.encode())
    with pytest.raises(NoteError):
        Checkpoint.open(note, KEYS)
    if "9223372036854775808" not in text:  # the second parser has no upper limit below 19 digits
        assert second(note, KEYS) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note[:-1],
        lambda note: note + b"\n",
        lambda note: note.replace("\u2014".encode(), b"-"),
        lambda note: note.replace("\u2014 ".encode(), "\u2014".encode()),
        lambda note: note.replace(b"\n\n", b"\n"),
        lambda note: note + b"junk\n",
        lambda note: note + "\u2014 x+y AAAAAAAA\n".encode(),
        lambda note: note + "\u2014 x AAAA=\n".encode(),
        lambda note: note + "\u2014 x QUJDREV=\n".encode(),
        lambda note: note.replace(b"\n", b"\r\n"),
        lambda note: b"\xff" + note,
    ],
)
def test_a_malformed_note_is_refused(spoil: object) -> None:
    spoilt = spoil(POINT.sign(SIGNER))  # type: ignore[operator]
    with pytest.raises(NoteError):
        Checkpoint.open(spoilt, KEYS)
    assert second(spoilt, KEYS) is None


def test_a_note_has_limits() -> None:
    note = POINT.sign(SIGNER)
    assert Checkpoint.open(note + OTHER.line(b"x\n") * 15, KEYS) == POINT
    with pytest.raises(NoteError, match="too many"):
        Checkpoint.open(note + OTHER.line(b"x\n") * 100, KEYS)
    with pytest.raises(NoteError, match="too large"):
        Checkpoint.open(note + OTHER.line(b"x\n") * 1000, KEYS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        NEUMANN_KEY.replace("c74f20a3", "c74f20a4"),
        NEUMANN_KEY.replace("c74f20a3", "C74F20A3"),
        NEUMANN_KEY.replace("Neumann", "Newman"),
        NEUMANN_KEY[:-1],
        NEUMANN_KEY + "=",
        NEUMANN_KEY.replace("+ARpc", "+ApC2"),
        NEUMANN_KEY.replace("PeterNeumann", "Peter Neumann"),
    ],
)
def test_a_malformed_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        VerifierKey.parse(text)
    with pytest.raises(ValueError):  # noqa: PT011 - any refusal will do
        verify.parse_key(text)


@given(st.binary(min_size=32, max_size=32))
def test_a_verifier_key_round_trips(seed: bytes) -> None:
    key = Signer("a.example/b", seed).verifier
    assert VerifierKey.parse(key.text()) == key
    assert verify.parse_key(key.text()) == (key.name, key.id, key.public)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb"])
def test_a_key_name_has_no_spaces_and_no_plus(name: str) -> None:
    with pytest.raises(NoteError):
        Signer(name, bytes(32))


def test_a_signer_does_not_show_its_seed() -> None:
    assert bytes(range(32)).hex() not in repr(SIGNER)
    with pytest.raises(NoteError):
        Signer("a", bytes(31))
