"""`misplace doctor`: what this machine has, what it lacks, and the mend for each."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import machine, packages
from .finding import Finding

__all__ = ["Finding", "diagnose", "run"]

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def diagnose() -> list[Finding]:
    """Every check once, packages first."""
    return [check() for check in (*packages.CHECKS, *machine.CHECKS)]


def run(console: Console | None = None) -> int:
    """Print a table of the findings; 1 where there is a problem, else 0."""
    console = console or Console()
    findings = diagnose()
    table = Table(title="misplace doctor", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("checked", no_wrap=True)
    table.add_column("found; and the mend")
    for found in findings:
        text = found.message if not found.mend else f"{found.message}\n-> {found.mend}"
        table.add_row(Text(found.status, STYLES[found.status]), Text(found.name), Text(text))
    console.print(table)
    counts = [_count(findings, status) for status in ("problem", "note")]
    console.print(f"{len(findings)} checks, {', '.join(counts)}")
    return 1 if any(found.status == "problem" for found in findings) else 0


def _count(findings: list[Finding], status: str) -> str:
    number = sum(found.status == status for found in findings)
    return f"{number} {status}{'' if number == 1 else 's'}"
