"""What a customer pastes into his own cloud so that a binding works: policies and commands, with nothing to fill in.

The JSON is the same as ``docs/terraform/aws`` makes; a test holds them together. Sources: "Key policies in AWS KMS",
"Condition keys for AWS KMS" (kms:EncryptionContext), "Access to AWS accounts owned by third parties" (external ids),
the Azure CLI reference, and the Transit API's paths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.kms.aws_arn import parse_key_arn
from app.kms.azure_names import vault_host
from app.kms.binding import AwsBinding, AzureBinding, Binding, LocalBinding, TransitBinding
from app.kms.doctor import PROOF_TAG
from app.kms.registry import KmsSettings

VAULT_ROLE = "Key Vault Crypto Service Encryption User"
HSM_ROLE = "Managed HSM Crypto Service Encryption User"
AUDIENCE = "api://AzureADTokenExchange"


@dataclass(frozen=True, slots=True)
class Step:
    """``title`` says what the step does; ``text`` is what to paste; ``language`` is json, shell or hcl."""

    title: str
    language: str
    text: str


def steps(binding: Binding, settings: KmsSettings, tenant: UUID) -> list[Step]:
    """What the customer does, in order. Raises ``ValueError`` where the cell isn't set up for the provider."""
    match binding:
        case AwsBinding():
            return _aws(binding, settings, tenant)
        case AzureBinding():
            return _azure(binding, settings)
        case TransitBinding():
            return _transit(binding)
        case LocalBinding():
            return []


def aws_key_policy(key_account: str, partition: str, role_arn: str, tenant: UUID) -> dict[str, Any]:
    """Encrypt and Decrypt only under the tenant's own encryption context. DescribeKey carries no context."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "AccountAdministersTheKey",
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:{partition}:iam::{key_account}:root"},
                "Action": "kms:*",
                "Resource": "*",
            },
            {
                "Sid": "ConfideWrapsAndUnwraps",
                "Effect": "Allow",
                "Principal": {"AWS": role_arn},
                "Action": ["kms:Encrypt", "kms:Decrypt"],
                "Resource": "*",
                "Condition": {"StringEquals": {"kms:EncryptionContext:confide:tenant": str(tenant)}},
            },
            {
                "Sid": "ConfideDescribes",
                "Effect": "Allow",
                "Principal": {"AWS": role_arn},
                "Action": "kms:DescribeKey",
                "Resource": "*",
            },
        ],
    }


def aws_trust_policy(confide_role_arn: str, external_id: str) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ConfideAssumesWithItsExternalId",
                "Effect": "Allow",
                "Principal": {"AWS": confide_role_arn},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
            }
        ],
    }


def terraform_variables(binding: AwsBinding, settings: KmsSettings, tenant: UUID) -> dict[str, str]:
    """``terraform.tfvars.json`` for the module under ``docs/terraform/aws``."""
    if settings.aws is None or binding.role_arn is None or binding.external_id is None:
        raise ValueError("this cell serves no customers' AWS keys")
    return {
        "confide_role_arn": settings.aws.role_arn,
        "external_id": binding.external_id,
        "tenant_id": str(tenant),
        "role_name": binding.role_arn.rpartition("/")[2],
    }


def _aws(binding: AwsBinding, settings: KmsSettings, tenant: UUID) -> list[Step]:
    variables = terraform_variables(binding, settings, tenant)
    partitions = settings.aws.partitions if settings.aws is not None else frozenset({"aws"})
    key = parse_key_arn(binding.key_arn, partitions)
    trust = aws_trust_policy(variables["confide_role_arn"], variables["external_id"])
    policy = aws_key_policy(key.account, key.partition, str(binding.role_arn), tenant)
    return [
        Step("The trust policy of your role: only Confide, only with this external id", "json", _json(trust)),
        Step("The key policy of your key: your role, only under your tenant's context", "json", _json(policy)),
        Step("Or both as Terraform: variables for the module docs/terraform/aws", "json", _json(variables)),
    ]


def _azure(binding: AzureBinding, settings: KmsSettings) -> list[Step]:
    if settings.azure is None:
        raise ValueError("this cell serves no customers' Azure keys")
    client = binding.client_id or settings.azure.client_id
    if client is None:
        raise ValueError("this cell has no Azure application of its own: the binding must name one")
    host = vault_host(binding.vault_name, binding.managed_hsm)
    key = f"https://{host}/keys/{binding.key_name}"
    found = [
        Step("Sign in to the directory of the vault", "shell", f"az login --tenant {binding.entra_tenant_id}"),
        _azure_application(binding, settings, client),
    ]
    if binding.managed_hsm:
        grant = (
            f'az keyvault role assignment create --hsm-name {binding.vault_name} --role "{HSM_ROLE}" \\\n'
            f"  --assignee {client} --scope /keys/{binding.key_name}"
        )
    else:
        grant = (
            f'az role assignment create --role "{VAULT_ROLE}" --assignee {client} \\\n'
            f'  --scope "$(az keyvault show -n {binding.vault_name} --query id -o tsv)/keys/{binding.key_name}"'
        )
    found.append(Step("Let it wrap and unwrap with this one key", "shell", grant))
    if binding.client_id is None:
        tag = f"az keyvault key set-attributes --id {key} --tags {PROOF_TAG}={binding.proof}"
        found.append(Step("Prove that the key is yours: put this binding's tag on it", "shell", tag))
    return found


def _azure_application(binding: AzureBinding, settings: KmsSettings, client: str) -> Step:
    if binding.client_id is None:
        return Step("Admit Confide's application to your directory", "shell", f"az ad sp create --id {client}")
    issuer = settings.azure.issuer if settings.azure is not None else ""
    credential = {
        "name": "confide",
        "issuer": issuer,
        "subject": binding.proof,
        "audiences": [AUDIENCE],
        "description": "Confide signs in for one key binding",
    }
    text = f"az ad app federated-credential create --id {client} --parameters '{json.dumps(credential)}'"
    return Step("Let Confide sign in as your application, for this binding only", "shell", text)


def transit_policy(mount: str, key_name: str) -> str:
    """No ``create``: with it, encrypt would make a missing key by itself, and a deletion would not be noticed."""
    return (
        f'path "{mount}/encrypt/{key_name}" {{\n  capabilities = ["update"]\n}}\n\n'
        f'path "{mount}/decrypt/{key_name}" {{\n  capabilities = ["update"]\n}}\n\n'
        f'path "{mount}/keys/{key_name}" {{\n  capabilities = ["read"]\n}}\n'
    )


def _transit(binding: TransitBinding) -> list[Step]:
    key = f"{binding.mount}/keys/{binding.key_name}"
    make = f"bao write -f {key} type=aes256-gcm96"
    header = "bao write sys/config/auditing/request-headers/X-Confide-Intent hmac=false"
    return [
        Step("Make the key (with HashiCorp Vault: vault instead of bao)", "shell", make),
        Step("The policy of Confide's token or AppRole", "hcl", transit_policy(binding.mount, binding.key_name)),
        Step("Let your audit log keep the id of our audit event", "shell", header),
    ]


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
