"""The report page of a run: one HTML file with everything inside."""

from .page import write_report

__all__ = ["write_report"]
