"""The one error for bad input: it names the thing that is wrong and the remedy, and the command line prints it as one line."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The message names it and says what would work instead."""


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """How a message about an unknown name ends: with the closest known one, or else with all of them (or `otherwise`)."""
    spelled = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    if close:
        return f"; did you mean {spelled[close[0]]!r}?"
    if otherwise:
        return f"; {otherwise}"
    return f"; there are {', '.join(spelled.values())}" if spelled else ""
