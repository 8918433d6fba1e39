"""Engines without a bundle, and ways to use them hard."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcnopt.backends.base import Runner
from fcnopt.engine import Engine
from fcnopt.manifest import Manifest
from fcnopt.spec import ModelSpec


def engine_of(runner: Runner) -> Engine:
    """An engine as `load` makes it."""
    spec: ModelSpec = runner.spec
    names = ("name", "created", "fcnopt", "device", "runtime")
    words = dict.fromkeys(names, "tiny")
    manifest = Manifest(
        **words, spec=spec, target="openvino", precision="fp32", engine=(), files={}, sources={}, min_agreement=1.0
    )
    return Engine(runner, manifest)


def in_threads(*work: Callable[[], Any], within_s: float = 120) -> list[Any]:
    """Run side by side; what each returned or raised."""
    found: list[Any] = [None] * len(work)

    def one(place: int) -> None:
        try:
            found[place] = work[place]()
        except Exception as error:  # noqa: BLE001  (shown by the assertion on what was found)
            found[place] = error

    started = [threading.Thread(target=one, args=(place,), daemon=True) for place in range(len(work))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(within_s)
    assert not any(thread.is_alive() for thread in started), "a thread hangs"
    return found


def script(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python of its own with an `engine` and `frames`."""
    import textwrap

    begin = f"""
        import itertools
        from pathlib import Path
        import numpy as np
        from fcnopt.backends.openvino import OpenVinoRunner
        from fcnopt.errors import UsageError
        from tests.backends.tiny import tiny_onnx, tiny_spec
        from tests.engines import engine_of
        model = tiny_onnx(Path({str(folder)!r}) / "tiny.onnx", tiny_spec())
        engine = engine_of(OpenVinoRunner(model, tiny_spec()))
        frames = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), np.uint8)
    """
    text = textwrap.dedent(begin) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1]
    )
