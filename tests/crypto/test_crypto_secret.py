"""A secret key doesn't show itself and can be wiped."""

import copy
import hashlib
import hmac
import json
import logging
import pickle
import re
import traceback
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given
from hypothesis import strategies as st

from app.crypto import secret
from app.crypto.context import Domain, SealContext
from app.crypto.envelope import open_sealed, seal
from app.crypto.secret import EXPOSE, Expose, KeyWiped, SecretKey
from app.errors import KeyUnavailable, Tampered

RAW = bytes(range(200, 232))
NIL = UUID(int=0)
CONTEXT = SealContext(Domain.OBJECT, "eu", NIL, NIL, NIL, NIL, 0, "")


def shows(text):
    spellings = [RAW.hex(), repr(RAW), repr(bytearray(RAW)), str(list(RAW)), RAW.decode("latin-1"), repr(RAW)[2:-1]]
    return any(spelling in text for spelling in spellings)


def test_the_raw_key_is_seen_only_with_the_token():
    assert SecretKey.of(RAW).expose(EXPOSE) == RAW
    for token in (None, True, "EXPOSE", Expose(), Expose):
        with pytest.raises(TypeError):
            SecretKey.of(RAW).expose(token)


def test_an_exposed_key_can_not_be_written():
    with pytest.raises(TypeError):
        SecretKey.of(RAW).expose(EXPOSE)[0] = 1


@pytest.mark.parametrize("size", [0, 1, 16, 31, 33, 64])
def test_a_key_of_another_size_is_refused_without_showing_it(size):
    with pytest.raises(ValueError, match="exactly 32 bytes"):
        SecretKey.of(b"k" * size)


def test_a_key_is_a_copy():
    raw = bytearray(RAW)
    key = SecretKey.of(raw)
    raw[0] ^= 1
    assert key.expose(EXPOSE) == RAW


def test_generated_keys_differ():
    keys = {bytes(SecretKey.generate().expose(EXPOSE)) for _ in range(50)}
    assert len(keys) == 50
    assert bytes(32) not in keys


@pytest.mark.parametrize(
    "form", [repr, str, format, "{}".format, "{!r:>40}".format, ascii, lambda key: f"{[key]} { ({1: key}) }"]
)
def test_no_text_form_shows_the_key(form):
    assert not shows(form(SecretKey.of(RAW)))


def test_a_log_line_does_not_show_the_key(caplog):
    logging.getLogger("x").warning("the key is %s, %r", SecretKey.of(RAW), SecretKey.of(RAW))
    assert not shows(caplog.text)


def test_bytes_iteration_json_and_vars_do_not_give_the_key():
    key = SecretKey.of(RAW)
    for attempt in (bytes, list, memoryview, json.dumps, vars):
        with pytest.raises(TypeError):
            attempt(key)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_key_is_not_pickled(protocol):
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(SecretKey.of(RAW), protocol)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_key_is_not_copied_behind_ones_back(copier):
    with pytest.raises(TypeError, match="copied"):
        copier(SecretKey.of(RAW))


def test_a_key_is_not_hashed():
    with pytest.raises(TypeError):
        hash(SecretKey.of(RAW))


def test_equal_keys_are_equal_and_others_not():
    assert SecretKey.of(RAW) == SecretKey.of(RAW)
    assert SecretKey.of(RAW) != SecretKey.of(RAW[::-1])
    assert SecretKey.of(RAW) != RAW


def test_a_tampering_traceback_with_locals_shows_no_key():
    key = SecretKey.of(RAW)
    sealed = bytearray(seal(key, NIL, 1, CONTEXT, b"text"))
    for place in (40, 70, len(sealed) - 1):  # salt, commitment, tag
        damaged = bytearray(sealed)
        damaged[place] ^= 1
        with pytest.raises(Tampered) as caught:
            open_sealed(key, NIL, 1, CONTEXT, bytes(damaged))
        lines = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
        text = "".join(lines)
        assert not shows(text)
        assert not re.search(r"^\s*okm = ", text, re.MULTILINE)  # the derived key, as a local variable


def test_wiping_zeroes_the_bytes():
    key = SecretKey.of(RAW)
    view = key.expose(EXPOSE)
    key.wipe()
    assert view == bytes(32)
    assert key.wiped
    assert repr(key) == "<SecretKey wiped>"


@pytest.mark.parametrize(
    "use",
    [
        lambda key: key.expose(EXPOSE),
        lambda key: key.hmac_sha256(b""),
        lambda key: key.hmac_sha512(b""),
        lambda key: key == SecretKey.of(RAW),
        lambda key: SecretKey.of(RAW) == key,
        lambda key: seal(key, NIL, 1, CONTEXT, b""),
        lambda key: open_sealed(key, NIL, 1, CONTEXT, seal(SecretKey.of(RAW), NIL, 1, CONTEXT, b"")),
    ],
)
def test_a_wiped_key_is_never_used_again(use):
    key = SecretKey.of(RAW)
    key.hmac_sha256(b"")
    key.hmac_sha512(b"")
    key.wipe()
    key.wipe()
    with pytest.raises(KeyWiped):
        use(key)


def test_a_wiped_key_counts_as_a_key_that_is_unavailable():
    assert issubclass(KeyWiped, KeyUnavailable)


@given(st.binary(max_size=300))
def test_the_hmacs_are_the_standard_librarys(message):
    key = SecretKey.of(RAW)
    for _ in range(2):  # the second time from the kept state
        assert key.hmac_sha256(message) == hmac.new(RAW, message, hashlib.sha256).digest()
        assert key.hmac_sha512(message) == hmac.new(RAW, message, hashlib.sha512).digest()


def test_a_key_wiped_while_it_is_read_is_not_used(monkeypatch):
    """As from another thread: the bytes turn to zeros just as the HMAC's state is made from them."""
    key = SecretKey.of(RAW)

    def wiping_hmac(raw, algorithm):
        key.wipe()
        return HMAC(raw, algorithm)

    monkeypatch.setattr(secret, "HMAC", wiping_hmac)
    with pytest.raises(KeyWiped):
        key.hmac_sha512(b"")
    with pytest.raises(KeyWiped):
        key.hmac_sha512(b"")
