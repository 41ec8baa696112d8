"""A tenant's key bindings as its administrator sees them: what there is, what must be pasted, what the doctor finds,
what still depends on a key, and the tenant's own kill switch. ``moves.py`` changes which key rules.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.crypto.secret import SecretKey
from app.errors import Conflict, InvalidRequest, NotFound
from app.identity import Caller, new_id
from app.kms.binding import Binding, record
from app.kms.doctor import Check, Outcome, Patient, examine, may_activate
from app.kms.onboarding import Step, steps
from app.kms.provider import KmsError
from app.services import key_transfers
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.kms_calls import KmsCalls
from app.services.providers import Providers, stored_binding
from app.store import bindings as rows
from app.store import jobs as job_rows
from app.store import privacy_records as consents
from app.store.keys import destroy_roots, last_generation, lock_tenant, move_epoch, move_key_state, roots_of
from app.store.ledger import Transaction

VENDOR: Final = "vendor"
MOVES: Final = ["reseal", "rekey"]
MAX_BINDINGS: Final = 32

Signed = Callable[[bytes], str]
"""Signs a statement's bytes with the cell's audit key: a signed note's text."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that opens a tenant's data."""

    tenant: Any
    bindings: list[Any]
    roots: list[Any]
    dependents: dict[int, tuple[int, int]]
    jobs: list[Any]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the tenant decides about its keys. ``regions``: where a KMS key may be; ``rotation_days``: None: never."""

    lease_seconds: int
    grace_seconds: int
    rotation_days: int | None
    regions: frozenset[str]


def policy_of(row: Any, region: str) -> Policy:
    """From the tenant's row."""
    settings = orjson.loads(row["settings"])
    regions = settings.get("allowed_kms_regions")
    allowed = frozenset(regions) if regions is not None else key_transfers.home(region)
    return Policy(row["lease_seconds"], row["grace_seconds"], settings.get("rotation_days"), allowed)


class Bindings:
    """The control plane of keys, short of moving between them."""

    def __init__(
        self,
        region: str,
        control: ControlPlane,
        calls: KmsCalls,
        providers: Providers,
        signed: Signed | None = None,
    ) -> None:
        self._region = region
        self._control = control
        self._calls = calls
        self._providers = providers
        self.signed = signed

    # ------------------------------------------------------------ looking

    async def inventory(self, caller: Caller, trace: Trace) -> Inventory:
        async with self._control.look(caller, trace) as tx:
            tenant = await rows.tenant_row(tx, caller.tenant)
            return Inventory(
                tenant,
                await rows.all_of(tx, caller.tenant),
                await roots_of(tx, caller.tenant),
                await rows.dependents(tx, caller.tenant),
                await job_rows.unfinished(tx, caller.tenant, MOVES),
            )

    async def get(self, caller: Caller, binding: UUID, trace: Trace) -> tuple[Any, dict[str, int]]:
        """A binding's row, and what depends on it. Raises ``NotFound``."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, caller.tenant, binding)
            if row is None:
                raise NotFound
            return row, await depending(tx, caller.tenant, row)

    def to_paste(self, tenant: UUID, row: Any) -> list[Step]:
        """What the customer must do in his own cloud for a binding."""
        if row["provider"] == VENDOR:
            return []
        try:
            binding = stored_binding(row["provider"], orjson.loads(row["fields"]))
            return steps(binding, self._providers.registry.settings, tenant)
        except (KmsError, ValueError):
            return []

    # ------------------------------------------------------------ making and checking

    async def create(self, caller: Caller, given: Mapping[str, Any], trace: Trace) -> Any:
        """A pending binding. Raises ``InvalidRequest`` with the place and what to give instead, ``Conflict``."""
        async with self._control.act(caller, trace, "binding.create") as act:
            tenant = await lock_tenant(act.tx, caller.tenant)
            if given.get("provider") == VENDOR:
                if len(given) > 1:
                    raise InvalidRequest("A binding to the vendor's key has no further fields.", "")
                provider, fields, external, transfer_to = VENDOR, {}, "", None
            else:
                made = self._validated(caller.tenant, given, policy_of(tenant, self._region))
                transfer_to = key_transfers.destination(made, self._providers.registry.settings)
                key_transfers.require(transfer_to, await consents.consented(act.tx, caller.tenant, "kms"))
                provider = made.provider
                fields = {name: value for name, value in record(made).items() if name != "provider"}
                external = fields.get("external_id") or fields.get("proof") or ""
            if (
                len([each for each in await rows.all_of(act.tx, caller.tenant) if each["state"] != "retired"])
                >= MAX_BINDINGS
            ):
                raise Conflict("The tenant has too many bindings. Retire one first.")
            row = await rows.insert(act.tx, caller.tenant, new_id(), provider, fields, external, transfer_to)
            act.detail |= {"binding": str(row["id"]), "provider": provider}
        return row

    def _validated(self, tenant: UUID, given: Mapping[str, Any], policy: Policy) -> Binding:
        return self._providers.registry.validate_binding(given, tenant, policy.regions)

    async def check(self, caller: Caller, binding: UUID, trace: Trace) -> tuple[Any, list[Check]]:
        """Run the doctor: every call is in the log. Raises ``NotFound``, ``Conflict``, ``Unavailable``."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, caller.tenant, binding)
            tenant = await rows.tenant_row(tx, caller.tenant)
            generation = await last_generation(tx, caller.tenant) + 1
            consented = await consents.consented(tx, caller.tenant, "kms")
        if row is None:
            raise NotFound
        if row["state"] == "retired":
            raise Conflict("The binding is retired. Make a new one.")
        policy = policy_of(tenant, self._region)
        checks, transfer_to = await self.examined(caller.tenant, row, policy, generation, consented)
        ok = may_activate(checks)
        async with self._control.act(caller, trace, "binding.check") as act:
            await rows.get(act.tx, caller.tenant, binding, lock=True)
            await rows.note_transfer(act.tx, caller.tenant, binding, transfer_to)
            after = await rows.keep_report(act.tx, caller.tenant, binding, [asdict(each) for each in checks], ok=ok)
            failed = [each.name for each in checks if each.outcome is Outcome.FAIL]
            act.detail |= {"binding": str(binding), "ok": str(ok).lower(), "failed": ",".join(failed)}
            if after["state"] != row["state"]:
                moved(act.tx, caller.tenant, binding, row["state"], after["state"])
        return after, checks

    async def examined(
        self, tenant: UUID, row: Any, policy: Policy, generation: int, consented: frozenset[str]
    ) -> tuple[list[Check], str | None]:
        """What the doctor finds of a binding now, and the region abroad that its key is in.

        A key that is known to be abroad isn't called without a consent.
        """
        transfer_to: str | None = row["transfer_to"]
        if transfer_to is not None and transfer_to not in consented:
            return [key_transfers.look(transfer_to, consented)], transfer_to
        context = self._calls.context(tenant, "vendor" if row["provider"] == VENDOR else "customer", generation)
        if row["provider"] == VENDOR:
            return [await self._vendor_check(tenant, generation)], None
        try:
            binding = stored_binding(row["provider"], orjson.loads(row["fields"]))
            provider = self._providers.registry.provider(binding)
        except KmsError as error:
            cause = f"The binding can't be used in this cell ({error.code})."
            return [Check("key-reachable", True, Outcome.FAIL, cause, "Make a new binding.")], transfer_to

        async def audited(operation: str, fn: Callable[[UUID], Awaitable[Any]]) -> Any:
            nonlocal transfer_to
            found = await self._calls.call(provider, tenant, operation, fn, context=context, why="check")
            if operation == "describe" and found.region is not None:
                transfer_to = key_transfers.abroad(found.region, self._region)
            return found

        patient = Patient(
            binding,
            context,
            policy.regions,
            lambda region: key_transfers.abroad(region, self._region) in {None, *consented},
        )
        checks = await examine(patient, self._providers.registry, audited)
        return [*checks, key_transfers.look(transfer_to, consented)], transfer_to

    async def _vendor_check(self, tenant: UUID, generation: int) -> Check:
        """The vendor's key wraps and unwraps."""
        half = SecretKey.generate()
        try:
            vendor = self._providers.vendor
            wrapped = await self._calls.wrap(vendor, tenant, "vendor", generation, half, why="check")
            opened = await self._calls.unwrap(
                vendor, tenant, "vendor", generation, wrapped.ciphertext, wrapped.kek_version, why="check"
            )
            same = opened.key == half
            opened.key.wipe()
        except KmsError as error:
            return Check(
                "wrap-and-unwrap", True, Outcome.FAIL, f"The cell's own key fails ({error.code}).", "Try later."
            )
        finally:
            half.wipe()
        return Check("wrap-and-unwrap", True, Outcome.PASS if same else Outcome.FAIL)

    # ------------------------------------------------------------ retiring

    async def retire(self, caller: Caller, binding: UUID, trace: Trace) -> tuple[Any, dict[str, int]]:
        """Take a binding out of use, if nothing depends on it any more; else answer what does, and change nothing.

        At zero its root keys are emptied, and a signed statement says that the key may be disabled. Raises
        ``NotFound``; ``Conflict`` for the binding that seals now.
        """
        async with self._control.act(caller, trace, "binding.retire") as act:
            tenant = caller.tenant
            await lock_tenant(act.tx, tenant)
            row = await rows.get(act.tx, tenant, binding, lock=True)
            if row is None:
                raise NotFound
            act.detail |= {"binding": str(binding), "from": row["state"]}
            if row["current"]:
                raise Conflict("This binding seals the tenant's keys now. Activate another one first.")
            if row["state"] == "retired":
                return row, {"root_keys": 0, "container_keys": 0, "index_keys": 0}
            # While a move is under way, a write that began before it may still bring a key under an old root key.
            if not await job_rows.unfinished(act.tx, tenant, MOVES) and await destroy_roots(act.tx, tenant):
                await move_epoch(act.tx, tenant)
            left = await depending(act.tx, tenant, row)
            act.detail |= left
            if left["root_keys"]:
                return row, left
            act.detail["to"] = "retired"
            after = await rows.retire(act.tx, tenant, binding, self._statement(tenant, row))
            moved(act.tx, tenant, binding, row["state"], "retired")
            await rows.settle(act.tx, tenant, ["revoked", "unavailable"])
        return after, left

    def _statement(self, tenant: UUID, row: Any) -> dict[str, Any]:
        """That nothing which this tenant stores here needs the key any more. Backups made before may still need it."""
        said = {
            "statement": "No stored key of this tenant is wrapped by this key. It may be disabled. Backups taken before"
            " this time open only while it lives.",
            "region": self._region,
            "tenant": str(tenant),
            "binding": str(row["id"]),
            "provider": row["provider"],
            "kek": row["kek"] or "",
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        text = orjson.dumps(said, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        return {"text": text.decode(), "signed": self.signed(text) if self.signed is not None else None}

    # ------------------------------------------------------------ the kill switch, the policy

    async def seal(self, caller: Caller, trace: Trace) -> Any:
        """No key of the tenant's is used from the next statement of any worker on."""
        async with self._control.act(caller, trace, "key.seal") as act:
            await move_key_state(act.tx, caller.tenant, "sealed", ["active", "unavailable", "revoked", "rekeying"])
            return await lock_tenant(act.tx, caller.tenant)

    async def unseal(self, caller: Caller, trace: Trace) -> Any:
        """Back to what the bindings say: a key that is revoked stays so."""
        async with self._control.act(caller, trace, "key.unseal") as act:
            found = await rows.settle(act.tx, caller.tenant, ["sealed"])
            if found is not None:
                act.detail["to"] = found[1]
            return await lock_tenant(act.tx, caller.tenant)

    async def set_policy(self, caller: Caller, changes: Mapping[str, Any], trace: Trace) -> Any:
        """``changes``: lease_seconds, grace_seconds, rotation_days (None: never), allowed_kms_regions (None: default).

        Takes effect at the next statement of every worker.
        """
        columns = {name: changes[name] for name in ("lease_seconds", "grace_seconds") if name in changes}
        kept = {name: changes[name] for name in ("rotation_days", "allowed_kms_regions") if name in changes}
        drop = [name for name, value in kept.items() if value is None]
        async with self._control.act(caller, trace, "key.policy") as act:
            act.detail |= columns
            act.detail |= {name: _plain(value) for name, value in kept.items()}
            given = orjson.dumps({name: value for name, value in kept.items() if value is not None}).decode()
            lease, grace = columns.get("lease_seconds"), columns.get("grace_seconds")
            await rows.set_policy(act.tx, caller.tenant, lease, grace, given, drop)
            return await lock_tenant(act.tx, caller.tenant)


def _plain(value: Any) -> str | int:
    return ",".join(value) if isinstance(value, list) else (value if value is not None else "none")


async def depending(tx: Transaction, tenant: UUID, row: Any) -> dict[str, int]:
    """What would be lost with a binding's key: root keys, and what those still open."""
    bound = None if row["provider"] == VENDOR else row["id"]
    roots = await roots_of(tx, tenant)
    counts = await rows.dependents(tx, tenant)  # after the roots: it knows of each of them
    mine = [root["generation"] for root in roots if root["binding_id"] == bound]
    if row["provider"] == VENDOR and not row["activated_at"]:
        mine = []
    return {
        "root_keys": len(mine),
        "container_keys": sum(counts[generation][0] for generation in mine),
        "index_keys": sum(counts[generation][1] for generation in mine),
    }


def moved(tx: Transaction, tenant: UUID, binding: UUID, before: str, after: str) -> None:
    """A binding's change of state is an event of its own."""
    detail = {"binding": str(binding), "from": before, "to": after}
    tx.event(tenant, "binding.state", orjson.dumps({"detail": detail}).decode())
