"""The breaker, the budgets and the gate, as properties and as stories on a clock of their own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kms.limits import CircuitBreaker, Gate, Limits, RetryBudget, State, Trace, full_jitter
from app.kms.provider import KmsDenied, KmsError, KmsThrottled, KmsUnavailable, KmsUnclassified


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def trace() -> Trace:
    return Trace("unwrap", "kek")


@given(st.lists(st.sampled_from(["enter", "ok", "fail", "gone", "wait"]), max_size=200))
def test_the_breaker_never_lets_two_probes_out_at_once_and_never_stays_shut_for_ever(steps: list[str]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(3, 5.0, clock)
    probes = 0
    for step in steps:
        was_closed = breaker.state is State.CLOSED
        if step == "enter":
            entered = breaker.try_enter()
            assert entered or not was_closed
            if entered and not was_closed:
                probes += 1
                assert not breaker.try_enter()
        elif step == "ok":
            breaker.succeeded()
            assert breaker.state is State.CLOSED
        elif step == "fail":
            breaker.failed()
        elif step == "gone":
            breaker.abandoned()
        else:
            clock.now += 2.5
    clock.now += 10.1
    assert breaker.try_enter()


def test_the_breaker_opens_after_its_failures_and_one_probe_decides() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 5.0, clock)
    breaker.failed()
    assert breaker.state is State.CLOSED
    breaker.failed()
    assert breaker.state is State.OPEN
    assert not breaker.try_enter()
    assert breaker.retry_after() == 5.0
    clock.now += 5.0
    assert breaker.state is State.HALF_OPEN
    assert breaker.try_enter()
    assert not breaker.try_enter()
    breaker.failed()
    assert breaker.state is State.OPEN
    clock.now += 5.0
    assert breaker.try_enter()
    breaker.succeeded()
    assert breaker.state is State.CLOSED


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(0, 20))
def test_retries_never_exceed_the_burst_and_the_ratio(calls: list[bool], ratio: float, burst: int) -> None:
    budget, spent = RetryBudget(ratio, burst), 0
    for number, wants_retry in enumerate(calls, 1):
        budget.called()
        spent += wants_retry and budget.try_spend()
        assert spent <= burst + ratio * number + 1e-6


@given(st.integers(2, 50), st.floats(0, 1), st.floats(0, 10), st.floats(0, 0.999))
def test_jitter_stays_between_nothing_and_the_cap(attempt: int, base: float, cap: float, dice: float) -> None:
    assert 0 <= full_jitter(attempt, base, cap, lambda: dice) <= cap


@given(st.lists(st.sampled_from(["ok", "unavailable", "throttled", "denied", "odd", "slow"]), min_size=1, max_size=6))
def test_the_gate_keeps_to_its_attempts_and_its_time(answers: list[str]) -> None:
    clock = Clock()
    limits = Limits(retry_burst=100)
    gate = Gate(limits, clock, clock.sleep, lambda: 0.5)
    seen: list[str] = []

    async def attempt() -> str:
        answer = answers[min(len(seen), len(answers) - 1)]
        seen.append(answer)
        clock.now += 1.2 if answer == "slow" else 0.01
        if answer in {"unavailable", "slow"}:
            raise KmsUnavailable("x", endpoint_fault=True)
        if answer == "throttled":
            raise KmsThrottled("x", retry_after=0.5)
        if answer == "denied":
            raise KmsDenied("x")
        if answer == "odd":
            raise ZeroDivisionError("secret")
        return answer

    started, call = clock.now, trace()
    told: KmsError | None = None
    try:
        asyncio.run(gate.run(call, attempt))
    except KmsError as error:
        told = error
    if told is not None:
        assert told.call is not None
        assert told.call.attempts == call.attempts
        assert "secret" not in str(told)
        assert isinstance(told, KmsUnclassified) or seen[-1] != "odd"
    assert len(seen) <= limits.attempts
    assert clock.now - started <= limits.budget + 1.2
    assert not [each for each in seen[:-1] if each in {"ok", "denied", "odd"}], "only outages are tried again"


async def test_a_long_retry_after_is_passed_on_at_once() -> None:
    clock = Clock()
    gate = Gate(Limits(), clock, clock.sleep)

    async def attempt() -> None:
        raise KmsThrottled("x", retry_after=30.0)

    with pytest.raises(KmsThrottled) as refused:
        await gate.run(trace(), attempt)
    assert (refused.value.retry_after, clock.now) == (30.0, 100.0)


async def test_an_open_breaker_sends_nothing_and_says_when_to_come_back() -> None:
    clock, sent = Clock(), 0
    gate = Gate(Limits(breaker_failures=2, attempts=1), clock, clock.sleep)

    async def attempt() -> None:
        nonlocal sent
        sent += 1
        raise KmsUnavailable("down", endpoint_fault=True)

    for _ in range(5):
        with pytest.raises(KmsUnavailable) as refused:
            await gate.run(trace(), attempt)
    assert sent == 2
    assert refused.value.code == "CircuitOpen"
    assert refused.value.retry_after is not None


async def test_denials_and_throttling_of_one_tenant_leave_the_endpoint_open_to_all() -> None:
    gate = Gate(Limits(breaker_failures=2, attempts=1))

    async def denied() -> None:
        raise KmsDenied("x")

    async def throttled() -> None:
        raise KmsThrottled("x")

    for attempt in (denied, throttled) * 10:
        with pytest.raises(KmsError):
            await gate.run(trace(), attempt)
    assert gate.breaker.state is State.CLOSED


async def test_no_more_calls_are_under_way_than_the_limit() -> None:
    gate = Gate(Limits(concurrency=3, budget=5))
    under_way = most = 0

    async def attempt() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    await asyncio.gather(*(gate.run(trace(), attempt) for _ in range(20)))
    assert most == 3


async def test_a_cancelled_probe_does_not_shut_the_endpoint() -> None:
    clock = Clock()
    gate = Gate(Limits(breaker_failures=1, attempts=1, budget=60), clock)
    gate.breaker.failed()
    clock.now += 5.0

    async def hang() -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(gate.run(trace(), hang))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.breaker.try_enter()


@pytest.mark.parametrize(
    "bad", [{"attempts": 0}, {"budget": 0}, {"connect_timeout": -1}, {"concurrency": 0}, {"retry_ratio": -0.1}]
)
def test_senseless_limits_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="KMS"):
        Limits(**bad)  # type: ignore[arg-type]
