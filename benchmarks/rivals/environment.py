"""An environment of its own for a program whose packages pin versions that fcnopt's do not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from fcnopt.errors import BackendError

HERE = Path(__file__).parent
# It goes first: with it in place, no other package can pull in another build of it.
_FIRST = "torch=="
_READERS = "readers.txt"
_TAIL_LINES = 12


def python_of(peer: str, envs: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing or has other requirements.

    Packages come from where pip is set up to find them; the environment variable PIP_ARGS is handed to `pip install`.

    Args:
        peer: "nncf" or "modelopt": `PEER.txt` beside this file pins what it needs.
        envs: Folder of the environments.

    Raises:
        BackendError: It cannot be made or filled, as without a network or with a full disk.
    """
    wanted = requirements(peer)
    folder = envs / peer
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    pip = _pip(python)
    first = [line for line in wanted.splitlines() if line.startswith(_FIRST)]
    log = envs / f"{peer}.log"
    run([sys.executable, "-m", "venv", "--clear", str(folder)], log)
    run([*pip, *first], log)
    run([*pip, "-r", str(HERE / f"{peer}.txt")], log)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def requirements(peer: str) -> str:
    """The pinned packages of a peer, one a line."""
    return (HERE / f"{peer}.txt").read_text(encoding="utf-8")


def add_readers(peer: str, envs: Path) -> None:
    """Install what reads clips, `readers.txt`, into a peer's environment, where that was not done yet.

    Raises:
        BackendError: It cannot be installed.
    """
    wanted = (HERE / _READERS).read_text(encoding="utf-8")
    folder = envs / peer
    stamp = folder / _READERS
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    run([*_pip(folder / "bin" / "python"), "-r", str(HERE / _READERS)], envs / f"{peer}-readers.log")
    stamp.write_text(wanted, encoding="utf-8")


def _pip(python: Path) -> list[str]:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return command + shlex.split(os.environ.get("PIP_ARGS", ""))


def run(command: list[str], log: Path) -> None:
    """Run a program to its end, with what it prints in `log`.

    Raises:
        BackendError: It cannot be started or fails; the message has the last line that it printed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Another environment's packages must not be found first.
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    # Without folders of this machine: the message stands in results that others read.
    shown = " ".join(Path(word).name for word in command[:4])
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=clean, check=False)
        except OSError as error:
            raise BackendError(f"{shown}: cannot be started: {error.strerror}", fix="install it") from error
    if done.returncode:
        raise BackendError(f"{shown} ... failed: {last_words(log, done.returncode)}", fix=f"read {log}")


def last_words(log: Path, code: int) -> str:
    """The last line of the log that says something, errors before warnings."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    tail = lines[-_TAIL_LINES:]
    errors = [line for line in tail if "error" in line.lower()]
    return (errors or tail or [f"exit code {code}"])[-1]
