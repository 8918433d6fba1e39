"""What is done already: files in a folder, each written whole or not at all, that belong to one request.

A file holds the key of what it was made from. One of another key is made anew, so that a folder can be used again
after an option was changed, and what the option does not touch is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from fcnopt.errors import FcnoptError
from fcnopt.leftovers import clear_up, part_of


def key_of(*parts: object) -> str:
    """SHA-256 over what a result depends on; parts are words, numbers, or what JSON takes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Work:
    """A folder of intermediate results.

    Args:
        folder: Made if it is missing.

    Raises:
        FcnoptError: It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def load(self, name: str, key: str) -> Any:
        """What `save` kept under this name, None where there is none of this key.

        Raises:
            FcnoptError: The file is damaged.
        """
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content["content"] if content["key"] == key else None
        except Exception as error:  # damaged bytes make the unpickler fail in any way
            raise FcnoptError(
                f"{path}: is damaged: {type(error).__name__}", fix=f"remove {self.folder} to start again"
            ) from error

    def save(self, name: str, key: str, content: Any) -> None:
        """Keep tensors, numbers, words, and lists and dicts of them.

        Raises:
            FcnoptError: The disk is full, or the folder cannot be written.
        """
        write_torch(self.folder / f"{name}.pt", {"key": key, "content": content})


def write_torch(path: Path, content: Any) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        FcnoptError: The disk is full, or the folder cannot be written.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_up(path)
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> FcnoptError:
    reason = getattr(error, "strerror", None) or error
    return FcnoptError(f"{path}: cannot be written: {reason}", fix="free disk space, or choose another place")
