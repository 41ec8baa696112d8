"""``confide serve --demo`` as a newcomer runs it: paste the lines, restart, kill, find everything again."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from app.embedded.processes import servers_in
from tests.ports import Port

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
RESTART_SECONDS = 15
"""On a machine that has time. On one that hasn't, a first start, which makes a database and migrates it, says more."""
LEADER, BACKLOG = "confide_audit_sealer_leader", "confide_audit_backlog_flushes"


class Service:
    """A served demo with its state in ``state``. Its output goes to files, as a user's shell would redirect it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.out = state.parent / "out"
        self.log = state.parent / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[str] = []
        self.port: Port | None = None

    def start(self, *options: str) -> float:
        """Answers how many seconds it took until the lines were printed."""
        self.port = Port()  # another one than the last, which is still held
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
        began = time.monotonic()
        with self.out.open("wb") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve", "--demo", "--port", str(self.port.number), *options],
                cwd=ROOT,
                env=clean | {"CONFIDE_ENV": "dev", "CONFIDE_STATE_DIR": str(self.state)},
                stdout=out,
                stderr=log,
            )
        while len(self.lines_printed()) < 3:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - began < START_SECONDS, self.log.read_text()
            time.sleep(0.05)
        self.lines = self.lines_printed()
        return time.monotonic() - began

    def start_again(self, first: float) -> None:
        """In seconds, on a machine that has time; one that is busy just now is given another try."""
        for _ in range(4):
            if self.start() < max(RESTART_SECONDS, first):
                return
            assert self.stop() == 0
        pytest.fail("a restart takes long")

    def lines_printed(self) -> list[str]:
        return re.findall(r"^curl .*\n", self.out.read_text(), re.MULTILINE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(120)

    def paste(self, line: str) -> dict:
        """In a shell of its own, in another folder, with nothing of ours in its environment."""
        done = subprocess.run(
            ["sh", "-c", line], cwd="/", env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
        )
        return json.loads(done.stdout)

    def env(self) -> dict[str, str]:
        lines = (self.state / "demo.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state of a run")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def workers_of(pid: int) -> list[psutil.Process]:
    """The living worker processes; one that has just been killed may still be a zombie."""
    found = []
    for each in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(each.cmdline()) and each.nice() == os.nice(0):
                found.append(each)
    return found


def sealer_of(pid: int) -> psutil.Process | None:
    """The process that seals the log: it stands back behind the workers."""
    for each in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(each.cmdline()) and each.nice() > os.nice(0):
                return each
    return None


def test_three_pasted_lines_commit_load_and_show_both_in_the_audit_log(service: Service) -> None:
    service.start()
    commit, load, audit = service.lines
    session = service.paste(commit)["session"]
    assert (session["commit"], session["created"]) == (1, True)
    loaded = service.paste(load)
    assert loaded["session"]["id"] == session["id"]
    assert loaded["turns"][0]["json"]["role"] == "user"
    events = service.paste(audit)["events"]
    assert {"context.commit", "context.load"} <= {event["action"] for event in events}
    assert service.stop() == 0


def test_what_a_run_leaves_is_private_and_shows_no_key(service: Service) -> None:
    service.start("--workers", "2")
    for line in service.lines:
        service.paste(line)
    env = service.env()
    assert set(env) == {
        "CONFIDE_URL",
        "CONFIDE_TENANT",
        "CONFIDE_RUNTIME_KEY",
        "CONFIDE_ADMIN_KEY",
        "CONFIDE_AUDITOR_KEY",
        "CONFIDE_OPERATOR_KEY",
    }
    for path in service.state.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    secrets = [value for name, value in env.items() if name.endswith("_KEY")]
    secrets += [(service.state / "confide_app.password").read_text().strip()]
    secrets += [(service.state / "cell.secret").read_text().strip()]
    assert service.process is not None
    seen = ""
    for process in (psutil.Process(service.process.pid), *children(service.process.pid)):
        with suppress(psutil.NoSuchProcess):  # a backend that has ended meanwhile
            seen += " ".join(process.cmdline())
    assert "serve --demo" in seen
    seen += service.out.read_text() + service.log.read_text()
    for secret in secrets:
        assert secret not in seen
        assert secret[-20:] not in seen


def test_a_second_start_takes_seconds_and_goes_on_where_the_first_stood(service: Service) -> None:
    first = service.start()
    session = service.paste(service.lines[0])["session"]
    before = service.env()
    assert service.stop() == 0
    assert servers_in(service.state / "postgres" / "data") == []
    service.start_again(first)
    after = service.env()
    assert {name: value for name, value in after.items() if name != "CONFIDE_URL"} == {
        name: value for name, value in before.items() if name != "CONFIDE_URL"
    }
    assert after["CONFIDE_URL"] != before["CONFIDE_URL"]
    assert service.paste(service.lines[1])["session"]["id"] == session["id"]


def test_nothing_acknowledged_is_lost_when_everything_is_killed(service: Service) -> None:
    first = service.start("--workers", "2")
    session = service.paste(service.lines[0])["session"]
    assert service.process is not None
    below = children(service.process.pid)
    service.process.kill()
    service.process.wait()
    _, alive = psutil.wait_procs(below, timeout=120)
    assert alive == []
    service.start_again(first)
    loaded = service.paste(service.lines[1])
    assert (loaded["session"]["id"], loaded["session"]["commit"]) == (session["id"], 1)


def test_a_killed_worker_is_started_again(service: Service) -> None:
    service.start("--workers", "2")
    assert service.process is not None
    deadline = time.monotonic() + 120
    while len(workers := workers_of(service.process.pid)) != 2:  # one that is just becoming something else counts too
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers[0].kill()
    while time.monotonic() < deadline:
        now = workers_of(service.process.pid)
        if len(now) == 2 and workers[0].pid not in {each.pid for each in now}:
            break
        time.sleep(0.1)
    else:
        pytest.fail("no second worker")
    service.paste(service.lines[0])
    assert service.stop() == 0


def test_a_killed_postgres_is_started_again_and_serves(service: Service) -> None:
    service.start()
    session = service.paste(service.lines[0])["session"]
    data = service.state / "postgres" / "data"
    postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(KeyError, ValueError, subprocess.CalledProcessError):
            if service.paste(service.lines[1])["session"]["id"] == session["id"]:
                return
        time.sleep(0.2)
    pytest.fail("the service didn't come back")


def test_a_demo_whose_keys_no_longer_work_is_renewed(service: Service) -> None:
    service.start()
    before = service.env()
    admin = httpx2.Client(
        base_url=before["CONFIDE_URL"],
        headers={"authorization": f"Bearer {before['CONFIDE_ADMIN_KEY']}"},
        timeout=60,
    )
    with admin:
        keys = {key["name"]: key["id"] for key in admin.get("/v1/api-keys").json()["keys"]}
        assert admin.post(f"/v1/api-keys/{keys['demo-runtime']}/revoke").status_code == 200
    service.stop()
    service.start()
    assert service.env()["CONFIDE_TENANT"] != before["CONFIDE_TENANT"]
    assert service.paste(service.lines[0])["session"]["created"] is True


def test_g4_a_killed_sealer_is_started_again_and_seals_what_came_meanwhile(service: Service) -> None:
    service.start()
    assert service.process is not None
    deadline = time.monotonic() + 120
    while (first := sealer_of(service.process.pid)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    service.paste(service.lines[0])
    env = service.env()
    while not sealed(env["CONFIDE_URL"]) or (again := sealer_of(service.process.pid)) is None or again.pid == first.pid:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert any(event["action"] == "context.commit" for event in service.paste(service.lines[2])["events"])
    assert service.stop() == 0


def sealed(url: str) -> bool:
    """Whether a sealer leads and nothing waits for it."""
    metrics = httpx2.get(f"{url}/metrics", timeout=60).text
    found = [re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE) for name in (LEADER, BACKLOG)]
    return [float(value[1]) for value in found if value] == [1.0, 0.0]
