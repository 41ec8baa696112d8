"""Customers with keys of their own: they paste what a binding tells them to, and switch their keys off and on."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from typing_extensions import override

from app.kms.azure_cell import AzureSettings
from app.kms.binding import LocalBinding
from app.kms.limits import Limits
from app.kms.local import LocalProvider
from app.kms.registry import KmsSettings
from app.kms.transit import TokenAuth, TransitEndpoint
from tests.cell import REGION, Cell, Tenant
from tests.keys.waiting import ended
from tests.kms.fake_azure import Application, FakeAzure
from tests.kms.rigs import AwsWorld, TransitWorld
from tests.kms.rigs_azure import OUR_CLIENT, OUR_SECRET
from tests.kms.servers import Fault

QUICK = Limits(  # the production time-outs, with shorter waits: a busy machine must not pass for an outage
    backoff=0.02,
    backoff_cap=0.05,
    breaker_seconds=0.3,
    breaker_failures=1000,
)
PROVIDERS = ("aws-kms", "azure-key-vault", "vault-transit", "local")


@dataclass
class World:
    """All key services of the tests."""

    aws: AwsWorld
    bao: TransitWorld
    azure: FakeAzure
    folder: Path
    policies: list[str] = field(default_factory=list)
    limits: Limits = QUICK

    def settings(self) -> KmsSettings:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.bao.root("POST", "sys/policies/acl/confide-cell", {"policy": 'path "none" { capabilities = [] }'})
        token = self.bao.root("POST", "auth/token/create", {"policies": ["confide-cell"], "ttl": "1h"})
        auth = TokenAuth(token["auth"]["client_token"])
        endpoint = TransitEndpoint("bao", self.bao.proxy.url, str(self.bao.authority.file), auth, REGION)
        azure = AzureSettings(
            client_id=OUR_CLIENT,
            client_secret=OUR_SECRET,
            resolver=self.azure.resolver(),
            ca_file=self.azure.ca_file,
        )
        return KmsSettings(
            REGION,
            LocalBinding("vendor"),
            self.limits,
            dev=True,
            local_folder=self.folder,
            aws=self.aws.settings(),
            azure=azure,
            transit=(endpoint,),
        )

    def clear(self) -> None:
        for served in (self.aws.gate, self.bao.proxy, self.azure):
            served.faults.clear()


class Customer:
    """One key of one customer."""

    provider = ""

    def __init__(self, world: World) -> None:
        self.world = world

    def body(self) -> dict[str, Any]:
        """What he sends to POST /v1/keys/bindings."""
        raise NotImplementedError

    def paste(self, steps: list[dict[str, str]]) -> None:
        """Do what the binding says."""

    def disable(self) -> None: ...

    def enable(self) -> None: ...

    def new_version(self) -> None: ...

    @property
    def served(self) -> Any:
        raise NotImplementedError

    def fault(self, kind: str) -> Fault:
        """``kind``: throttled, unavailable, silence, cut, unknown, own-credentials, integrity, denied and the like."""
        return {
            "unavailable": Fault(503, "{}"),
            "silence": Fault(silence=Limits().read_timeout + 0.2, cut=True),
            "cut": Fault(cut=True),
        }[kind]

    def out(self, kind: str = "unavailable", times: int = 10_000) -> None:
        """The key service fails for so many calls."""
        self.served.faults.extend([self.fault(kind)] * times)

    def back(self) -> None:
        self.served.faults.clear()


class AwsCustomer(Customer):
    provider = "aws-kms"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.role = f"confide-{secrets.token_hex(4)}"
        made = world.aws.client("kms").create_key(KeyUsage="ENCRYPT_DECRYPT")
        self.arn = str(made["KeyMetadata"]["Arn"])

    def body(self) -> dict[str, Any]:
        role = f"arn:aws:iam::{self.world.aws.account}:role/{self.role}"
        return {"provider": self.provider, "key_arn": self.arn, "role_arn": role}

    def paste(self, steps: list[dict[str, str]]) -> None:
        trust, policy = steps[0]["text"], steps[1]["text"]
        self.world.aws.client("iam").create_role(RoleName=self.role, AssumeRolePolicyDocument=trust)
        self.world.aws.client("kms").put_key_policy(KeyId=self.arn, PolicyName="default", Policy=policy)

    def disable(self) -> None:
        self.world.aws.client("kms").disable_key(KeyId=self.arn)

    def enable(self) -> None:
        self.world.aws.client("kms").enable_key(KeyId=self.arn)

    def new_version(self) -> None:
        """New material under the same ARN. No emulator rotates, so the gate says what AWS would say of it."""
        self.world.aws.gate.material[self.arn] = secrets.token_hex(32)

    @property
    def served(self) -> Any:
        return self.world.aws.gate

    def fault(self, kind: str) -> Fault:
        known = {
            "throttled": "ThrottlingException",
            "unknown": "BrandNewException",
            "own-credentials": "UnrecognizedClientException",
            "integrity": "InvalidCiphertextException",
            "misconfigured": "InvalidKeyUsageException",
            "denied": "AccessDeniedException",
        }.get(kind)
        return Fault(400, json.dumps({"__type": known, "message": "?"})) if known else super().fault(kind)


class AzureCustomer(Customer):
    provider = "azure-key-vault"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.entra, self.name = str(uuid4()), f"v{secrets.token_hex(5)}"
        self.vault = world.azure.vault(self.name, self.entra)
        world.azure.new_version(self.vault, "top")
        self.key = self.vault.keys["top"]

    def body(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "vault_name": self.name,
            "key_name": "top",
            "entra_tenant_id": self.entra,
        }

    def paste(self, steps: list[dict[str, str]]) -> None:
        texts = [step["text"] for step in steps]
        assert any(f"az login --tenant {self.entra}" in text for text in texts)
        client = next(re.search(r"az ad sp create --id (\S+)", text) for text in texts if "sp create" in text)
        assert client is not None
        self.world.azure.directories[self.entra][client[1]] = Application(OUR_SECRET)
        assert any("role assignment create" in text and f"--assignee {client[1]}" in text for text in texts)
        self.vault.granted.add(client[1])
        tag = next(re.search(r"--tags ([a-z-]+)=(\S+)", text) for text in texts if "--tags" in text)
        assert tag is not None
        self.key.tags[tag[1]] = tag[2]

    def disable(self) -> None:
        for version in self.key.versions:
            version.enabled = False

    def enable(self) -> None:
        for version in self.key.versions:
            version.enabled = True

    def new_version(self) -> None:
        self.world.azure.new_version(self.vault, "top")

    @property
    def served(self) -> Any:
        return self.world.azure

    @override
    def out(self, kind: str = "unavailable", times: int = 10_000) -> None:
        """Misconfigured: the vault sends us to sign in to another directory than the customer registered."""
        if kind == "misconfigured":
            self.vault.challenge_tenant = str(uuid4())
            self.world.azure.tokens.clear()
        else:
            super().out(kind, times)

    @override
    def back(self) -> None:
        super().back()
        self.vault.challenge_tenant = None

    def fault(self, kind: str) -> Fault:
        known = {
            "throttled": Fault(429, '{"error":{"code":"Throttled"}}', {"Retry-After": "30"}),
            "unknown": Fault(418, '{"error":{"code":"Teapot"}}'),
            "own-credentials": Fault(401, '{"error":{"code":"Unauthorized"}}'),
            "integrity": Fault(400, '{"error":{"code":"BadParameter"}}'),
            "denied": Fault(403, '{"error":{"code":"Forbidden","innererror":{"code":"ForbiddenByRbac"}}}'),
            "misconfigured": Fault(),  # no answer to a call: the vault's own challenge, see out()
        }.get(kind)
        return known or super().fault(kind)


class TransitCustomer(Customer):
    provider = "vault-transit"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.key = f"tenant-{secrets.token_hex(4)}"
        self.disabled = False
        world.bao.root("POST", f"transit/keys/{self.key}", {"type": "aes256-gcm96"})

    def body(self) -> dict[str, Any]:
        return {"provider": self.provider, "endpoint": "bao", "key_name": self.key}

    def paste(self, steps: list[dict[str, str]]) -> None:
        self.world.policies.append(next(step["text"] for step in steps if step["language"] == "hcl"))
        text = "\n".join(self.world.policies)
        self.world.bao.root("POST", "sys/policies/acl/confide-cell", {"policy": text})

    def disable(self) -> None:
        self.world.bao.root("DELETE", f"transit/keys/{self.key}/soft-delete")

    def enable(self) -> None:
        self.world.bao.root("POST", f"transit/keys/{self.key}/soft-delete-restore")

    def new_version(self) -> None:
        self.world.bao.root("POST", f"transit/keys/{self.key}/rotate")

    @property
    def served(self) -> Any:
        return self.world.bao.proxy

    def fault(self, kind: str) -> Fault:
        known = {
            "throttled": Fault(429, '{"errors":["request path rate limit quota exceeded"]}', {"Retry-After": "30"}),
            "unknown": Fault(400, '{"errors":["something quite new"]}'),
            "denied": Fault(403, '{"errors":["permission denied"]}'),
            "own-credentials": Fault(403, '{"errors":["permission denied"]}'),  # to everything: our token is refused
            "integrity": Fault(400, '{"errors":["cipher: message authentication failed"]}'),
            "misconfigured": Fault(400, '{"errors":["key type ed25519 does not support decryption"]}'),
        }.get(kind)
        return known or super().fault(kind)

    @override
    def out(self, kind: str = "unavailable", times: int = 10_000) -> None:
        """A 403 to everything would say that our token is refused: a denial is shown with the key itself."""
        if kind == "denied":
            self.disable()
            self.disabled = True
        else:
            super().out(kind, times)

    @override
    def back(self) -> None:
        super().back()
        if self.disabled:
            self.enable()
            self.disabled = False


class LocalCustomer(Customer):
    provider = "local"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.name = f"c{secrets.token_hex(4)}"
        world.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        LocalProvider.create(self._path)

    @property
    def _path(self) -> Path:
        return self.world.folder / f"{self.name}.kek"

    def body(self) -> dict[str, Any]:
        return {"provider": self.provider, "name": self.name}

    def disable(self) -> None:
        self._path.rename(self._path.with_suffix(".away"))

    def enable(self) -> None:
        self._path.with_suffix(".away").rename(self._path)

    @override
    def fault(self, kind: str) -> Fault:
        """A file can be absent, another one, or open to others; there is no service in front of it that could fail."""
        return {"denied": Fault(), "integrity": Fault(), "misconfigured": Fault()}[kind]

    @override
    def out(self, kind: str = "unavailable", times: int = 10_000) -> None:
        self.fault(kind)
        if kind == "misconfigured":
            self._path.chmod(0o644)
            return
        self.disable()
        if kind == "integrity":
            LocalProvider.create(self._path)

    @override
    def back(self) -> None:
        if self._path.with_suffix(".away").exists():
            self._path.unlink(missing_ok=True)
            self.enable()
        self._path.chmod(0o600)


_KINDS = {kind.provider: kind for kind in (AwsCustomer, AzureCustomer, TransitCustomer, LocalCustomer)}


def make_customer(world: World, provider: str) -> Customer:
    return _KINDS[provider](world)


async def bound(cell: Cell, tenant: Tenant, customer: Customer, *, lease: int | None = None) -> str:
    """Take a tenant through onboarding; answers the binding's id once its job is done."""
    binding = await checked(tenant, customer, lease=lease)
    await activated(cell, tenant, binding)
    return binding


async def consent(tenant: Tenant, destination: str = "westeurope", hours: float = 1) -> str:
    """To keys in another region than the cell's: the vaults of these tests are there. Answers its id."""
    ends = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    body = {"scope": "kms", "destination": destination, "safeguard": "scc", "expires_at": ends}
    made = await tenant.admin.post("/v1/privacy/consents", json=body)
    return str(made.raise_for_status().json()["id"])


async def checked(tenant: Tenant, customer: Customer, *, lease: int | None = None) -> str:
    policy: dict[str, Any] = {"allowed_kms_regions": [REGION, "westeurope"]}
    if lease is not None:
        policy["lease_seconds"] = lease
    (await tenant.admin.patch("/v1/keys/policy", json=policy)).raise_for_status()
    await consent(tenant)
    made = await tenant.admin.post("/v1/keys/bindings", json=customer.body())
    assert made.status_code == 201, made.text
    customer.paste(made.json().get("steps", []))
    binding = made.json()["id"]
    found = await tenant.admin.post(f"/v1/keys/bindings/{binding}/check")
    assert found.status_code == 200, found.text
    assert found.json()["ok"], [each for each in found.json()["checks"] if each["outcome"] == "fail"]
    return str(binding)


async def activated(cell: Cell, tenant: Tenant, binding: str) -> dict[str, Any]:
    done = await tenant.admin.post(f"/v1/keys/bindings/{binding}/activate")
    assert done.status_code == 202, done.text
    await ended(tenant, done.json()["job"])
    return dict(done.json())
