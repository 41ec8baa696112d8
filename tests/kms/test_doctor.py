"""The doctor on every provider: a healthy key passes, and each illness is found, named and given a fix."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest

from app.kms.binding import AwsBinding, AzureBinding, TransitBinding
from app.kms.doctor import CHECKS, MAY, NOT_APPLICABLE, Check, Outcome, Patient, examine, may_activate
from app.kms.onboarding import aws_trust_policy
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import VENDOR_ROLE, AwsRig, AwsWorld, MinistackRig, Rig, TransitRig, TransitWorld
from tests.kms.rigs_azure import AzureRig
from tests.kms.servers import Fault

T = TypeVar("T")


class Ledger:
    """Stands for the audit: notes each intent before the call and its outcome after it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, UUID]] = []

    async def __call__(self, operation: str, fn: Callable[[UUID], Awaitable[T]]) -> T:
        intent = uuid4()
        self.events.append(("intent", operation, intent))
        try:
            return await fn(intent)
        finally:
            self.events.append(("outcome", operation, intent))


async def checkup(rig: Rig, regions: frozenset[str] | None = None) -> dict[str, Check]:
    ledger = Ledger()
    checks = await examine(Patient(rig.binding, rig.context, regions or rig.regions), rig.registry, ledger)
    intents = [each[1:] for each in ledger.events if each[0] == "intent"]
    assert intents == [each[1:] for each in ledger.events if each[0] == "outcome"]
    if rig.remote and "intents" not in rig.lies:
        # Every call of the doctor reached the provider under an intent that was written first.
        assert {str(intent) for _, intent in intents} <= set(rig.arrived())
    for check in checks:
        assert check.outcome is not Outcome.FAIL or (check.cause and check.fix), check
    return {check.name: check for check in checks}


async def test_a_healthy_key_passes_all_that_applies(rig: Rig) -> None:
    checks = await checkup(rig)
    assert tuple(checks) == CHECKS
    assert {name for name, check in checks.items() if not check.must} == MAY
    failed = {name for name, check in checks.items() if check.outcome is Outcome.FAIL} - {"latency"}
    if "roles" in rig.lies:
        assert failed == {"role-needs-external-id", "role-refuses-wrong-external-id"}
        return
    assert failed == set()
    assert may_activate(list(checks.values()))
    skipped = {name for name, check in checks.items() if check.outcome is Outcome.SKIPPED}
    assert all(checks[name].cause == NOT_APPLICABLE for name in skipped)
    assert ("foreign-context-refused" in skipped) == (rig.name == "azure-vault")
    assert ("role-needs-external-id" in skipped) == (not rig.name.startswith("aws"))
    assert ("proof-of-control" in skipped) == (not rig.name.startswith("azure"))


async def test_a_disabled_key_is_named_and_stops_activation(rig: Rig) -> None:
    if "state" in rig.lies:
        pytest.skip(f"{rig.name} lies about state: shown elsewhere, see EMULATORS.md")
    rig.disable()
    checks = await checkup(rig)
    assert not may_activate(list(checks.values()))
    assert checks["wrap-and-unwrap"].outcome is Outcome.FAIL or checks["key-reachable"].outcome is Outcome.FAIL
    rig.enable()
    assert may_activate(list((await checkup(rig)).values()))


async def test_a_region_that_is_not_allowed_stops_activation(rig: Rig) -> None:
    checks = await checkup(rig, frozenset({"antarctica-1"}))
    assert checks["region-allowed"].outcome is Outcome.FAIL
    assert "antarctica-1" in checks["region-allowed"].cause
    assert not may_activate(list(checks.values()))


@pytest.mark.parametrize("why", ["region", "consent", "unknown"])
async def test_g9_nothing_is_sent_to_a_key_that_isnt_known_to_be_where_it_may(
    fake_azure: FakeAzure, tmp_path: Path, why: str
) -> None:
    """A vault's name doesn't tell its region. Its own answer does, and asking for that sends nothing of a key."""
    rig = AzureRig.make(fake_azure, tmp_path)
    ledger = Ledger()
    regions = frozenset({"antarctica-1"}) if why == "region" else rig.regions
    patient = Patient(rig.binding, rig.context, regions, lambda _: why != "consent")
    if why == "unknown":
        fake_azure.faults.extend([Fault(503, "{}")] * 10)
    checks = {check.name: check for check in await examine(patient, rig.registry, ledger)}
    fake_azure.faults.clear()
    assert {operation for _, operation, _ in ledger.events} == {"describe"}
    assert checks["wrap-and-unwrap"].outcome is Outcome.SKIPPED
    assert not may_activate(list(checks.values()))
    await rig.close()


async def test_withdrawn_access_is_named(rig: Rig) -> None:
    if "access" in rig.lies:
        pytest.skip(f"{rig.name} lies about access: shown elsewhere, see EMULATORS.md")
    rig.withdraw()
    checks = await checkup(rig)
    assert not may_activate(list(checks.values()))
    assert any(check.outcome is Outcome.FAIL and check.must for check in checks.values())


@pytest.fixture
async def customer(ministack: AwsWorld, tmp_path: Path):
    rig = MinistackRig.make(ministack, tmp_path)
    yield rig
    await rig.close()


def set_trust(rig: AwsRig, policy: dict[str, object]) -> None:
    assert isinstance(rig.binding, AwsBinding)
    role = str(rig.binding.role_arn).rpartition("/")[2]
    rig.world.client("iam").update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(policy))


async def test_aws_a_role_without_an_external_id_is_found(customer: AwsRig) -> None:
    policy = aws_trust_policy(VENDOR_ROLE, "x")
    del policy["Statement"][0]["Condition"]
    set_trust(customer, policy)
    checks = await checkup(customer)
    for name in ("role-needs-external-id", "role-refuses-wrong-external-id"):
        assert checks[name].outcome is Outcome.FAIL
        assert customer.binding.external_id in checks[name].fix  # type: ignore[union-attr,operator]
    assert not may_activate(list(checks.values()))


async def test_aws_a_scheduled_deletion_is_found_with_its_date(customer: AwsRig) -> None:
    customer.delete()
    checks = await checkup(customer)
    assert checks["deletion-not-scheduled"].outcome is Outcome.FAIL
    assert "UTC" in checks["deletion-not-scheduled"].cause
    assert checks["key-enabled"].outcome is Outcome.FAIL


async def test_aws_an_rsa_key_is_of_the_wrong_kind(customer: AwsRig) -> None:
    arn = customer.world.client("kms").create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    mine = customer.binding
    assert isinstance(mine, AwsBinding)
    customer.binding = AwsBinding(arn, mine.role_arn, mine.external_id)
    customer.give_back()
    checks = await checkup(customer)
    assert checks["key-kind"].outcome is Outcome.FAIL
    assert "RSA_2048" in checks["key-kind"].cause


async def test_aws_a_role_that_nobody_made_is_found(customer: AwsRig) -> None:
    mine = customer.binding
    assert isinstance(mine, AwsBinding)
    customer.binding = AwsBinding(mine.key_arn, f"{mine.role_arn}-missing", mine.external_id)
    checks = await checkup(customer)
    assert checks["key-reachable"].outcome is Outcome.FAIL
    assert "trust policy" in checks["key-reachable"].fix


async def test_azure_a_missing_tag_is_no_proof_of_control(fake_azure: FakeAzure, tmp_path: Path) -> None:
    rig = AzureRig.make(fake_azure, tmp_path)
    assert isinstance(rig.binding, AzureBinding)
    for tags in ({}, {"confide-binding": "somebody else's"}):
        rig.key.tags = tags
        checks = await checkup(rig)
        assert checks["proof-of-control"].outcome is Outcome.FAIL
        assert rig.binding.proof in checks["proof-of-control"].fix
        assert not may_activate(list(checks.values()))
    await rig.close()


async def test_azure_an_expiry_that_is_near_warns_and_lets_activate(fake_azure: FakeAzure, tmp_path: Path) -> None:
    rig = AzureRig.make(fake_azure, tmp_path)
    rig.key.versions[-1].expires = time.time() + 5 * 86_400
    checks = await checkup(rig)
    assert checks["expiry-not-near"].outcome is Outcome.FAIL
    assert may_activate(list(checks.values()))
    await rig.close()


async def test_azure_a_weak_key_is_found(fake_azure: FakeAzure, tmp_path: Path) -> None:
    rig = AzureRig.make(fake_azure, tmp_path)
    fake_azure.new_version(rig.vault, "top", "RSA", 1024)
    checks = await checkup(rig)
    assert checks["key-kind"].outcome is Outcome.FAIL
    assert "RSA-1024" in checks["key-kind"].cause
    await rig.close()


async def test_transit_a_derived_or_weak_key_is_found(bao: TransitWorld, tmp_path: Path) -> None:
    binding: TransitBinding = bao.new_key("aes128-gcm96")
    rig = TransitRig(binding, bao.registry(tmp_path, bao.token(binding)))
    rig.world = bao
    assert (await checkup(rig))["key-kind"].outcome is Outcome.FAIL
    await rig.close()
