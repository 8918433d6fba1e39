"""What was done to something, how often, and what came of it: a row of the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str, float], None]
_SHOWN = 20


@dataclass
class Tally:
    """A row: one thing that was done many times, and its outcomes.

    Attributes:
        family: Of faults.
        what: Was done.
        promise: What has to hold.
        needed: Beginnings of outcomes without which nothing is proved, such as "killed" of what is killed at random.
        outcomes: How often each came.
        faults: What must not have happened, a line each.
        worst_s: Longest time that one took, in seconds.
        worst_mib: Most memory that one took on top, in MiB; None where it was not measured.
        notes: What a reader should know.
        reason: Why it was not run; empty where it was.
    """

    family: str
    what: str
    promise: str
    needed: tuple[str, ...] = ()
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    worst_s: float = 0.0
    worst_mib: float | None = None
    notes: list[str] = field(default_factory=list)
    reason: str = ""

    def add(self, outcome: str, *, seconds: float = 0.0, mib: float | None = None, fault: str = "") -> None:
        """Count one, and what was wrong with it, if anything."""
        self.outcomes[outcome] += 1
        self.worst_s = max(self.worst_s, seconds)
        if mib is not None:
            self.worst_mib = max(self.worst_mib or 0.0, mib)
        if fault:
            self.faults.append(fault)

    @property
    def runs(self) -> int:
        """How many were done."""
        return sum(self.outcomes.values())

    @property
    def held(self) -> bool:
        """Whether it was done, and nothing happened that must not."""
        return not self.reason and bool(self.runs) and not self.faults and not self.missing

    @property
    def missing(self) -> list[str]:
        """Needed outcomes that never came: without them the row shows nothing."""
        return [name for name in self.needed if not any(found.startswith(name) for found in self.outcomes)]

    @property
    def verdict(self) -> str:
        """In a word or a line."""
        if self.reason:
            return f"not run: {self.reason}"
        if self.faults:
            return f"BROKEN {len(self.faults)} of {self.runs}"
        if self.missing or not self.runs:
            return f"proves nothing: no {' or '.join(self.missing) or 'run'}"
        return "held"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "family": self.family,
            "what": self.what,
            "promise": self.promise,
            "runs": self.runs,
            "outcomes": dict(sorted(self.outcomes.items())),
            "faults": self.faults[:_SHOWN],
            "fault_count": len(self.faults),
            "worst_s": round(self.worst_s, 3),
            "worst_mib": None if self.worst_mib is None else round(self.worst_mib, 1),
            "notes": self.notes,
            "verdict": self.verdict,
        }


def not_run(family: str, what: str, promise: str, reason: str) -> Tally:
    """A row that says why it has no figures."""
    return Tally(family, what, promise, reason=reason)
