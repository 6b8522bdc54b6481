"""The label of a sample from its .cls or .json file."""

import json
import re
from typing import Any

from .names import Refused

MAX_CLASSES = 1 << 17
MAX_CLS, MAX_JSON = 64, 1 << 20  # bytes
NO_LABEL = -1


def label_of_cls(data: bytes, name: str) -> int:
    """An ASCII integer, -1 for none. name: in an error, which is Refused."""
    if not re.fullmatch(rb"\s*-?[0-9]{1,10}\s*", data):
        raise Refused(f"{name} is not an integer")
    return _checked(int(data), name)


def label_of_json(data: bytes, name: str) -> int:
    """The integer called "label", -1 where there is none."""
    content = parse_json(data, name)
    label = content.get("label") if isinstance(content, dict) else None
    return _checked(label, name) if type(label) is int else NO_LABEL


def parse_json(data: bytes, name: str) -> Any:
    """Raises Refused for what is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(f"{name} is not JSON") from None


def _checked(label: int, name: str) -> int:
    if not NO_LABEL <= label < MAX_CLASSES:
        raise Refused(f"{name} has the label {label}: outside 0 to {MAX_CLASSES - 1}")
    return label
