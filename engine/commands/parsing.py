"""Typed command lines by tyro, with its framed errors told in one line."""

import contextlib
import io
import re
from typing import TypeVar

import tyro

from ..errors import UserError

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], *, prog: str, default: T | None = None) -> T:
    """`argv` as a `cls`, starting from `default`; a mistake is a UserError, --help prints and exits 0."""
    errors = io.StringIO()
    settings = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=argv, prog=prog, **settings)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{one_line(errors.getvalue())}; see {prog} --help") from None


def one_line(framed: str) -> str:
    """What tyro says below its title: the rows before the first rule, and the option it thinks was meant.

    Where the terminal has no line characters there is no frame: the title is the first row, with a rule below it.
    """
    lines = framed.splitlines()
    in_frame = [line for line in lines if line.startswith("│")]
    rows = [row.strip("│ ").strip() for row in in_frame or lines[2:]]
    rule = next((i for i, row in enumerate(rows) if not _is_no_rule(row)), len(rows))
    message = " ".join(rows[:rule])
    hint = re.search(r"Perhaps you meant:\W*?(--[\w.][\w.-]+)", " ".join(filter(_is_no_rule, rows[rule:])))
    return f"{message} (did you mean {hint[1]}?)" if hint else message


def _is_no_rule(row: str) -> bool:
    return bool(set(row) - set("─-"))
