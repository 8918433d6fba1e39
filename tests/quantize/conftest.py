"""Numbers that do not hang on the CPU that the tests run on."""

from __future__ import annotations

import pytest

from fcnopt.quantize import qdq


@pytest.fixture(autouse=True)
def saturates(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether int8 sums saturate on the CPU that graphs are made for; its one entry may be changed."""
    answer = [False]
    monkeypatch.setattr(qdq, "int8_saturates", lambda: answer[0])
    return answer
