"""Sealed values open only as what they were sealed as."""

import inspect
import json
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.crypto import cobblestone, envelope
from app.crypto.context import Domain, SealContext
from app.crypto.envelope import OVERHEAD, Header, open_key, open_sealed, read_header, seal, seal_key, sealed_size
from app.crypto.secret import SecretKey
from app.errors import Tampered

CHUNK = 16384
KEY = SecretKey.of(bytes(range(32)))
TENANT, CONTAINER, ITEM, VERSION = (UUID(int=n) for n in (1, 2, 3, 4))
CONTEXT = SealContext(Domain.OBJECT, "eu-central-1", TENANT, CONTAINER, ITEM, VERSION, 7, "application/json")
PLAINTEXT = b'{"name":"Ada"}'


def sealed_value(plaintext=PLAINTEXT):
    return seal(KEY, CONTAINER, 3, CONTEXT, plaintext)


def refused(sealed, *, key=KEY, key_id=CONTAINER, generation=3, context=CONTEXT):
    with pytest.raises(Tampered) as caught:
        open_sealed(key, key_id, generation, context, sealed)
    return str(caught.value)


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + 5]),
    fill=st.integers(0, 255),
)
def test_what_is_sealed_is_opened_and_has_the_size_foretold(size, fill):
    plaintext = bytes([fill]) * size
    sealed = sealed_value(plaintext)
    assert open_sealed(KEY, CONTAINER, 3, CONTEXT, sealed) == plaintext
    assert len(sealed) == sealed_size(size)
    if size < CHUNK:
        assert len(sealed) == size + OVERHEAD


def test_the_header_is_28_bytes_laid_out_as_documented():
    sealed = sealed_value()
    assert sealed[:28] == b"\xc0CFD" + b"\x01" + b"\x01" + b"\x00\x00" + CONTAINER.bytes + b"\x00\x00\x00\x03"
    assert read_header(sealed) == Header(CONTAINER, 3)


def test_the_plaintext_is_not_in_the_sealed_value():
    assert PLAINTEXT not in sealed_value()


def test_a_salt_is_no_parameter_of_sealing():
    for function in (seal, seal_key, cobblestone.encrypt, cobblestone.encrypt_parts):
        assert "salt" not in inspect.signature(function).parameters


def test_two_seals_of_the_same_thing_differ():
    assert sealed_value()[28:] != sealed_value()[28:]


def test_every_flipped_bit_of_a_short_value_is_refused():
    sealed = sealed_value()
    for bit in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(bytes(damaged))


def test_every_flipped_bit_of_the_last_chunk_and_of_the_first_chunks_ends_is_refused():
    sealed = sealed_value(bytes(CHUNK + 40))
    first = 28 + 56
    last = first + CHUNK + 16
    places = [*range(first + 8), *range(last - 24, len(sealed)), *range(first, last, 997)]
    for place in places:
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            refused(bytes(damaged))


def test_every_truncation_of_a_short_value_is_refused():
    sealed = sealed_value()
    for size in range(len(sealed)):
        refused(sealed[:size])


def test_every_flipped_bit_of_magic_version_suite_and_flags_is_an_unknown_header():
    sealed = sealed_value()
    for bit in range(8 * 8):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            read_header(bytes(damaged))


@pytest.mark.parametrize("size", [0, 1, 27, 28, OVERHEAD - 1])
def test_a_header_is_not_read_from_too_few_bytes(size):
    with pytest.raises(Tampered):
        read_header(sealed_value()[:size])


CHANGES = [
    {"domain": Domain.TURN},
    {"region": "eu-central-2"},
    {"region": ""},
    {"tenant": UUID(int=9)},
    {"container": UUID(int=9)},
    {"item": UUID(int=9)},
    {"version": UUID(int=9)},
    {"number": 8},
    {"number": 0},
    {"content_type": "text/plain"},
    {"content_type": ""},
    {"tenant": CONTAINER, "container": TENANT},
    {"item": VERSION, "version": ITEM},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()))
def test_a_moved_ciphertext_is_refused(change):
    refused(sealed_value(), context=CONTEXT._replace(**change))


def test_the_changes_name_every_field_of_the_context():
    assert {field for change in CHANGES for field in change} == set(SealContext._fields)


@pytest.mark.parametrize("other", [domain for domain in Domain if domain is not Domain.OBJECT])
def test_a_value_of_one_domain_never_opens_as_anothers(other):
    refused(sealed_value(), context=CONTEXT._replace(domain=other))


def test_a_wrong_key_key_id_or_generation_is_refused():
    refused(sealed_value(), key=SecretKey.generate())
    refused(sealed_value(), key_id=TENANT)
    refused(sealed_value(), generation=4)


def test_a_wrong_key_id_or_generation_is_refused_before_a_key_is_used():
    wiped = SecretKey.generate()
    wiped.wipe()
    refused(sealed_value(), key=wiped, key_id=TENANT)
    refused(sealed_value(), key=wiped, generation=4)


def test_a_rewritten_header_does_not_make_the_value_open():
    sealed = sealed_value()
    rewritten = sealed[:24] + struct.pack(">I", 4) + sealed[28:]
    assert read_header(rewritten).generation == 4
    refused(rewritten, generation=4)


def test_the_commitment_is_compared_before_a_chunk_is_opened(monkeypatch):
    sealed = sealed_value()

    def no_cipher(key):
        raise AssertionError("a cipher was set up")

    monkeypatch.setattr(cobblestone, "AESGCM", no_cipher)
    refused(sealed, key=SecretKey.generate())
    refused(sealed, context=CONTEXT._replace(number=8))


def test_two_bodies_swapped_between_values_are_refused():
    other = seal(KEY, CONTAINER, 3, CONTEXT._replace(version=UUID(int=5)), b"x" * len(PLAINTEXT))
    refused(sealed_value()[:28] + other[28:])


def test_a_refusal_names_no_content():
    sealed = sealed_value()
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for text in (refused(damaged), refused(b""), refused(sealed_value(), key=SecretKey.generate())):
        assert "Ada" not in text
        assert "eu-central-1" not in text
        assert "json" not in text


@pytest.mark.parametrize("generation", [-1, 1 << 32])
def test_a_generation_out_of_range_is_not_sealed(generation):
    with pytest.raises(ValueError, match="generation"):
        seal(KEY, CONTAINER, generation, CONTEXT, b"")


def test_a_key_is_sealed_and_opened():
    inner = SecretKey.generate()
    sealed = seal_key(KEY, CONTAINER, 3, CONTEXT, inner)
    assert len(sealed) == sealed_size(32)
    assert open_key(KEY, CONTAINER, 3, CONTEXT, sealed) == inner


@pytest.mark.parametrize("size", [0, 31, 33, 16384])
def test_what_has_not_32_bytes_is_no_key(size):
    with pytest.raises(Tampered):
        open_key(KEY, CONTAINER, 3, CONTEXT, sealed_value(bytes(size)))


def test_a_sealed_key_with_any_bit_flipped_is_refused():
    sealed = seal_key(KEY, CONTAINER, 3, CONTEXT, SecretKey.generate())
    for bit in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            open_key(KEY, CONTAINER, 3, CONTEXT, bytes(damaged))


def test_no_suite_but_cobblestone_is_known():
    assert envelope.SUITE_COBBLESTONE_256 == 1
    assert envelope.HEADER_SIZE == envelope._HEADER.size == 28


def test_the_documents_example_opens_and_is_quoted_rightly():
    """Bytes that an older build stored must open for ever; ``docs/format.md`` shows these."""
    root = Path(__file__).parent.parent
    case = json.loads((root / "vectors" / "sealed_v1.json").read_text())
    fields = case["context"]
    ids = (UUID(fields[name]) for name in ("tenant", "container", "item", "version"))
    context = SealContext(Domain(fields["domain"]), fields["region"], *ids, fields["number"], fields["content_type"])
    key, key_id, sealed = SecretKey.of(bytes.fromhex(case["key"])), UUID(case["key_id"]), bytes.fromhex(case["sealed"])
    assert context.encode(sealed[:28]).hex() == case["encoded_context"]
    assert open_sealed(key, key_id, case["generation"], context, sealed).decode() == case["plaintext"]
    document = (root.parent / "docs" / "format.md").read_text()
    for part in (sealed[:28], sealed[28:52], sealed[52:84], sealed[84:]):
        assert part.hex() in document
