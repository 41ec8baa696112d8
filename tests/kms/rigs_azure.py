"""The rigs of Azure Key Vault and Managed HSM, on the fake."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from app.kms.azure_cell import AzureSettings
from app.kms.binding import AzureBinding, Binding, LocalBinding, new_external_id
from app.kms.limits import Limits
from app.kms.registry import KmsSettings, ProviderRegistry
from tests.kms.fake_azure import Application, FakeAzure, Key, Vault
from tests.kms.rigs import CALM, REGION, Rig
from tests.kms.servers import Fault

OUR_CLIENT = "0c0ff1de-0000-4000-8000-00000000c11e"
OUR_SECRET = "our-azure-secret-never-in-a-log"


class AzureRig(Rig):
    hsm: ClassVar[bool] = False
    regions = frozenset({"westeurope"})
    fake: FakeAzure
    vault: Vault
    key: Key

    @classmethod
    def make(cls, fake: FakeAzure, folder: Path, limits: Limits = CALM) -> AzureRig:
        entra, name = str(uuid4()), f"v{secrets.token_hex(5)}"
        vault = fake.vault(name, entra, hsm=cls.hsm)
        fake.directories[entra][OUR_CLIENT] = Application(OUR_SECRET)
        vault.granted.add(OUR_CLIENT)
        fake.new_version(vault, "top", "oct-HSM" if cls.hsm else "RSA")
        binding = AzureBinding(name, cls.hsm, "top", None, entra, None, new_external_id())
        vault.keys["top"].tags["confide-binding"] = binding.proof
        rig = cls(binding, azure_registry(fake, folder, limits))
        rig.fake, rig.vault, rig.key = fake, vault, vault.keys["top"]
        return rig

    def disable(self) -> None:
        for version in self.key.versions:
            version.enabled = False

    def enable(self) -> None:
        for version in self.key.versions:
            version.enabled = True

    def delete(self) -> None:
        self.vault.deleted["top"] = self.vault.keys.pop("top")

    def withdraw(self) -> None:
        self.vault.granted.clear()

    def give_back(self) -> None:
        self.vault.granted.add(OUR_CLIENT)

    def other(self) -> Binding:
        assert isinstance(self.binding, AzureBinding)
        twin = self.fake.new_version(self.vault, "other", "oct-HSM" if self.hsm else "RSA")
        # The same version id, so that nothing but the key itself differs.
        twin.version = self.key.versions[-1].version
        mine = self.binding
        return AzureBinding(mine.vault_name, self.hsm, "other", None, mine.entra_tenant_id, None, mine.proof)

    def faults(self) -> Any:
        return self.fake.faults

    def throttled(self) -> Fault:
        return Fault(429, '{"error":{"code":"Throttled","message":"slow down"}}', {"Retry-After": "30"})

    def unknown(self) -> Fault:
        return Fault(403, '{"error":{"code":"Forbidden","innererror":{"code":"ForbiddenByMoonlight"}}}')

    def intents(self) -> list[str]:
        return [each[3] for each in self.fake.log]


class AzureHsmRig(AzureRig):
    name = "azure-hsm"
    hsm = True


AzureRig.name = "azure-vault"


def azure_registry(fake: FakeAzure, folder: Path, limits: Limits = CALM, **more: Any) -> ProviderRegistry:
    values = {
        "client_id": OUR_CLIENT,
        "client_secret": OUR_SECRET,
        "resolver": fake.resolver(),
        "ca_file": fake.ca_file,
    }
    azure = AzureSettings(**{**values, **more})
    settings = KmsSettings(REGION, LocalBinding("vendor"), limits, dev=True, local_folder=folder, azure=azure)
    return ProviderRegistry(settings)
