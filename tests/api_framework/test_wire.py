"""What a client says over the wire that is no request, or more than one: each gets a problem document, in its turn."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any, BinaryIO

import pytest

KEY = b"host: x\r\nauthorization: Bearer runtime\r\n"
PUT = b"PUT %s/context/a/b HTTP/1.1\r\n" + KEY
LIMIT = 64 * 1024


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def problem(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["cache-control"] == "no-store"
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["instance"] == f"urn:uuid:{self.headers['confide-request-id']}"
        return str(document["type"].removeprefix("urn:confide:problem:"))


def read_reply(stream: BinaryIO) -> Reply | None:
    """The next answer, or None where the connection has ended."""
    line = stream.readline()
    if not line:
        return None
    head = b""
    while (more := stream.readline()).strip():
        head += more
    headers = BytesParser().parsebytes(head)
    return Reply(int(line.split()[1]), headers, stream.read(int(headers.get("content-length", 0))))


def talk(served: Any, *pieces: bytes) -> list[Reply]:
    """Send the pieces and read until the service hangs up."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        with client.makefile("rb") as stream:
            found = []
            while (reply := read_reply(stream)) is not None:
                found.append(reply)
    return found


@pytest.mark.parametrize("path", ["/v1/notes", "/nowhere", "/v1/notes/%00?x#y"])
def test_a_method_that_no_resource_has_is_501(served: Any, path: str) -> None:
    requests = [f"{method} {path}" for method in ("FOO", "foo", "get", "GETX", "Put", "X-Y", "!#$%&'*+.^_`|~")]
    for request in (*requests, "CONNECT a:1"):
        [reply] = talk(served, f"{request} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert (reply.status, reply.problem, reply.headers["connection"]) == (501, "method-unknown", "close"), request


def test_a_method_that_others_have_is_405_with_those_of_the_path(served: Any) -> None:
    first, second = (b"%s /v1/notes HTTP/1.1\r\nhost: x\r\n" % method for method in (b"PROPFIND", b"TRACE"))
    replies = talk(served, first + b"\r\n" + second + b"connection: close\r\n\r\n")
    assert [(reply.status, reply.problem) for reply in replies] == [(405, "method-not-allowed")] * 2
    assert replies[0].headers["allow"] == "GET, HEAD, POST, OPTIONS"


MALFORMED = {
    "no-request": b"\x00\x01\x02\x03",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "words": b"hello there, how are you\r\n\r\n",
    "method-with-a-control": b"G\x01T / HTTP/1.1\r\n\r\n",
    "method-with-a-colon": b"FO:O / HTTP/1.1\r\n\r\n",
    "no-method": b" / HTTP/1.1\r\n\r\n",
    "no-path": b"GET  HTTP/1.1\r\n\r\n",
    "relative-path": b"GET v1/notes HTTP/1.1\r\n\r\n",
    "raw-utf8-path": b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
    "blank-in-path": b"GET /a b HTTP/1.1\r\n\r\n",
    "absolute-without-path": b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
    "version": b"GET / HTTP/3.1\r\n\r\n",
    "no-colon": b"GET / HTTP/1.1\r\nhost\r\n\r\n",
    "blank-before-colon": b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    "folded-header": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n",
    "nul-in-header": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    "bare-cr": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n",
    "two-lengths": b"PUT / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length-and-chunks": b"PUT / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative-length": b"PUT / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "length-beyond-64-bit": b"PUT / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    "hex-length": b"PUT / HTTP/1.1\r\ncontent-length: 0x1\r\n\r\na",
    "chunked-not-last": b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("slowly", [False, True], ids=["at-once", "byte-by-byte"])
def test_what_is_not_http_gets_a_problem_and_is_hung_up_on(served: Any, *, slowly: bool) -> None:
    replies = {}
    for name, sent in MALFORMED.items():
        [replies[name]] = talk(served, *([bytes([byte]) for byte in sent] if slowly else [sent]))
    for name, reply in replies.items():
        assert (reply.status, reply.problem, reply.headers["connection"]) == (400, "bad-request", "close"), name
    deadline = time.monotonic() + 60
    while (log := served.world.log.getvalue()).count('"status":400') < len(MALFORMED) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(reply.headers["confide-request-id"] in log for reply in replies.values())
    assert served.world.metrics.http_requests.values[("", "unmatched", "400")] == len(MALFORMED)


BROKEN_CHUNKS = {
    "no-number": b"zz\r\n",
    "longer-than-said": b"3\r\nabcd\r\n0\r\n\r\n",
    "negative": b"-1\r\n",
    "beyond-64-bit": b"fffffffffffffffff\r\n",
    "bad-trailer": b"3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
}


def test_a_broken_chunk_is_a_problem(served: Any, note: Any) -> None:
    head = PUT % f"/v1/notes/{note}".encode() + b"transfer-encoding: chunked\r\n\r\n"
    for name, body in BROKEN_CHUNKS.items():
        for pieces in ([head, b"1\r\na\r\n", body], [head + b"1\r\na\r\n" + body]):
            [reply] = talk(served, *pieces)
            assert (reply.status, reply.problem) == (400, "bad-request"), name


def test_what_is_malformed_is_answered_after_what_came_before_it(served: Any, note: Any) -> None:
    good = b"GET /v1/notes/%s HTTP/1.1\r\n%s\r\n" % (str(note).encode(), KEY)
    slow = b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n"
    broken_body = PUT % b"/" + b"transfer-encoding: chunked\r\n\r\nzz\r\n"
    for ended in (
        b"\x00garbage\r\n\r\n",
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        broken_body,
    ):
        replies = talk(served, slow + good + good + ended)
        assert [reply.status for reply in replies] == [204, 200, 200, 400]
        assert replies[-1].problem == "bad-request"


def test_a_body_that_breaks_after_its_answer_gets_no_second_one(served: Any) -> None:
    head = PUT.replace(b"runtime", b"nobody") % b"/v1/notes/x" + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client, client.makefile("rb") as stream:
        client.sendall(head)
        reply = read_reply(stream)
        assert reply is not None
        assert reply.status == 401
        client.sendall(b"zz\r\n")
        assert read_reply(stream) is None


HEADS = {
    "one-header": b"x: " + b"y" * LIMIT,
    "many-headers": b"\r\n".join(b"x%d: y" % n for n in range(LIMIT // 6)),
    "endless-name": b"x" * 5 * LIMIT,
}


def test_a_head_beyond_the_limit_is_431(served: Any) -> None:
    for name, header in HEADS.items():
        head = b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n"
        for pieces in ([head], [head[:9], head[9:70_000], head[70_000:]]):
            [reply] = talk(served, *pieces)
            assert (reply.status, reply.problem) == (431, "head-too-large"), name


def test_a_long_path_and_an_endless_head_are_431(served: Any) -> None:
    [reply] = talk(served, b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (reply.status, reply.problem) == (431, "head-too-large")
    [reply] = talk(served, b"GET / HTTP/1.1\r\nhost: ", *[b"x" * 50_000] * 4)
    assert (reply.status, reply.problem) == (431, "head-too-large")


def test_a_head_within_the_limit_is_served_however_large_its_body(served: Any, note: Any) -> None:
    head = PUT % f"/v1/notes/{note}".encode() + b"x: " + b"y" * (LIMIT - 1000) + b"\r\nconnection: close\r\n"
    sent = head + b"content-type: a/b\r\ncontent-length: 900\r\n\r\n" + b"z" * 900
    assert [reply.body for reply in talk(served, sent)] == [b"z" * 900]
    assert [reply.body for reply in talk(served, sent[:60_000], sent[60_000:])] == [b"z" * 900]


def test_endless_trailers_and_chunk_extensions_end(served: Any, note: Any) -> None:
    head = PUT % f"/v1/notes/{note}".encode() + b"content-type: a/b\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    for endless in (b"0\r\nx: ", b"1;x="):
        [reply] = talk(served, head, endless, *[b"y" * 50_000] * 4)
        assert (reply.status, reply.problem) == (400, "bad-request")


def test_a_trailer_is_no_header(served: Any, note: Any) -> None:
    head = (PUT % f"/v1/notes/{note}".encode()).replace(b"authorization: Bearer runtime\r\n", b"")
    chunks = (
        b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\na\r\n0\r\nauthorization: Bearer runtime\r\n\r\n"
    )
    assert [reply.status for reply in talk(served, head + chunks)] == [401]


def test_an_upgrade_that_is_not_offered_is_ignored_and_no_body_is_lost(served: Any, note: Any) -> None:
    """As Java's HttpClient asks by default. A body taken for the next request would be a request smuggled in."""
    put = PUT % f"/v1/notes/{note}".encode() + b"content-type: a/b\r\n"
    wish = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
    inner = b"DELETE /v1/notes/%s HTTP/1.1\r\n%s\r\n" % (str(note).encode(), KEY)
    last = b"GET /v1/notes HTTP/1.1\r\n" + KEY + b"connection: close\r\n\r\n"
    sized = put + wish + b"content-length: %d\r\n\r\n" % len(inner)
    chunked = put + wish + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(inner)
    for head, tail in ((sized, b""), (chunked, b"\r\n0\r\n\r\n")):
        for pieces in ([head + inner + tail + last], [head, inner[:3], inner[3:] + tail, last]):
            replies = talk(served, *pieces)
            assert [reply.status for reply in replies] == [200, 200]
            assert replies[0].body == inner


def test_an_upgrade_is_ignored_where_there_is_no_body(served: Any) -> None:
    for wanted in (b"websocket", b"h2c", b"TLS/1.3"):
        wish = b"connection: upgrade\r\nupgrade: " + wanted + b"\r\n"
        request = b"GET /v1/notes HTTP/1.1\r\n" + KEY
        replies = talk(served, request + wish + b"\r\n" + request + b"connection: close\r\n\r\n")
        assert [reply.status for reply in replies] == [200, 200]


def test_a_client_that_asks_whether_to_send_is_told(served: Any, note: Any) -> None:
    head = PUT % f"/v1/notes/{note}".encode() + b"content-type: a/b\r\nexpect: 100-continue\r\nconnection: close\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client, client.makefile("rb") as stream:
        client.sendall(head + b"content-length: 3\r\n\r\n")
        assert stream.readline() + stream.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        reply = read_reply(stream)
        assert reply is not None
        assert reply.body == b"abc"
    [reply] = talk(served, head + b"content-length: 99999999\r\n\r\n")
    assert (reply.status, reply.problem) == (413, "too-large")
