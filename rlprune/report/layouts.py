"""How papers lay their tables out: conf/tables.yaml."""

from dataclasses import dataclass
from typing import Any

import yaml

from rlprune.config import conf_dir, suggestion
from rlprune.errors import UserError

SMALL = "_small"  # what the name of a preset's edition for CPUs ends in
KINDS = ("levels", "list", "scratch", "layers", "sensitivity")


@dataclass(frozen=True)
class Layout:
    """How a paper lays a table out.

    Args:
        title: of the table.
        kind: one of KINDS.
        published: sources of the rows that the paper prints.
        runs: names of the experiments, without their edition.
        blocks: keys that make a part of the table: model, or model and dataset.
        levels: channel sparsities, percent.
        cells: names of numbers.
    """

    title: str
    kind: str
    runs: tuple[str, ...]
    published: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ("model",)
    levels: tuple[float, ...] = ()
    cells: tuple[str, ...] = ()


def table_names() -> list[str]:
    """What `table=` takes, without editions."""
    return list(_layouts())


def read_layout(table: str) -> Layout:
    """The layout of a table, whichever edition of it.

    Raises:
        UserError: there is no such table.
    """
    layouts, name = _layouts(), table.removesuffix(SMALL)
    if name not in layouts:
        near = suggestion(table, [*layouts, *(f"{known}{SMALL}" for known in layouts)])
        raise UserError(f"table={table}: no such table{near}; choose one of {', '.join(layouts)}, each also with {SMALL} behind it")
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in layouts[name].items()}
    edition = SMALL if table.endswith(SMALL) else ""
    settings["runs"] = tuple(f"{run}{edition}" for run in settings.get("runs", (name,)))
    return Layout(**settings)


def _layouts() -> dict[str, dict[str, Any]]:
    path = conf_dir() / "tables.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); install rlprune again") from error
