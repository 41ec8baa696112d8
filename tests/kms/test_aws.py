"""What is AWS's own: roles, sessions, external ids, the session policy, endpoints and user agents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from app.crypto.secret import SecretKey
from app.kms.aws_arn import parse_key_arn
from app.kms.aws_cell import AwsCell, AwsSettings
from app.kms.binding import AwsBinding, LocalBinding
from app.kms.limits import Limits
from app.kms.provider import (
    KmsDenied,
    KmsIntegrity,
    KmsOwnCredentials,
    KmsUnavailable,
    WrapContext,
)
from app.kms.registry import KmsSettings, ProviderRegistry
from tests.kms.aws_gate import VENDOR_KEY
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import CALM, MINISTACK_ACCOUNT, REGION, VENDOR_ROLE, AwsWorld, MinistackRig
from tests.kms.servers import Fault

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture
async def customer(ministack: AwsWorld, tmp_path: Path):
    rig = MinistackRig.make(ministack, tmp_path)
    ministack.gate.faults.clear()
    ministack.gate.expired.clear()
    ministack.gate.seen.clear()
    yield rig
    ministack.gate.faults.clear()
    await rig.close()


def actions(rig: MinistackRig) -> list[str]:
    return [action for action, _, _ in rig.world.gate.seen]


async def test_one_session_serves_many_calls_and_is_fetched_once(customer: MinistackRig) -> None:
    provider = customer.provider()
    await asyncio.gather(*(provider.wrap(SecretKey.generate(), customer.context, uuid4()) for _ in range(8)))
    assert actions(customer).count("AssumeRole") == 1
    assert actions(customer).count("Encrypt") == 8


async def test_the_vendors_own_key_never_touches_the_customers(customer: MinistackRig) -> None:
    await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    for action, _, access_key in customer.world.gate.seen:
        assert (access_key == VENDOR_KEY) == (action == "AssumeRole")


async def test_every_call_carries_its_own_intent(customer: MinistackRig) -> None:
    intents = [uuid4() for _ in range(6)]
    provider = customer.provider()
    await asyncio.gather(*(provider.wrap(SecretKey.generate(), customer.context, intent) for intent in intents))
    agents = [agent for action, agent, _ in customer.world.gate.seen if action == "Encrypt"]
    assert sorted(agent.rpartition("confide-intent/")[2] for agent in agents) == sorted(str(each) for each in intents)
    assert all(agent.count("confide-intent/") == 1 for agent in agents)


async def test_a_session_that_ended_early_is_fetched_anew_once(customer: MinistackRig) -> None:
    provider = customer.provider()
    wrapped = await provider.wrap(SecretKey.generate(), customer.context, uuid4())
    session = next(key for action, _, key in customer.world.gate.seen if action == "Encrypt")
    customer.world.gate.expired.add(session)
    opened = await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, customer.context, uuid4())
    assert opened.call.attempts == 1
    assert actions(customer).count("AssumeRole") == 2


async def test_our_own_key_refused_is_not_the_customers_revocation(customer: MinistackRig) -> None:
    customer.world.gate.expired.add(VENDOR_KEY)
    with pytest.raises(KmsOwnCredentials) as refused:
        await customer.provider().wrap(SecretKey.generate(), customer.context, uuid4())
    assert refused.value.alarm
    customer.world.gate.expired.clear()


async def test_without_own_credentials_nothing_is_taken_from_the_environment(customer: MinistackRig) -> None:
    settings = customer.registry.settings
    bare = customer.world.settings(access_key_id=None, secret_access_key=None)
    registry = ProviderRegistry(
        KmsSettings(REGION, LocalBinding("vendor"), dev=True, local_folder=settings.local_folder, aws=bare)
    )
    with pytest.raises(KmsOwnCredentials):
        await registry.provider(customer.binding).wrap(SecretKey.generate(), customer.context, uuid4())
    assert customer.world.gate.seen == []
    await registry.close()


@pytest.mark.parametrize("external_id", [None, "confide-" + "0" * 32])
async def test_the_role_insists_on_its_external_id(customer: MinistackRig, external_id: str | None) -> None:
    assert await customer.provider().assume_refused(external_id, uuid4())  # type: ignore[attr-defined]


async def test_another_binding_with_the_same_role_is_denied(customer: MinistackRig) -> None:
    """The confused deputy: a second tenant of ours names the first one's key and role."""
    mine = customer.binding
    assert isinstance(mine, AwsBinding)
    thief = AwsBinding(mine.key_arn, mine.role_arn, "confide-" + "a" * 32)
    with pytest.raises(KmsDenied):
        await customer.registry.provider(thief).describe(uuid4())


async def test_the_session_can_use_no_other_key_even_if_the_role_may(customer: MinistackRig) -> None:
    other = customer.other()
    assert isinstance(other, AwsBinding)
    await customer.provider().describe(uuid4())
    session = customer.registry.provider(customer.binding)
    session.kek_uri = other.key_arn  # as if our own code asked for the wrong key with this session
    with pytest.raises(KmsDenied):
        await session.wrap(SecretKey.generate(), customer.context, uuid4())


async def test_the_key_policy_ties_the_role_to_the_tenants_context(customer: MinistackRig) -> None:
    foreign = WrapContext({**customer.context.fields, "confide:tenant": str(uuid4())})
    with pytest.raises(KmsDenied):
        await customer.provider().wrap(SecretKey.generate(), foreign, uuid4())


async def test_an_answer_about_another_key_is_refused(customer: MinistackRig) -> None:
    answer = f'{{"KeyId":"{ARN}","Plaintext":"{"A" * 43}="}}'
    customer.world.gate.faults.append(Fault(200, answer))
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(b"x" * 100, "aws-managed", customer.context, uuid4())


async def test_a_plaintext_of_another_length_is_refused(customer: MinistackRig) -> None:
    assert isinstance(customer.binding, AwsBinding)
    customer.world.gate.faults.append(Fault(200, f'{{"KeyId":"{customer.binding.key_arn}","Plaintext":"AAAA"}}'))
    with pytest.raises(KmsIntegrity):
        await customer.provider().unwrap(b"x" * 100, "aws-managed", customer.context, uuid4())


async def test_scheduled_deletion_and_its_date_are_described(customer: MinistackRig) -> None:
    customer.delete()
    described = await customer.provider().describe(uuid4())
    assert described.enabled is False
    assert described.state == "PendingDeletion"
    assert described.deletion_at is not None


async def test_the_vendors_own_key_needs_no_role(ministack: AwsWorld, tmp_path: Path) -> None:
    tenant = uuid4()
    arn = MinistackRig.new_key(ministack, VENDOR_ROLE, tenant)
    settings = KmsSettings(
        REGION, AwsBinding(arn, None, None), CALM, dev=True, local_folder=tmp_path, aws=ministack.settings()
    )
    registry, context = ProviderRegistry(settings), WrapContext({"confide:tenant": str(tenant)})
    key = SecretKey.generate()
    wrapped = await registry.vendor().wrap(key, context, uuid4())
    assert (await registry.vendor().unwrap(wrapped.ciphertext, wrapped.kek_version, context, uuid4())).key == key
    ministack.client("kms").disable_key(KeyId=arn)
    with pytest.raises(KmsOwnCredentials) as refused:
        await registry.vendor().unwrap(wrapped.ciphertext, wrapped.kek_version, context, uuid4())
    assert refused.value.code == "DisabledException"
    await registry.close()


async def test_a_certificate_that_is_not_trusted_is_an_outage_with_an_alarm(
    fake_azure: FakeAzure, tmp_path: Path
) -> None:
    aws = AwsSettings(VENDOR_ROLE, "AKIA", "x", kms_endpoint=fake_azure.url, sts_endpoint=fake_azure.url)
    binding = AwsBinding(ARN, None, None)
    registry = ProviderRegistry(KmsSettings(REGION, LocalBinding("v"), CALM, dev=True, local_folder=tmp_path, aws=aws))
    with pytest.raises(KmsUnavailable) as refused:
        await registry.provider(binding).describe(uuid4())
    assert (refused.value.code, refused.value.alarm) == ("TlsFailure", True)
    await registry.close()


@pytest.mark.parametrize(
    ("partition", "region", "host"),
    [
        ("aws", "eu-central-1", "https://kms.eu-central-1.amazonaws.com"),
        ("aws-us-gov", "us-gov-west-1", "https://kms.us-gov-west-1.amazonaws.com"),
        ("aws-cn", "cn-north-1", "https://kms.cn-north-1.amazonaws.com.cn"),
    ],
)
async def test_endpoints_follow_from_the_region_alone(partition: str, region: str, host: str) -> None:
    cell = AwsCell(AwsSettings(VENDOR_ROLE, partitions=frozenset({"aws", "aws-cn", "aws-us-gov"})), Limits())
    arn = parse_key_arn(
        ARN.replace(":aws:", f":{partition}:").replace("eu-central-1", region), cell.settings.partitions
    )
    client = cell._client("kms", arn.region, arn.partition)
    assert client.meta.endpoint_url == host
    assert client.meta.config.proxies == {}
    assert client.meta.config.retries["total_max_attempts"] == 1
    await cell.close()


async def test_a_hundred_tenants_share_one_client(ministack: AwsWorld, tmp_path: Path) -> None:
    settings = KmsSettings(REGION, LocalBinding("v"), CALM, dev=True, local_folder=tmp_path, aws=ministack.settings())
    registry = ProviderRegistry(settings)
    for number in range(100):
        role = f"arn:aws:iam::{MINISTACK_ACCOUNT}:role/nobody-{number}"
        binding = AwsBinding(ARN.replace("111122223333", MINISTACK_ACCOUNT), role, "confide-" + f"{number:032x}")
        registry.provider(binding)
    assert registry._aws is not None
    assert len(registry._aws._clients) == 0
    with pytest.raises(KmsDenied):
        await registry.provider(binding).describe(uuid4())
    assert set(registry._aws._clients) == {("kms", REGION), ("sts", REGION)}
    await registry.close()
