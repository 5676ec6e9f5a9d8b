"""Errors that a person can act on: one sentence that names the file, the key or the second and says what to do."""


class TriptychError(Exception):
    """Something in the input or the surroundings prevents the work; the command line prints it and exits with 1."""


class UsageError(TriptychError):
    """The request itself is wrong (an option, a key, a combination); the command line prints it and exits with 2."""
