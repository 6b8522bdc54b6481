"""What one check of the doctor says."""

from typing import Literal, NamedTuple

Status = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """name: what was looked at; message: what is there; mend: what to do about it ("" where nothing is).

    ok: as it should be. note: misplace works, something is slower or absent. problem: something will fail.
    """

    name: str
    status: Status
    message: str
    mend: str = ""


def ok(name: str, message: str) -> Finding:
    return Finding(name, "ok", message)


def note(name: str, message: str, mend: str) -> Finding:
    return Finding(name, "note", message, mend)


def problem(name: str, message: str, mend: str) -> Finding:
    return Finding(name, "problem", message, mend)
