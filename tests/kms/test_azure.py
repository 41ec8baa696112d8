"""What is Azure's own: the challenge, sign-in, versions, expiry, and what RSA-OAEP can't promise."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from app.crypto.keys import open_root_key, seal_root_key
from app.crypto.secret import EXPOSE, SecretKey
from app.errors import Tampered
from app.kms.binding import AzureBinding, LocalBinding
from app.kms.provider import (
    KmsDenied,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsUnavailable,
    KmsUnclassified,
)
from app.kms.registry import KmsSettings, ProviderRegistry
from tests.kms.fake_azure import OAEP, Application, FakeAzure
from tests.kms.rigs import CALM, REGION
from tests.kms.rigs_azure import OUR_CLIENT, AzureHsmRig, AzureRig, azure_registry
from tests.kms.servers import Authority, Fault


@pytest.fixture
async def customer(fake_azure: FakeAzure, tmp_path: Path):
    rig = AzureRig.make(fake_azure, tmp_path)
    fake_azure.log.clear()
    yield rig
    fake_azure.faults.clear()
    await rig.close()


async def test_a_forged_half_passes_the_provider_but_not_the_root_key(customer: AzureRig) -> None:
    """Whoever can write our database can wrap a half of his own with the vault's public key, context digest and all.
    Neither we nor the vault can tell. That is why a root key is sealed under the vendor's half as well."""
    real, vendor, trk = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()
    names = {"region": REGION, "tenant": customer.tenant, "generation": 1}
    sealed = seal_root_key(trk, real, vendor, **names)
    wrapped = await customer.provider().wrap(real, customer.context, uuid4())

    forged, secret = SecretKey.generate(), customer.key.versions[-1].secret
    assert isinstance(secret, RSAPrivateKey)
    payload = bytes(forged.expose(EXPOSE)) + customer.context.digest()
    blob = secret.public_key().encrypt(payload, OAEP)
    opened = await customer.provider().unwrap(blob, wrapped.kek_version, customer.context, uuid4())
    assert opened.key == forged, "the provider can't tell: RSA-OAEP authenticates nobody"

    with pytest.raises(Tampered):
        open_root_key(sealed, opened.key, vendor, **names)
    # Nor can he make us seal under a root key that he knows: he lacks the vendor's half.
    guessed = seal_root_key(trk, forged, SecretKey.generate(), **names)
    with pytest.raises(Tampered):
        open_root_key(guessed, opened.key, vendor, **names)


async def test_a_half_moved_to_another_tenant_is_refused_although_rsa_has_no_associated_data(
    customer: AzureRig,
) -> None:
    wrapped = await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    neighbour = AzureRig(customer.binding, customer.registry)
    with pytest.raises(KmsIntegrity) as refused:
        await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, neighbour.context, uuid4())
    assert refused.value.code == "ContextMismatch"


async def test_an_rsa_key_is_refused_as_the_vendors_side(fake_azure: FakeAzure, tmp_path: Path) -> None:
    rig = AzureHsmRig.make(fake_azure, tmp_path)
    assert isinstance(rig.binding, AzureBinding)
    fake_azure.new_version(rig.vault, "rsa", "RSA-HSM")
    mine = rig.binding
    rsa = AzureBinding(mine.vault_name, True, "rsa", None, mine.entra_tenant_id, None, mine.proof)
    azure = rig.registry.settings.azure
    for binding, good in ((mine, True), (rsa, False)):
        registry = ProviderRegistry(KmsSettings(REGION, binding, CALM, dev=True, local_folder=tmp_path, azure=azure))
        if good:
            await registry.vendor().wrap(SecretKey.generate(), rig.context, uuid4())
        else:
            with pytest.raises(KmsMisconfigured):
                await registry.vendor().wrap(SecretKey.generate(), rig.context, uuid4())
            with pytest.raises(KmsMisconfigured):
                await registry.vendor().unwrap(b"x" * 256, "0" * 32, rig.context, uuid4())
        await registry.close()
    vault = AzureBinding("acme", False, "top", None, mine.entra_tenant_id, None, mine.proof)
    with pytest.raises(ValueError, match="RSA"):
        KmsSettings(REGION, vault, azure=azure, dev=True)
    await rig.close()


async def test_the_version_is_pinned_and_an_old_one_still_unwraps_after_rotation(customer: AzureRig) -> None:
    key = SecretKey.generate()
    first = await customer.provider().wrap(key, customer.context, uuid4())
    newer = customer.fake.new_version(customer.vault, "top")
    second = await customer.provider().wrap(key, customer.context, uuid4())
    assert (first.kek_version, second.kek_version) == (customer.key.versions[0].version, newer.version)
    for wrapped in (first, second):
        opened = await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())
        assert opened.key == key
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(first.ciphertext, second.kek_version, customer.context, uuid4())


async def test_wrapping_proves_access_by_a_server_side_unwrap(customer: AzureRig) -> None:
    intent = uuid4()
    await customer.provider().wrap(SecretKey.generate(), customer.context, intent)
    paths = [path.rpartition("/")[2] for _, path, _, told, _ in customer.fake.log if told == str(intent)]
    assert paths[-2:] == ["wrapkey", "unwrapkey"]


async def test_a_key_that_may_wrap_but_not_unwrap_is_refused_at_wrap(customer: AzureRig) -> None:
    customer.key.versions[-1].operations = ["wrapKey"]
    with pytest.raises(KmsMisconfigured):
        await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())


@pytest.mark.parametrize(("kind", "bits"), [("EC", 0), ("RSA", 1024)])
async def test_weak_and_wrong_kinds_are_refused(customer: AzureRig, kind: str, bits: int) -> None:
    customer.fake.new_version(customer.vault, "top", kind, bits)
    assert not (await customer.provider().describe(uuid4())).usable_kind
    with pytest.raises(KmsMisconfigured):
        await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())


async def test_an_expired_key_still_unwraps_and_its_date_is_told(customer: AzureRig) -> None:
    wrapped = await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    customer.key.versions[-1].expires = time.time() - 60
    await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())
    assert (await customer.provider().describe(uuid4())).expires_at == int(customer.key.versions[-1].expires)
    with pytest.raises(KmsDenied):
        await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())


async def test_a_recovered_key_works_again(customer: AzureRig) -> None:
    wrapped = await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    customer.delete()
    with pytest.raises(KmsDenied):
        await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())
    customer.vault.keys["top"] = customer.vault.deleted.pop("top")
    await customer.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())


async def test_a_vault_of_another_entra_tenant_gets_no_token(customer: AzureRig) -> None:
    customer.vault.challenge_tenant = str(uuid4())
    before = customer.fake.token_requests
    with pytest.raises(KmsMisconfigured) as refused:
        await customer.provider().describe(uuid4())
    assert refused.value.code == "ChallengeTenant"
    assert customer.fake.token_requests == before
    customer.vault.challenge_tenant = None
    await customer.provider().describe(uuid4())  # the refused challenge is not remembered


@pytest.mark.parametrize("resource", ["https://evil.example", "https://graph.microsoft.com", "https://azure.net.evil"])
async def test_a_challenge_for_a_foreign_resource_gets_no_token(customer: AzureRig, resource: str) -> None:
    customer.vault.challenge_resource = resource
    before = customer.fake.token_requests
    with pytest.raises(KmsUnclassified):
        await customer.provider().describe(uuid4())
    assert customer.fake.token_requests == before


async def test_one_sign_in_serves_many(customer: AzureRig) -> None:
    before = customer.fake.token_requests
    await asyncio.gather(*(customer.provider().describe(uuid4()) for _ in range(10)))
    assert customer.fake.token_requests == before + 1


async def test_a_token_that_the_vault_forgot_is_fetched_anew_once(customer: AzureRig) -> None:
    await customer.provider().describe(uuid4())
    customer.fake.tokens.clear()
    await customer.provider().describe(uuid4())


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("gone", KmsDenied), ("disabled", KmsDenied), ("secret", KmsOwnCredentials), ("no directory", KmsMisconfigured)],
)
async def test_troubles_of_signing_in(customer: AzureRig, trouble: str, kind: type[Exception]) -> None:
    directory = customer.fake.directories[customer.vault.entra]
    match trouble:
        case "gone":
            del directory[OUR_CLIENT]
        case "disabled":
            directory[OUR_CLIENT].enabled = False
        case "secret":
            directory[OUR_CLIENT].secret = "rotated"
        case _:
            del customer.fake.directories[customer.vault.entra]
    with pytest.raises(kind):
        await customer.provider().describe(uuid4())


async def test_federated_sign_in_works_for_exactly_the_bindings_subject(fake_azure: FakeAzure, tmp_path: Path) -> None:
    rig = AzureRig.make(fake_azure, tmp_path)
    assert isinstance(rig.binding, AzureBinding)
    client, mine = str(uuid4()), rig.binding
    app = fake_azure.directories[mine.entra_tenant_id][client] = Application()
    app.federated.add((fake_azure.issuer, mine.proof))
    rig.vault.granted.add(client)
    registry = azure_registry(fake_azure, tmp_path, assertion=fake_azure.assertion, client_secret=None)
    own = AzureBinding(mine.vault_name, False, "top", None, mine.entra_tenant_id, client, mine.proof)
    await registry.provider(own).describe(uuid4())
    thief = AzureBinding(mine.vault_name, False, "top", None, mine.entra_tenant_id, client, "confide-" + "a" * 32)
    with pytest.raises(KmsDenied):
        await registry.provider(thief).describe(uuid4())
    app.federated.clear()
    fresh = azure_registry(fake_azure, tmp_path, assertion=fake_azure.assertion, client_secret=None)
    with pytest.raises(KmsDenied):
        await fresh.provider(own).describe(uuid4())
    for each in (registry, fresh, rig.registry):
        await each.close()


async def test_a_name_that_does_not_resolve_is_an_outage(customer: AzureRig) -> None:
    assert isinstance(customer.binding, AzureBinding)
    mine = customer.binding
    gone = AzureBinding("no-such-vault", False, "top", None, mine.entra_tenant_id, None, mine.proof)
    with pytest.raises(KmsUnavailable) as refused:
        await customer.registry.provider(gone).describe(uuid4())
    assert not isinstance(refused.value, KmsUnclassified)


async def test_a_certificate_that_is_not_trusted_is_an_outage_with_an_alarm(
    fake_azure: FakeAzure, tmp_path: Path
) -> None:
    rig = AzureRig.make(fake_azure, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    registry = azure_registry(fake_azure, tmp_path, ca_file=str(Authority(other).file))
    with pytest.raises(KmsUnavailable) as refused:
        await registry.provider(rig.binding).describe(uuid4())
    assert (refused.value.code, refused.value.alarm) == ("TlsFailure", True)
    await registry.close()
    await rig.close()


async def test_an_answer_that_names_another_key_is_refused(customer: AzureRig) -> None:
    await customer.provider().describe(uuid4())
    customer.fake.faults.append(Fault(200, '{"kid":"https://evil.vault.azure.net/keys/top/0","value":"AAAA"}'))
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(b"x" * 256, "0" * 32, customer.context, uuid4())


@pytest.mark.parametrize(
    "version", ["", "..", "../other/0123", "0" * 31, "0" * 32 + "/sign?x=", "0" * 32 + "\n", "latest"]
)
async def test_a_stored_version_leads_to_no_other_path(customer: AzureRig, version: str) -> None:
    await customer.provider().describe(uuid4())
    customer.fake.log.clear()
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(b"x" * 256, version, customer.context, uuid4())
    assert customer.fake.log == []


async def test_the_vaults_region_comes_from_its_own_answer(customer: AzureRig) -> None:
    customer.vault.region = "northeurope"
    assert (await customer.provider().describe(uuid4())).region == "northeurope"


async def test_settings_that_point_vaults_elsewhere_are_refused_in_production(fake_azure: FakeAzure) -> None:
    azure = azure_registry(fake_azure, Path()).settings.azure
    with pytest.raises(ValueError, match="development"):
        KmsSettings(REGION, AzureBinding("hsm", True, "top", None, "e", None, "p"), azure=azure)
    with pytest.raises(ValueError, match="development"):
        KmsSettings(REGION, LocalBinding("vendor"))
