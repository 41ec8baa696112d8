"""A process beside the workers, started again whenever it ends before it should."""

from __future__ import annotations

import importlib
import multiprocessing
import threading
from collections.abc import Callable
from typing import Final

_AGAIN_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 10.0


def run(target: str) -> None:
    """What the process does: ``module:function``. A name, since a new interpreter imports it for itself."""
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)()


def keep(target: str, name: str) -> Callable[[], None]:
    """Start ``target`` and keep it running. Answers what stops it.

    It inherits the environment, so that no secret stands in an argument.
    """
    context = multiprocessing.get_context("spawn")
    stopping = threading.Event()
    running: list[multiprocessing.process.BaseProcess] = []

    def watch() -> None:
        while not stopping.is_set():
            process = context.Process(target=run, args=(target,), name=name, daemon=True)
            process.start()
            running[:] = [process]
            process.join()
            stopping.wait(_AGAIN_SECONDS)

    thread = threading.Thread(target=watch, name=f"keep-{name}", daemon=True)
    thread.start()

    def stop() -> None:
        stopping.set()
        for process in running:
            process.terminate()
        thread.join(_STOP_SECONDS)
        for process in running:
            process.kill()

    return stop
