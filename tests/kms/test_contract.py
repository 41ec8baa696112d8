"""What every key provider promises, shown on each of them against a real peer or a faithful one.

A point that an emulator can't show honestly is skipped for it alone and shown on another (EMULATORS.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from app.crypto.secret import EXPOSE, SecretKey
from app.kms.provider import (
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsThrottled,
    KmsUnavailable,
    KmsUnclassified,
    WrapContext,
)
from app.kms.registry import ProviderRegistry
from tests.kms.rigs import QUICK, VENDOR_SECRET, Rig, context, flipped
from tests.kms.rigs_azure import OUR_SECRET
from tests.kms.servers import Fault


def needs(rig: Rig, point: str) -> None:
    if point in rig.lies:
        pytest.skip(f"{rig.name} lies about {point}: shown elsewhere, see EMULATORS.md")


def remote(rig: Rig) -> None:
    if not rig.remote:
        pytest.skip("the local provider has no network")


async def test_what_was_wrapped_unwraps_to_the_same_key(rig: Rig) -> None:
    key, provider = SecretKey.generate(), rig.provider()
    wrapped = await provider.wrap(key, rig.context, uuid4())
    assert bytes(key.expose(EXPOSE)) not in wrapped.ciphertext
    assert wrapped.kek_uri == provider.kek_uri == wrapped.call.kek_uri
    assert wrapped.kek_version
    opened = await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert opened.key == key
    assert opened.call.request_id
    assert wrapped.call.request_id
    assert (wrapped.call.operation, opened.call.operation) == ("wrap", "unwrap")
    assert 0 < opened.call.latency_ms < 5000


async def test_wrapping_twice_gives_two_ciphertexts_where_the_algorithm_is_randomised(rig: Rig) -> None:
    key, provider = SecretKey.generate(), rig.provider()
    first, second = [(await provider.wrap(key, rig.context, uuid4())).ciphertext for _ in range(2)]
    assert (first == second) == (rig.name == "azure-hsm")  # RFC 3394 is deterministic


@pytest.mark.parametrize("field", ["confide:tenant", "confide:region", "confide:half", "confide:generation"])
async def test_another_context_is_refused(rig: Rig, field: str) -> None:
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    other = WrapContext({**rig.context.fields, field: "another"})
    with pytest.raises((KmsIntegrity, KmsDenied)) as refused:
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, other, uuid4())
    # AWS refuses a foreign tenant by the key policy already, before it looks at the ciphertext.
    assert isinstance(refused.value, KmsIntegrity) or (rig.name == "aws-ministack" and field == "confide:tenant")
    assert refused.value.call is not None
    assert refused.value.call.operation == "unwrap"


async def test_another_key_is_refused(rig: Rig) -> None:
    needs(rig, "wrong-key")
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    other = rig.registry.provider(rig.other())
    # moto says AccessDenied where AWS says IncorrectKey.
    with pytest.raises(KmsDenied if rig.name == "aws-moto" else KmsIntegrity):
        await other.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())


async def test_tampered_truncated_and_foreign_ciphertexts_are_refused(rig: Rig) -> None:
    needs(rig, "tamper")
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    blob = wrapped.ciphertext
    bads = [flipped(blob), blob[:-1], blob + b"A"]
    if rig.name != "aws-moto":  # moto says AccessDenied where AWS says InvalidCiphertext
        bads.append(b"A" * len(blob))
    for bad in bads:
        with pytest.raises(KmsIntegrity):
            await rig.provider().unwrap(bad, wrapped.kek_version, rig.context, uuid4())


async def test_a_disabled_key_denies_and_an_enabled_one_works_again(rig: Rig) -> None:
    needs(rig, "state")
    key = SecretKey.generate()
    wrapped = await rig.provider().wrap(key, rig.context, uuid4())
    rig.disable()
    with pytest.raises(KmsDenied) as refused:
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert refused.value.alarm is False
    with pytest.raises(KmsDenied):
        await rig.provider().wrap(key, rig.context, uuid4())
    rig.enable()
    assert (await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())).key == key


async def test_a_deleted_key_denies(rig: Rig) -> None:
    needs(rig, "state")
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    rig.delete()
    with pytest.raises(KmsDenied):
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    with pytest.raises(KmsDenied):
        await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())


async def test_withdrawn_access_denies_and_comes_back(rig: Rig) -> None:
    needs(rig, "access")
    key = SecretKey.generate()
    wrapped = await rig.provider().wrap(key, rig.context, uuid4())
    rig.withdraw()
    with pytest.raises(KmsDenied):
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    rig.give_back()
    assert (await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())).key == key


async def test_throttling_is_throttled_and_says_when_to_come_back(rig: Rig) -> None:
    remote(rig)
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    rig.faults().extend(rig.throttled() for _ in range(3))
    with pytest.raises(KmsThrottled) as refused:
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert refused.value.retry_after in {None, 30.0}
    rig.faults().clear()
    await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())


async def test_a_passing_fault_is_tried_again(rig: Rig) -> None:
    remote(rig)
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    rig.faults().append(Fault(503, "{}"))
    opened = await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert opened.call.attempts == 2


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_silence_and_cut_lines_are_an_outage_within_the_budget(rig: Rig, fault: str) -> None:
    remote(rig)
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    registry = ProviderRegistry(replace(rig.registry.settings, limits=QUICK))
    provider = registry.provider(rig.binding)
    with suppress(KmsUnavailable):
        await provider.describe(uuid4())  # sign in, so that the fault meets the unwrap
    made = [Fault(silence=60.0) if fault == "silence" else Fault(cut=True) for _ in range(4)]
    rig.faults().extend(made)
    started = time.monotonic()
    with pytest.raises(KmsUnavailable) as refused:
        await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert time.monotonic() - started < 20  # the budget is a second, and the endpoint's silence a minute
    await registry.close()
    assert not isinstance(refused.value, KmsUnclassified)
    assert refused.value.endpoint_fault


async def test_an_unknown_code_is_unclassified_and_not_a_revocation(rig: Rig) -> None:
    remote(rig)
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    rig.faults().append(rig.unknown())
    with pytest.raises(KmsUnclassified) as refused:
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert refused.value.alarm


@pytest.mark.parametrize(
    "fault",
    [
        Fault(302, "", {"Location": "http://169.254.169.254/latest/meta-data/"}),
        Fault(200, "not json"),
        Fault(200, "[]"),
        Fault(403, "<html>Blocked by your proxy</html>"),
        Fault(404, "<html>Not here</html>"),
        Fault(418, "{}"),
    ],
    ids=["redirect", "junk", "array", "proxy-403", "proxy-404", "teapot"],
)
async def test_what_is_not_the_services_answer_never_passes_for_a_revocation(rig: Rig, fault: Fault) -> None:
    remote(rig)
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    rig.faults().append(fault)
    with pytest.raises(KmsError) as refused:
        await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
    assert not isinstance(refused.value, KmsDenied)
    assert refused.value.alarm


async def test_the_intent_is_in_the_providers_own_log(rig: Rig) -> None:
    remote(rig)
    needs(rig, "intents")
    wrap, unwrap, describe = uuid4(), uuid4(), uuid4()
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, wrap)
    await rig.provider().unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, unwrap)
    await rig.provider().describe(describe)
    assert {str(wrap), str(unwrap), str(describe)} <= set(rig.intents())


async def test_many_at_once_all_get_their_own_key(rig: Rig) -> None:
    keys = [SecretKey.generate() for _ in range(12)]
    provider = rig.provider()

    async def trip(key: SecretKey) -> bool:
        wrapped = await provider.wrap(key, rig.context, uuid4())
        return (await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())).key == key

    assert all(await asyncio.gather(*(trip(key) for key in keys)))


async def test_description_tells_kind_state_and_region(rig: Rig) -> None:
    described = await rig.provider().describe(uuid4())
    assert described.enabled is True
    assert described.usable_kind
    assert described.region in rig.regions
    assert described.authenticates_context == (rig.name != "azure-vault")
    assert described.deletion_at is None


async def test_no_secret_in_reprs_errors_or_logs(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    key = SecretKey.generate()
    raw = bytes(key.expose(EXPOSE))
    with caplog.at_level(logging.DEBUG):
        for logger in ("botocore", "botocore.endpoint", "botocore.parsers", "azure", "httpx2", "httpcore2", "urllib3"):
            caplog.set_level(logging.DEBUG, logger=logger)
        provider = rig.provider()
        wrapped = await provider.wrap(key, rig.context, uuid4())
        opened = await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
        told = [repr(wrapped), repr(opened), repr(provider), repr(rig.registry.settings)]
        try:
            await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, context(uuid4()), uuid4())
        except KmsError as error:
            told.append(repr(error) + str(error) + str(error.detail))
    told += [record.getMessage() + repr(record.args) for record in caplog.records]
    text = "\n".join(told)
    forbidden = [raw.hex(), repr(raw)[2:-1], b64encode(raw).decode(), b64encode(raw).decode().rstrip("=")]
    forbidden += [OUR_SECRET, VENDOR_SECRET]
    assert not [each for each in forbidden if each in text]
    assert "SecretKey>" not in repr(opened)


async def test_a_closed_provider_refuses_as_an_outage_or_works(rig: Rig) -> None:
    """Closing is for shutting down: what comes after must be an answer of the error tree, whatever else."""
    wrapped = await rig.provider().wrap(SecretKey.generate(), rig.context, uuid4())
    provider = rig.provider()
    await rig.registry.close()
    if not rig.remote:
        return
    with suppress(KmsUnavailable):
        await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, rig.context, uuid4())
