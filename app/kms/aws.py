"""The ``aws-kms`` provider: one symmetric KMS key, named by its ARN, used through the customer's role or our own.

The KeyId is sent with every Decrypt and compared in every answer; the wrap context is the encryption context, which KMS
authenticates and CloudTrail records. KMS picks the key material by itself, so the pinned version is only informative.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from botocore.credentials import ReadOnlyCredentials

from app.crypto.secret import EXPOSE, SecretKey
from app.kms.aws_arn import KeyArn, RoleArn
from app.kms.aws_cell import AwsCell
from app.kms.limits import Trace
from app.kms.provider import (
    HALF_BYTES,
    KeyDescription,
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsOwnCredentials,
    Unwrapped,
    WrapContext,
    Wrapped,
)

T = TypeVar("T")
VERSION = "aws-managed"


class AwsKmsProvider:
    """``role`` None: the vendor's own key with the vendor's own credentials. Nothing is fetched until it is used."""

    name = "aws-kms"

    def __init__(self, cell: AwsCell, key: KeyArn, role: RoleArn | None = None, external_id: str | None = None) -> None:
        if (role is None) != (external_id is None):
            raise ValueError("a role and its external id go together")
        self._cell = cell
        self._key = key
        self._role = role
        self._external_id = external_id
        self.kek_uri = str(key)

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped:
        params = {
            "KeyId": self.kek_uri,
            "Plaintext": bytes(key.expose(EXPOSE)),
            "EncryptionContext": dict(context.fields),
        }
        trace = Trace("wrap", self.kek_uri, VERSION)
        answer = await self._run(trace, lambda: self._kms("encrypt", params, intent, trace))
        return Wrapped(bytes(answer["CiphertextBlob"]), self.kek_uri, VERSION, trace.call())

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped:
        params = {"KeyId": self.kek_uri, "CiphertextBlob": ciphertext, "EncryptionContext": dict(context.fields)}
        trace = Trace("unwrap", self.kek_uri, kek_version)

        async def attempt() -> SecretKey:
            answer = await self._kms("decrypt", params, intent, trace)
            trace.kek_version = answer.get("KeyMaterialId") or kek_version
            raw = bytearray(answer.pop("Plaintext"))
            try:
                if len(raw) != HALF_BYTES:
                    raise KmsIntegrity("WrongLength", "the unwrapped value isn't a half of a root key")
                return SecretKey.of(raw)
            finally:
                raw[:] = bytes(len(raw))

        return Unwrapped(await self._run(trace, attempt), trace.call())

    async def describe(self, intent: UUID) -> KeyDescription:
        trace = Trace("describe", self.kek_uri, VERSION)
        params = {"KeyId": self.kek_uri}
        answer = await self._run(trace, lambda: self._kms("describe_key", params, intent, trace))
        facts: Mapping[str, Any] = answer["KeyMetadata"]
        spec, usage = facts.get("KeySpec"), facts.get("KeyUsage")
        manager, origin = facts.get("KeyManager"), facts.get("Origin")
        return KeyDescription(
            kek_uri=self.kek_uri,
            kind=f"{spec}/{usage}/{manager}/{origin}",
            enabled=facts.get("KeyState") == "Enabled",
            state=facts.get("KeyState"),
            region=self._key.region,
            current_version=facts.get("CurrentKeyMaterialId"),
            expires_at=_unix(facts.get("ValidTo")),
            deletion_at=_unix(facts.get("DeletionDate")),
            tags={},
            authenticates_context=spec == "SYMMETRIC_DEFAULT",
            usable_kind=(spec, usage, manager) == ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "CUSTOMER"),
            call=trace.call(),
        )

    async def assume_refused(self, external_id: str | None, intent: UUID) -> bool:
        """Whether the role refuses to be assumed with this external id (None: without one). For the doctor."""
        role = self._role
        if role is None:
            raise ValueError("only a customer's key has a role")
        trace = Trace("assume-role", str(role))
        try:
            await self._run(trace, lambda: self._cell.assume(role, external_id, self._key, intent, trace))
        except KmsDenied:
            return True
        return False

    async def close(self) -> None:
        if self._role is not None and self._external_id is not None:
            self._cell.forget(self._role, self._external_id, self._key)

    async def _run(self, trace: Trace, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._cell.ready(self._key, ("kms",) if self._role is None else ("kms", "sts"))
        except KmsError as error:
            error.call = trace.call()
            raise
        return await self._cell.gate(self._key.region).run(trace, attempt)

    async def _kms(self, operation: str, params: Mapping[str, Any], intent: UUID, trace: Trace) -> dict[str, Any]:
        """One attempt; credentials that AWS refuses are fetched anew once, since they may just have run out."""
        try:
            answer = await self._call(operation, params, intent, trace)
        except KmsOwnCredentials:
            self._forget()
            answer = await self._call(operation, params, intent, trace)
        told = answer["KeyMetadata"]["Arn"] if operation == "describe_key" else answer.get("KeyId")
        if told != self.kek_uri:
            raise KmsIntegrity("KeyIdMismatch", "the answer names another key")
        return answer

    async def _call(self, operation: str, params: Mapping[str, Any], intent: UUID, trace: Trace) -> dict[str, Any]:
        credentials = await self._credentials(intent, trace)
        return await self._cell.request(
            ("kms", operation), self._key, params, credentials=credentials, intent=intent, trace=trace
        )

    async def _credentials(self, intent: UUID, trace: Trace) -> ReadOnlyCredentials:
        if self._role is None or self._external_id is None:
            return await self._cell.own()
        return await self._cell.assumed(self._role, self._external_id, self._key, intent, trace)

    def _forget(self) -> None:
        if self._role is not None and self._external_id is not None:
            self._cell.forget(self._role, self._external_id, self._key)
        self._cell.forget_own()


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
