"""The folder of a run: what lies where, who may write, and what the run was started with."""

from .folder import RunFolder

__all__ = ["RunFolder"]
