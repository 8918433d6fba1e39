"""`fcnopt serve` in its own environment, asked by Triton's clients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from faults.case import Fault
from faults.process import BENCHMARKS, run_in

from vehicle_steps.rows import Figures, NotRun, Row, Work, tried

STEP = "serve"
_CLIENTS = (1, 2, 4)
_PROTOCOLS = ("http", "grpc")


def steps(work: Work) -> list[Row]:
    """Rows of this step; one visit gives them all."""
    visit: list[dict[str, Any]] = []

    def first() -> Figures:
        visit.append(_visited(work))
        return {"start s": visit[0]["start_s"], **_ready(visit[0])}

    rows = [tried(STEP, "start fcnopt serve", "health and metrics answer", first)]
    if not visit:
        return rows
    found = visit[0]
    for name in _PROTOCOLS:
        rows.append(
            tried(
                STEP,
                f"the clip by tritonclient over {name.replace('grpc', 'gRPC').replace('http', 'HTTP')}, a frame a "
                "request",
                "label maps equal to the local engine's",
                lambda name=name: _asked(found["asked"][name]),
            )
        )
    for count in _CLIENTS:
        rows.append(
            tried(
                STEP,
                f"{count} client{'s' * (count > 1)} over gRPC, each as fast as it is answered",
                "every request answered, labels equal to the local engine's",
                lambda count=count: _loaded(found["clients"][str(count)]),
            )
        )
    rows.append(tried(STEP, "SIGTERM", "exit code 0, no process left", lambda: _stopped(found)))
    return rows


def _visited(work: Work) -> dict[str, Any]:
    if work.serve_python is None:
        raise NotRun("no environment with fcnopt[serve] was given (--serve-python)")
    folder = work.place("served")
    np.save(folder / "frames.npy", work.fitted)
    np.save(folder / "labels.npy", np.stack(work.raw_labels))
    words = [str(work.bundle.absolute()), str(folder / "frames.npy"), str(folder / "labels.npy")]
    words += ["--clients", ",".join(map(str, _CLIENTS)), "--seconds", str(work.seconds)]
    limit_s = 600 + 10 * len(work.fitted) + len(_CLIENTS) * (work.seconds + 120)
    done = run_in(BENCHMARKS, [str(work.serve_python), "-m", "serving.visit", *words], limit_s)
    if done.returncode:
        raise Fault(f"serving.visit exits with {done.returncode}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ready(found: dict[str, Any]) -> Figures:
    silent = [name for name, answers in found["ready"].items() if not answers]
    if silent:
        raise Fault(f"no answer: {', '.join(silent)}")
    return {"MiB of all its processes": found["mib"]}


def _asked(found: dict[str, Any]) -> Figures:
    if found["equal"] != found["frames"]:
        raise Fault(f"{found['equal']} of {found['frames']} label maps are equal")
    return {"frames": found["frames"], "equal labels": "100 %", "latency ms": found["latency_ms"]}


def _loaded(found: dict[str, Any]) -> Figures:
    wrong = [f"{found[name]} {name}" for name in ("wrong", "rejected", "failed", "lost") if found[name]]
    if wrong or not found["answered"]:
        raise Fault(f"of {found['sent']} requests: {', '.join(wrong) or 'none answered'}; {found['said']}")
    return {
        "answered": found["answered"],
        "answers/s": found["answers_per_s"],
        "latency ms": {name: found["latency_ms"][name] for name in ("p50", "p99", "max")},
    }


def _stopped(found: dict[str, Any]) -> Figures:
    if found["exit_code"] or found["left"]:
        raise Fault(f"exit code {found['exit_code']}, {found['left']} processes left; {found['said']}")
    return {"stop s": found["stop_s"]}
