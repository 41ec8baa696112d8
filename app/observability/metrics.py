"""Metrics that cost well under a microsecond to record, and add up over worker processes.

A worker counts in plain dicts. Once a second, and before it answers a scrape, it writes its values to a file of its
own (``worker-<slot>.json``, replaced atomically). A scrape, whichever worker gets it, answers with the sum of all
files. A worker holds its slot with flock(2); a successor takes the slot over and counts on from the file, so no count
ever goes down, and the number of files is the largest number of workers that ever ran at once. Gauges of a slot that
nobody holds are left out. Without a directory a worker answers for itself alone.

Labels are route templates, statuses and the like: never ids, names or anything that a client chose.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

Labels = tuple[str, ...]

SECONDS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0)
LEASE_SECONDS: Final = (1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 3600.0)
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

_MAX_SLOTS: Final = 1024


class Counter:
    """A number that only grows, per combination of labels."""

    __slots__ = ("help", "labels", "name", "values")

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self.name, self.help, self.labels = name, help_text, labels
        self.values: dict[Labels, float] = {}

    def inc(self, labels: Labels = (), by: float = 1) -> None:
        values = self.values
        values[labels] = values.get(labels, 0) + by


class Gauge(Counter):
    """A number of now; over workers it adds up."""

    __slots__ = ()

    def set(self, value: float, labels: Labels = ()) -> None:
        self.values[labels] = value


class Histogram:
    """Counts per bucket: ``values[labels]`` is one count per bound, one for what is beyond, and the sum."""

    __slots__ = ("bounds", "help", "labels", "name", "values")

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Labels = ()) -> None:
        self.name, self.help, self.labels = name, help_text, labels
        self.bounds = tuple(bounds)
        self.values: dict[Labels, list[float]] = {}

    def observe(self, value: float, labels: Labels = ()) -> None:
        cells = self.values.get(labels)
        if cells is None:
            cells = self.values[labels] = [0] * (len(self.bounds) + 2)
        cells[bisect_left(self.bounds, value)] += 1
        cells[-1] += value


class _Snapshot(msgspec.Struct):
    """A worker's values as they stand in its file. Keys of the inner lists are label values."""

    numbers: dict[str, list[tuple[Labels, float]]] = {}
    histograms: dict[str, list[tuple[Labels, list[float]]]] = {}


_decode: Final = msgspec.json.Decoder(_Snapshot).decode


class Metrics:
    """All metrics of a worker; made once per process and passed to whoever records."""

    def __init__(self) -> None:
        self.http_requests = Counter("confide_http_requests", "Requests answered.", ("method", "route", "status"))
        self.http_seconds = Histogram(
            "confide_http_request_seconds",
            "From the request's head to the answer's last byte.",
            SECONDS,
            ("method", "route"),
        )
        self.http_in_flight = Gauge("confide_http_requests_in_flight", "Requests under way.")
        self.internal_errors = Counter("confide_internal_errors", "Failures that nobody foresaw.", ("route",))
        self.key_cache = Counter("confide_key_cache_lookups", "Look-ups in the key cache.", ("level", "result"))
        self.kms_seconds = Histogram(
            "confide_kms_call_seconds",
            "Calls to key management services.",
            SECONDS,
            ("provider", "operation", "outcome"),
        )
        self.lease_age = Histogram(
            "confide_key_lease_age_seconds",
            "Ages of the leases in memory, looked at each time values are shared.",
            LEASE_SECONDS,
        )
        self.audit_commits = Counter(
            "confide_audit_commits", "Committed statements that carry audit events.", ("outcome",)
        )
        self.audit_events = Counter("confide_audit_events", "Audit events committed.", ("outcome",))
        self.batch_items = Histogram("confide_batch_items", "Requests that shared one statement.", SIZES, ("lane",))
        self.statement_seconds = Histogram(
            "confide_statement_seconds", "Statements on the database, with their commit.", SECONDS, ("lane",)
        )
        self.retention_lag = Gauge(
            "confide_retention_lag_seconds", "How late the longest waiting expired container is; the sweeper's lag."
        )
        self.retention_erased = Counter("confide_retention_erased", "Containers erased at the end of their time.")
        self._file: WorkerFile | None = None
        self.gather: Callable[[], None] = lambda: None
        """Called before values are shared or shown: for those who count for themselves."""

    def attach(self, directory: Path) -> None:
        """Share with the other workers through files in ``directory`` (under the state directory; it is made)."""
        self._file = WorkerFile(directory)
        before = self._file.read_own()
        for metric in self.all():
            if isinstance(metric, Histogram):
                size = len(metric.bounds) + 2
                metric.values.update({k: v for k, v in before.histograms.get(metric.name, ()) if len(v) == size})
            elif not isinstance(metric, Gauge):
                metric.values.update(dict(before.numbers.get(metric.name, ())))

    def detach(self) -> None:
        """Write the last values and give the slot free."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def swept(self, lag: float, erased: int) -> None:
        """What one look of the retention sweeper found: seconds late, containers erased."""
        self.retention_lag.set(lag)
        self.retention_erased.inc(by=erased)

    def all(self) -> Iterator[Counter | Histogram]:
        return (value for value in vars(self).values() if isinstance(value, (Counter, Histogram)))

    def flush(self) -> None:
        if self._file is not None:
            self._file.write(self._snapshot())

    def render(self) -> bytes:
        """The sum over all workers in Prometheus' text format."""
        if self._file is None:
            snapshots = [(True, self._snapshot())]
        else:
            self.flush()
            snapshots = self._file.read_all()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Sum(tuple(self.all()), snapshots))
        return generate_latest(registry)

    def _snapshot(self) -> _Snapshot:
        self.gather()
        snapshot = _Snapshot({}, {})
        for metric in self.all():
            if isinstance(metric, Histogram):
                snapshot.histograms[metric.name] = list(metric.values.items())
            else:
                snapshot.numbers[metric.name] = list(metric.values.items())
        return snapshot


class WorkerFile:
    """One worker's slot in the shared directory: ``worker-<slot>.lock`` is held, ``worker-<slot>.json`` is written."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._slot, self._lock = self._claim()

    def _claim(self) -> tuple[int, int]:
        for slot in range(_MAX_SLOTS):
            lock = _locked(self._directory / f"worker-{slot}.lock")
            if lock is not None:
                return slot, lock
        raise RuntimeError("no slot for metrics is free")

    def close(self) -> None:
        os.close(self._lock)

    def read_own(self) -> _Snapshot:
        return _read(self._path(self._slot))

    def read_all(self) -> list[tuple[bool, _Snapshot]]:
        """Each slot's values, and whether a worker holds it."""
        found = []
        for path in sorted(self._directory.glob("worker-*.json")):
            slot = path.stem.removeprefix("worker-")
            found.append((slot == str(self._slot) or _held(path.with_suffix(".lock")), _read(path)))
        return found

    def write(self, snapshot: _Snapshot) -> None:
        path = self._path(self._slot)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(snapshot))
        fresh.replace(path)

    def _path(self, slot: int) -> Path:
        return self._directory / f"worker-{slot}.json"


def _locked(path: Path) -> int | None:
    """A descriptor that holds the file's lock, or None where another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _held(path: Path) -> bool:
    lock = _locked(path)
    if lock is not None:
        os.close(lock)
    return lock is None


def _read(path: Path) -> _Snapshot:
    """An absent or foreign file counts as empty: metrics must never keep a worker from starting."""
    try:
        return _decode(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return _Snapshot({}, {})


class _Sum(Collector):
    """The sum of snapshots in the form that prometheus_client writes out."""

    def __init__(self, metrics: tuple[Counter | Histogram, ...], snapshots: list[tuple[bool, _Snapshot]]) -> None:
        self._metrics = metrics
        self._snapshots = snapshots

    @override
    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics:
            yield self._histogram(metric) if isinstance(metric, Histogram) else self._number(metric)

    def _number(self, metric: Counter) -> Metric:
        gauge = isinstance(metric, Gauge)
        total: dict[Labels, float] = {}
        for held, snapshot in self._snapshots:
            if held or not gauge:
                for labels, value in snapshot.numbers.get(metric.name, ()):
                    total[labels] = total.get(labels, 0) + value
        family = (GaugeMetricFamily if gauge else CounterMetricFamily)(metric.name, metric.help, labels=metric.labels)
        for labels, value in total.items():
            family.add_metric(labels, value)
        return family

    def _histogram(self, metric: Histogram) -> Metric:
        size = len(metric.bounds) + 2
        total: dict[Labels, list[float]] = {}
        for _, snapshot in self._snapshots:
            for labels, cells in snapshot.histograms.get(metric.name, ()):
                if len(cells) == size:
                    known = total.get(labels, [0] * size)
                    total[labels] = [a + b for a, b in zip(known, cells, strict=True)]
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, cells in total.items():
            family.add_metric(labels, _cumulative(metric.bounds, cells), cells[-1])
        return family


def _cumulative(bounds: tuple[float, ...], cells: list[float]) -> list[tuple[str, float]]:
    """Prometheus' buckets count everything up to their bound."""
    count: float = 0
    buckets = []
    for bound, cell in zip((*map(str, bounds), "+Inf"), cells[:-1], strict=True):
        count += cell
        buckets.append((bound, count))
    return buckets
