"""Errors that a user can mend: one sentence with what was needed, what came, the file, and the way out."""

__all__ = ["InputError", "NoSamplesError"]


class InputError(ValueError):
    """Bad input from the user; the scripts print its sentence and exit with status 2."""


class NoSamplesError(InputError):
    """A list has no sample of the kind that was asked for."""
