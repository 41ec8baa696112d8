"""The load generator: one process, one thread, sockets and epoll, requests that were built beforehand.

A user is a generator that yields a request's bytes and is sent the answer. Closed loop: each user asks again as soon
as it has its answer. Open loop: requests are due at a fixed rate; each is timed from when it was due and not from when
a connection was free for it, so that a stall counts for all whom it would have kept waiting.

    python -m bench.loadgen < job.json      prints "begin", "end" and then the result, one line each
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from bench import workloads

WARMUP = 0.5
STALL = 15.0
"""Seconds without any answer after which the run is given up."""


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes


User = Generator[bytes, Answer, None]


class Connection:
    """A socket and what has arrived of the answer that is awaited on it."""

    __slots__ = ("asked", "buffer", "left", "need", "socket", "user")

    def __init__(self, address: tuple[str, int], user: User | None = None) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.user = user
        self.buffer = b""
        self.need = 0
        self.left = memoryview(b"")
        self.asked = 0.0

    def send(self, request: bytes, now: float) -> bool:
        """Whether all of it went; what is left goes when the socket is writable."""
        self.asked = now
        self.socket.setblocking(False)
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        self.left = memoryview(request)[sent:] if sent < len(request) else memoryview(b"")
        return not self.left

    def send_rest(self) -> bool:
        try:
            self.left = self.left[self.socket.send(self.left) :]
        except BlockingIOError:
            return False
        return not self.left

    def receive(self) -> Answer | None:
        """The answer, once it has arrived whole."""
        try:
            data = self.socket.recv(262144)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError("the server closed a connection")
        if self.buffer:
            data = self.buffer + data
        if self.need and len(data) < self.need:
            self.buffer = data
            return None
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.buffer = data
            return None
        head = data[:end]
        start = head.lower().find(b"content-length: ")
        length = int(head[start + 16 : (head.find(b"\r", start) + 1 or len(head) + 1) - 1]) if start >= 0 else 0
        if len(data) < end + 4 + length:
            self.buffer, self.need = data, end + 4 + length
            return None
        self.buffer, self.need = b"", 0
        return Answer(int(head[9:12]), head, data[end + 4 :])


class Run:
    """What was measured: a latency for each answer, and how many of each status."""

    def __init__(self, kinds: int) -> None:
        self.latencies = [array("d") for _ in range(kinds)]
        self.statuses: dict[int, int] = {}
        self.failure = b""

    def note(self, answer: Answer, seconds: float, kind: int = 0) -> None:
        self.latencies[kind].append(seconds)
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        if answer.status >= 400 and not self.failure:
            self.failure = answer.body[:300]


def closed(address: tuple[str, int], users: Sequence[User], seconds: float) -> tuple[Run, float]:
    """Every user on a connection of its own, for so long after the warm-up. Answers the run and its true length."""
    run, poll, by_fd = Run(1), select.epoll(), {}
    clock = time.perf_counter
    for user in users:
        connection = Connection(address, user)
        by_fd[connection.socket.fileno()] = connection
        whole = connection.send(next(user), clock())
        poll.register(connection.socket, select.EPOLLIN if whole else select.EPOLLIN | select.EPOLLOUT)
    begin = clock() + WARMUP
    end, begun, heard = begin + seconds, False, clock()
    while (now := clock()) < end:
        if not begun and now >= begin:
            begun, begin = True, now
            end = begin + seconds
            print("begin", flush=True)
        for fd, event in poll.poll(0.05):
            connection = by_fd[fd]
            if event & select.EPOLLOUT:
                if connection.send_rest():
                    poll.modify(fd, select.EPOLLIN)
                continue
            answer = connection.receive()
            if answer is None:
                continue
            heard = now = clock()
            if begun:
                run.note(answer, now - connection.asked)
            if not connection.send(connection.user.send(answer), now):
                poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        if clock() - heard > STALL:
            raise TimeoutError("no answer any more")
    print("end", flush=True)
    return run, clock() - begin


class OpenLoop:
    """Each stream's requests come due at its own rate, evenly. A stream's latencies are kept apart."""

    def __init__(self, address: tuple[str, int], streams: Sequence[tuple[User, float]], connections: int) -> None:
        self.run = Run(len(streams))
        self._streams = streams
        self._poll = select.epoll()
        self._by_fd = {(c := Connection(address)).socket.fileno(): c for _ in range(connections)}
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)
        self._idle = deque(self._by_fd.values())
        self._waiting = deque[tuple[float, int]]()
        self._pending: dict[int, tuple[float, int]] = {}
        for user, _ in streams:
            next(user)

    def go(self, seconds: float) -> Run:
        clock = time.perf_counter
        start = clock()
        begin = start + WARMUP
        end = begin + seconds
        due = [start + number / (len(self._streams) * rate) for number, (_, rate) in enumerate(self._streams)]
        begun = False
        # Also what came due while this process had no core: it is asked late, and counted as late.
        while (now := clock()) < end or min(due) < end or ((self._pending or self._waiting) and now < end + STALL):
            if not begun and now >= begin:
                begun = True
                print("begin", flush=True)
            for kind, (_, rate) in enumerate(self._streams):
                while due[kind] <= now and due[kind] < end:
                    self._waiting.append((due[kind], kind))
                    due[kind] += 1 / rate
            self._send()
            self._receive(min(due) - clock() if now < end else 0.05, begin)
        print("end", flush=True)
        for at, kind in [*self._waiting, *self._pending.values()]:
            self.run.latencies[kind].append(clock() - at)  # never answered: at least so long
        return self.run

    def _send(self) -> None:
        while self._waiting and self._idle:
            at, kind = self._waiting.popleft()
            connection = self._idle.popleft()
            self._pending[connection.socket.fileno()] = (at, kind)
            request = self._streams[kind][0].send(Answer(0, b"", b""))
            if not connection.send(request, at):
                self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _receive(self, pause: float, begin: float) -> None:
        """Sleep until something arrives or a request is due; epoll sleeps whole milliseconds, so spin the rest."""
        for fd, event in self._poll.poll(min(pause - 0.001, 0.05) if pause > 0.002 else 0):
            connection = self._by_fd[fd]
            if event & select.EPOLLOUT:
                if connection.send_rest():
                    self._poll.modify(fd, select.EPOLLIN)
                continue
            answer = connection.receive()
            if answer is None:
                continue
            at, kind = self._pending.pop(fd)
            self._idle.append(connection)
            if at >= begin:
                self.run.note(answer, time.perf_counter() - at, kind)


def summary(run: Run, seconds: float, cpu: float) -> dict[str, Any]:
    every = sorted(x for each in run.latencies for x in each)
    return {
        "seconds": seconds,
        "answers": len(every),
        "rate": len(every) / seconds,
        "generator_cpu": cpu / seconds,
        "statuses": run.statuses,
        "failure": run.failure.decode("utf-8", "replace"),
        "streams": [quantiles(sorted(each)) for each in run.latencies],
        **quantiles(every),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    if not values:
        return {"count": 0}
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    found = {
        name: round(values[min(len(values) - 1, int(len(values) * share))] * 1e3, 4) for name, share in named.items()
    }
    return {**found, "max": round(values[-1] * 1e3, 3), "count": len(values)}


def main() -> None:
    job = json.load(sys.stdin)
    users = workloads.users(job)
    address = (job["host"], job["port"])
    started = time.process_time()
    if job.get("rates"):
        streams = list(zip(users, job["rates"], strict=True))
        run, seconds = OpenLoop(address, streams, job["connections"]).go(job["seconds"]), job["seconds"]
    else:
        run, seconds = closed(address, users, job["seconds"])
    print(json.dumps(summary(run, seconds, time.process_time() - started)), flush=True)


if __name__ == "__main__":
    main()
