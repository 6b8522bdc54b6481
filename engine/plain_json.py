"""Values as JSON can say them: no tensors, no tuples, no NaN or infinity (which JSON does not have)."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` with numbers of tensors and arrays taken out, tuples as lists and non-finite floats as None.

    A tensor or array must hold one number. TypeError for anything that JSON cannot say.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form")
