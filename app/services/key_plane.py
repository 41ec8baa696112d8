"""Everything of one worker that has to do with tenants' keys, in one place. Made by ``assemble``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.audit.checkpoint import Signer, sign_note
from app.kms.registry import ProviderRegistry
from app.services.auditing import Auditing
from app.services.bindings import Bindings
from app.services.clock import Clock, boottime
from app.services.control import ControlPlane
from app.services.deletion_journal import DeletionJournal
from app.services.jobs import Jobs
from app.services.key_loading import KeyLoader
from app.services.key_rekey import Rekey
from app.services.key_states import KeyStates
from app.services.keyring import Keyring
from app.services.kms_calls import KmsCalls, Observer
from app.services.moves import Moves
from app.services.probes import Prober
from app.services.providers import Providers
from app.services.rekey_containers import Mover
from app.services.watch import Watch
from app.store.keys import KeyStore
from app.store.ledger import Ledger
from app.store.pool import Pool

MOVES: Final = 4
"""Containers that a worker moves to another index key at one time."""


@dataclass(slots=True)
class KeyPlane:
    """``start`` and ``close`` run the watch and the probes. The keyring outlives them: requests drain after."""

    calls: KmsCalls
    keyring: Keyring
    states: KeyStates
    bindings: Bindings
    moves: Moves
    rekey: Rekey
    watch: Watch
    prober: Prober
    turns: Pool
    ledgers: tuple[Ledger, ...]

    def start(self) -> None:
        self.watch.start()

    async def close(self) -> None:
        await self.watch.close()
        await self.keyring.close()
        for ledger in self.ledgers:
            await ledger.close()
        await self.turns.close()


@dataclass(slots=True)
class Core:
    """What others need before there is a control plane: the calls and the keyring."""

    region: str
    calls: KmsCalls
    providers: Providers
    states: KeyStates
    keyring: Keyring
    mover: Mover
    turns: Pool
    ledgers: tuple[Ledger, ...]
    """For loading keys, for changing states, and the rest for moving containers."""


def core(
    region: str,
    registry: ProviderRegistry,
    auditing: Auditing,
    new_ledger: Callable[[], Ledger],
    turns: Pool,
    deletions: DeletionJournal,
    observe: Observer | None = None,
    clock: Clock = boottime,
) -> Core:
    """``new_ledger``: connections for loading keys, for changing states and for moving containers: none waits for
    another. ``turns``: connections for taking turns at KMS calls with other workers. ``deletions``: the deletion
    journal, which a rekey tells of objects' new ids.
    """
    loads, changes, *moves = (new_ledger() for _ in range(2 + MOVES))
    calls = KmsCalls(region, auditing, turns, observe, longest=registry.settings.limits.budget)
    providers = Providers(registry)
    states = KeyStates(changes, auditing)
    loader = KeyLoader(region, KeyStore(loads), calls, providers, states, clock)
    keyring = Keyring(loader, clock=clock)
    return Core(
        region, calls, providers, states, keyring, Mover(moves, auditing, deletions), turns, (loads, changes, *moves)
    )


def key_plane(
    made: Core, control: ControlPlane, auditing: Auditing, jobs: Jobs, pool: Pool, signer: Signer
) -> KeyPlane:
    """The rest: bindings, moves between them, and what watches over all."""
    changes = made.ledgers[1]
    bindings = Bindings(
        made.region, control, made.calls, made.providers, signed=lambda text: sign_note(text, [signer]).decode()
    )
    moves = Moves(made.region, bindings, made.keyring, control, jobs, changes, pool)
    rekey = Rekey(made.region, made.keyring, control, jobs, changes, pool, made.mover)
    prober = Prober(changes, pool, made.calls, made.providers, made.states, auditing)
    watch = Watch(made.keyring, prober, pool, moves.rotate_due, rekey.drop_due, prober.vendor_due)
    return KeyPlane(
        made.calls, made.keyring, made.states, bindings, moves, rekey, watch, prober, made.turns, made.ledgers
    )
