"""One call of the REST API by the command line. Keys come from the environment and never stand in an argument."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from typing_extensions import override

from app.cli.output import CommandError

TIMEOUT_SECONDS: Final = 30


def base_url() -> str:
    """CONFIDE_URL. Raises CommandError."""
    url = os.environ.get("CONFIDE_URL", "").rstrip("/")
    if urlsplit(url).scheme not in {"http", "https"}:
        raise CommandError("CONFIDE_URL is not set: it holds the service's address, e.g. https://confide.example.com")
    return url


def key(name: str) -> str:
    """An API key from the environment variable ``name``. Raises CommandError."""
    value = os.environ.get(name, "")
    if not value or not value.isascii() or not value.isprintable():
        raise CommandError(f"{name} is not set: it holds the API key. It is never given as an argument.")
    return value


def call(
    method: str,
    path: str,
    *,
    key_name: str | None,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The answer's JSON object. Raises CommandError with what the service said, or that it didn't answer."""
    url = base_url() + path + ("?" + urlencode(query) if query else "")
    headers = {"Accept": "application/json"}
    if key_name is not None:
        headers["Authorization"] = f"Bearer {key(key_name)}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310  http or https
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            value: dict[str, Any] = json.loads(answer.read() or b"{}")
            return value
    except urllib.error.HTTPError as error:
        raise CommandError(_said(error)) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"the service at CONFIDE_URL doesn't answer ({type(error).__name__})") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    @override
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        problem = json.loads(error.read())
        return f"{problem['title']} ({error.code}): {problem['detail']}"
    except (ValueError, KeyError, TypeError, OSError):
        return f"the service answered {error.code}"
