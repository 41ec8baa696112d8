"""How commands speak: JSON for scripts, lines for people, one sentence on standard error for what went wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Subparsers = argparse._SubParsersAction  # noqa: SLF001  argparse gives its type no public name

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2


class CommandError(Exception):
    """A command can't do what was asked. The text is for the user: it says what to do and holds no secret."""


def emit(value: Mapping[str, Any], *, as_json: bool) -> None:
    """``value`` on standard output."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for line in _lines(value):
        print(line)


def _lines(value: Mapping[str, Any], indent: str = "") -> Sequence[str]:
    lines: list[str] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{indent}{name}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            lines.append(f"{indent}{name}:")
            for each in item:
                inner = _lines(each, indent + "    ")
                lines += [f"{indent}  - {inner[0].strip()}", *inner[1:]] if inner else []
        else:
            text = ", ".join(map(str, item)) if isinstance(item, list) else item
            lines.append(f"{indent}{name}: {text}")
    return lines


def complain(text: str) -> None:
    """To standard error, every line with the program's name."""
    for line in text.splitlines():
        print(f"confide: {line}", file=sys.stderr)


def write_private(path: Path, text: str) -> None:
    """A whole new file with mode 0600, in place of any older one. Raises CommandError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor has no Path
            file.write(text)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CommandError(f"{path} can't be written: {os.strerror(error.errno or 0)}") from None
