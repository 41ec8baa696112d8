"""Metrics add up over workers and never go down; log lines hold ids and numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.observability.logs import RequestEntry, RequestLog
from app.observability.metrics import Metrics
from app.observability.tracing import new_traceparent, trace_id_of


def _samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


async def test_requests_are_counted_by_route_template_and_status(world: Any, note: Any) -> None:
    await world.call("GET", f"/v1/notes/{note}")
    await world.call("GET", "/v1/notes/x")
    await world.call("BREW", "/nowhere")
    found = _samples(world.metrics.render())
    assert found["confide_http_requests_total", ("GET", "/v1/notes/{id}", "200")] == 1
    assert found["confide_http_requests_total", ("GET", "/v1/notes/{id}", "404")] == 1
    assert found["confide_http_requests_total", ("", "unmatched", "404")] == 1
    assert found["confide_http_request_seconds_count", ("GET", "/v1/notes/{id}")] == 2
    assert found["confide_http_requests_in_flight", ()] == 0


def test_workers_add_up_and_a_successor_counts_on(tmp_path: Path) -> None:
    first, second = Metrics(), Metrics()
    for worker in (first, second):
        worker.attach(tmp_path / "metrics")
        worker.key_cache.inc(("root", "hit"), 3)
        worker.http_in_flight.set(1)
        worker.lease_age.observe(12.0)
        worker.flush()
    assert _samples(first.render())["confide_key_cache_lookups_total", ("root", "hit")] == 6
    second.detach()
    after = _samples(first.render())
    assert after["confide_key_cache_lookups_total", ("root", "hit")] == 6
    assert after["confide_http_requests_in_flight", ()] == 1
    assert after["confide_key_lease_age_seconds_count", ()] == 2
    assert after["confide_key_lease_age_seconds_bucket", ("20.0",)] == 2
    third = Metrics()
    third.attach(tmp_path / "metrics")
    third.key_cache.inc(("root", "hit"))
    assert _samples(third.render())["confide_key_cache_lookups_total", ("root", "hit")] == 7
    assert len(list((tmp_path / "metrics").glob("*.json"))) == 2
    first.detach()
    third.detach()


@pytest.mark.parametrize("junk", [b"", b"{", b'{"numbers":5}', b"\xff"])
def test_a_broken_file_keeps_no_worker_from_starting(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "worker-0.json").write_bytes(junk)
    metrics = Metrics()
    metrics.attach(tmp_path)
    metrics.audit_commits.inc(("ok",))
    assert _samples(metrics.render())["confide_audit_commits_total", ("ok",)] == 1
    metrics.detach()


def test_a_histogram_puts_each_value_into_its_bucket() -> None:
    metrics = Metrics()
    for value in (1.0, 2.0, 2.5, 1000.0):
        metrics.batch_items.observe(value, ("read",))
    found = _samples(metrics.render())
    counts = [found["confide_batch_items_bucket", ("read", bound)] for bound in ("1.0", "2.0", "4.0", "256.0", "+Inf")]
    assert counts == [1, 2, 3, 3, 4]
    assert found["confide_batch_items_sum", ("read",)] == 1005.5


async def test_a_request_leaves_one_line_of_ids_and_numbers(world: Any, note: Any) -> None:
    reply = await world.call("GET", f"/v1/notes/{note}", headers={"user-agent": "agent-of-mine"})
    (line,) = world.log.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.keys() == {
        "time", "level", "logger", "route", "method", "status", "ms", "request", "trace", "tenant", "api_key",
    }  # fmt: skip
    assert (entry["route"], entry["status"], entry["level"]) == ("/v1/notes/{id}", 200, "info")
    assert entry["request"] == reply.headers["confide-request-id"]
    assert str(note) not in line
    assert "agent" not in line


def _entry(status: int) -> RequestEntry:
    return RequestEntry("/v1/x", "GET", status, 0.0015, "r", "t", None, None)


@pytest.mark.parametrize(("share", "lines"), [(0.0, 1), (0.25, 26), (1.0, 101)])
def test_a_share_of_the_requests_is_logged_and_every_failure(share: float, lines: int) -> None:
    stream = io.StringIO()
    log = RequestLog(share, stream)
    for _ in range(100):
        log.write(_entry(200))
    log.write(_entry(500))
    assert len(stream.getvalue().splitlines()) == lines
    assert json.loads(stream.getvalue().splitlines()[-1])["level"] == "error"


def test_lines_are_batched_where_a_loop_runs() -> None:
    stream = io.StringIO()
    due: list[Callable[[], None]] = []
    log = RequestLog(1.0, stream, lambda _, call: due.append(call))
    for _ in range(5):
        log.write(_entry(200))
    assert (stream.getvalue(), len(due)) == ("", 1)
    due[0]()
    assert len(stream.getvalue().splitlines()) == 5


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        RequestLog(1.5)


def test_an_outgoing_call_stays_in_the_trace() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace_id_of(new_traceparent(trace).encode()) == trace
