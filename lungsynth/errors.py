"""Errors that a user can mend: one sentence with what was needed, what came, the file, and the way out."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from the user; the scripts print its sentence and exit with status 2."""
