"""The one error for bad input: it names the thing that is wrong and the remedy, and the command line prints it as one line."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message names it and says what would work instead."""
