"""The version, for manifests and `fcnopt --version`."""

__version__ = "0.1.0"
