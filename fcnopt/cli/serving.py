"""The command that serves a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnopt.cli.console import BUNDLE, PATH, Command
from fcnopt.cli.signing import trusted_key_option

if TYPE_CHECKING:
    from fcnopt.serving import Served, ServedModel, ServeOptions

_PORT = click.IntRange(1, 65535)


@click.command(cls=Command)
@click.argument("bundle", type=BUNDLE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True, help="HTTP requests and health.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="gRPC requests and health.")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Prometheus metrics.")
@click.option("--model-name", help="What clients call the model [default: the bundle's name]")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    help="Most frames in a request [default: 8, or the engine's batch where that is more]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Most requests that wait; those beyond are rejected.",
)
@click.option(
    "--max-queue-delay-ms",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How long a request may wait for others to be run with.",
)
@click.option(
    "--timeout-ms",
    type=click.FloatRange(min=1),
    default=10_000.0,
    show_default=True,
    help="Requests that waited longer are rejected; a client may ask for less.",
)
@click.option("--max-latency-ms", type=float, help="Flag frames whose labels took the engine longer as late.")
@click.option(
    "--mode",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One batch at a time, or as many side by side as pay.",
)
@click.option("--log", type=PATH, help="File for what Triton logs [default: none kept]")
@trusted_key_option
def serve(bundle: Path, **choices: Any) -> None:
    """Serve BUNDLE with NVIDIA Triton over HTTP and gRPC.

    It ends with Ctrl-C or SIGTERM.

    Clients send raw frames: uint8 [N, H, W, 3] of the model's size and colour order; fcnopt.spec in the model's
    configuration says which, and what labels mean. The output problems has one byte a frame, the sum of: 1 late,
    2 black, 4 overexposed, 8 frozen (requests name their camera in the parameter camera). There is no encryption and
    no login.
    """
    from fcnopt.serving import ServeOptions
    from fcnopt.serving import serve as run

    options = ServeOptions(**choices)
    served = run(bundle, options=options, ready=lambda model: click.echo(_welcome(model, options)))
    click.echo(_farewell(served))


def _welcome(model: ServedModel, options: ServeOptions) -> str:
    host = options.host
    return (
        f"serving {model.bundle} as model {model.name}: {model.describe()}\n"
        f"  HTTP {host}:{options.http_port}, gRPC {host}:{options.grpc_port}, "
        f"metrics http://{host}:{options.metrics_port}/metrics; stop with Ctrl-C"
    )


def _farewell(served: Served) -> str:
    return (
        f"stopped: answered {served.requests} requests with {served.frames} frames in {served.runs} runs; "
        f"late: {served.late}, implausible: {served.implausible}"
    )
