"""Names inside a tar file: which are refused, and how one is a sample's key and an extension [S, WebDataset]."""

import re

CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
SHOWN = 200  # characters of a name in an error


class Refused(Exception):
    """Why a tar file is not read, naming the member; who catches it adds the name of the file."""


def check_name(name: str) -> None:
    """Raises Refused for a name that could lead out of a folder or upset a terminal."""
    if not name:
        raise Refused("a member without a name")
    if CONTROL.search(name):
        raise Refused(f"{shown(name)} has a control character in its name")
    if name.startswith("/"):
        raise Refused(f"{shown(name)} has an absolute name")
    if ".." in name.split("/"):
        raise Refused(f"{shown(name)} has .. in its name")


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case): the key ends at the first dot of the last part. None: belongs to no sample."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None


def shown(name: str) -> str:
    """A name as one printable line of bounded length."""
    return printable(name if len(name) <= SHOWN else name[:SHOWN] + "...")


def printable(name: str) -> str:
    """The same with � for what cannot be printed, such as bytes that are no UTF-8."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "�" for c in name)
