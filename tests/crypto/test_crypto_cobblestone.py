"""Cobblestone-256 against the C2SP vectors, and against every way to damage a body."""

import hashlib
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.crypto import cobblestone
from app.crypto.secret import SecretKey
from app.errors import Tampered

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "c2sp_chunked_encryption_aes_256_gcm_test.json").read_text()
)["testGroups"][0]["tests"]
VALID = [case for case in VECTORS if case["result"] == "valid"]
INVALID = [case for case in VECTORS if case["result"] == "invalid"]
HEADER_FAILURES = [case for case in INVALID if "HeaderFailure" in case["flags"]]

CHUNK = cobblestone.CHUNK_SIZE
SEALED_CHUNK = CHUNK + 16
KEY = SecretKey.of(bytes(range(32)))
CONTEXT = b"a context"


def name(case):
    return f"{case['tcId']}-{case['comment'].replace(' ', '-')}"


def body_of(case):
    return zlib.decompress(bytes.fromhex(case["ct"]))


def open_case(case):
    key = SecretKey.of(bytes.fromhex(case["key"]))
    return cobblestone.decrypt(key, bytes.fromhex(case["ctx"]), body_of(case))


def test_all_35_vectors_are_here():
    assert (len(VECTORS), len(VALID), len(INVALID), len(HEADER_FAILURES)) == (35, 10, 25, 10)


@pytest.mark.parametrize("case", VALID, ids=name)
def test_a_valid_vector_opens(case):
    plaintext = open_case(case)
    assert len(plaintext) == case["msgLength"]
    assert hashlib.sha512(plaintext).hexdigest() == case["msgSha512"]


@pytest.mark.parametrize("case", VALID, ids=name)
def test_a_valid_vector_is_sealed_to_the_same_bytes(case):
    body = body_of(case)
    key, context = SecretKey.of(bytes.fromhex(case["key"])), bytes.fromhex(case["ctx"])
    parts = cobblestone._encrypt_with_salt(key, context, open_case(case), body[: cobblestone.SALT_SIZE])
    assert b"".join(parts) == body


@pytest.mark.parametrize("case", [case for case in VECTORS if "aeadKey" in case], ids=name)
def test_the_message_key_and_nonce_are_the_vectors(case):
    key, salt = SecretKey.of(bytes.fromhex(case["key"])), body_of(case)[:24]
    okm = cobblestone._derive(key, salt, bytes.fromhex(case["ctx"]))
    assert okm[:32].hex() == case["aeadKey"]
    assert okm[32:44].hex() == case["baseNonce"]
    assert len(okm) == 76


@pytest.mark.parametrize("case", INVALID, ids=name)
def test_an_invalid_vector_is_refused(case):
    # A key of the wrong size is refused before there is a SecretKey at all.
    with pytest.raises(ValueError if "InvalidKeySize" in case["flags"] else Tampered):
        open_case(case)


class NoCipher:
    def __init__(self, key):
        raise AssertionError("a cipher was set up")


@pytest.mark.parametrize("case", HEADER_FAILURES, ids=name)
def test_a_header_failure_comes_before_any_chunk_is_opened(case, monkeypatch):
    monkeypatch.setattr(cobblestone, "AESGCM", NoCipher)
    with pytest.raises(ValueError if "InvalidKeySize" in case["flags"] else Tampered):
        open_case(case)


def test_without_the_cipher_even_a_valid_vector_fails(monkeypatch):
    """So the test above sees what it says it sees."""
    monkeypatch.setattr(cobblestone, "AESGCM", NoCipher)
    with pytest.raises(AssertionError, match="a cipher was set up"):
        open_case(VALID[0])


SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(CHUNK - 2, CHUNK + 2),
    st.integers(2 * CHUNK - 1, 2 * CHUNK + 1),
    st.integers(3 * CHUNK - 1, 3 * CHUNK + 1),
)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, fill=st.integers(0, 255), context=st.binary(max_size=300))
def test_what_is_encrypted_is_decrypted(size, fill, context):
    plaintext = bytes([fill]) * size
    body = cobblestone.encrypt(KEY, context, plaintext)
    assert len(body) == cobblestone.body_size(size)
    assert cobblestone.decrypt(KEY, context, body) == plaintext
    assert cobblestone.decrypt(KEY, context, memoryview(body)) == plaintext


def test_every_message_has_a_salt_of_its_own():
    bodies = {cobblestone.encrypt(KEY, CONTEXT, b"same") for _ in range(100)}
    assert len({body[:24] for body in bodies}) == len({body[24:] for body in bodies}) == 100


def chunks(body):
    rest = body[56:]
    return body[:56], [rest[i : i + SEALED_CHUNK] for i in range(0, len(rest), SEALED_CHUNK)]


def three_chunks():
    return chunks(cobblestone.encrypt(KEY, CONTEXT, b"a" * CHUNK + b"b" * CHUNK + b"c" * 100))


@pytest.mark.parametrize(
    "order",
    [(1, 0, 2), (0, 0, 2), (1, 1, 2), (0, 2), (1, 2), (2,), (0, 1), (0,), (), (0, 1, 0, 2), (0, 1, 2, 2), (2, 0, 1)],
)
def test_chunks_moved_repeated_or_left_out_are_refused(order):
    prefix, parts = three_chunks()
    with pytest.raises(Tampered):
        cobblestone.decrypt(KEY, CONTEXT, prefix + b"".join(parts[i] for i in order))


def test_a_chunk_of_another_message_is_refused():
    prefix, parts = three_chunks()
    _, other = three_chunks()
    with pytest.raises(Tampered):
        cobblestone.decrypt(KEY, CONTEXT, prefix + parts[0] + other[1] + parts[2])


@pytest.mark.parametrize("size", [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_a_body_cut_or_lengthened_at_any_boundary_is_refused(size):
    body = cobblestone.encrypt(KEY, CONTEXT, bytes(size))
    edges = [0, 24, 56, 72, 56 + CHUNK, 56 + SEALED_CHUNK, 56 + SEALED_CHUNK + 16, 56 + 2 * SEALED_CHUNK, len(body)]
    cuts = {edge + d for edge in edges for d in (-17, -16, -1, 0, 1)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(body)):
        with pytest.raises(Tampered):
            cobblestone.decrypt(KEY, CONTEXT, body[:cut])
    for extra in (1, 15, 16, 17, SEALED_CHUNK - 1, SEALED_CHUNK):
        with pytest.raises(Tampered):
            cobblestone.decrypt(KEY, CONTEXT, body + bytes(extra))


def test_an_exact_multiple_ends_in_an_empty_chunk_which_is_needed():
    body = cobblestone.encrypt(KEY, CONTEXT, bytes(CHUNK))
    assert len(body) == 56 + SEALED_CHUNK + 16
    with pytest.raises(Tampered):
        cobblestone.decrypt(KEY, CONTEXT, body[:-16])


@pytest.mark.parametrize("size", [0, 31, 33, 48])
def test_a_short_body_opens_only_into_a_buffer_of_its_size(size):
    body = cobblestone.encrypt(KEY, CONTEXT, bytes(size))
    with pytest.raises(Tampered):
        cobblestone.decrypt_short_into(KEY, CONTEXT, body, bytearray(32))


def test_a_full_chunk_is_never_opened_as_a_short_one():
    with pytest.raises(Tampered):
        cobblestone.decrypt_short_into(
            KEY, CONTEXT, cobblestone.encrypt(KEY, CONTEXT, bytes(CHUNK)), bytearray(CHUNK + 16)
        )


def test_a_damaged_short_body_is_refused():
    body = bytearray(cobblestone.encrypt(KEY, CONTEXT, bytes(32)))
    body[-1] ^= 1
    with pytest.raises(Tampered):
        cobblestone.decrypt_short_into(KEY, CONTEXT, bytes(body), bytearray(32))
