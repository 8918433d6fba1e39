"""The command line: parse, call one function, print, exit code."""

from __future__ import annotations

import click

import fcnopt
from fcnopt.cli.deploying import deploy
from fcnopt.cli.making import build, export, optimize
from fcnopt.cli.measuring import bench, compare
from fcnopt.cli.running import run
from fcnopt.cli.serving import serve
from fcnopt.cli.showing import demo, doctor, inspect
from fcnopt.cli.signing import sign
from fcnopt.cli.slimming import slim


@click.group(
    commands=(slim, export, optimize, build, bench, compare, run, sign, deploy, serve, inspect, doctor, demo),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(fcnopt.__version__, prog_name="fcnopt")
def main() -> None:
    """Take a trained fully convolutional network to engines that a car can run.

    \b
    The three steps, one after another in one folder:
      fcnopt export fcn8s.pth              checkpoint -> engines/fcn8s.onnx, verified against PyTorch
      fcnopt build --precision int8        -> engines/fcn8s-int8-TARGET/, calibrated on what lies in calib/
      fcnopt bench video.mp4               FPS, latency, and mIoU against the FP32 reference
    Each takes the newest result of the one before it, or what you name.
    """  # noqa: D301  (click reads the escape)
