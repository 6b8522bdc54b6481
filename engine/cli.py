"""The `misplace` command: finds the subcommand, turns a user's mistake into one line and exit code 2."""

import importlib
import os
import sys
from importlib.metadata import entry_points

from .errors import UserError

OWN_COMMANDS = {
    "pretrain": "pretrain RECIPE: train an encoder from images",
    "evaluate": "evaluate RUN: measure a frozen encoder",
    "compare": "compare RECIPE RECIPE ...: train for equal times, interleaved, and measure",
    "export": "export RUN FILE: write an encoder that timm loads",
    "data": "data render|verify|shard: make, check or pack images",
    "doctor": "doctor: what this machine has, and how to mend what it lacks",
}


def usage() -> str:
    """The help page: one line per subcommand."""
    lines = [f"  misplace {line}" for line in OWN_COMMANDS.values()]
    lines += [f"  misplace {point.name}" for point in entry_points(group="misplace.commands")]
    return "\n".join(["usage: misplace COMMAND [ARGUMENT ...]; `misplace COMMAND --help` tells more", "", *lines])


def find(name: str):
    """The function argv -> exit code behind a subcommand; other packages add theirs as entry points."""
    if name in OWN_COMMANDS:
        return importlib.import_module(f"misplace.engine.commands.{name}").main
    for point in entry_points(group="misplace.commands"):
        if point.name == name:
            return point.load()
    raise UserError(f"unknown command {name!r}; `misplace --help` lists them")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    try:
        return find(argv[0])(argv[1:]) or 0
    except UserError as error:
        print(f"misplace: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("misplace: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `misplace ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
