"""The benchmark's parts run: the generator counts its answers, the baselines do the work, the report adds up."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from bench import cell, measure, plain, report, stats, suite, targets
from bench.cell import Subject
from bench.measure import LoadError, Measured
from bench.processes import uvicorn
from bench.workloads import json_bytes


@pytest.fixture
def stocked(empty_database: str, tmp_path: Path) -> tuple[str, str, Path]:
    """A plain service's database with a little in it, its key, and its targets."""
    url, key, path = empty_database, cell.new_key(), tmp_path / "targets.json"
    asyncio.run(cell.execute(url, plain.SCHEMA.format(storage=plain.TUNED), plain.EXTERNAL))
    asyncio.run(cell.seed_plain(url, key, path, sessions=20, objects=3, body=json_bytes(4096, random.Random(1))))
    return url, key, path


@pytest.mark.parametrize("target", ["plain", "grouped"])
def test_the_baselines_answer_every_request(stocked: tuple[str, str, Path], tmp_path: Path, target: str) -> None:
    url, key, path = stocked
    with cell.plain_server(target, url, key, tmp_path / "log", target=f"bench.{target}:application") as server:
        subject = Subject(target, server.port, server.pid, path)
        for workload in ("put", "get", "conditional"):
            found = measure.run(subject, server.pid, {"workload": workload, "seconds": 0.5, "connections": 4})
            assert found.detail["answers"] > 0
            assert set(found.detail["statuses"]) == {"200"}
        paced = {"streams": [{"workload": "get"}], "rates": [100], "connections": 4, "seconds": 0.5}
        assert measure.run(subject, server.pid, paced).detail["answers"] == pytest.approx(50, abs=3)


def test_refused_requests_make_no_result(stocked: tuple[str, str, Path], tmp_path: Path) -> None:
    url, _, path = stocked
    with cell.plain_server("plain", url, "another key", tmp_path / "log") as server:
        subject = Subject("plain", server.port, server.pid, path)
        with pytest.raises(LoadError, match="refused"):
            measure.run(subject, server.pid, {"workload": "get", "seconds": 0.5, "connections": 2})


def test_a_server_that_does_nothing_is_served_faster_than_it_could_be_asked_by_others(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    cell.write_targets(path, ["key"], [(0, "session")], 1)
    with uvicorn("noop", "bench.noop:application", tmp_path / "log", env={}, factory=False) as server:
        subject = Subject("noop", server.port, server.pid, path)
        found = measure.run(subject, server.pid, {"workload": "get", "seconds": 0.5, "connections": 8})
    assert found.rate > 100


def test_ratios_are_of_the_same_round() -> None:
    def run(rate: float) -> Measured:
        return Measured(rate, 1.0, 2.0, 100.0, 100.0, 0.1, {})

    found = stats.row("confide", [run(300), run(100)], [run(100), run(100)])
    assert found["ratio"] == 2.0
    assert found["ratio_spread"] == [1.0, 3.0]


def test_the_report_holds_targets_against_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    row = {"name": "confide", "rate": 3.0, "ratio": 3.0, "ratio_spread": [2.0, 4.0]}
    bench = suite.Bench(suite.Plan(), tmp_path, None, None, None)  # type: ignore[arg-type]  only its groups are read
    bench.groups = [{"title": "4 KiB put", "rows": [row]}]
    checks = targets.checks(bench)
    assert [(check["measured"], check["met"]) for check in checks] == [(3.0, True)]
    path = report.save({"groups": bench.groups, "checks": checks})
    assert json.loads(path.read_text())["checks"] == checks
    assert "confide" in (tmp_path / "latest.svg").read_text()


@pytest.mark.parametrize("size", [1024, 4096, 65536])
def test_bodies_have_the_size_that_was_asked_for(size: int) -> None:
    body = json_bytes(size, random.Random(1))
    assert len(body) == size
    assert isinstance(json.loads(body), dict)
