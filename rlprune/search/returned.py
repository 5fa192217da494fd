"""What a user's functions return: numbers, and how errors show what is none."""

import math
from numbers import Real
from typing import Any


def number(value: Any) -> float:
    """A Python or numpy number or a tensor of one element; what is none is not a number."""
    try:
        value = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # of several elements
        return math.nan
    return float(value) if isinstance(value, Real) else math.nan


def shown(value: Any) -> str:
    """In a line of an error."""
    shape = getattr(value, "shape", None)
    if shape is not None and math.prod(shape) > 1:
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"
