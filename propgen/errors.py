"""The two ways in which a command can fail, and the exit codes that tell them apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PropgenError(Exception):
    """A failure that the user is told about in one sentence, without a traceback. Exit code 1."""

    exit_code = 1


class InputError(PropgenError):
    """Bad input: the message names the file or key, what was expected, and what to do. Exit code 2."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a half-sentence that names the known name closest to `name`, or lists what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are: {', '.join(names)}" if names else "none are known"
