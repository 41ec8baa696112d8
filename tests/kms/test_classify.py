"""The table of docs/kms-errors.md, row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.kms import classify
from app.kms.classify import aws_error, azure_error, entra_error, safe_code, transit_error
from app.kms.provider import (
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsThrottled,
    KmsUnavailable,
    KmsUnclassified,
)

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "kms-errors.md").read_text()

AWS_ROWS: list[tuple[str, str, type[KmsError]]] = [
    *[
        (code, "", KmsDenied)
        for code in ("DisabledException", "AccessDeniedException", "NotFoundException", "AccessDenied")
    ],
    ("KMSInvalidStateException", f"{ARN} is disabled.", KmsDenied),
    ("KMSInvalidStateException", f"{ARN} is pending deletion.", KmsDenied),
    ("KMSInvalidStateException", f"{ARN} is pending import.", KmsDenied),
    ("KMSInvalidStateException", f"{ARN} is unavailable.", KmsDenied),
    ("KMSInvalidStateException", "key state: PendingDeletion", KmsDenied),
    ("KMSInvalidStateException", f"{ARN} is creating.", KmsUnavailable),
    ("KMSInvalidStateException", f"{ARN} is updating.", KmsUnavailable),
    ("KMSInvalidStateException", f"{ARN} is in a state that nobody knew of.", KmsUnclassified),
    *[
        (c, "", KmsUnavailable)
        for c in ("KeyUnavailableException", "DependencyTimeoutException", "KMSInternalException")
    ],
    *[
        (code, "", KmsThrottled)
        for code in (
            "ThrottlingException",
            "Throttling",
            "TooManyRequestsException",
            "RequestThrottled",
            "RequestThrottledException",
            "LimitExceededException",
            "SlowDown",
        )
    ],
    *[(code, "", KmsIntegrity) for code in ("InvalidCiphertextException", "IncorrectKeyException")],
    *[
        (code, "", KmsMisconfigured)
        for code in (
            "InvalidKeyUsageException",
            "InvalidArnException",
            "InvalidGrantTokenException",
            "ValidationException",
        )
    ],
    *[
        (code, "", KmsOwnCredentials)
        for code in (
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "ExpiredToken",
            "ExpiredTokenException",
            "SignatureDoesNotMatch",
            "RequestExpired",
        )
    ],
    ("BrandNewException", "", KmsUnclassified),
]


@pytest.mark.parametrize(("code", "message", "kind"), AWS_ROWS)
@pytest.mark.parametrize("status", [400, 403])
def test_aws_is_classified_by_code_and_not_by_status(
    code: str, message: str, kind: type[KmsError], status: int
) -> None:
    assert type(aws_error(code, message, status)) is kind


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_aws_server_fault_without_a_known_code_is_an_outage(status: int) -> None:
    error = aws_error("InternalFailure", "", status)
    assert type(error) is KmsUnavailable
    assert error.endpoint_fault


def test_a_known_code_rules_over_a_server_faults_status() -> None:
    assert type(aws_error("DisabledException", "", 500)) is KmsDenied


def test_one_tenants_broken_key_store_does_not_count_against_the_shared_endpoint() -> None:
    assert not aws_error("KeyUnavailableException", "", 500).endpoint_fault
    assert not aws_error("DependencyTimeoutException", "", 503).endpoint_fault
    assert aws_error("KMSInternalException", "", 500).endpoint_fault


AZURE_ROWS: list[tuple[int, str | None, str | None, type[KmsError]]] = [
    (401, "Unauthorized", None, KmsOwnCredentials),
    *[(403, "Forbidden", inner, KmsDenied) for inner in sorted(classify.AZURE_DENIED)],
    (403, "AccessDenied", None, KmsDenied),
    (403, "Forbidden", None, KmsDenied),
    (403, "Forbidden", "ForbiddenByMoonlight", KmsUnclassified),
    (403, None, None, KmsUnclassified),
    (404, "KeyNotFound", None, KmsDenied),
    (409, "Conflict", "ObjectIsBeingDeleted", KmsDenied),
    (404, None, None, KmsUnclassified),
    (400, "BadParameter", None, KmsIntegrity),
    (429, "Throttled", None, KmsThrottled),
    (429, None, None, KmsThrottled),
    *[(status, None, None, KmsUnavailable) for status in (408, 500, 502, 503, 504)],
    (302, None, None, KmsUnclassified),
    (418, "Teapot", None, KmsUnclassified),
]


@pytest.mark.parametrize(("status", "code", "inner", "kind"), AZURE_ROWS)
def test_azure_rows(status: int, code: str | None, inner: str | None, kind: type[KmsError]) -> None:
    assert type(azure_error(status, code, inner)) is kind


def test_azure_throttling_keeps_retry_after() -> None:
    assert azure_error(429, "Throttled", None, 7.0).retry_after == 7.0


@pytest.mark.parametrize(("code", "kind"), sorted(classify.ENTRA.items()))
def test_entra_rows(code: str, kind: type[KmsError]) -> None:
    error = entra_error(f"Authentication failed: {code}: text with a user's name. Trace ID: x", 400)
    assert type(error) is kind
    assert error.code == code
    assert "name" not in str(error)


def test_entra_without_a_known_code_goes_by_status() -> None:
    assert type(entra_error("?", 429)) is KmsThrottled
    assert type(entra_error("?", 503)) is KmsUnavailable
    assert type(entra_error("AADSTS99999999: new", 400)) is KmsUnclassified
    assert type(entra_error("?", None)) is KmsUnclassified


TRANSIT_ROWS: list[tuple[int, list[str] | None, type[KmsError]]] = [
    (403, ["permission denied"], KmsDenied),
    (403, ["1 error occurred:\n\t* permission denied\n\n"], KmsDenied),
    (403, ["a new sentence"], KmsUnclassified),
    (403, None, KmsUnclassified),
    (400, ["cipher: message authentication failed"], KmsIntegrity),
    (400, ["invalid ciphertext: no prefix"], KmsIntegrity),
    (400, ["invalid ciphertext length"], KmsIntegrity),
    (400, ["encryption key not found"], KmsDenied),
    (400, ["refusing to use soft-deleted key"], KmsDenied),
    (400, ["ciphertext or signature version is disallowed by policy (too old)"], KmsDenied),
    (400, ["invalid role or secret ID"], KmsOwnCredentials),
    (400, ["'[0].associated_data' provided for non-AEAD cipher suite rsa-2048"], KmsMisconfigured),
    (400, ["something quite new"], KmsUnclassified),
    (404, [], KmsDenied),
    (404, ['no handler for route "transitx/decrypt/k". route entry not found.'], KmsDenied),
    (404, None, KmsUnclassified),
    (429, ["rate limit quota exceeded"], KmsThrottled),
    *[(status, ["Vault is sealed"], KmsUnavailable) for status in (412, 472, 473, 500, 502, 503, 504)],
    (307, None, KmsUnclassified),
]


@pytest.mark.parametrize(("status", "errors", "kind"), TRANSIT_ROWS)
def test_transit_rows(status: int, errors: list[str] | None, kind: type[KmsError]) -> None:
    assert type(transit_error(status, errors)) is kind


def test_a_providers_sentence_never_becomes_a_code() -> None:
    assert safe_code("Key 'secret name' not found", "Http400") == "Http400"
    assert safe_code(None, "Http400") == "Http400"
    assert safe_code("a\nb", "Http400") == "Http400"


def test_the_document_names_every_code_of_the_tables() -> None:
    codes = {*classify.AWS, *classify.AZURE_DENIED, *classify.ENTRA}
    assert not [code for code in sorted(codes) if not re.search(rf"\b{code}\b", DOCUMENT)]
    assert not [phrase for phrase, _, _ in classify._TRANSIT_400 if phrase not in DOCUMENT.lower()]


def test_only_the_alarming_classes_alarm() -> None:
    for kind in (KmsIntegrity, KmsOwnCredentials, KmsUnclassified):
        assert kind("x").alarm
    for kind in (KmsDenied, KmsUnavailable, KmsThrottled, KmsMisconfigured):
        assert not kind("x").alarm
