"""The error family: every mistake a user can make is one of these.

An error says what was found, where, and what to do about it. The command line prints message and fix without
a traceback and exits with `exit_code`; anything that is not an `FcnoptError` is a bug and keeps its traceback.
"""


class FcnoptError(Exception):
    """Something the user can mend.

    Args:
        message: Names the object (file, node, tensor, option), what was expected and what was found.
        fix: What the user can do, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}"


class UsageError(FcnoptError):
    """The request itself is wrong: an unknown name, a missing or contradictory option."""

    exit_code = 2


class CheckpointError(FcnoptError):
    """A checkpoint cannot be read, or is not the network it was taken for."""


class GraphError(FcnoptError):
    """An ONNX graph is invalid, unsupported, or not equivalent to the one it came from."""


class MediaError(FcnoptError):
    """A video, image or label map cannot be read or does not fit."""


class CalibrationError(FcnoptError):
    """Ranges are missing, stale or unusable."""


class BuildError(FcnoptError):
    """An engine could not be built."""


class BundleError(FcnoptError):
    """A bundle is incomplete, changed, or made for another device or version."""


class BackendError(FcnoptError):
    """A runtime is missing, or failed while running."""


class GateError(FcnoptError):
    """A measured result misses the gate that the user set."""
