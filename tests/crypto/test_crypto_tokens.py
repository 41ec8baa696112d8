"""Cursors: opaque, bound to tenant and route, one spelling each."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.crypto.secret import SecretKey
from app.crypto.tokens import MAX_TOKEN, open_token, seal_token
from app.errors import BadRequest

KEY = SecretKey.of(bytes(range(32)))
TENANT, OTHER = UUID(int=1), UUID(int=2)
ROUTE = "GET /v1/sessions/{id}/turns"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def refused(text, *, key=KEY, tenant=TENANT, route=ROUTE):
    with pytest.raises(BadRequest, match="Start again without a cursor") as caught:
        open_token(key, tenant, route, text)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@given(st.binary(max_size=200))
def test_a_token_gives_back_its_payload(payload):
    text = seal_token(KEY, TENANT, ROUTE, payload)
    assert set(text) <= set(ALPHABET)
    assert open_token(KEY, TENANT, ROUTE, text) == payload


def test_a_token_of_another_tenant_route_or_key_is_refused():
    text = seal_token(KEY, TENANT, ROUTE, b"after=7")
    refused(text, tenant=OTHER)
    refused(text, route="GET /v1/sessions/{id}/context")
    refused(text, key=SecretKey.generate())


def test_a_token_does_not_show_its_payload():
    assert seal_token(KEY, TENANT, ROUTE, b"after=7") != seal_token(KEY, TENANT, ROUTE, b"after=7")


def test_every_changed_character_is_refused():
    text = seal_token(KEY, TENANT, ROUTE, b"after=7")
    for place in range(len(text)):
        for letter in "AZaz09-_":
            if letter != text[place]:
                refused(text[:place] + letter + text[place + 1 :])


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_second_spelling_of_the_same_bytes_is_refused(size):
    text = seal_token(KEY, TENANT, ROUTE, bytes(size))
    for letter in ALPHABET:  # among them those that differ only in bits that decoding drops
        if letter != text[-1]:
            refused(text[:-1] + letter)


def test_padding_space_and_the_other_alphabet_are_refused():
    text = seal_token(KEY, TENANT, ROUTE, b"1234")
    for bad in (text + "=", text + "==", " " + text, text + "\n", text + " ", text[:9] + "\n" + text[9:], text + "é"):
        refused(bad)
    refused("+" + text[1:])
    refused("/" + text[1:])


def test_every_truncation_is_refused():
    text = seal_token(KEY, TENANT, ROUTE, b"after=7")
    for size in range(len(text)):
        refused(text[:size])


@given(st.text(max_size=200))
def test_no_text_makes_opening_fail_otherwise(text):
    refused(text)


def test_a_token_beyond_the_limit_is_neither_made_nor_looked_at():
    with pytest.raises(ValueError, match="too long"):
        seal_token(KEY, TENANT, ROUTE, bytes(MAX_TOKEN))
    refused("A" * (MAX_TOKEN + 1))
