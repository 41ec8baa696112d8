"""A served demo, as the pages tell a newcomer to start it, in a folder of its own that holds its ``.confide``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import Port

ROOT = Path(__file__).parents[2]
START_SECONDS = 100
SNIPPETS_SECONDS = 90

# curl that fails where the service refuses: no example may show a call that doesn't work.
CURL = """#!/bin/sh
PATH=$PATH_WITHOUT_SHIM exec curl --fail-with-body "$@"
"""


@dataclass
class Demo:
    """``folder`` stands for the checkout in which the reader types."""

    folder: Path
    out: Path

    @property
    def values(self) -> dict[str, str]:
        lines = (self.folder / ".confide" / "demo.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def printed(self) -> list[str]:
        """The lines to paste."""
        return re.findall(r"^curl .*(?=\n)", self.out.read_text(), re.MULTILINE)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """``command`` in the folder, with the checkout's programs found first."""
        shim = self.folder / "shim"
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": f"{shim}{os.pathsep}{programs}", "PATH_WITHOUT_SHIM": programs, **more}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SNIPPETS_SECONDS,
            check=False,
        )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """``confide serve --demo`` on a free port."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "app").symlink_to(ROOT / "app")
    (folder / "shim").mkdir()
    (folder / "shim" / "curl").write_text(CURL)
    (folder / "shim" / "curl").chmod(0o755)
    demo = Demo(folder, folder / "out")
    port = Port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    with demo.out.open("wb") as out, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--demo", "--port", str(port.number)],
            cwd=ROOT,
            env=clean | {"CONFIDE_ENV": "dev", "CONFIDE_STATE_DIR": str(folder / ".confide")},
            stdout=out,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while len(demo.printed) < 3:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield demo
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
