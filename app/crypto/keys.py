"""The levels of the key hierarchy: two halves → tenant root key (TRK) → index key and container keys (CK).

Each level uses the same envelope under a domain of its own. All ``open_*`` functions raise ``Tampered``; the caller
wipes what they return.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.crypto.context import Domain, SealContext, prefixed
from app.crypto.envelope import open_key, seal_key
from app.crypto.secret import EXPOSE, KEY_SIZE, SecretKey
from app.identity import NO_UUID

_ROOT_LABEL: Final = b"confide/v1/root-sealing-key"


def wipe(*keys: SecretKey | None) -> None:
    """Zero all of them; None is skipped."""
    for key in keys:
        if key is not None:
            key.wipe()


def hkdf_sha256(key: SecretKey, info: bytes) -> SecretKey:
    """A sub-key for one use: HKDF-SHA256 (RFC 5869), extract without salt, then expand to 32 bytes."""
    out = bytearray(KEY_SIZE)
    HKDF(SHA256(), KEY_SIZE, None, info).derive_into(key.expose(EXPOSE), out)
    key.require()
    return _taken(out)


def seal_root_key(
    trk: SecretKey,
    customer_half: SecretKey | None,
    vendor_half: SecretKey,
    *,
    region: str,
    tenant: UUID,
    generation: int,
) -> bytes:
    """``trk`` sealed under both halves together. Sealed with a customer half, it never opens without that half."""
    context = _context(Domain.ROOT_KEY, region, tenant, generation)
    sealing = _root_sealing_key(customer_half, vendor_half, context)
    try:
        return seal_key(sealing, tenant, generation, context, trk)
    finally:
        sealing.wipe()


def open_root_key(
    sealed: bytes,
    customer_half: SecretKey | None,
    vendor_half: SecretKey,
    *,
    region: str,
    tenant: UUID,
    generation: int,
) -> SecretKey:
    """The TRK of that tenant and generation."""
    context = _context(Domain.ROOT_KEY, region, tenant, generation)
    sealing = _root_sealing_key(customer_half, vendor_half, context)
    try:
        return open_key(sealing, tenant, generation, context, sealed)
    finally:
        sealing.wipe()


def seal_index_key(
    index_key: SecretKey, trk: SecretKey, *, region: str, tenant: UUID, generation: int, number: int
) -> bytes:
    """``index_key``, the tenant's ``number``-th, sealed under the TRK of ``generation``."""
    return seal_key(trk, tenant, generation, _context(Domain.INDEX_KEY, region, tenant, number), index_key)


def open_index_key(
    sealed: bytes, trk: SecretKey, *, region: str, tenant: UUID, generation: int, number: int
) -> SecretKey:
    """The tenant's ``number``-th index key."""
    return open_key(trk, tenant, generation, _context(Domain.INDEX_KEY, region, tenant, number), sealed)


def seal_container_key(
    ck: SecretKey,
    trk: SecretKey,
    *,
    region: str,
    tenant: UUID,
    container: UUID,
    trk_generation: int,
    ck_generation: int,
) -> bytes:
    """``ck`` of that container and generation, sealed under the TRK of ``trk_generation``."""
    context = _context(Domain.CONTAINER_KEY, region, tenant, ck_generation, container)
    return seal_key(trk, tenant, trk_generation, context, ck)


def open_container_key(
    sealed: bytes,
    trk: SecretKey,
    *,
    region: str,
    tenant: UUID,
    container: UUID,
    trk_generation: int,
    ck_generation: int,
) -> SecretKey:
    """The key of that container and generation."""
    context = _context(Domain.CONTAINER_KEY, region, tenant, ck_generation, container)
    return open_key(trk, tenant, trk_generation, context, sealed)


def _context(domain: Domain, region: str, tenant: UUID, number: int, container: UUID = NO_UUID) -> SealContext:
    return SealContext(domain, region, tenant, container, NO_UUID, NO_UUID, number, "")


def _root_sealing_key(customer: SecretKey | None, vendor: SecretKey, context: SealContext) -> SecretKey:
    """HKDF-SHA512 (RFC 5869) over presence flag ‖ customer half ‖ vendor half, each length-prefixed.

    The flag tells "no customer half" from any value of one. Neither half alone says anything about the result.
    """
    material = bytearray(prefixed(b"\x00" if customer is None else b"\x01"))
    for half in (customer, vendor):
        view = memoryview(b"") if half is None else half.expose(EXPOSE)
        material += len(view).to_bytes(4, "big")
        material += view
        if half is not None:
            half.require()
    out = bytearray(KEY_SIZE)
    try:
        HKDF(SHA512(), KEY_SIZE, _ROOT_LABEL, context.encode(b"")).derive_into(material, out)
    finally:
        material[:] = bytes(len(material))
    return _taken(out)


def _taken(raw: bytearray) -> SecretKey:
    """A key of ``raw``, which is zeroed."""
    key = SecretKey.of(raw)
    raw[:] = bytes(len(raw))
    return key
