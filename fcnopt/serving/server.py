"""NVIDIA Triton as a process of this machine, with one model that this process answers for.

nvidia-pytriton brings the server and hands requests over. What is here is what it leaves open: the interpreter's own
shared library for Triton's Python backend, an exact error where the server does not start, class names in the model's
configuration, and a stop that answers what was accepted.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcnopt.errors import BackendError
from fcnopt.serving.leftovers import work_folder
from fcnopt.serving.model import ServedModel, write_about
from fcnopt.serving.options import ServeOptions
from fcnopt.serving.place import check_port, check_shared_memory, optional, own_group, own_libpython

_START_S = 120.0
_DRAIN_S = 60.0  # for the frames that the engine works on, and for ending the model
_EXIT_S = 3  # how long Triton waits at its end for clients to close HTTP connections that they do not use
_NO_GPU = "CudaDriverHelper has not been initialized"  # logged as an error on every machine without a GPU
_LOG_HEAD = re.compile(r"error: |E\d{4} [^\]]*\] ")
_LOG_LINES = 3
_LOG_CHARACTERS = 400


class TritonServer:
    """A running Triton; a context manager that stops it.

    Args:
        model: What it serves.
        answer: Called with the requests of a batch, from as many threads as the model has instances.
        options: Where it listens.

    Raises:
        BackendError: A port is in use, shared memory or a library is missing, or it does not start.
    """

    def __init__(self, model: ServedModel, answer: Callable[..., Any], options: ServeOptions) -> None:
        self._model, self._options = model, options
        for name, port in options.ports.items():
            check_port(options.host, port, name)
        check_shared_memory(model.shared_bytes, model.max_batch)
        self._folder = work_folder()
        self._log = options.log or self._folder / "triton.log"
        self._id = f"fcnopt-{secrets.token_hex(8)}"
        self._triton: Any = None
        self._workspace: Any = None
        self._started = False
        try:
            self._log_start = _size_of(self._log)
            self._start(answer)
        except BaseException:
            self.close()
            raise

    def is_alive(self) -> bool:
        """Whether the server and what answers its requests still run."""
        return bool(self._triton.is_alive())

    def failed(self, what: str) -> BackendError:
        """An error with the last that Triton logged or printed as such."""
        lines = [line for line in self._triton._triton_server.logs().splitlines() if line.startswith("error: ")]
        with contextlib.suppress(OSError), self._log.open(errors="replace") as file:
            file.seek(self._log_start)
            lines += [line for line in file if line.startswith("E") and _NO_GPU not in line]
        last = "; ".join(_LOG_HEAD.sub("", line.strip())[:_LOG_CHARACTERS] for line in lines[-_LOG_LINES:])
        return BackendError(
            f"serve: Triton {what}{': ' if last else ''}{last}", fix="keep its log (--log PATH) and look into it"
        )

    def close(self) -> None:
        """Refuse new requests, answer those that were accepted, and end Triton. Calling it twice is fine."""
        if self._started:
            self._started = False
            self._drain()
            self._triton.stop()
            _wait(lambda: not self._workspace.exists(), _DRAIN_S)  # where Triton ended first, another thread cleans up
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, answer: Callable[..., Any]) -> None:
        pytriton = optional("pytriton.triton")
        self._workspace = optional("pytriton.utils.workspace").Workspace(self._folder / "w")
        self._triton = pytriton.Triton(
            config=self._config(pytriton),
            workspace=self._workspace,
            # The model is written to a folder before Triton starts: it listens when the model is loaded, not before,
            # and the model's configuration can be completed.
            triton_lifecycle_policy=pytriton.TritonLifecyclePolicy(
                launch_triton_on_startup=False, local_model_store=True
            ),
            # Clients need none of those that are left, and through some they could write files.
            security_config=pytriton.TritonSecurityConfig(
                restricted_endpoints=["shared-memory", "model-repository", "trace", "logging"]
            ),
        )
        self._model.bind(self._triton, answer)
        write_about(self._workspace.model_store_path / self._model.name, self._model)
        with own_libpython(self._folder / "lib"), own_group():
            self._started = True
            self._triton._run_server()  # `run` would wait two minutes for a server that ended at once
        self._wait_until_ready()
        self._triton.connect()

    def _config(self, pytriton: Any) -> Any:
        options = self._options
        return pytriton.TritonConfig(
            id=self._id,
            http_address=options.host,
            grpc_address=options.host,
            metrics_address=options.host,
            **options.ports,
            allow_gpu_metrics=self._model.on_gpu,
            log_file=self._log,
            exit_timeout_secs=_EXIT_S,
        )

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _START_S
        while not self._is_ready():
            if not self._runs():
                raise self.failed("did not start")
            if time.monotonic() > end:
                raise self.failed(f"did not get ready within {_START_S:.0f} s")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        """Whether this very server is ready: another one may have taken the port in the last moment."""
        if self._ask("GET", "health/ready") is None:
            return False
        about = self._ask("GET", "")
        return about is not None and about["name"] == self._id

    def _drain(self) -> None:
        """Unload the model: Triton refuses what comes from now on, and does not let go of it before all is answered."""

        def is_unloaded() -> bool:
            if not self._runs():
                return True
            models = self._ask("POST", "repository/index")
            return models is not None and all(model.get("reason") == "unloaded" for model in models)

        self._ask("POST", f"repository/models/{self._model.name}/unload")
        _wait(is_unloaded, self._options.timeout_ms / 1e3 + _DRAIN_S)  # in the queue at most the former

    def _runs(self) -> bool:
        """Whether Triton's process runs; `is_alive` is also about what answers its requests."""
        return bool(self._triton._triton_server.is_alive())

    def _ask(self, method: str, path: str) -> Any:
        """Triton's answer on its HTTP port: JSON, {} where it says nothing, None where there is no good answer.

        A connection each, since Triton waits at its end for those that are open.
        """
        host = "127.0.0.1" if self._options.host == "0.0.0.0" else self._options.host  # noqa: S104  (compared)
        headers = optional("pytriton.client.auth").create_auth_headers(self._triton.get_access_token(), "http")
        connection = HTTPConnection(host, self._options.http_port, timeout=_DRAIN_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, HTTPException, ValueError):
            connection.request(method, f"/v2/{path}".rstrip("/"), "{}" if method == "POST" else None, headers)
            response = connection.getresponse()
            text = response.read()
            return json.loads(text or b"{}") if response.status == HTTPStatus.OK else None
        return None


def _size_of(log: Path) -> int:
    """Where Triton goes on writing; raises `BackendError` where it could not."""
    try:
        with log.open("a") as file:
            return file.tell()
    except OSError as error:
        raise BackendError(f"serve: {log}: cannot be written: {error.strerror}", fix="give another --log") from error


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done() and time.monotonic() < end:
        time.sleep(0.02)
