"""What stands in front of each KMS endpoint: time-outs, a retry budget, bounded concurrency and a circuit breaker.

Small and without I/O: the clock, the sleep and the dice are passed in, so that properties can be tested. The SDKs' own
retries are off everywhere; ``Gate.run`` is the only loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from app.kms.provider import KmsCall, KmsError, KmsUnavailable, KmsUnclassified

T = TypeVar("T")
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Dice = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds. ``budget`` covers all attempts of a call and the waits between them."""

    connect_timeout: float = 1.0
    read_timeout: float = 2.0
    attempts: int = 3
    budget: float = 3.0
    backoff: float = 0.1
    backoff_cap: float = 1.0
    concurrency: int = 32
    breaker_failures: int = 5
    breaker_seconds: float = 5.0
    retry_ratio: float = 0.2
    retry_burst: float = 20.0

    def __post_init__(self) -> None:
        if min(self.connect_timeout, self.read_timeout, self.budget, self.breaker_seconds) <= 0:
            raise ValueError("the KMS time-outs, the budget and the breaker's time must be positive")
        if min(self.attempts, self.concurrency, self.breaker_failures) < 1:
            raise ValueError("the KMS attempts, concurrency and breaker's failures must be at least 1")
        if min(self.backoff, self.backoff_cap, self.retry_ratio, self.retry_burst) < 0:
            raise ValueError("the KMS backoff and retry ratio must not be negative")


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Closed until ``failures`` in a row, then open for ``seconds``, then one probe at a time decides."""

    def __init__(self, failures: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probe_at: float | None = None

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return State.CLOSED
        return State.OPEN if self._clock() < self._opened_at + self._seconds else State.HALF_OPEN

    def retry_after(self) -> float:
        """Seconds until a call may be let through; 0 if one may now."""
        if self._opened_at is None:
            return 0.0
        since = self._opened_at if self._probe_at is None else max(self._opened_at, self._probe_at)
        return max(0.0, since + self._seconds - self._clock())

    def try_enter(self) -> bool:
        """Whether a call may go out now. In half-open only one may; a probe that never reports back counts as lost
        after ``seconds``, so that the breaker can't stay shut for ever."""
        if self._opened_at is None:
            return True
        if self.retry_after() > 0:
            return False
        self._probe_at = self._clock()
        return True

    def succeeded(self) -> None:
        """The endpoint answered, whatever it said."""
        self._failures = 0
        self._opened_at = self._probe_at = None

    def failed(self) -> None:
        """The endpoint itself failed. A late failure doesn't prolong an open breaker; a failed probe opens it again."""
        self._failures += 1
        probing = self._opened_at is not None and self._probe_at is not None
        if probing or (self._opened_at is None and self._failures >= self._limit):
            self._opened_at = self._clock()
            self._probe_at = None

    def abandoned(self) -> None:
        """The call was given up without a verdict (cancelled): another probe may go out."""
        self._probe_at = None


class RetryBudget:
    """Retries may be ``ratio`` of the calls, and ``burst`` at once: an outage must not multiply the load."""

    def __init__(self, ratio: float, burst: float) -> None:
        self._ratio = ratio
        self._burst = burst
        self._tokens = burst

    def called(self) -> None:
        self._tokens = min(self._burst, self._tokens + self._ratio)

    def try_spend(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def full_jitter(attempt: int, base: float, cap: float, dice: Dice) -> float:
    """Seconds before attempt number ``attempt`` (2, 3, …): uniform between 0 and the capped exponential."""
    return dice() * min(cap, base * 2.0 ** max(0, attempt - 2))


@dataclass(slots=True)
class Trace:
    """One provider call on its way. The attempts fill it in; ``call()`` is what the audit gets."""

    operation: str
    kek_uri: str
    kek_version: str = ""
    request_id: str | None = None
    attempts: int = 0
    started: float = field(default_factory=time.perf_counter)

    def call(self) -> KmsCall:
        latency = (time.perf_counter() - self.started) * 1000.0
        return KmsCall(self.operation, self.kek_uri, self.kek_version, self.request_id, latency, max(1, self.attempts))


class Gate:
    """All calls to one endpoint pass here. ``run`` raises ``KmsError`` subclasses and nothing else."""

    def __init__(
        self,
        limits: Limits,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        dice: Dice = random.random,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        self._dice = dice
        self._slots = asyncio.Semaphore(limits.concurrency)
        self.breaker = CircuitBreaker(limits.breaker_failures, limits.breaker_seconds, clock)
        self.retries = RetryBudget(limits.retry_ratio, limits.retry_burst)

    async def run(self, trace: Trace, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of ``attempt``, tried again after an outage while attempts, time and the retry budget last."""
        deadline = self._clock() + self._limits.budget
        self.retries.called()
        try:
            while True:
                trace.attempts += 1
                try:
                    return await self._once(attempt, deadline)
                except KmsUnavailable as error:
                    await self._pause(error, trace.attempts, deadline)
        except KmsError as error:
            error.call = trace.call()
            raise

    async def _pause(self, error: KmsUnavailable, attempts: int, deadline: float) -> None:
        """Wait before the next attempt, or raise ``error`` if there is to be none."""
        if isinstance(error, KmsUnclassified) or attempts >= self._limits.attempts:
            raise error
        wait = full_jitter(attempts + 1, self._limits.backoff, self._limits.backoff_cap, self._dice)
        wait = max(wait, error.retry_after or 0.0)
        if self._clock() + wait >= deadline or not self.retries.try_spend():
            raise error
        await self._sleep(wait)

    async def _once(self, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        async with self._slot(deadline):
            if not self.breaker.try_enter():
                wait = self.breaker.retry_after()
                raise KmsUnavailable("CircuitOpen", "the endpoint failed repeatedly", retry_after=max(wait, 0.001))
            try:
                async with asyncio.timeout(max(0.0, deadline - self._clock())):
                    result = await attempt()
            except TimeoutError:
                self.breaker.failed()
                raise KmsUnavailable("DeadlineExceeded", "no answer within the budget", endpoint_fault=True) from None
            except KmsError as error:
                self._verdict(error)
                raise
            except asyncio.CancelledError:
                self.breaker.abandoned()
                raise
            except Exception as error:  # noqa: BLE001  whatever a client library raises, callers see KmsError only
                # The exception's text may hold request data, so only its type is told.
                self.breaker.abandoned()
                raise KmsUnclassified(type(error).__name__, "an unexpected failure in the client") from None
            self.breaker.succeeded()
            return result

    def _verdict(self, error: KmsError) -> None:
        if error.endpoint_fault:
            self.breaker.failed()
        elif isinstance(error, KmsUnclassified):
            self.breaker.abandoned()
        else:
            self.breaker.succeeded()

    @asynccontextmanager
    async def _slot(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await self._slots.acquire()
        except TimeoutError:
            raise KmsUnavailable("ConcurrencyLimit", "too many calls to this endpoint are under way") from None
        try:
            yield
        finally:
            self._slots.release()
