"""Strict names of Azure Key Vault: vault, key, version, Entra tenant and client; and key URLs taken apart.

Names are stored as fields and the URL is built from them, never the other way round at run time. Sources: the naming
rules of Microsoft.KeyVault (vaults and managedHSMs: 3 to 24 letters, digits and hyphens, a letter first, no hyphen
last, no two in a row), of keys (1 to 127 letters, digits and hyphens), and key identifiers (32 hex digits of version).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.errors import InvalidRequest

VAULT_SUFFIX = "vault.azure.net"
HSM_SUFFIX = "managedhsm.azure.net"

_VAULT = re.compile(r"(?=.{3,24}\Z)[A-Za-z](?:-?[A-Za-z0-9])*", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9-]{1,127}", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_GUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", re.ASCII)
_URL = re.compile(
    r"https://([A-Za-z0-9-]{3,24})\.(vault|managedhsm)\.azure\.net/keys/([A-Za-z0-9-]{1,127})(?:/([0-9a-f]{32}))?",
    re.ASCII,
)
# Accounts of private persons and the nil GUID aren't a customer's directory.
_NO_DIRECTORY = {"00000000-0000-0000-0000-000000000000", "9188040d-6c67-4c5b-b112-36a304b66dad"}


@dataclass(frozen=True, slots=True)
class KeyName:
    """``version`` is None for the current one."""

    vault_name: str
    managed_hsm: bool
    key_name: str
    version: str | None


def vault_host(vault_name: str, managed_hsm: bool) -> str:
    return f"{vault_name}.{HSM_SUFFIX if managed_hsm else VAULT_SUFFIX}"


def vault_name(value: object, pointer: str = "/vault_name") -> str:
    """The vault's name in lower case. Raises ``InvalidRequest``."""
    if not isinstance(value, str) or not _VAULT.fullmatch(value):
        raise InvalidRequest(
            "Give the vault's name alone, as the Azure portal shows it: 3 to 24 letters, digits and single hyphens, "
            "a letter first. No address, no domain.",
            pointer,
        )
    return value.lower()


def key_name(value: object, pointer: str = "/key_name") -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise InvalidRequest("Give the key's name alone: 1 to 127 letters, digits and hyphens.", pointer)
    return value


def key_version(value: object, pointer: str = "/key_version") -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _VERSION.fullmatch(value):
        raise InvalidRequest("A key version is 32 hex digits in lower case. Leave it out for the current one.", pointer)
    return value


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def entra_tenant_id(value: object, pointer: str = "/entra_tenant_id") -> str:
    guid = _guid(value, pointer, "Give the Entra tenant id (directory id) of the vault's subscription: a GUID.")
    if guid in _NO_DIRECTORY:
        raise InvalidRequest("This is not the id of an organisation's Entra tenant.", pointer)
    return guid


def client_id(value: object, pointer: str = "/client_id") -> str | None:
    if value is None:
        return None
    guid = _guid(value, pointer, "Give the application (client) id of your app registration: a GUID.")
    if guid in _NO_DIRECTORY:
        raise InvalidRequest("This is not the client id of an app registration.", pointer)
    return guid


def _guid(value: object, pointer: str, text: str) -> str:
    if not isinstance(value, str) or not _GUID.fullmatch(value):
        raise InvalidRequest(text, pointer)
    return value.lower()


def parse_key_url(value: object, pointer: str = "/key_url") -> KeyName:
    """A key identifier, taken apart. https only; no user information, port, query, fragment or trailing slash; the
    host is one label and one of the two domains. Raises ``InvalidRequest``."""
    match = _URL.fullmatch(value) if isinstance(value, str) and len(value) <= 512 else None
    if match is None:
        raise InvalidRequest(
            "This isn't a key identifier of Azure Key Vault. Copy it from the key's page in the Azure portal: "
            f"https://<vault>.{VAULT_SUFFIX}/keys/<key>/<version>. Or give vault_name and key_name.",
            pointer,
        )
    vault, kind, key, version = match.groups()
    return KeyName(vault_name(vault, pointer), kind == "managedhsm", key, version)
