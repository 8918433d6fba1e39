"""What is refused before Triton is started, and what surrounds its start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections import namedtuple
from pathlib import Path

import pytest

from fcnopt.errors import BackendError, UsageError
from fcnopt.serving import leftovers, place


def test_a_port_in_use_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=f"port {port} on 127.0.0.1 cannot be used: Address already in use") as e:
            place.check_port("127.0.0.1", port, "grpc_port")
        assert "--grpc-port" in e.value.fix
        with pytest.raises(BackendError, match=f"port {port} on 0.0.0.0"):
            place.check_port("0.0.0.0", port, "http_port")  # noqa: S104  (refused)
    place.check_port("127.0.0.1", port, "grpc_port")


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="is no IPv4 address of this machine"):
        place.check_port(host, 8000, "http_port")


def test_too_little_shared_memory_is_refused_with_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(64 << 20, 0, 64 << 20))
    place.check_shared_memory(56 << 20, 8)
    with pytest.raises(BackendError, match="has 64 MiB free, requests of 8 frames take 65 MiB") as caught:
        place.check_shared_memory(57 << 20, 8)
    assert "--shm-size=129m" in caught.value.fix


def test_programs_started_inside_find_this_interpreters_library_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine")
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    (tmp_path / "base" / "lib").mkdir(parents=True)
    (tmp_path / "base" / "lib" / name).write_bytes(b"")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    with place.own_libpython(tmp_path / "found"):
        assert os.environ["LD_LIBRARY_PATH"] == f"{tmp_path / 'found'}:/opt/mine"
        assert (tmp_path / "found" / name).resolve() == tmp_path / "base" / "lib" / name
    assert os.environ["LD_LIBRARY_PATH"] == "/opt/mine"
    monkeypatch.delenv("LD_LIBRARY_PATH")
    with place.own_libpython(tmp_path / "again"):
        assert os.environ["LD_LIBRARY_PATH"] == str(tmp_path / "again")
    assert "LD_LIBRARY_PATH" not in os.environ


def test_an_interpreter_without_a_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _name: str(tmp_path))
    with (
        pytest.raises(BackendError, match=r"has no shared library libpython3\.\d+\.so\.1\.0"),
        place.own_libpython(tmp_path / "lib"),
    ):
        pass


def test_only_what_is_forked_inside_has_a_group_of_its_own() -> None:
    def group_of_child() -> int:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(os.getpgid(0)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            return int(pipe.read()) - child

    with place.own_group():
        assert group_of_child() == 0
    assert group_of_child() != 0


def test_what_a_killed_server_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(leftovers, "SHARED", tmp_path / "shm")
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, running = (tmp_path / f"fcnopt-serve-{number}-abcd1234" for number in (gone.pid, os.getpid()))
    for folder in (dead, running, tmp_path / "shm"):
        folder.mkdir()
    left = [tmp_path / "shm" / f"pytrtion{number}-1" for number in (gone.pid, os.getpid())]
    for segment in left:
        segment.touch()
    shutil.copy("/bin/sleep", dead / "stub")
    orphan = subprocess.Popen([dead / "stub", "60"])
    while not Path(f"/proc/{orphan.pid}/exe").resolve().is_relative_to(tmp_path):
        time.sleep(0.01)  # it has not yet become the program
    new = leftovers.work_folder()
    assert orphan.wait(10) == -9
    assert (dead.exists(), running.exists(), new.is_dir()) == (False, True, True)
    assert [segment.exists() for segment in left] == [False, True]
