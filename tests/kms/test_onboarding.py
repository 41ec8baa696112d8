"""What customers paste: consistent, complete, and working as pasted against the emulators."""

from __future__ import annotations

import json
import re
import shutil
import string
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from app.crypto.secret import SecretKey
from app.kms.azure_cell import AzureSettings
from app.kms.binding import AwsBinding, AzureBinding, LocalBinding, TransitBinding, new_external_id
from app.kms.doctor import CHECKS, Patient, examine, may_activate
from app.kms.onboarding import aws_key_policy, aws_trust_policy, steps, terraform_variables, transit_policy
from app.kms.registry import KmsSettings, ProviderRegistry
from tests.kms.rigs import CALM, MINISTACK_ACCOUNT, REGION, VENDOR_ROLE, AwsWorld, TransitRig, TransitWorld, context
from tests.kms.test_doctor import Ledger

DOCS = Path(__file__).parents[2] / "docs"
MODULE = DOCS / "terraform" / "aws"
TENANT = UUID("0190a0a0-0000-7000-8000-000000000001")


def test_the_terraform_module_makes_the_same_policies() -> None:
    values = {
        "partition": "aws",
        "key_account": "111122223333",
        "role_arn": "arn:aws:iam::111122223333:role/confide-kms",
        "tenant_id": str(TENANT),
        "confide_role_arn": VENDOR_ROLE,
        "external_id": new_external_id(),
    }
    key = json.loads(string.Template((MODULE / "key-policy.json.tftpl").read_text()).substitute(values))
    trust = json.loads(string.Template((MODULE / "trust-policy.json.tftpl").read_text()).substitute(values))
    assert key == aws_key_policy("111122223333", "aws", values["role_arn"], TENANT)
    assert trust == aws_trust_policy(VENDOR_ROLE, values["external_id"])


def test_the_terraform_module_takes_the_variables_that_a_binding_gives(tmp_path: Path) -> None:
    declared = set(re.findall(r'^variable "([a-z_]+)"', (MODULE / "variables.tf").read_text(), re.MULTILINE))
    binding = AwsBinding("arn:aws:kms:eu-central-1:111122223333:key/x", "arn:aws:iam::111122223333:role/a/confide", "e")
    settings = KmsSettings(
        REGION, LocalBinding("v"), dev=True, local_folder=tmp_path, aws=AwsWorld("", _Nowhere(), "").settings()
    )
    given = terraform_variables(binding, settings, TENANT)
    assert set(given) == declared
    assert given["role_name"] == "confide"
    main = (MODULE / "main.tf").read_text()
    assert set(re.findall(r"var\.([a-z_]+)", main)) == declared


class _Nowhere:
    url = "http://127.0.0.1:1"


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform isn't installed")
def test_the_terraform_module_is_formatted() -> None:
    assert subprocess.run(["terraform", "fmt", "-check", str(MODULE)], check=False, capture_output=True).returncode == 0


async def test_aws_pasting_what_the_binding_gives_leads_to_a_working_key(ministack: AwsWorld, tmp_path: Path) -> None:
    """docs/bring-your-aws-key.md, end to end: key and role first, binding, paste, check, use."""
    tenant = uuid4()
    kms, iam = ministack.client("kms"), ministack.client("iam")
    arn = kms.create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    role = f"customer-{uuid4().hex[:8]}"
    role_arn = f"arn:aws:iam::{MINISTACK_ACCOUNT}:role/{role}"
    closed = {"Version": "2012-10-17", "Statement": []}
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(closed))

    settings = KmsSettings(REGION, LocalBinding("v"), CALM, dev=True, local_folder=tmp_path, aws=ministack.settings())
    registry = ProviderRegistry(settings)
    body = {"provider": "aws-kms", "key_arn": arn, "role_arn": role_arn}
    binding = registry.validate_binding(body, tenant, frozenset({REGION}))
    patient = Patient(binding, context(tenant), frozenset({REGION}))
    assert not may_activate(await examine(patient, registry, Ledger()))

    trust, policy, _ = [step.text for step in steps(binding, settings, tenant)]
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust)
    kms.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy)
    assert may_activate(await examine(patient, registry, Ledger()))
    await registry.provider(binding).wrap(SecretKey.generate(), context(tenant), uuid4())
    await registry.close()


def test_azure_steps_name_the_directory_the_role_and_the_proof(tmp_path: Path) -> None:
    azure = AzureSettings(client_id="0c0ff1de-0000-4000-8000-00000000c11e", issuer="https://issuer.confide.example")
    settings = KmsSettings(REGION, LocalBinding("v"), dev=True, local_folder=tmp_path, azure=azure)
    entra, proof = str(uuid4()), new_external_id()
    ours = steps(AzureBinding("acme-vault", False, "top", None, entra, None, proof), settings, TENANT)
    text = "\n".join(step.text for step in ours)
    assert f"az login --tenant {entra}" in text
    assert "az ad sp create --id 0c0ff1de" in text
    assert '"Key Vault Crypto Service Encryption User"' in text
    assert f"--tags confide-binding={proof}" in text
    client = str(uuid4())
    own = steps(AzureBinding("acme-hsm", True, "top", None, entra, client, proof), settings, TENANT)
    text = "\n".join(step.text for step in own)
    assert "federated-credential create" in text
    assert f'"subject": "{proof}"' in text
    assert '"issuer": "https://issuer.confide.example"' in text
    assert "az keyvault role assignment create --hsm-name acme-hsm" in text


async def test_transit_the_policy_is_enough_and_not_more(bao: TransitWorld, tmp_path: Path) -> None:
    rig = TransitRig.make(bao, tmp_path)
    registry = bao.registry(tmp_path, bao.token(rig.binding))  # type: ignore[arg-type]
    wrapped = await registry.provider(rig.binding).wrap(SecretKey.generate(), rig.context, uuid4())
    await registry.provider(rig.binding).unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert "create" not in transit_policy("transit", "k")
    assert isinstance(rig.binding, TransitBinding)
    texts = [step.text for step in steps(rig.binding, registry.settings, TENANT)]
    assert transit_policy("transit", rig.binding.key_name) in texts
    await registry.close()
    await rig.close()


AWS_ONLY = {"key-not-alias", "role-needs-external-id", "role-refuses-wrong-external-id"}


@pytest.mark.parametrize(
    ("page", "inapplicable"),
    [
        ("bring-your-aws-key.md", {"proof-of-control"}),
        ("bring-your-azure-key.md", AWS_ONLY),
        ("bring-your-vault-key.md", AWS_ONLY | {"proof-of-control", "expiry-not-near"}),
    ],
)
def test_the_guides_name_the_calls_and_exactly_the_checks_that_apply(page: str, inapplicable: set[str]) -> None:
    text = (DOCS / page).read_text()
    for call in ("POST /v1/keys/bindings", "/check", "/activate"):
        assert call in text
    rows = re.findall(r"^\| ([a-z, -]+) \| (?:yes|warns)", text, re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} == set(CHECKS) - inapplicable
