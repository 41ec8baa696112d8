"""docs/format-audit.md names every field, action, finding and exit code that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from app.audit import verify
from app.audit.event import ACTIONS, FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "format-audit.md").read_text()


def test_every_field_is_documented_with_its_shape_and_meaning() -> None:
    for name, field in FIELDS.items():
        assert f"| `{name}` | {field.shape} | {field.meaning} |" in PAGE


def test_every_action_is_documented() -> None:
    for name, meaning in ACTIONS.items():
        assert f"| `{name}` | {meaning} |" in PAGE


def test_every_finding_of_the_verifier_is_documented() -> None:
    source = Path(verify.__file__).read_text()
    found = set(re.findall(r'(?:add|StopReading)\(\s*"([a-z-]+)"', source)) | {"incomplete"}
    assert found == set(re.findall(r"^\| `([a-z-]+)` \| [013] \|", PAGE, re.MULTILINE))
