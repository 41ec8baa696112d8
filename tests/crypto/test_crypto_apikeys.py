"""The text of API keys is strict and canonical."""

import re
import zlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.crypto.apikeys import digest, matches, mint, mint_enrolment, parse, parse_enrolment
from app.crypto.secret import SecretKey
from app.errors import Unauthenticated

KEY_ID = UUID("0192f0c1-2345-7abc-8def-0123456789ab")
PEPPER = SecretKey.of(bytes(range(32)))
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
GOOD = mint("live", "eu-central-1", KEY_ID)


def resigned(body):
    """A text with a right checksum, so that only its other faults can be what is refused."""
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return body + digits


@given(st.from_regex(r"[a-z]{2,8}", fullmatch=True), st.from_regex(r"[a-z0-9-]{2,32}", fullmatch=True), st.uuids())
def test_a_minted_key_is_parsed(env, region, key_id):
    for make, read in ((mint, parse), (mint_enrolment, parse_enrolment)):
        text = make(env, region, key_id)
        parsed = read(text)
        assert (parsed.env, parsed.region, parsed.key_id) == (env, region, key_id)
        assert parsed.secret == text[-38:-6]
        assert resigned(text[:-6]) == text


@pytest.mark.parametrize("key_id", [UUID(int=0), UUID(int=2**128 - 1)])
def test_the_smallest_and_the_largest_id_are_parsed(key_id):
    assert parse(mint("test", "eu", key_id)).key_id == key_id


def test_the_text_has_the_documented_form():
    assert re.fullmatch(r"cfd_live_eu-central-1_[0-9A-Za-z]{22}_[0-9A-Za-z]{38}", GOOD)
    assert mint_enrolment("live", "eu", KEY_ID).startswith("cfe_live_eu_")


def test_secrets_differ():
    assert len({mint("live", "eu", KEY_ID) for _ in range(100)}) == 100


def test_a_parsed_key_does_not_show_its_secret():
    parsed = parse(GOOD)
    assert parsed.secret not in repr(parsed)
    assert parsed.secret not in str(parsed)


BODY = GOOD[:-6]
LARGE = "7n42DGM5Tflk9n8mt7Fhc7"  # 2^128 - 1
assert parse(resigned(f"cfd_live_eu_{LARGE}_{'0' * 32}")).key_id == UUID(int=2**128 - 1)
BAD = {
    "empty": "",
    "a word": "password",
    "no prefix": resigned(BODY[4:]),
    "another prefix": resigned("ghp" + BODY[3:]),
    "an enrolment token": mint_enrolment("live", "eu-central-1", KEY_ID),
    "an upper-case prefix": resigned("CFD" + BODY[3:]),
    "an upper-case env": resigned(BODY.replace("live", "LIVE")),
    "a short env": resigned(BODY.replace("live", "l")),
    "a long env": resigned(BODY.replace("live", "l" * 9)),
    "no region": resigned(BODY.replace("eu-central-1", "")),
    "a long region": resigned(BODY.replace("eu-central-1", "e" * 33)),
    "an underscore in the region": resigned(BODY.replace("eu-central-1", "eu_central")),
    "a short id": resigned(f"cfd_live_eu_{'0' * 21}_{'0' * 32}"),
    "a long id": resigned(f"cfd_live_eu_{'0' * 23}_{'0' * 32}"),
    "an id of 2^128": resigned(f"cfd_live_eu_{LARGE[:-1]}8_{'0' * 32}"),
    "an id far too large": resigned(f"cfd_live_eu_{'z' * 22}_{'0' * 32}"),
    "a sign in the id": resigned(f"cfd_live_eu_{'0' * 20}-1_{'0' * 32}"),
    "a short secret": resigned(BODY[:-1]),
    "a long secret": resigned(BODY + "0"),
    "a strange letter in the secret": resigned(BODY[:-1] + "é"),
    "a full-width digit in the secret": resigned(BODY[:-1] + "１"),
    "a space before": " " + GOOD,
    "a space after": GOOD + " ",
    "a newline after": GOOD + "\n",
    "a NUL after": GOOD + "\0",
    "no checksum": BODY,
    "a lone surrogate": GOOD[:-1] + "\ud800",
    "a checksum beyond 32 bits": BODY + "zzzzzz",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("read", [parse, parse_enrolment])
def test_a_malformed_key_is_refused_with_one_text_for_all(text, read):
    if read is parse_enrolment:
        text = GOOD if text.startswith("cfe_") else text.replace("cfd_", "cfe_", 1)
    with pytest.raises(Unauthenticated) as caught:
        read(text)
    assert str(caught.value) == Unauthenticated.detail


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(ALPHABET + "-_ "))
def test_any_changed_character_is_refused(place, letter):
    text = GOOD[:place] + letter + GOOD[place + 1 :]
    if text != GOOD:
        with pytest.raises(Unauthenticated):
            parse(text)


@given(st.text(max_size=120))
def test_no_text_makes_the_parser_fail_otherwise(text):
    with pytest.raises(Unauthenticated):
        parse(text)


@pytest.mark.parametrize(
    ("env", "region"),
    [("l", "eu"), ("LIVE", "eu"), ("live", "e"), ("live", "eu_1"), ("live", "eu\n"), ("live\n", "eu"), ("live", "é")],
)
def test_a_key_that_could_not_be_parsed_is_not_minted(env, region):
    with pytest.raises(ValueError, match="environment or region"):
        mint(env, region, KEY_ID)


def test_the_right_text_matches_its_digest():
    assert len(digest(PEPPER, GOOD)) == 32
    assert matches(PEPPER, GOOD, digest(PEPPER, GOOD))


@pytest.mark.parametrize(
    "text",
    [GOOD[:-1], GOOD + "0", GOOD.swapcase(), "", "\ud800", mint("live", "eu-central-1", KEY_ID)],
    ids=["cut", "longer", "swapped", "empty", "surrogate", "another"],
)
def test_another_text_does_not_match(text):
    assert not matches(PEPPER, text, digest(PEPPER, GOOD))


def test_another_pepper_or_a_cut_digest_does_not_match():
    stored = digest(PEPPER, GOOD)
    assert not matches(SecretKey.generate(), GOOD, stored)
    assert not matches(PEPPER, GOOD, stored[:-1])
    assert not matches(PEPPER, GOOD, b"")
