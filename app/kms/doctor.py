"""The doctor: runs every check of a key binding that can be run, and says of each what is wrong and how to mend it.

A binding that fails a must-check can't be activated. Each KMS call goes through ``audited``, so that the caller can
write the durable intent before it and the outcome after it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar
from uuid import UUID

from app.crypto.secret import SecretKey
from app.identity import new_id
from app.kms.advice import advice
from app.kms.aws import AwsKmsProvider
from app.kms.binding import AwsBinding, AzureBinding, Binding
from app.kms.provider import KeyDescription, KeyProvider, KmsDenied, KmsError, KmsIntegrity, WrapContext
from app.kms.registry import ProviderRegistry

T = TypeVar("T")
PROOF_TAG = "confide-binding"
CHECKS = (
    "key-reachable",
    "key-not-alias",
    "key-kind",
    "key-enabled",
    "region-allowed",
    "deletion-not-scheduled",
    "expiry-not-near",
    "proof-of-control",
    "wrap-and-unwrap",
    "foreign-context-refused",
    "latency",
    "role-needs-external-id",
    "role-refuses-wrong-external-id",
)
MAY = frozenset({"expiry-not-near", "latency"})
"""The checks that only warn; all others are must-checks."""
EXPIRY_NEAR_SECONDS = 30 * 86_400.0
SLOW_MS = 500.0


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105  a verdict
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """``cause`` and ``fix`` are sentences for the tenant's administrator, empty on a pass. ``ms`` is the time spent."""

    name: str
    must: bool
    outcome: Outcome
    cause: str = ""
    fix: str = ""
    ms: float = 0.0


class Audited(Protocol):
    """Writes an intent event, calls ``fn`` with its id, writes the outcome, and returns or raises what ``fn`` did."""

    async def __call__(self, operation: str, fn: Callable[[UUID], Awaitable[T]]) -> T: ...


def may_activate(checks: list[Check]) -> bool:
    """Whether no must-check failed or was left out for a failure before it."""
    return all(not each.must or each.outcome is Outcome.PASS or each.cause == NOT_APPLICABLE for each in checks)


NOT_APPLICABLE = "not-applicable"
_ELSEWHERE = "The key isn't known to be where the tenant's keys may be, so nothing was sent to it."
_NO_DESCRIPTION = "The key could not be reached, so this was not looked at."


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined, and for whom. ``context`` is the wrap context of the tenant's own halves; it must have the
    field ``confide:tenant``. ``consented``: whether something may be sent to a key in that region."""

    binding: Binding
    context: WrapContext
    allowed_regions: frozenset[str]
    consented: Callable[[str], bool] = lambda _: True

    def may_send(self, described: KeyDescription | None) -> bool:
        """Only where the key is known to be where it may be. An AWS key's name says where it is, a vault's doesn't."""
        if described is None:
            return not isinstance(self.binding, AzureBinding)
        region = described.region
        return region is not None and region in self.allowed_regions and self.consented(region)


async def examine(patient: Patient, registry: ProviderRegistry, audited: Audited) -> list[Check]:
    """All checks, in a fixed order. Raises only what ``audited`` raises by itself (e.g. if it can't commit)."""
    binding = patient.binding
    try:
        provider = registry.provider(binding)
    except KmsError as error:
        failed = Check("key-reachable", True, Outcome.FAIL, *advice(error, binding))
        return [failed] + [_unseen(name, must=name not in MAY) for name in CHECKS[1:]]
    described, reachable = await _describe(provider, binding, audited)
    checks = [reachable, _not_an_alias(described, binding)]
    checks += [look(described, patient) for look in (_kind, _enabled, _region, _deletion, _expiry)]
    checks.append(_proof(described, binding))
    checks += await _round_trip(provider, patient, described, audited)
    checks += await _role_checks(provider, binding, audited)
    return checks


async def _describe(provider: KeyProvider, binding: Binding, audited: Audited) -> tuple[KeyDescription | None, Check]:
    started = time.perf_counter()
    try:
        described = await audited("describe", provider.describe)
    except KmsError as error:
        return None, Check("key-reachable", True, Outcome.FAIL, *advice(error, binding), _ms(started))
    return described, Check("key-reachable", True, Outcome.PASS, ms=_ms(started))


def _verdict(name: str, ok: bool, cause: str, fix: str, *, must: bool = True) -> Check:
    return Check(name, must, Outcome.PASS) if ok else Check(name, must, Outcome.FAIL, cause, fix)


def _unseen(name: str, *, must: bool = True) -> Check:
    return Check(name, must, Outcome.SKIPPED, _NO_DESCRIPTION)


def _unsent(name: str, *, must: bool = True) -> Check:
    return Check(name, must, Outcome.SKIPPED, _ELSEWHERE)


def _inapplicable(name: str, *, must: bool = True) -> Check:
    return Check(name, must, Outcome.SKIPPED, NOT_APPLICABLE)


def _not_an_alias(described: KeyDescription | None, binding: Binding) -> Check:
    """Bindings take no alias; that the service answers under the very name that was bound is seen once more here."""
    name = "key-not-alias"
    if not isinstance(binding, AwsBinding):
        return _inapplicable(name)
    if described is None:
        return _unseen(name)
    return _verdict(
        name,
        described.kek_uri == binding.key_arn and ":key/" in binding.key_arn,
        "The binding names an alias, whose owner can point it at another key.",
        "Make a new binding with the key's own ARN.",
    )


def _kind(described: KeyDescription | None, patient: Patient) -> Check:
    if described is None:
        return _unseen("key-kind")
    wanted = {
        "aws-kms": "a symmetric encryption key (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT) that you manage yourself",
        "azure-key-vault": "an RSA key of 2048 bits or more (a 256-bit AES key in a Managed HSM) with the operations "
        "wrapKey and unwrapKey",
        "vault-transit": "an aes256-gcm96 or chacha20-poly1305 key, not derived",
    }.get(patient.binding.provider, "a key made by this provider")
    return _verdict(
        "key-kind", described.usable_kind, f"The key is of the kind {described.kind}.", f"Make {wanted} and bind that."
    )


def _enabled(described: KeyDescription | None, _: Patient) -> Check:
    if described is None:
        return _unseen("key-enabled")
    state = described.state or "unknown"
    return _verdict(
        "key-enabled", described.enabled is True, f"The key's state is {state}.", "Enable the key, then check again."
    )


def _region(described: KeyDescription | None, patient: Patient) -> Check:
    if described is None:
        return _unseen("region-allowed")
    allowed = ", ".join(sorted(patient.allowed_regions))
    return _verdict(
        "region-allowed",
        described.region is not None and described.region in patient.allowed_regions,
        f"The key is in the region {described.region or 'unknown'}; the tenant allows {allowed}.",
        "Use a key in an allowed region, or allow this one with PATCH /v1/keys/policy.",
    )


def _deletion(described: KeyDescription | None, _: Patient) -> Check:
    if described is None:
        return _unseen("deletion-not-scheduled")
    return _verdict(
        "deletion-not-scheduled",
        described.deletion_at is None,
        f"The key is to be deleted at {_date(described.deletion_at)}.",
        "Cancel the deletion and enable the key. What is sealed under a deleted key can never be opened again.",
    )


def _expiry(described: KeyDescription | None, _: Patient) -> Check:
    if described is None:
        return _unseen("expiry-not-near", must=False)
    soon = described.expires_at is not None and described.expires_at < time.time() + EXPIRY_NEAR_SECONDS
    return _verdict(
        "expiry-not-near",
        not soon,
        f"The key expires at {_date(described.expires_at)}.",
        "Move the expiry date, or prepare a new version and rotate before then.",
        must=False,
    )


def _proof(described: KeyDescription | None, binding: Binding) -> Check:
    """Azure has nothing like an external id, so that somebody could bind a vault that isn't his."""
    name = "proof-of-control"
    if not isinstance(binding, AzureBinding):
        return _inapplicable(name)
    if described is None:
        return _unseen(name)
    if binding.client_id is not None:
        return Check(name, True, Outcome.PASS)  # signed in through a federated subject that only this binding has
    return _verdict(
        name,
        described.tags.get(PROOF_TAG) == binding.proof,
        f"The key doesn't carry the tag {PROOF_TAG} with this binding's value, so we can't know that it is yours.",
        f"az keyvault key set-attributes --id {described.kek_uri} --tags {PROOF_TAG}={binding.proof}",
    )


async def _round_trip(
    provider: KeyProvider, patient: Patient, described: KeyDescription | None, audited: Audited
) -> list[Check]:
    if not patient.may_send(described):
        return [_unsent("wrap-and-unwrap"), _unsent("foreign-context-refused"), _unsent("latency", must=False)]
    key = SecretKey.generate()
    foreign = WrapContext({**patient.context.fields, "confide:tenant": str(new_id())})
    started = time.perf_counter()
    skipped = "Wrapping failed, so this was not tried."
    try:
        wrapped = await audited("wrap", lambda intent: provider.wrap(key, patient.context, intent))
        opened = await audited(
            "unwrap",
            lambda intent: provider.unwrap(wrapped.ciphertext, wrapped.kek_version, patient.context, intent),
        )
    except KmsError as error:
        key.wipe()
        return [
            Check("wrap-and-unwrap", True, Outcome.FAIL, *advice(error, patient.binding), _ms(started)),
            Check("foreign-context-refused", True, Outcome.SKIPPED, skipped),
            Check("latency", False, Outcome.SKIPPED, skipped),
        ]
    same = opened.key == key
    opened.key.wipe()
    key.wipe()
    trip = _verdict(
        "wrap-and-unwrap", same, "The key service gave back another value.", "Ask the operator: this is never right."
    )
    slowest = max(wrapped.call.latency_ms, opened.call.latency_ms)
    latency = _verdict(
        "latency",
        slowest <= SLOW_MS,
        f"The slower of wrap and unwrap took {slowest:.0f} ms.",
        "Use a key in the cell's own region.",
        must=False,
    )
    refused = _inapplicable("foreign-context-refused")
    if described is not None and described.authenticates_context:
        refused = await _foreign(
            audited, lambda intent: provider.unwrap(wrapped.ciphertext, wrapped.kek_version, foreign, intent)
        )
    return [trip, refused, latency]


async def _foreign(audited: Audited, attempt: Callable[[UUID], Awaitable[object]]) -> Check:
    name, started = "foreign-context-refused", time.perf_counter()
    try:
        await audited("unwrap-foreign", attempt)
    except (KmsIntegrity, KmsDenied):
        return Check(name, True, Outcome.PASS, ms=_ms(started))
    except KmsError as error:
        return Check(
            name, True, Outcome.FAIL, f"The trial ended with {error.code}.", "Check again later.", _ms(started)
        )
    return Check(
        name,
        True,
        Outcome.FAIL,
        "The key service unwrapped under another tenant's context.",
        "Ask the operator: the key service doesn't authenticate the context as it should.",
        _ms(started),
    )


async def _role_checks(provider: KeyProvider, binding: Binding, audited: Audited) -> list[Check]:
    """The role must insist on our external id; otherwise another customer of ours could name it (a confused deputy)."""
    checks = []
    for name, wrong in (("role-needs-external-id", None), ("role-refuses-wrong-external-id", "confide-" + "0" * 32)):
        if not isinstance(provider, AwsKmsProvider) or not isinstance(binding, AwsBinding) or binding.role_arn is None:
            checks.append(_inapplicable(name))
            continue
        checks.append(await _role_check(name, wrong, provider, binding, audited))
    return checks


async def _role_check(
    name: str, wrong: str | None, provider: AwsKmsProvider, binding: AwsBinding, audited: Audited
) -> Check:
    started = time.perf_counter()
    try:
        refused = await audited("assume-role", lambda intent: provider.assume_refused(wrong, intent))
    except KmsError as error:
        return Check(name, True, Outcome.FAIL, *advice(error, binding), _ms(started))
    if refused:
        return Check(name, True, Outcome.PASS, ms=_ms(started))
    how = "without an external id" if wrong is None else "with a wrong external id"
    return Check(
        name,
        True,
        Outcome.FAIL,
        f"The role can be assumed {how}.",
        f'Add to the role\'s trust policy the condition "StringEquals": {{"sts:ExternalId": "{binding.external_id}"}}.',
        _ms(started),
    )


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0


def _date(moment: float | None) -> str:
    return "unknown" if moment is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
