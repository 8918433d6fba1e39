"""Bundles: a folder that holds an engine, proves that it is whole, and proves that it still answers right.

    engines/NAME/manifest.json   what it is, for which device, hashes of every other file, what was measured
    engines/NAME/model.onnx      the precision graph that the engine was built from
    engines/NAME/engine.*        the engine
    engines/NAME/selftest.npz    a frame and its labels (the known-answer test)
    engines/NAME/manifest.sig    who made it, where it was signed (`fcnopt.signing`)

A bundle is written to a temporary folder beside its place and renamed, so a killed build leaves nothing that loads.
Loading checks the signature before the manifest is parsed and every hash before a byte reaches a runtime's
deserializer, then runs the known-answer test.
"""

from fcnopt.bundle.folder import MODEL, RECIPE, Bundle
from fcnopt.bundle.loading import load, sign
from fcnopt.bundle.staging import finish, prepare, sha256_of, staged, write_text
from fcnopt.signing import MANIFEST, SIGNATURE

__all__ = [
    "MANIFEST",
    "MODEL",
    "RECIPE",
    "SIGNATURE",
    "Bundle",
    "finish",
    "load",
    "prepare",
    "sha256_of",
    "sign",
    "staged",
    "write_text",
]
