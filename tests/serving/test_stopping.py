"""Starts that fail, and stops: what was accepted is answered, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from serving.load import Load, OpenLoop
from serving.memory import descendants
from serving.process import ServeProcess, free_ports

from fcnopt.bundle import MODEL, load, sign
from fcnopt.serving.leftovers import SHARED
from fcnopt.signing import new_key
from tests.serving.clients import Asker

# What requests get that reach Triton when it is being stopped.
_TOO_LATE = "StatusCode.NOT_FOUND: Request for unknown model: 'slow' has no available versions"


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `fcnopt serve` where it is expected to end by itself."""
    command = [sys.executable, "-m", "fcnopt.cli", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def left_by(process: int) -> list[Path]:
    """Folders and shared memory of a server."""
    return [*Path(tempfile.gettempdir()).glob(f"fcnopt-serve-{process}-*"), *SHARED.glob(f"pytrtion{process}-*")]


@pytest.mark.parametrize("group", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_what_was_accepted_is_answered_and_what_comes_later_is_refused(triton: None, slow: Path, group: bool) -> None:  # noqa: ARG001
    """With an idle HTTP client beside, whose connection Triton would wait for."""
    frame = np.random.default_rng(1).integers(0, 256, (1, 768, 1024, 3), dtype=np.uint8)
    with load(slow) as engine:
        expected = engine.run(frame).labels
    with ServeProcess(slow, "--timeout-ms", 600_000) as server, Asker(server, "http", "slow") as idle:
        assert idle.client.is_server_ready()
        client = OpenLoop(Load(server.grpc, "slow", patience_s=300.0), frame, expected)
        for _ in range(8):
            client.send()
        _wait_for(lambda: client.tally.answered >= 1)
        before_stop = client.tally.answered
        processes = descendants(server.process.pid)
        assert len(processes) > 2
        assert left_by(server.process.pid)
        code = server.stop(signal.SIGINT if group else signal.SIGTERM, group=group)
        client.wait()
        client.close()
        found = client.tally
        assert (code, found.lost, found.wrong, found.rejected) == (0, 0, 0, 0), (server.said, found.said)
        assert found.answered - before_stop >= 2, "the server was to be stopped under load"
        assert f"answered {found.answered} requests with {found.answered} frames" in server.said
        assert set(found.said) <= {_TOO_LATE}
        assert "Traceback" not in server.said
    _wait_for(lambda: not any(_runs(process) for process in processes))
    assert left_by(server.process.pid) == []


def test_a_killed_server_lets_its_ports_go_and_the_next_cleans_up(triton: None, small: Path) -> None:  # noqa: ARG001
    with ServeProcess(small) as server:
        tree = descendants(server.process.pid)
        server.stop(signal.SIGKILL)
        _wait_for(lambda: _is_free(server.ports[0]) and _is_free(server.ports[1]))
        assert left_by(server.process.pid)
    with ServeProcess(small):
        assert left_by(server.process.pid) == []
        _wait_for(lambda: not any(_runs(process) for process in tree))


def test_a_port_in_use_ends_the_start_with_its_name(triton: None, small: Path) -> None:  # noqa: ARG001
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = [f"--{name}-port={free}" for name, free in zip(("http", "metrics"), free_ports(2), strict=True)]
        ended = serve(small, f"--grpc-port={port}", *others)
    assert ended.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in ended.stderr
    assert "fix: give another one with --grpc-port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_damaged_bundle_is_refused_before_anything_listens(triton: None, small: Path, tmp_path: Path) -> None:  # noqa: ARG001
    damaged = Path(shutil.copytree(small, tmp_path / "damaged"))
    (damaged / MODEL).write_bytes((damaged / MODEL).read_bytes()[:-1])
    ended = serve(damaged)
    assert ended.returncode == 1
    assert "SHA-256" in ended.stderr
    assert "fix:" in ended.stderr


def test_only_a_bundle_that_a_trusted_key_signed_is_served(triton: None, small: Path, tmp_path: Path) -> None:  # noqa: ARG001
    signed = Path(shutil.copytree(small, tmp_path / "signed"))
    mine, other = (new_key(tmp_path / f"{name}.key") for name in ("mine", "other"))
    sign(signed, tmp_path / "mine.key")
    for bundle, key in ((small, mine), (signed, other)):
        ended = serve(bundle, "--trusted-key", key)
        assert (ended.returncode, "sign" in ended.stderr) == (1, True), ended.stderr
    with ServeProcess(signed, "--trusted-key", mine) as server, Asker(server, "http", "small") as asker:
        assert asker.client.is_model_ready("small")


def test_a_triton_that_does_not_start_says_why_at_once(triton: None, small: Path, tmp_path: Path) -> None:  # noqa: ARG001
    start = time.monotonic()
    environ = {**os.environ, "PYTRITON_TRITON_CONFIG_CACHE_CONFIG_0": "nowhere,size=1000"}
    log = tmp_path / "triton.log"
    command = [sys.executable, "-m", "fcnopt.cli", "serve", small, "--log", log]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)
    assert ended.returncode == 1
    assert "error: serve: Triton did not start: creating server: Invalid argument - unable to find" in ended.stderr
    assert time.monotonic() - start < 60


def test_without_triton_it_says_what_to_install(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fcnopt.cli import main

    monkeypatch.setitem(sys.modules, "pytriton", None)
    result = CliRunner().invoke(main, ["serve", str(small)])
    assert result.exit_code == 1
    assert 'pip install "fcnopt[serve]"' in result.output


def _wait_for(done, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
