"""Makes providers from bindings, keeps what they share, and closes it all.

Everything that decides where a call goes (endpoints, CAs, credentials, folders) comes from ``KmsSettings``; a binding
brings names only. Customers' providers and the vendor's come from the same classes; the vendor's side must authenticate
what it unwraps, so an RSA key is refused there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from app.crypto.secret import SecretKey
from app.kms.aws import AwsKmsProvider
from app.kms.aws_arn import parse_key_arn, parse_role_arn
from app.kms.aws_cell import AwsCell, AwsSettings
from app.kms.azure import AzureKeyVaultProvider
from app.kms.azure_cell import AzureCell, AzureIdentity, AzureSettings
from app.kms.azure_names import KeyName
from app.kms.binding import (
    AwsBinding,
    AzureBinding,
    Binding,
    BindingRules,
    LocalBinding,
    TransitBinding,
    validate_binding,
)
from app.kms.limits import Limits
from app.kms.local import LocalProvider
from app.kms.provider import (
    KeyDescription,
    KeyProvider,
    KmsDenied,
    KmsMisconfigured,
    KmsOwnCredentials,
    Unwrapped,
    WrapContext,
    Wrapped,
)
from app.kms.transit import TransitEndpoint, TransitProvider, TransitServer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KmsSettings:
    """``region`` is the cell's. ``dev`` permits what must not exist in production: key files, emulator endpoints.
    ``vendor`` is the cell's own key. ``transit_tenants`` lists, for an endpoint's name, the tenants that may use it; an
    endpoint that isn't listed is open to all tenants of the cell. A contradiction is a ``ValueError``."""

    region: str
    vendor: Binding
    limits: Limits = field(default_factory=Limits)
    dev: bool = False
    local_folder: Path | None = None
    aws: AwsSettings | None = None
    azure: AzureSettings | None = None
    transit: tuple[TransitEndpoint, ...] = ()
    transit_tenants: Mapping[str, frozenset[UUID]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.vendor, AzureBinding) and not self.vendor.managed_hsm:
            raise ValueError("the vendor's key can't be an RSA key of a vault: RSA-OAEP authenticates nobody")
        if len({each.name for each in self.transit}) != len(self.transit):
            raise ValueError("two Transit endpoints have the same name")
        if not self.dev:
            self._check_production()

    def _check_production(self) -> None:
        if isinstance(self.vendor, LocalBinding) or self.local_folder is not None:
            raise ValueError("the local key provider is for development only")
        if self.aws is not None and (self.aws.kms_endpoint or self.aws.sts_endpoint):
            raise ValueError("AWS endpoints can be set for development only")
        if self.azure is not None and (self.azure.resolver is not None or self.azure.ca_file is not None):
            raise ValueError("an Azure resolver and CA can be set for development only")


class ProviderRegistry:
    """One for each process. Not thread-safe; belongs to one event loop."""

    def __init__(self, settings: KmsSettings) -> None:
        self.settings = settings
        self._providers: dict[Binding, KeyProvider] = {}
        self._aws: AwsCell | None = None
        self._azure: AzureCell | None = None
        self._transit: dict[str, TransitServer] = {}
        self._vendor: VendorSide | None = None

    def rules(self, tenant: UUID | None = None, allowed_regions: frozenset[str] | None = None) -> BindingRules:
        """What a tenant may bind to in this cell."""
        mine = self.settings
        endpoints = {
            each.name
            for each in mine.transit
            if tenant is None or tenant in mine.transit_tenants.get(each.name, frozenset({tenant}))
        }
        providers = {
            name
            for name, there in (
                ("aws-kms", mine.aws),
                ("azure-key-vault", mine.azure),
                ("vault-transit", endpoints),
                ("local", mine.dev and mine.local_folder),
            )
            if there
        }
        partitions = mine.aws.partitions if mine.aws is not None else frozenset({"aws"})
        return BindingRules(partitions, allowed_regions, frozenset(endpoints), frozenset(providers))

    def validate_binding(
        self, data: Mapping[str, Any], tenant: UUID | None = None, allowed_regions: frozenset[str] | None = None
    ) -> Binding:
        """``binding.validate_binding`` under this cell's rules. Raises ``InvalidRequest``."""
        return validate_binding(data, self.rules(tenant, allowed_regions))

    def provider(self, binding: Binding) -> KeyProvider:
        """The binding's provider, the same one each time. Raises ``KmsMisconfigured`` where this cell doesn't serve it;
        a ``local`` one may also raise what ``LocalProvider.load`` does."""
        held = self._providers.get(binding)
        if held is None:
            held = self._providers[binding] = self._make(binding)
        return held

    def _make(self, binding: Binding) -> KeyProvider:
        match binding:
            case AwsBinding():
                return self._make_aws(binding)
            case AzureBinding():
                return self._make_azure(binding)
            case TransitBinding():
                return TransitProvider(self._server(binding.endpoint), binding.mount, binding.key_name)
            case LocalBinding():
                return LocalProvider.load(self._local_path(binding), self.settings.region)

    def _make_aws(self, binding: AwsBinding) -> AwsKmsProvider:
        if self.settings.aws is None:
            raise KmsMisconfigured("NotServed", "this cell doesn't serve aws-kms")
        if self._aws is None:
            self._aws = AwsCell(self.settings.aws, self.settings.limits)
        partitions = self.settings.aws.partitions
        role = parse_role_arn(binding.role_arn, partitions) if binding.role_arn is not None else None
        return AwsKmsProvider(self._aws, parse_key_arn(binding.key_arn, partitions), role, binding.external_id)

    def _make_azure(self, binding: AzureBinding) -> AzureKeyVaultProvider:
        if self.settings.azure is None:
            raise KmsMisconfigured("NotServed", "this cell doesn't serve azure-key-vault")
        if self._azure is None:
            self._azure = AzureCell(self.settings.azure, self.settings.limits)
        subject = binding.proof if binding.client_id is not None else None
        identity = AzureIdentity(binding.entra_tenant_id, binding.client_id, subject)
        name = KeyName(binding.vault_name, binding.managed_hsm, binding.key_name, binding.key_version)
        return AzureKeyVaultProvider(self._azure, name, identity)

    def _server(self, name: str) -> TransitServer:
        held = self._transit.get(name)
        if held is None:
            for endpoint in self.settings.transit:
                if endpoint.name == name:
                    held = self._transit[name] = TransitServer(endpoint, self.settings.limits)
                    return held
            raise KmsMisconfigured("NotServed", "no such Transit endpoint is registered")
        return held

    def _local_path(self, binding: LocalBinding) -> Path:
        folder = self.settings.local_folder
        if folder is None or not self.settings.dev:
            raise KmsMisconfigured("NotServed", "the local provider is for development only")
        return folder / f"{binding.name}.kek"

    def create_local(self, binding: LocalBinding) -> None:
        """Make the key file of a ``local`` binding if there is none. Development only."""
        path = self._local_path(binding)
        if not path.exists():
            LocalProvider.create(path)

    def vendor(self) -> KeyProvider:
        """The cell's own key. In development its key file is made at the first call."""
        if self._vendor is None:
            if isinstance(self.settings.vendor, LocalBinding):
                self.create_local(self.settings.vendor)
            self._vendor = VendorSide(self.provider(self.settings.vendor))
        return self._vendor

    async def forget(self, binding: Binding) -> None:
        """Drop a retired binding's provider and its session."""
        held = self._providers.pop(binding, None)
        if held is not None:
            await held.close()

    async def close(self) -> None:
        for held in self._providers.values():
            await held.close()
        self._providers.clear()
        for server in self._transit.values():
            await server.close()
        for cell in (self._aws, self._azure):
            if cell is not None:
                await cell.close()


class VendorSide:
    """The vendor's key: a denial here is our own trouble, and its kind of key must authenticate what it unwraps."""

    def __init__(self, inner: KeyProvider) -> None:
        self._inner = inner
        self._checked = False
        self._check = asyncio.Lock()
        self.name = inner.name
        self.kek_uri = inner.kek_uri

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped:
        await self._check_kind(intent)
        return await _ours(self._inner.wrap(key, context, intent))

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped:
        await self._check_kind(intent)
        return await _ours(self._inner.unwrap(ciphertext, kek_version, context, intent))

    async def describe(self, intent: UUID) -> KeyDescription:
        return await _ours(self._inner.describe(intent))

    async def close(self) -> None:
        await self._inner.close()

    async def _check_kind(self, intent: UUID) -> None:
        """Once: an RSA key, also one in a Managed HSM, could open what somebody else wrapped."""
        if self._checked:
            return
        async with self._check:
            if not self._checked:
                facts = await self.describe(intent)
                if not facts.authenticates_context:
                    raise KmsMisconfigured(
                        "VendorKeyKind", "the vendor's key must authenticate", facts.call, alarm=True
                    )
                self._checked = True


async def _ours(work: Awaitable[T]) -> T:
    try:
        return await work
    except KmsDenied as error:
        raise KmsOwnCredentials(error.code, error.detail, error.call) from None
