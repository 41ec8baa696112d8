"""The hierarchy: a key opens only at its own place in it."""

import hmac
from uuid import UUID

import pytest

from app.crypto.context import Domain, SealContext
from app.crypto.envelope import seal_key
from app.crypto.keys import (
    _root_sealing_key,
    hkdf_sha256,
    open_container_key,
    open_index_key,
    open_root_key,
    seal_container_key,
    seal_index_key,
    seal_root_key,
    wipe,
)
from app.crypto.secret import EXPOSE, KeyWiped, SecretKey
from app.errors import Tampered

TENANT, CONTAINER, OTHER, NIL = UUID(int=1), UUID(int=2), UUID(int=9), UUID(int=0)
TRK, CK, INDEX, CUSTOMER, VENDOR = (SecretKey.of(bytes([n]) * 32) for n in range(1, 6))
ZERO = SecretKey.of(bytes(32))
ROOT = {"region": "eu", "tenant": TENANT, "generation": 2}
INDEX_PLACE = {"region": "eu", "tenant": TENANT, "generation": 2, "number": 1}
CK_PLACE = {"region": "eu", "tenant": TENANT, "container": CONTAINER, "trk_generation": 2, "ck_generation": 5}


@pytest.mark.parametrize("customer", [None, CUSTOMER, ZERO])
def test_a_root_key_opens_under_its_halves(customer):
    sealed = seal_root_key(TRK, customer, VENDOR, **ROOT)
    assert open_root_key(sealed, customer, VENDOR, **ROOT) == TRK


@pytest.mark.parametrize("customer", [None, ZERO, VENDOR, TRK])
def test_a_root_key_sealed_with_a_customer_half_never_opens_without_it(customer):
    sealed = seal_root_key(TRK, CUSTOMER, VENDOR, **ROOT)
    with pytest.raises(Tampered):
        open_root_key(sealed, customer, VENDOR, **ROOT)


@pytest.mark.parametrize("customer", [CUSTOMER, ZERO, VENDOR])
def test_a_root_key_sealed_without_a_customer_half_never_opens_with_one(customer):
    sealed = seal_root_key(TRK, None, VENDOR, **ROOT)
    with pytest.raises(Tampered):
        open_root_key(sealed, customer, VENDOR, **ROOT)


def test_the_vendor_half_is_needed_and_halves_do_not_change_places():
    sealed = seal_root_key(TRK, CUSTOMER, VENDOR, **ROOT)
    for customer, vendor in ((CUSTOMER, ZERO), (CUSTOMER, CUSTOMER), (VENDOR, CUSTOMER)):
        with pytest.raises(Tampered):
            open_root_key(sealed, customer, vendor, **ROOT)


def test_the_vendor_half_itself_does_not_open_the_root_key():
    """It is no key of the envelope: what it seals directly isn't a sealed root key."""
    context = SealContext(Domain.ROOT_KEY, "eu", TENANT, NIL, NIL, NIL, 2, "")
    forged = seal_key(VENDOR, TENANT, 2, context, TRK)
    with pytest.raises(Tampered):
        open_root_key(forged, None, VENDOR, **ROOT)


@pytest.mark.parametrize("change", [{"region": "us"}, {"tenant": OTHER}, {"generation": 1}])
def test_a_root_key_opens_only_in_its_place(change):
    sealed = seal_root_key(TRK, CUSTOMER, VENDOR, **ROOT)
    with pytest.raises(Tampered):
        open_root_key(sealed, CUSTOMER, VENDOR, **{**ROOT, **change})


def test_an_index_key_opens_under_its_root_key():
    assert open_index_key(seal_index_key(INDEX, TRK, **INDEX_PLACE), TRK, **INDEX_PLACE) == INDEX


@pytest.mark.parametrize("change", [{"region": "us"}, {"tenant": OTHER}, {"generation": 3}, {"number": 2}])
def test_an_index_key_opens_only_in_its_place(change):
    sealed = seal_index_key(INDEX, TRK, **INDEX_PLACE)
    with pytest.raises(Tampered):
        open_index_key(sealed, TRK, **{**INDEX_PLACE, **change})


def test_a_container_key_opens_under_its_root_key():
    assert open_container_key(seal_container_key(CK, TRK, **CK_PLACE), TRK, **CK_PLACE) == CK


@pytest.mark.parametrize(
    "change",
    [{"region": "us"}, {"tenant": OTHER}, {"container": OTHER}, {"trk_generation": 1}, {"ck_generation": 4}],
)
def test_a_container_key_opens_only_in_its_place(change):
    sealed = seal_container_key(CK, TRK, **CK_PLACE)
    with pytest.raises(Tampered):
        open_container_key(sealed, TRK, **{**CK_PLACE, **change})


def test_another_root_key_opens_nothing():
    with pytest.raises(Tampered):
        open_container_key(seal_container_key(CK, TRK, **CK_PLACE), ZERO, **CK_PLACE)
    with pytest.raises(Tampered):
        open_index_key(seal_index_key(INDEX, TRK, **INDEX_PLACE), ZERO, **INDEX_PLACE)


def test_an_index_key_never_opens_as_a_container_key():
    sealed = seal_index_key(INDEX, TRK, region="eu", tenant=TENANT, generation=2, number=5)
    with pytest.raises(Tampered):
        open_container_key(sealed, TRK, **{**CK_PLACE, "container": NIL})


def test_the_callers_keys_are_not_wiped_by_use():
    seal_root_key(TRK, CUSTOMER, VENDOR, **ROOT)
    assert not any(key.wiped for key in (TRK, CUSTOMER, VENDOR))


def test_wipe_takes_keys_and_gaps():
    one, other = SecretKey.generate(), SecretKey.generate()
    wipe(one, None, other)
    assert one.wiped
    assert other.wiped
    with pytest.raises(KeyWiped):
        seal_container_key(one, TRK, **CK_PLACE)


def test_hkdf_sha256_is_rfc_5869():
    """RFC 5869 has no case with a 32-byte key, so this one is from its definition, in the standard library's HMAC."""

    prk = hmac.digest(bytes(32), b"\x01" * 32, "sha256")
    expected = hmac.digest(prk, b"confide/cursors" + b"\x01", "sha256")
    assert hkdf_sha256(TRK, b"confide/cursors").expose(EXPOSE) == expected


def test_sub_keys_differ_by_info_and_from_their_parent():
    subs = [hkdf_sha256(TRK, info) for info in (b"", b"a", b"b")]
    assert len({bytes(key.expose(EXPOSE)) for key in (*subs, TRK)}) == 4


def test_the_root_sealing_key_is_the_documented_derivation():

    context = SealContext(Domain.ROOT_KEY, "eu", TENANT, NIL, NIL, NIL, 2, "")
    four = (32).to_bytes(4, "big")
    material = b"\0\0\0\x01\x01" + four + b"\x04" * 32 + four + b"\x05" * 32
    prk = hmac.digest(b"confide/v1/root-sealing-key", material, "sha512")
    expected = hmac.digest(prk, context.encode(b"") + b"\x01", "sha512")[:32]
    assert _root_sealing_key(CUSTOMER, VENDOR, context).expose(EXPOSE) == expected
