"""One rig for each provider and emulator: how to make a provider on it, and how its owner takes access away.

A rig says what its emulator can't show honestly (``lies``); the contract skips just that, and EMULATORS.md says why.
"""

from __future__ import annotations

import base64
import functools
import json
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import boto3
import botocore.session
import httpx2
from botocore.config import Config
from moto.core import DEFAULT_ACCOUNT_ID

from app.kms.aws_cell import AwsSettings
from app.kms.binding import AwsBinding, Binding, LocalBinding, TransitBinding, new_external_id
from app.kms.limits import Limits
from app.kms.onboarding import aws_key_policy, aws_trust_policy, transit_policy
from app.kms.provider import KeyProvider, WrapContext
from app.kms.registry import KmsSettings, ProviderRegistry
from app.kms.transit import TokenAuth, TransitEndpoint
from tests.kms.aws_gate import VENDOR_KEY, AwsGate
from tests.kms.servers import Authority, Fault, FaultProxy

REGION = "eu-central-1"
QUICK = Limits(connect_timeout=0.3, read_timeout=0.4, budget=1.0, backoff=0.02, backoff_cap=0.05, breaker_seconds=0.3)
# The production time-outs, with shorter waits: a busy machine must not pass for an outage.
CALM = Limits(backoff=0.02, backoff_cap=0.05, breaker_seconds=0.3)
MINISTACK_ACCOUNT = "000000000000"
VENDOR_ROLE = f"arn:aws:iam::{MINISTACK_ACCOUNT}:role/confide-cell"
VENDOR_SECRET = "vendor-aws-secret-never-in-a-log"


def context(tenant: UUID) -> WrapContext:
    return WrapContext(
        {
            "confide:region": REGION,
            "confide:tenant": str(tenant),
            "confide:half": "customer",
            "confide:generation": "1",
        }
    )


@dataclass
class Rig:
    """``lies`` names contract points that the emulator can't show: tamper, wrong-key, context, state, access."""

    name: ClassVar[str]
    lies: ClassVar[frozenset[str]] = frozenset()
    remote: ClassVar[bool] = True
    regions: ClassVar[frozenset[str]] = frozenset({REGION})
    binding: Binding
    registry: ProviderRegistry
    tenant: UUID = field(default_factory=uuid4)

    @property
    def context(self) -> WrapContext:
        return context(self.tenant)

    def provider(self) -> KeyProvider:
        return self.registry.provider(self.binding)

    # what the key's owner does
    def disable(self) -> None: ...
    def enable(self) -> None: ...
    def delete(self) -> None: ...
    def withdraw(self) -> None: ...
    def give_back(self) -> None: ...
    def other(self) -> Binding:
        """Another key of the same owner."""
        raise NotImplementedError

    # what the network does
    def faults(self) -> Any:
        raise NotImplementedError

    def throttled(self) -> Fault:
        raise NotImplementedError

    def unknown(self) -> Fault:
        raise NotImplementedError

    def intents(self) -> list[str]:
        """Intent ids as the provider's own log has them."""
        return []

    def arrived(self) -> list[str]:
        """Intent ids of all requests that reached the provider, refused ones too."""
        return self.intents()

    async def close(self) -> None:
        await self.registry.close()


class LocalRig(Rig):
    name = "local"
    remote = False

    @classmethod
    def make(cls, folder: Path) -> LocalRig:
        label = secrets.token_hex(4)
        settings = KmsSettings(REGION, LocalBinding("vendor"), dev=True, local_folder=folder, limits=CALM)
        registry = ProviderRegistry(settings)
        binding = LocalBinding(label)
        registry.create_local(binding)
        return cls(binding, registry)

    def _path(self) -> Path:
        assert isinstance(self.binding, LocalBinding)
        assert self.registry.settings.local_folder is not None
        return self.registry.settings.local_folder / f"{self.binding.name}.kek"

    def disable(self) -> None:
        self._path().rename(self._path().with_suffix(".away"))

    def enable(self) -> None:
        self._path().with_suffix(".away").rename(self._path())

    delete = disable
    withdraw = disable
    give_back = enable

    def other(self) -> Binding:
        binding = LocalBinding(secrets.token_hex(4))
        self.registry.create_local(binding)
        return binding


@dataclass(eq=False)
class AwsWorld:
    """An emulator, and administrators' clients that go past the gate."""

    direct: str
    gate: FaultProxy
    account: str

    @functools.cache  # noqa: B019  a world lives as long as the session
    def client(self, service: str, region: str = REGION) -> Any:
        core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        return boto3.Session(botocore_session=core).client(
            service,
            region_name=region,
            endpoint_url=self.direct,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}, proxies={}, max_pool_connections=2),
        )

    def settings(self, **more: Any) -> AwsSettings:
        url = self.gate.url
        values = {
            "access_key_id": VENDOR_KEY,
            "secret_access_key": VENDOR_SECRET,
            "kms_endpoint": url,
            "sts_endpoint": url,
        }
        return AwsSettings(role_arn=VENDOR_ROLE, **{**values, **more})


class AwsRig(Rig):
    world: AwsWorld

    @classmethod
    def make(cls, world: AwsWorld, folder: Path, limits: Limits = CALM, **more: Any) -> AwsRig:
        role = f"confide-{secrets.token_hex(4)}"
        role_arn = f"arn:aws:iam::{world.account}:role/{role}"
        external_id, tenant = new_external_id(), uuid4()
        trust = aws_trust_policy(VENDOR_ROLE, external_id)
        world.client("iam").create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(trust))
        binding = AwsBinding(cls.new_key(world, role_arn, tenant), role_arn, external_id)
        aws = world.settings(**more)
        settings = KmsSettings(REGION, LocalBinding("vendor"), limits, dev=True, local_folder=folder, aws=aws)
        rig = cls(binding, ProviderRegistry(settings), tenant)
        rig.world = world
        return rig

    @staticmethod
    def new_key(world: AwsWorld, role_arn: str, tenant: UUID) -> str:
        policy = aws_key_policy(world.account, "aws", role_arn, tenant)
        made = world.client("kms").create_key(Policy=json.dumps(policy), KeyUsage="ENCRYPT_DECRYPT")
        return str(made["KeyMetadata"]["Arn"])

    @property
    def key_id(self) -> str:
        assert isinstance(self.binding, AwsBinding)
        return self.binding.key_arn.rpartition("/")[2]

    def set_policy(self, policy: dict[str, Any]) -> None:
        assert isinstance(self.binding, AwsBinding)
        self.world.client("kms").put_key_policy(
            KeyId=self.binding.key_arn, PolicyName="default", Policy=json.dumps(policy)
        )

    def disable(self) -> None:
        self.world.client("kms").disable_key(KeyId=self.key_id)

    def enable(self) -> None:
        self.world.client("kms").enable_key(KeyId=self.key_id)

    def delete(self) -> None:
        self.world.client("kms").schedule_key_deletion(KeyId=self.key_id, PendingWindowInDays=7)

    def withdraw(self) -> None:
        policy = aws_key_policy(self.world.account, "aws", VENDOR_ROLE + "-other", self.tenant)
        self.set_policy(policy)

    def give_back(self) -> None:
        assert isinstance(self.binding, AwsBinding)
        self.set_policy(aws_key_policy(self.world.account, "aws", str(self.binding.role_arn), self.tenant))

    def other(self) -> Binding:
        assert isinstance(self.binding, AwsBinding)
        role = str(self.binding.role_arn)
        return AwsBinding(self.new_key(self.world, role, self.tenant), role, self.binding.external_id)

    def faults(self) -> Any:
        return self.world.gate.faults

    def throttled(self) -> Fault:
        return Fault(400, '{"__type":"ThrottlingException","message":"Rate exceeded"}')

    def unknown(self) -> Fault:
        return Fault(400, '{"__type":"BrandNewException","message":"?"}')

    def intents(self) -> list[str]:
        found = self.world.client("cloudtrail").lookup_events(MaxResults=50)["Events"]
        agents = [json.loads(each["CloudTrailEvent"])["userAgent"] for each in found]
        return [agent.rpartition("confide-intent/")[2] for agent in agents if "confide-intent/" in agent]


class MinistackRig(AwsRig):
    name = "aws-ministack"
    lies = frozenset({"tamper", "wrong-key"})

    def arrived(self) -> list[str]:
        assert isinstance(self.world.gate, AwsGate)
        return [agent.rpartition("confide-intent/")[2] for _, agent, _ in self.world.gate.seen]


class MotoRig(AwsRig):
    name = "aws-moto"
    lies = frozenset({"state", "access", "intents", "roles"})


class TransitRig(Rig):
    name = "transit-bao"
    world: TransitWorld

    @classmethod
    def make(cls, world: TransitWorld, folder: Path, limits: Limits = CALM) -> TransitRig:
        binding = world.new_key()
        rig = cls(binding, world.registry(folder, world.token(binding), limits))
        rig.world = world
        return rig

    @property
    def key(self) -> str:
        assert isinstance(self.binding, TransitBinding)
        return self.binding.key_name

    def disable(self) -> None:
        self.world.root("DELETE", f"transit/keys/{self.key}/soft-delete")

    def enable(self) -> None:
        self.world.root("POST", f"transit/keys/{self.key}/soft-delete-restore")

    def delete(self) -> None:
        self.world.root("POST", f"transit/keys/{self.key}/config", {"deletion_allowed": True})
        self.world.root("DELETE", f"transit/keys/{self.key}")

    def withdraw(self) -> None:
        self.world.root(
            "POST", f"sys/policies/acl/confide-{self.key}", {"policy": 'path "nothing" { capabilities = [] }'}
        )

    def give_back(self) -> None:
        policy = transit_policy("transit", self.key)
        self.world.root("POST", f"sys/policies/acl/confide-{self.key}", {"policy": policy})

    def other(self) -> Binding:
        binding = self.world.new_key()
        both = transit_policy("transit", self.key) + transit_policy("transit", binding.key_name)
        self.world.root("POST", f"sys/policies/acl/confide-{self.key}", {"policy": both})
        return binding

    def faults(self) -> Any:
        return self.world.proxy.faults

    def throttled(self) -> Fault:
        return Fault(429, '{"errors":["request path rate limit quota exceeded"]}', {"Retry-After": "30"})

    def unknown(self) -> Fault:
        return Fault(400, '{"errors":["something quite new"]}')

    def intents(self) -> list[str]:
        found = []
        for line in self.world.audit_log.read_text().rpartition("\n")[0].splitlines():  # the last may be half written
            headers = json.loads(line).get("request", {}).get("headers") or {}
            found += headers.get("x-confide-intent", [])
        return found


@dataclass
class TransitWorld:
    """An OpenBao with a Transit engine and an audit file, behind a proxy with TLS."""

    direct: str
    proxy: FaultProxy
    authority: Authority
    server_ca: str
    audit_log: Path

    def root(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        trust = ssl.create_default_context(cafile=self.server_ca)
        headers = {"X-Vault-Token": "root"}
        answer = httpx2.request(
            method, f"{self.direct}/v1/{path}", json=body, headers=headers, verify=trust, trust_env=False, timeout=60
        )
        assert answer.status_code < 300, (path, answer.text)
        return dict(answer.json()) if answer.content else {}

    def new_key(self, kind: str = "aes256-gcm96") -> TransitBinding:
        name = f"tenant-{secrets.token_hex(4)}"
        self.root("POST", f"transit/keys/{name}", {"type": kind})
        return TransitBinding("bao", "transit", name)

    def token(self, binding: TransitBinding) -> TokenAuth:
        policy = f"confide-{binding.key_name}"
        self.root("POST", f"sys/policies/acl/{policy}", {"policy": transit_policy("transit", binding.key_name)})
        made = self.root("POST", "auth/token/create", {"policies": [policy], "ttl": "10m"})
        return TokenAuth(made["auth"]["client_token"])

    def registry(self, folder: Path, auth: Any, limits: Limits = CALM) -> ProviderRegistry:
        endpoint = TransitEndpoint("bao", self.proxy.url, str(self.authority.file), auth, REGION)
        settings = KmsSettings(
            REGION, LocalBinding("vendor"), limits, dev=True, local_folder=folder, transit=(endpoint,)
        )
        return ProviderRegistry(settings)


MOTO_ACCOUNT = DEFAULT_ACCOUNT_ID


def flipped(blob: bytes) -> bytes:
    """One bit of the ciphertext's last part changed, keeping Transit's text form."""
    if blob.startswith(b"vault:"):
        head, _, tail = blob.decode().rpartition(":")
        raw = bytearray(base64.b64decode(tail))
        raw[-1] ^= 1
        return f"{head}:{base64.b64encode(raw).decode()}".encode()
    return blob[:-1] + bytes([blob[-1] ^ 1])
