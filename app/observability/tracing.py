"""Trace ids (W3C Trace Context, https://www.w3.org/TR/trace-context/): taken over when well-formed, else made anew."""

from __future__ import annotations

import os
import re
from typing import Final

_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


def trace_id_of(traceparent: bytes) -> str | None:
    """The trace id of a version 00 ``traceparent``: 32 lower-case hex digits; None where it isn't exactly one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == _NO_TRACE or match[2] == _NO_SPAN:
        return None
    return match[1].decode()


def new_traceparent(trace_id: str) -> str:
    """The header for an outgoing call: the same trace, a new span, sampled."""
    return f"00-{trace_id}-{os.urandom(8).hex()}-01"
