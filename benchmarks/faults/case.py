"""One thing to try in a process of its own, and what is allowed to come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnopt.errors import FcnoptError

_LONGEST = 4000  # characters of a message that a person can still read


@dataclass(frozen=True)
class Case:
    """An input and its use.

    Attributes:
        name: Tells it from the others of its row.
        make: Writes the input into an empty folder; what it returns is handed to `use`. Not watched.
        use: Says in a word or two what came of it ("read"), or raises. Watched.
    """

    name: str
    make: Callable[[Path], Any]
    use: Callable[[Any], str]


class Fault(Exception):  # noqa: N818  (what was found out, not an error of this program)
    """What must not have happened."""


def judged(use: Callable[[], str], named: Sequence[str] = ()) -> tuple[str, str]:
    """The outcome, and what is wrong with it: only fcnopt's own errors, with a message and a fix, may come.

    Args:
        use: Says what came of it, or raises.
        named: Words of which an error's message must have one; () for none.
    """
    try:
        return use(), ""
    except FcnoptError as error:
        unnamed = f"names none of {', '.join(named)}: {error.message[:300]}"
        missing = bool(named) and not any(word in error.message for word in named)
        return f"refused: {type(error).__name__}", unnamed if missing else _unclear(error)
    except Fault as fault:
        return "fault", str(fault)
    except Exception as error:  # noqa: BLE001  (that this is another's is what is looked for)
        return f"crashed: {type(error).__name__}", f"{type(error).__name__}: {str(error)[:300]}"


def _unclear(error: FcnoptError) -> str:
    """What is wrong with an error's words."""
    if not error.message.strip() or not error.fix.strip():
        return f"{type(error).__name__} without a message or a fix"
    return f"a message of {len(str(error))} characters" if len(str(error)) > _LONGEST else ""
