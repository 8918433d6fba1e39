"""Frames kept for slimming: on disk, with room for all of them or not at all."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

import numpy as np
import pytest

from fcnopt.errors import MediaError
from fcnopt.slimming import frames


def test_room_is_taken_before_it_is_written_to() -> None:
    kept = frames._on_disk((3, 5, 7))
    assert kept.shape == (3, 5, 7)
    kept[1] = 9
    np.testing.assert_array_equal(kept[:, 0, 0], [0, 9, 0])


def test_a_full_disk_is_an_error_and_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MediaError, match=r"105 bytes of frames cannot be kept in .*: No space left on device"):
        frames._on_disk((3, 5, 7))
