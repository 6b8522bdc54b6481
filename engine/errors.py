"""Errors that are the user's to mend: shown as one line, exit code 2, never a traceback."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one line."""
