"""Which class each answer of a KMS falls into: ``docs/kms-errors.md`` as tables.

By error code, not by HTTP status; only where a provider documents nothing but a status does the status decide. A code
that isn't here is ``KmsUnclassified``: an outage for one lease, never a revocation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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

_SAFE_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,80}", re.ASCII)
SERVER_FAULTS = frozenset({500, 502, 503, 504})


def safe_code(code: object, fallback: str) -> str:
    """``code`` if it looks like one; never a sentence of the provider's, which may quote the request."""
    return code if isinstance(code, str) and _SAFE_CODE.fullmatch(code) else fallback


# --- AWS KMS and STS: the "Errors" of each action in their API references, and the common errors ----------------------

AWS: Mapping[str, type[KmsError]] = {
    "DisabledException": KmsDenied,
    "AccessDeniedException": KmsDenied,
    "AccessDenied": KmsDenied,
    "NotFoundException": KmsDenied,
    "KeyUnavailableException": KmsUnavailable,
    "DependencyTimeoutException": KmsUnavailable,
    "KMSInternalException": KmsUnavailable,
    "ThrottlingException": KmsThrottled,
    "Throttling": KmsThrottled,
    "TooManyRequestsException": KmsThrottled,
    "LimitExceededException": KmsThrottled,
    "SlowDown": KmsThrottled,
    "InvalidCiphertextException": KmsIntegrity,
    "IncorrectKeyException": KmsIntegrity,
    "InvalidKeyUsageException": KmsMisconfigured,
    "InvalidArnException": KmsMisconfigured,
    "InvalidGrantTokenException": KmsMisconfigured,
    "ValidationException": KmsMisconfigured,
    "UnrecognizedClientException": KmsOwnCredentials,
    "InvalidClientTokenId": KmsOwnCredentials,
    "ExpiredToken": KmsOwnCredentials,
    "ExpiredTokenException": KmsOwnCredentials,
    "SignatureDoesNotMatch": KmsOwnCredentials,
    "RequestExpired": KmsOwnCredentials,
}
_AWS_ENDPOINT_FAULTS = frozenset({"KMSInternalException"})

# KMSInvalidStateException names the state in its message only ("<arn> is pending deletion."), in words or as the enum.
_AWS_STATES: tuple[tuple[re.Pattern[str], type[KmsError], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, state)
    for pattern, kind, state in (
        (r"pending\s?(?:replica\s?)?deletion", KmsDenied, "PendingDeletion"),
        (r"pending\s?import", KmsDenied, "PendingImport"),
        (r"disabled", KmsDenied, "Disabled"),
        (r"unavailable", KmsDenied, "Unavailable"),
        (r"creating", KmsUnavailable, "Creating"),
        (r"updating", KmsUnavailable, "Updating"),
    )
)


def aws_error(code: str, message: str, status: int | None) -> KmsError:
    """``code`` and ``message`` as AWS sent them, ``status`` of HTTP."""
    if code == "KMSInvalidStateException":
        for pattern, kind, state in _AWS_STATES:
            if pattern.search(message):
                return kind(f"{code}.{state}")
        return KmsUnclassified(code)
    kind_ = AWS.get(code)
    if kind_ is None and code.startswith("RequestThrottled"):
        kind_ = KmsThrottled
    if kind_ is not None:
        return kind_(code, endpoint_fault=code in _AWS_ENDPOINT_FAULTS or None)
    if status in SERVER_FAULTS:
        return KmsUnavailable(safe_code(code, f"Http{status}"), endpoint_fault=True)
    return KmsUnclassified(safe_code(code, f"Http{status}"))


# --- Azure Key Vault and Entra: the REST error bodies, and "Microsoft Entra authentication error codes" ---------------

AZURE_DENIED = frozenset(
    {
        "AccessDenied",
        "ForbiddenByPolicy",
        "ForbiddenByRbac",
        "ForbiddenByFirewall",
        "KeyDisabled",
        "KeyOperationForbidden",
    }
)


def azure_error(status: int, code: str | None, inner: str | None, retry_after: float | None = None) -> KmsError:
    """``code`` and ``inner`` are ``error.code`` and ``error.innererror.code`` of the body, None where it had none: then
    something other than the vault answered, which must not pass for a revocation."""
    name = safe_code(inner or code, f"Http{status}")
    if status == 429:
        return KmsThrottled(name, retry_after=retry_after)
    if status == 408 or status in SERVER_FAULTS:
        return KmsUnavailable(name, retry_after=retry_after, endpoint_fault=True)
    if code is None:
        return KmsUnclassified(name)
    if status == 401:
        return KmsOwnCredentials(name)
    if status == 403:
        known = inner in AZURE_DENIED or (inner is None and code in AZURE_DENIED | {"Forbidden"})
        return KmsDenied(name) if known else KmsUnclassified(name)
    if status in {404, 409}:
        return KmsDenied(name)
    return KmsIntegrity(name) if status == 400 else KmsUnclassified(name)


ENTRA: Mapping[str, type[KmsError]] = {
    # The application was removed, disabled or blocked in the customer's Entra tenant: access withdrawn.
    "AADSTS700016": KmsDenied,
    "AADSTS7000112": KmsDenied,
    "AADSTS53003": KmsDenied,
    # The customer's federated credential no longer names our subject or issuer.
    "AADSTS70021": KmsDenied,
    "AADSTS700211": KmsDenied,
    "AADSTS700212": KmsDenied,
    "AADSTS700213": KmsDenied,
    # The registered directory doesn't exist.
    "AADSTS90002": KmsMisconfigured,
    # Our own secret, certificate or assertion is wrong or out of date.
    "AADSTS7000215": KmsOwnCredentials,
    "AADSTS7000222": KmsOwnCredentials,
    "AADSTS700027": KmsOwnCredentials,
    "AADSTS700024": KmsOwnCredentials,
    "AADSTS50012": KmsOwnCredentials,
    "AADSTS50013": KmsOwnCredentials,
    # Entra's own trouble.
    "AADSTS90033": KmsUnavailable,
    "AADSTS90024": KmsUnavailable,
    "AADSTS50196": KmsThrottled,
    "AADSTS90055": KmsThrottled,
}
_AADSTS = re.compile(r"AADSTS[0-9]{4,8}", re.ASCII)


def entra_error(message: str, status: int | None) -> KmsError:
    """``message`` of a refused token request. Only the code is kept: the text names users and tenants."""
    match = _AADSTS.search(message)
    if match is not None and match[0] in ENTRA:
        return ENTRA[match[0]](match[0])
    if status == 429:
        return KmsThrottled("EntraThrottled")
    if status == 408 or status in SERVER_FAULTS:
        return KmsUnavailable(f"EntraHttp{status}")
    return KmsUnclassified(match[0] if match is not None else "EntraUnknown")


# --- OpenBao and Vault Transit: no codes, so the fixed texts of builtin/logical/transit and sdk/helper/keysutil -------

_TRANSIT_400: tuple[tuple[str, type[KmsError], str], ...] = (
    ("cipher: message authentication failed", KmsIntegrity, "AuthenticationFailed"),
    ("invalid ciphertext", KmsIntegrity, "InvalidCiphertext"),
    ("encryption key not found", KmsDenied, "KeyNotFound"),
    ("refusing to use soft-deleted key", KmsDenied, "KeySoftDeleted"),
    ("version is disallowed by policy", KmsDenied, "KeyVersionDisallowed"),
    ("invalid role or secret id", KmsOwnCredentials, "AppRoleRefused"),
    ("non-aead cipher suite", KmsMisconfigured, "KeyTypeWithoutAead"),
    ("does not support encryption", KmsMisconfigured, "KeyTypeCannotEncrypt"),
    ("does not support decryption", KmsMisconfigured, "KeyTypeCannotDecrypt"),
)


def transit_error(status: int, errors: list[str] | None, retry_after: float | None = None) -> KmsError:
    """``errors`` as the server listed them, None if the body wasn't the server's JSON. 403 says only that the token may
    not: whether the token itself still lives is for the provider to ask before it calls that a denial."""
    text = " ".join(errors or ()).lower()
    if status == 429:
        return KmsThrottled("RateLimited", retry_after=retry_after)
    if status in SERVER_FAULTS or status in {412, 472, 473}:
        return KmsUnavailable(
            "Sealed" if "sealed" in text else f"Http{status}", retry_after=retry_after, endpoint_fault=True
        )
    if errors is None:
        return KmsUnclassified(f"Http{status}")
    if status == 403 and "permission denied" in text:
        return KmsDenied("PermissionDenied")
    if status == 404:
        return KmsDenied("MountNotFound" if "no handler for route" in text else "KeyNotFound")
    if status == 400:
        for phrase, kind, code in _TRANSIT_400:
            if phrase in text:
                return kind(code)
    return KmsUnclassified(f"Http{status}")
