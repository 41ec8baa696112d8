"""What the registry hands out, to whom, and what it refuses to be set up as."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from app.crypto.secret import SecretKey
from app.errors import InvalidRequest
from app.kms.aws_cell import AwsSettings
from app.kms.azure_cell import AzureSettings
from app.kms.binding import AwsBinding, LocalBinding, TransitBinding
from app.kms.provider import KmsMisconfigured, KmsOwnCredentials, WrapContext
from app.kms.registry import KmsSettings, ProviderRegistry
from app.kms.transit import TokenAuth, TransitEndpoint

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ROLE = "arn:aws:iam::111122223333:role/confide-cell"
VENDOR = AwsBinding(ARN, None, None)


def dev(folder: Path, **more: object) -> KmsSettings:
    return KmsSettings("eu-central-1", LocalBinding("vendor"), dev=True, local_folder=folder, **more)  # type: ignore[arg-type]


async def test_one_binding_has_one_provider_until_it_is_forgotten(tmp_path: Path) -> None:
    registry, binding = ProviderRegistry(dev(tmp_path)), LocalBinding("acme")
    registry.create_local(binding)
    first = registry.provider(binding)
    assert registry.provider(LocalBinding("acme")) is first
    await registry.forget(binding)
    assert registry.provider(binding) is not first
    await registry.close()


async def test_the_vendors_denial_is_our_own_trouble(tmp_path: Path) -> None:
    registry, context = ProviderRegistry(dev(tmp_path)), WrapContext({"confide:tenant": "t"})
    key = SecretKey.generate()
    wrapped = await registry.vendor().wrap(key, context, uuid4())
    (tmp_path / "vendor.kek").unlink()
    with pytest.raises(KmsOwnCredentials) as refused:
        await registry.vendor().unwrap(wrapped.ciphertext, wrapped.kek_version, context, uuid4())
    assert refused.value.alarm
    assert refused.value.call is not None
    assert not (tmp_path / "vendor.kek").exists(), "a lost key is never made anew behind our back"
    await registry.close()


def test_a_cell_serves_only_what_it_is_set_up_for(tmp_path: Path) -> None:
    registry = ProviderRegistry(dev(tmp_path))
    with pytest.raises(KmsMisconfigured):
        registry.provider(VENDOR)
    with pytest.raises(KmsMisconfigured):
        registry.provider(TransitBinding("bao", "transit", "k"))
    with pytest.raises(InvalidRequest):
        registry.validate_binding({"provider": "aws-kms", "key_arn": ARN, "role_arn": ROLE})


def test_a_tenant_can_name_only_the_endpoints_registered_for_it(tmp_path: Path) -> None:
    acme, other = uuid4(), uuid4()
    endpoints = tuple(TransitEndpoint(name, "https://bao.example", None, TokenAuth("x")) for name in ("acme", "shared"))
    settings = dev(tmp_path, transit=endpoints, transit_tenants={"acme": frozenset({acme})})
    registry = ProviderRegistry(settings)
    body = {"provider": "vault-transit", "endpoint": "acme", "key_name": "top"}
    assert registry.validate_binding(body, acme) == TransitBinding("acme", "transit", "top")
    with pytest.raises(InvalidRequest) as refused:
        registry.validate_binding(body, other)
    assert refused.value.pointer == "/endpoint"
    registry.validate_binding({**body, "endpoint": "shared"}, other)


@pytest.mark.parametrize(
    "more",
    [
        {"vendor": LocalBinding("vendor")},
        {"local_folder": Path("keys")},
        {"aws": AwsSettings(ROLE, kms_endpoint="https://kms.example")},
        {"aws": AwsSettings(ROLE, sts_endpoint="https://sts.example")},
        {"azure": AzureSettings(ca_file="ca.pem")},
    ],
)
def test_what_is_for_development_only_is_refused_in_production(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="development"):
        KmsSettings(**{"region": "eu-central-1", "vendor": VENDOR, "aws": AwsSettings(ROLE), **more})  # type: ignore[arg-type]


def test_two_endpoints_of_one_name_are_refused(tmp_path: Path) -> None:
    endpoint = TransitEndpoint("bao", "https://a.example", None, TokenAuth("x"))
    with pytest.raises(ValueError, match="same name"):
        dev(tmp_path, transit=(endpoint, endpoint))
