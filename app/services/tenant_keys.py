"""A tenant's keys in memory: what a lease covers.

Everything here was unwrapped through the tenant's root keys, so that one deadline covers it all. Keys are wiped when
the lease ends, the epoch moves, a KMS denies, or the entry is evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from app.crypto.keys import hkdf_sha256, open_container_key, seal_container_key, wipe
from app.crypto.secret import SecretKey
from app.errors import KeyUnavailable
from app.identity import Kind
from app.services.clock import Clock

NAMES: Final = 50_000
"""Blind names kept per tenant, so that a name in use isn't hashed again at each turn."""
CONTAINER_KEYS: Final = 20_000
"""Container keys kept per tenant; the least recently used goes first."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the tenant's row says that a worker acts on. Any change of it moves the epoch."""

    require_preconditions: bool
    lease: float
    grace: float
    ttl_idle: int
    ttl_max: int
    rate_per_second: int | None


@dataclass(slots=True)
class Known:
    """What this worker last saw of a container: a guess that the statement checks."""

    id: UUID
    ck_generation: int
    trk_generation: int
    commit: int
    head: int
    subject: UUID | None = None
    complete: bool = False
    """Whether ``subject`` is known: it is from a look-up, not from a read."""


TAGS: Final = 100_000
"""Look-up tags whose older forms are remembered for a tenant: far more than the requests that can be under way."""


@dataclass(slots=True)
class Seen:
    """What a worker remembers while a tenant has older index keys. It outlives the keys, which come and go."""

    tags: OrderedDict[bytes, tuple[bytes, ...]] = field(default_factory=OrderedDict, repr=False)
    """The same name's tags under the older index keys, newest first, by its tag under the present one."""
    moved: set[UUID] = field(default_factory=set)
    """Containers that are known to stand under the present index key."""
    large: dict[UUID, set[UUID]] = field(default_factory=dict)
    """Containers that requests don't wait for: the job moves them, and a request only what it touches. With the ids
    under the older index key of what requests have moved.
    """

    def note(self, tag: bytes, older: tuple[bytes, ...]) -> None:
        self.tags[tag] = older
        self.tags.move_to_end(tag)
        if len(self.tags) > TAGS:
            self.tags.popitem(last=False)

    def learn_moved(self, container: UUID) -> None:
        if len(self.moved) >= TAGS:
            self.moved.clear()
        self.moved.add(container)
        self.large.pop(container, None)


@dataclass(slots=True)
class Former:
    """Older index keys, newest first, and how far their exchange is.

    ``bound``: containers up to it may still stand under the newest of them; None: all have moved, and the keys only
    find the answers to requests that were made before.
    """

    keys: list[tuple[int, SecretKey]] = field(repr=False)
    bound: UUID | None
    seen: Seen = field(default_factory=Seen)

    def note(self, tag: bytes, older: Callable[[SecretKey], bytes]) -> None:
        """Remember what a tag was under the older keys. ``older`` makes it with a key."""
        if tag not in self.seen.tags:
            self.seen.note(tag, tuple(older(key) for _, key in self.keys))

    def stands(self, container: UUID) -> bool:
        """Whether a container is known to stand under the present index key."""
        return self.bound is None or container.int > self.bound.int or container in self.seen.moved


@dataclass(slots=True)
class TenantKeys:
    """Root keys by generation, the index key and what hangs on them, under one lease (seconds of ``Clock``)."""

    tenant: UUID
    region: str
    epoch: int
    policy: Policy
    clock: Clock
    roots: dict[int, SecretKey]
    active: int
    index: SecretKey
    index_number: int
    kek: str
    """JSON fragment that names the KEK, its version and the TRK generation in events."""
    granted_at: float
    until: float
    """When these keys may be used no more: the lease's end, or that of the grace after it."""
    former: Former | None = None
    """Older index keys, while something may still be found only through them."""
    lease_end: float = field(init=False)
    answers: SecretKey = field(init=False)
    names: dict[tuple[UUID, str, str | None], UUID] = field(default_factory=dict, repr=False)
    _containers: OrderedDict[tuple[UUID, int], SecretKey] = field(default_factory=OrderedDict)
    _known: OrderedDict[UUID, Known] = field(default_factory=OrderedDict)
    _externals: OrderedDict[tuple[Kind, UUID], UUID] = field(default_factory=OrderedDict)
    _missed: OrderedDict[tuple[Kind, UUID], None] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.answers = hkdf_sha256(self.index, b"confide/v1/answers")
        self.lease_end = self.until

    @property
    def valid(self) -> bool:
        return self.clock() < self.until

    def check(self) -> None:
        """Raises ``KeyUnavailable`` once the lease has ended: called again right before anything is opened."""
        if self.clock() >= self.until:
            raise KeyUnavailable

    @property
    def in_grace(self) -> bool:
        """The lease has ended, an outage keeps it from being renewed, and the tenant chose to be served anyway."""
        return self._graced(self.clock())

    def _graced(self, now: float) -> bool:
        return self.lease_end <= now < self.until

    @property
    def kept_until(self) -> float:
        """How long they stay in memory: past the lease's end only where the tenant's grace may need them."""
        return self.lease_end + self.policy.grace

    def grant_grace(self) -> None:
        """An outage was seen by a real call: the tenant's opt-in grace follows the lease."""
        self.until = self.lease_end + self.policy.grace

    def refuse_grace(self) -> None:
        """What was seen isn't a plain outage: the lease's end is the end."""
        self.until = min(self.until, self.lease_end)

    def facts(self) -> str:
        """The key state as a JSON fragment for an event."""
        now = self.clock()  # once, so that the age and the mark are of one moment
        age = int((now - self.granted_at) * 1000)
        grace = ',"grace":true' if self._graced(now) else ""
        return f'{self.kek},"lease_ms":{age}{grace}'

    def name(self, container: UUID, collection: str, key: str | None, made: UUID) -> UUID:
        """Keep a blind name. All are dropped together once there are too many: making one again costs little."""
        if len(self.names) >= NAMES:
            self.names.clear()
        self.names[container, collection, key] = made
        return made

    # ------------------------------------------------------------ container keys

    def container_key(self, container: UUID, generation: int) -> SecretKey | None:
        found = self._containers.get((container, generation))
        if found is not None:
            self._containers.move_to_end((container, generation))
        return found

    def new_container_key(self, container: UUID, generation: int) -> tuple[SecretKey, bytes]:
        """A fresh key under the active root key, with its sealed form. Keep it with ``keep_key`` once it is stored."""
        key = SecretKey.generate()
        sealed = seal_container_key(
            key,
            self.roots[self.active],
            region=self.region,
            tenant=self.tenant,
            container=container,
            trk_generation=self.active,
            ck_generation=generation,
        )
        return key, sealed

    def keep_key(self, container: UUID, generation: int, key: SecretKey) -> None:
        old = self._containers.get((container, generation))
        self._containers[(container, generation)] = key
        if old is not None and old is not key:
            old.wipe()
        if len(self._containers) > CONTAINER_KEYS:
            self._containers.popitem(last=False)[1].wipe()

    def open_container_key(self, container: UUID, generation: int, trk_generation: int, sealed: bytes) -> SecretKey:
        """Unwrap and keep. Raises ``Tampered``; ``KeyUnavailable`` where that root key isn't held."""
        self.check()
        root = self.roots.get(trk_generation)
        if root is None:
            raise KeyUnavailable
        key = open_container_key(
            sealed,
            root,
            region=self.region,
            tenant=self.tenant,
            container=container,
            trk_generation=trk_generation,
            ck_generation=generation,
        )
        self.keep_key(container, generation, key)
        return key

    # ------------------------------------------------------------ guesses about containers

    def known(self, container: UUID) -> Known | None:
        return self._known.get(container)

    def learn(self, known: Known) -> None:
        self._known[known.id] = known
        if len(self._known) > CONTAINER_KEYS:
            self._known.popitem(last=False)

    def external(self, kind: Kind, tag: UUID) -> UUID | None:
        return self._externals.get((kind, tag))

    def learn_external(self, kind: Kind, tag: UUID, container: UUID) -> None:
        self._externals[(kind, tag)] = container
        if len(self._externals) > CONTAINER_KEYS:
            self._externals.popitem(last=False)

    def miss(self, kind: Kind, tag: UUID) -> None:
        """A look-up has found nobody of that name."""
        self._missed[(kind, tag)] = None
        if len(self._missed) > CONTAINER_KEYS:
            self._missed.popitem(last=False)

    def take_missed(self, kind: Kind, tag: UUID) -> bool:
        """Whether a look-up has just found nobody of that name. Said once: it is a guess, which a write may try."""
        missed = (kind, tag) in self._missed
        self._missed.pop((kind, tag), None)
        return missed

    def forget(self, container: UUID) -> None:
        """Drop what is believed of a container that changed behind our back. Its keys stay: others may be using
        them.
        """
        self._known.pop(container, None)
        for name in [name for name, held in self._externals.items() if held == container]:
            del self._externals[name]

    def erase(self, container: UUID) -> None:
        """Forget a container that is no more, and wipe its keys."""
        self.forget(container)
        for entry in [entry for entry in self._containers if entry[0] == container]:
            self._containers.pop(entry).wipe()

    def renew(self, fresh: TenantKeys) -> None:
        """Take over the lease that ``fresh`` proved, and wipe it: it opened the same keys under the same epoch."""
        self.granted_at, self.until, self.lease_end = fresh.granted_at, fresh.lease_end, fresh.lease_end
        fresh.wipe()

    def wipe(self) -> None:
        """Zero every key. Requests that still hold one get ``KeyWiped``, a 503."""
        self.until = self.lease_end = 0.0
        wipe(*self.roots.values(), self.index, self.answers, *self._containers.values())
        if self.former is not None:
            wipe(*(key for _, key in self.former.keys))
        self.names.clear()
        self._containers.clear()
        self._known.clear()
        self._externals.clear()
        self._missed.clear()
