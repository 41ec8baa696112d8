"""Checkpoints: C2SP tlog-checkpoint in a C2SP signed note, Ed25519 only.

    confide.example/eu-central-1/audit/0192f3a0-...     origin: one log of one tenant, after a restore with /2, /3 ...
    20852163                                            tree size
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=        root hash
    number 17                                           extension: which of the origin's signed trees this is, from 1
                                                        an empty line
    — confide.example/eu-central-1/audit Az3grlgt...    key name, base64(key id || signature)

Everything has one spelling: base64 is padded and canonical, sizes have no leading zero, lines end in a bare newline.
The text is worth nothing before ``open_note`` has verified a signature, so parsing without a key is not offered.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.audit.merkle import HASH_BYTES, MAX_SIZE

MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 64  # signed-note: at least 16 must be accepted
_ALGORITHM = b"\x01"  # Ed25519
_ID_BYTES = 4
_DASH = "\u2014 "
_NUMBER = re.compile(r"number ([1-9][0-9]{0,18})", re.ASCII)
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteError(ValueError):
    """A note, checkpoint or verifier key is malformed, or no trusted key signed it."""


def _base64(text: str) -> bytes:
    """Strict RFC 4648 section 4. ``validate=True`` alone takes 'QR==' for 'QQ==': the text must re-encode to itself."""
    try:
        data = b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise NoteError("base64 is malformed") from None
    if b64encode(data).decode() != text:
        raise NoteError("base64 is not canonical")
    return data


def _check_name(name: str) -> None:
    if not name or "+" in name or any(c.isspace() for c in name) or _CONTROL.search(name):
        raise NoteError("a key name is non-empty and has no spaces and no plus sign")


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ALGORITHM + public).digest()[:_ID_BYTES]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key that notes are trusted under: ``<name>+<8 hex digits of key id>+<base64(0x01 || public key)>``."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public) != 32:
            raise NoteError("an Ed25519 public key has 32 bytes")

    @property
    def id(self) -> bytes:
        return _key_id(self.name, self.public)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        parts = text.split("+", 2)  # base64 may hold a plus sign, name and id can't
        if len(parts) != 3:
            raise NoteError("a verifier key is <name>+<key id>+<base64>")
        name, key_id, encoded = parts
        data = _base64(encoded)
        if data[:1] != _ALGORITHM or len(data) != 33:
            raise NoteError("a verifier key of another algorithm than Ed25519")
        key = cls(name, data[1:])
        if key.id.hex() != key_id:
            raise NoteError("a verifier key whose id doesn't match its name and public key")
        return key

    def text(self) -> str:
        """What ``parse`` reads: what auditors are given."""
        return f"{self.name}+{self.id.hex()}+{b64encode(_ALGORITHM + self.public).decode()}"

    def verify(self, text: bytes, signature: bytes) -> None:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            raise NoteError("a signature by a trusted key is wrong") from None


class Signer:
    """Signs notes. ``seed`` is the 32-byte Ed25519 private key of RFC 8032; it never shows in ``repr``."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, seed: bytes) -> None:
        if len(seed) != 32:
            raise NoteError("an Ed25519 seed has 32 bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = VerifierKey(name, self._key.public_key().public_bytes_raw())

    def line(self, text: bytes) -> bytes:
        """The signature line over ``text``."""
        signed = b64encode(self.verifier.id + self._key.sign(text)).decode()
        return f"{_DASH}{self.verifier.name} {signed}\n".encode()


def sign_note(text: bytes, signers: Sequence[Signer]) -> bytes:
    """The signed note. One signer as a rule; two while a signing key is being replaced."""
    if not signers:
        raise NoteError("a note needs a signature")
    _check_text(text)
    return text + b"\n" + b"".join(signer.line(text) for signer in signers)


def open_note(note: bytes, keys: Sequence[VerifierKey]) -> bytes:
    """The text of ``note``, verified. Raises NoteError unless at least one of ``keys`` signed it.

    signed-note, "Signatures": unknown keys are ignored, also where they share a name or an id with a known one; a known
    key whose signature is wrong condemns the whole note.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError("the note is too large")
    head, blank, tail = note.rpartition(b"\n\n")
    text = head + b"\n"
    if not blank or not tail.endswith(b"\n"):
        raise NoteError("the note has no signatures")
    _check_text(text)
    known = {(key.name, key.id): key for key in keys}
    verified = False
    lines = _decode(tail).split("\n")[:-1]
    if len(lines) > MAX_SIGNATURES:
        raise NoteError("the note has too many signatures")
    for line in lines:
        name, key_id, signature = _signature(line)
        key = known.get((name, key_id))
        if key is not None:
            key.verify(text, signature)
            verified = True
    if not verified:
        raise NoteError("no trusted key signed the note")
    return text


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise NoteError("a signature line is malformed")
    _check_name(name)
    data = _base64(encoded)
    if len(data) <= _ID_BYTES:
        raise NoteError("a signature is too short")
    return name, data[:_ID_BYTES], data[_ID_BYTES:]


def _decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NoteError("the note is not UTF-8") from None
    if _CONTROL.search(text):
        raise NoteError("the note holds control characters")
    return text


def _check_text(text: bytes) -> None:
    _decode(text)
    if not text.endswith(b"\n") or len(text) < 2:
        raise NoteError("a note's text ends in a newline")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to. Extension lines of others are read and kept."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for line in (self.origin, *self.extensions):
            if not line or "\n" in line or _CONTROL.search(line):
                raise NoteError("a checkpoint's lines are non-empty and hold no control characters")
        if not 0 <= self.size <= MAX_SIZE:
            raise NoteError("a checkpoint's size is out of range")
        if len(self.root) != HASH_BYTES:
            raise NoteError("a checkpoint's root has 32 bytes")

    def text(self) -> bytes:
        """The note's text (tlog-checkpoint, "Note text")."""
        lines = (self.origin, str(self.size), b64encode(self.root).decode(), *self.extensions)
        return "".join(line + "\n" for line in lines).encode()

    @classmethod
    def numbered(cls, origin: str, size: int, root: bytes, number: int) -> Checkpoint:
        """With the extension line that tells whether one between two others is missing; 0: without it."""
        return cls(origin, size, root, (f"number {number}",) if number else ())

    @property
    def number(self) -> int:
        """Which of its origin's signed trees this is, from 1; 0 where it doesn't say."""
        found = [match[1] for line in self.extensions if (match := _NUMBER.fullmatch(line))]
        return int(found[0]) if len(found) == 1 else 0

    def sign(self, *signers: Signer) -> bytes:
        return sign_note(self.text(), signers)

    @classmethod
    def parse(cls, text: bytes) -> Checkpoint:
        """From a note's verified text."""
        lines = _decode(text).split("\n")
        if len(lines) < 4 or lines.pop() != "":
            raise NoteError("a checkpoint has at least three lines")
        origin, size, root, *extensions = lines
        if not _SIZE.fullmatch(size):
            raise NoteError("a checkpoint's size is not a plain decimal number")
        return cls(origin, int(size), _base64(root), tuple(extensions))

    @classmethod
    def open(cls, note: bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
        """From a signed note, verified under one of ``keys``."""
        return cls.parse(open_note(note, keys))
