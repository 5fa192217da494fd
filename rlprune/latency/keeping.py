"""What was measured on a machine before."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.files import read_json


def digest(facts: Any) -> str:
    """A short name for plain facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def recall(path: Path | None) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or a damaged one."""
    try:
        return {} if path is None else read_json(path)
    except UserError:
        return {}
