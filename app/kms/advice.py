"""What a KMS error means to a tenant's administrator: a cause and a fix, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from app.kms.binding import AwsBinding, AzureBinding, Binding, TransitBinding
from app.kms.provider import (
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsMisconfigured,
    KmsOwnCredentials,
    KmsThrottled,
    KmsUnclassified,
)

_BY_CODE: Mapping[str, tuple[str, str]] = {
    "DisabledException": ("The key is disabled.", "Enable the key in the AWS console."),
    "KMSInvalidStateException.Disabled": ("The key is disabled.", "Enable the key in the AWS console."),
    "KMSInvalidStateException.PendingDeletion": (
        "The key is scheduled for deletion.",
        "Cancel the deletion, then enable.",
    ),
    "KMSInvalidStateException.PendingImport": (
        "The key has no key material.",
        "Import key material, or use another key.",
    ),
    "KMSInvalidStateException.Unavailable": ("The key's custom key store is disconnected.", "Connect the key store."),
    "NotFoundException": ("There is no such key.", "Compare the ARN with the key's page in the AWS console."),
    "KeyDisabled": ("The key's version is disabled.", "Enable the version in the Azure portal."),
    "KeyNotFound": ("There is no such key.", "Compare the name with the key service, or recover the deleted key."),
    "ForbiddenByFirewall": (
        "The vault's firewall keeps us out.",
        "Allow our addresses in the vault's network settings.",
    ),
    "ForbiddenByRbac": (
        "Our application has no role on the key.",
        "Give it the role 'Key Vault Crypto Service Encryption User' on the key.",
    ),
    "ForbiddenByPolicy": (
        "The vault's access policy refuses us.",
        "Allow get, wrapKey and unwrapKey to our application.",
    ),
    "AADSTS700016": (
        "Our application is unknown in your Entra tenant.",
        "Create its service principal: az ad sp create.",
    ),
    "ChallengeTenant": (
        "The vault belongs to another Entra tenant.",
        "Make a new binding with the right entra_tenant_id.",
    ),
    "KeySoftDeleted": ("The key is deleted and can be restored.", "Restore the key in Transit."),
    "MountNotFound": ("No Transit engine is mounted there.", "Compare the mount path."),
    "TlsFailure": (
        "The key service's certificate isn't trusted.",
        "Nothing on your side; the operator has been alarmed.",
    ),
}
_BY_KIND: tuple[tuple[type[KmsError], str, str], ...] = (
    (KmsIntegrity, "The key doesn't open what it wrapped.", "Ask the operator: this is never right."),
    (
        KmsMisconfigured,
        "The key or the binding is of the wrong kind.",
        "Make a new binding with a key of the right kind.",
    ),
    (
        KmsOwnCredentials,
        "The operator's own credentials are refused.",
        "Nothing on your side; the operator was alarmed.",
    ),
    (KmsThrottled, "The key service limits the rate.", "Check again in a minute, or raise your quota there."),
    (
        KmsUnclassified,
        "The key service gave an answer that we don't know.",
        "Check again later; the operator was alarmed.",
    ),
)


def advice(error: KmsError, binding: Binding) -> tuple[str, str]:
    """The cause, with the provider's code, and the fix."""
    known = _BY_CODE.get(error.code)
    if known is None:
        known = next(((cause, fix) for kind, cause, fix in _BY_KIND if isinstance(error, kind)), None)
    if known is None:
        known = (
            _denied(binding) if isinstance(error, KmsDenied) else ("The key service can't be reached.", "Check again.")
        )
    cause, fix = known
    return f"{cause} ({error.code})", fix


def _denied(binding: Binding) -> tuple[str, str]:
    match binding:
        case AwsBinding():
            return (
                "The role can't be assumed, or may not use the key.",
                "Paste the trust policy and the key policy as the binding gives them, with its external id.",
            )
        case AzureBinding():
            return (
                "The vault refuses our application.",
                "Run the commands that the binding gives: the service principal and its role on the key.",
            )
        case TransitBinding():
            return ("The server refuses our token.", "Write the policy that the binding gives, and attach it.")
    return ("The key file is absent or can't be read.", "Put the key file back.")
