"""Quantize an ONNX file with NNCF for OpenVINO: mixed preset (symmetric weights, asymmetric activations).

    python with_nncf.py model.onnx frames.npy quantized.xml

Runs in NNCF's own environment. `frames.npy` holds frames as the model takes them, uint8 [N, H, W, 3], all of which
are used; normalization is part of the model. Beside the result, quantized.facts.json holds seconds and versions.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Read, quantize, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    model = ov.Core().read_model(args.model)
    frames = np.load(args.frames)
    dataset = nncf.Dataset([frame[None] for frame in frames])
    start = time.perf_counter()
    quantized = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(frames))
    seconds = time.perf_counter() - start
    ov.save_model(quantized, args.output, compress_to_fp16=False)
    facts = {"seconds": seconds, "versions": {name: version(name) for name in ("nncf", "openvino")}}
    args.output.with_suffix(".facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
