"""Index tags: equal exactly when kind, container and values are."""

import hashlib
import hmac
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.crypto.index import IndexKind, index_tag
from app.crypto.secret import KeyWiped, SecretKey

KEY = SecretKey.of(bytes(range(32)))
A, B = UUID(int=1), UUID(int=2)
VALUES = st.lists(st.text("ab\0", max_size=3), max_size=3)


def test_the_bytes_are_those_of_the_document():
    message = b"\0\0\0\x17confide/v1/index/object" + b"\0\0\0\x10" + A.bytes + b"\0\0\0\x01c" + b"\0\0\0\x02\xc3\xa9"
    assert index_tag(KEY, IndexKind.OBJECT, A, "c", "é") == hmac.digest(bytes(range(32)), message, hashlib.sha256)


@given(VALUES, VALUES)
def test_tags_are_equal_exactly_when_the_values_are(one, other):
    assert (index_tag(KEY, IndexKind.TAG, A, *one) == index_tag(KEY, IndexKind.TAG, A, *other)) == (one == other)


def test_collection_and_key_do_not_slide_into_each_other():
    pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
    assert (
        len(
            {index_tag(KEY, IndexKind.OBJECT, A, *pair) for pair in pairs}
            | {index_tag(KEY, IndexKind.OBJECT, A, "abc")}
        )
        == 5
    )


def test_every_kind_has_tags_of_its_own():
    assert len({index_tag(KEY, kind, A, "same") for kind in IndexKind}) == len(IndexKind) == 9


def test_container_and_key_change_the_tag():
    assert index_tag(KEY, IndexKind.TAG, A, "x") != index_tag(KEY, IndexKind.TAG, B, "x")
    assert index_tag(KEY, IndexKind.TAG, A, "x") != index_tag(SecretKey.generate(), IndexKind.TAG, A, "x")


def test_text_counts_as_its_utf_8():
    assert index_tag(KEY, IndexKind.TAG, A, "é") == index_tag(KEY, IndexKind.TAG, A, "é".encode())


def test_a_wiped_key_makes_no_tag():
    key = SecretKey.generate()
    key.wipe()
    with pytest.raises(KeyWiped):
        index_tag(key, IndexKind.TAG, A, "x")
