"""Key bindings that somebody might try: all refused, with the place and a text that says what to do, and no network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidRequest
from app.kms.azure_names import parse_key_url
from app.kms.binding import (
    AwsBinding,
    AzureBinding,
    BindingRules,
    LocalBinding,
    TransitBinding,
    binding_from_record,
    record,
    validate_binding,
)

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "hostile.json").read_text())
RULES = BindingRules(allowed_regions=frozenset({"eu-central-1"}), endpoints=frozenset({"acme-bao"}))
KEY = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ROLE = "arn:aws:iam::111122223333:role/confide"
ENTRA = "72f988bf-86f1-41af-91ab-2d7cd011db47"


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 300


def test_every_hostile_binding_is_refused_without_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("validation touched the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for case in CORPUS:
        with pytest.raises(InvalidRequest) as refused:
            validate_binding(case["body"], RULES)
        told = refused.value
        assert told.pointer == case["pointer"], case
        assert len(told.detail) > 20
        for value in case["body"].values():
            if isinstance(value, str) and len(value) > 30:
                assert value not in told.detail, "an error must not echo what was sent"


GOOD: list[tuple[dict[str, Any], Any]] = [
    ({"provider": "aws-kms", "key_arn": KEY, "role_arn": ROLE}, AwsBinding),
    (
        {
            "provider": "aws-kms",
            "key_arn": f"arn:aws:kms:eu-central-1:111122223333:key/mrk-{'a1' * 16}",
            "role_arn": "arn:aws:iam::111122223333:role/service/team/confide+kms@acme",
        },
        AwsBinding,
    ),
    (
        {"provider": "azure-key-vault", "vault_name": "Acme-Vault", "key_name": "top", "entra_tenant_id": ENTRA},
        AzureBinding,
    ),
    (
        {
            "provider": "azure-key-vault",
            "key_url": f"https://acme-hsm.managedhsm.azure.net/keys/top/{'0a' * 16}",
            "entra_tenant_id": ENTRA.upper(),
            "client_id": ENTRA,
        },
        AzureBinding,
    ),
    ({"provider": "vault-transit", "endpoint": "acme-bao", "key_name": "top"}, TransitBinding),
    (
        {"provider": "vault-transit", "endpoint": "acme-bao", "mount": "team/transit", "key_name": "a_b-1"},
        TransitBinding,
    ),
]


@pytest.mark.parametrize(("body", "kind"), GOOD)
def test_good_bindings_are_taken_and_come_back_from_their_record(body: dict[str, Any], kind: type) -> None:
    binding = validate_binding(body, RULES)
    assert isinstance(binding, kind)
    assert binding_from_record(json.loads(json.dumps(record(binding)))) == binding


def test_local_bindings_come_back_too() -> None:
    assert binding_from_record(record(LocalBinding("acme"))) == LocalBinding("acme")


def test_names_have_one_spelling_each() -> None:
    binding = validate_binding(GOOD[2][0], RULES)
    assert isinstance(binding, AzureBinding)
    assert binding.vault_name == "acme-vault"
    other = validate_binding(GOOD[3][0], RULES)
    assert isinstance(other, AzureBinding)
    assert (other.vault_name, other.managed_hsm, other.key_version) == ("acme-hsm", True, "0a" * 16)
    assert other.entra_tenant_id == ENTRA
    assert parse_key_url("https://acme.vault.azure.net/keys/top").version is None


def test_each_binding_gets_an_external_id_of_its_own() -> None:
    ids = {getattr(validate_binding(GOOD[0][0], RULES), "external_id") for _ in range(50)}  # noqa: B009
    assert len(ids) == 50


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_arn", "arn:aws:kms:eu-central-1:111122223333:alias/x"),
        ("role_arn", "arn:aws:iam::111122223333:user/x"),
        ("external_id", "chosen-by-somebody"),
        ("external_id", None),
    ],
)
def test_a_changed_record_is_refused(field: str, value: object) -> None:
    stored = record(validate_binding(GOOD[0][0], RULES))
    with pytest.raises(InvalidRequest):
        binding_from_record({**stored, field: value})


def test_an_unknown_records_shape_is_an_error() -> None:
    with pytest.raises(KeyError):
        binding_from_record({"provider": "elsewhere"})
    with pytest.raises(TypeError):
        binding_from_record({"provider": "aws-kms", "endpoint": "https://evil.example"})
