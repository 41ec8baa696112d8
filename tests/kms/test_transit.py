"""What is Transit's own: tokens, AppRole, key kinds, versions and endpoints."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import pytest

from app.crypto.secret import SecretKey
from app.kms.binding import LocalBinding, TransitBinding
from app.kms.limits import Trace
from app.kms.provider import (
    KmsDenied,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsUnavailable,
)
from app.kms.registry import KmsSettings, ProviderRegistry
from app.kms.transit import AppRoleAuth, TokenAuth, TransitEndpoint
from tests.kms.rigs import CALM, REGION, TransitRig, TransitWorld
from tests.kms.servers import Fault


@pytest.fixture
async def customer(bao: TransitWorld, tmp_path: Path):
    rig = TransitRig.make(bao, tmp_path)
    yield rig
    bao.proxy.faults.clear()
    await rig.close()


async def test_a_missing_key_is_a_denial_and_is_never_made_by_wrapping(customer: TransitRig, tmp_path: Path) -> None:
    """Transit's encrypt would make it, where the token may create: so it is done with the root token here."""
    binding = TransitBinding("bao", "transit", "never-made")
    registry = customer.world.registry(tmp_path, TokenAuth("root"))
    with pytest.raises(KmsDenied):
        await registry.provider(binding).wrap(SecretKey.generate(), customer.context, uuid4())
    assert "never-made" not in customer.world.root("LIST", "transit/keys")["data"]["keys"]
    await registry.close()


async def test_versions_are_pinned_and_old_ones_unwrap_after_rotation(customer: TransitRig) -> None:
    key = SecretKey.generate()
    first = await customer.provider().wrap(key, customer.context, uuid4())
    customer.world.root("POST", f"transit/keys/{customer.key}/rotate")
    second = await customer.provider().wrap(key, customer.context, uuid4())
    assert (first.kek_version, second.kek_version) == ("1", "2")
    assert (await customer.provider().describe(uuid4())).current_version == "2"
    for wrapped in (first, second):
        opened = await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())
        assert opened.key == key
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(first.ciphertext, "2", customer.context, uuid4())


async def test_a_raised_minimum_version_denies(customer: TransitRig) -> None:
    wrapped = await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    customer.world.root("POST", f"transit/keys/{customer.key}/rotate")
    customer.world.root("POST", f"transit/keys/{customer.key}/config", {"min_decryption_version": 2})
    with pytest.raises(KmsDenied):
        await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())


@pytest.mark.parametrize("kind", ["rsa-2048", "aes128-gcm96", "ed25519"])
async def test_kinds_that_do_not_authenticate_or_are_weak_are_refused(
    bao: TransitWorld, tmp_path: Path, customer: TransitRig, kind: str
) -> None:
    binding = bao.new_key(kind)
    registry = bao.registry(tmp_path, bao.token(binding))
    assert not (await registry.provider(binding).describe(uuid4())).usable_kind
    with pytest.raises(KmsMisconfigured):
        await registry.provider(binding).wrap(SecretKey.generate(), customer.context, uuid4())
    await registry.close()


async def test_a_dead_token_is_our_trouble_and_not_a_revocation(bao: TransitWorld, tmp_path: Path) -> None:
    binding = bao.new_key()
    auth = bao.token(binding)
    registry = bao.registry(tmp_path, auth)
    await registry.provider(binding).describe(uuid4())
    bao.root("POST", "auth/token/revoke", {"token": auth.token})
    with pytest.raises(KmsOwnCredentials):
        await registry.provider(binding).describe(uuid4())
    await registry.close()


async def test_an_approle_signs_in_and_signs_in_again(bao: TransitWorld, tmp_path: Path) -> None:
    binding, role = bao.new_key(), f"role-{uuid4().hex[:8]}"
    bao.token(binding)
    if "approle/" not in bao.root("GET", "sys/auth")["data"]:
        bao.root("POST", "sys/auth/approle", {"type": "approle"})
    policy = f"confide-{binding.key_name}"
    bao.root("POST", f"auth/approle/role/{role}", {"token_policies": policy, "token_ttl": "10m"})
    role_id = bao.root("GET", f"auth/approle/role/{role}/role-id")["data"]["role_id"]
    secret_id = bao.root("POST", f"auth/approle/role/{role}/secret-id")["data"]["secret_id"]
    registry = bao.registry(tmp_path, AppRoleAuth(role_id, secret_id))
    provider = registry.provider(binding)
    await provider.describe(uuid4())
    token = registry._transit["bao"]._token
    assert token
    bao.root("POST", "auth/token/revoke", {"token": token})
    await provider.describe(uuid4())
    assert registry._transit["bao"]._token != token
    wrong = bao.registry(tmp_path, AppRoleAuth(role_id, "no-such-secret"))
    with pytest.raises(KmsOwnCredentials):
        await wrong.provider(binding).describe(uuid4())
    for each in (registry, wrong):
        await each.close()


async def test_a_sealed_server_is_an_outage(customer: TransitRig) -> None:
    customer.world.proxy.faults.extend(Fault(503, '{"errors":["Vault is sealed"]}') for _ in range(3))
    with pytest.raises(KmsUnavailable) as refused:
        await customer.provider().describe(uuid4())
    assert refused.value.code == "Sealed"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8200", "ftp://127.0.0.1"])
async def test_endpoints_without_tls_are_refused(tmp_path: Path, url: str) -> None:
    endpoint = TransitEndpoint("bao", url, None, TokenAuth("x"))
    settings = KmsSettings(REGION, LocalBinding("v"), CALM, dev=True, local_folder=tmp_path, transit=(endpoint,))
    registry = ProviderRegistry(settings)
    with pytest.raises(KmsMisconfigured):
        await registry.provider(TransitBinding("bao", "transit", "k")).describe(uuid4())
    with pytest.raises(KmsMisconfigured):
        registry.provider(TransitBinding("elsewhere", "transit", "k"))
    await registry.close()


async def test_a_certificate_that_is_not_trusted_is_an_outage_with_an_alarm(bao: TransitWorld, tmp_path: Path) -> None:
    endpoint = TransitEndpoint("bao", bao.proxy.url, bao.server_ca, TokenAuth("root"))
    settings = KmsSettings(REGION, LocalBinding("v"), CALM, dev=True, local_folder=tmp_path, transit=(endpoint,))
    registry = ProviderRegistry(settings)
    with pytest.raises(KmsUnavailable) as refused:
        await registry.provider(TransitBinding("bao", "transit", "k")).describe(uuid4())
    assert (refused.value.code, refused.value.alarm) == ("TlsFailure", True)
    await registry.close()


def test_secrets_of_endpoints_do_not_show() -> None:
    assert "hush" not in repr(TransitEndpoint("a", "https://a", None, TokenAuth("hush")))
    assert "hush" not in repr(TransitEndpoint("a", "https://a", None, AppRoleAuth("r", "hush")))
    assert Trace("wrap", "kek", started=time.perf_counter()).call().attempts == 1
