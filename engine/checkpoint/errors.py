from misplace.engine.errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be written or must not be trusted: which file, why, and what to do, in one line."""


class DamagedError(Exception):
    """A file of a bundle is not what was written: which file and why. Whoever knows what to do adds it."""
