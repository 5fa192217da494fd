"""The grids of presets, for a report that shows which of their runs are there."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rlprune.errors import UserError
from rlprune.grid import read_grid
from rlprune.report.paper import Grid


def read_grids(names: Sequence[str], outputs: str) -> list[Grid]:
    """The grids of presets; Hydra is there already, as a command runs under it.

    Args:
        names: of experiments of prune or train.
        outputs: folder that they are in.

    Raises:
        UserError: an experiment is no grid.
    """
    grids: list[Grid] = []
    for name in names:
        config = None
        for command in ("prune", "train"):
            try:
                config = compose(command, [f"experiment={name}", f"paths.outputs='{outputs}'"], return_hydra_config=True)
                break
            except HydraException:  # it sets what this command has not
                continue
        if config is None or config.grid is None:
            raise UserError(f"experiment={name}: is no grid of runs that this version knows")
        choices = {group: str(config.hydra.runtime.choices[group]) for group in ("model", "dataset", "agent") if group in config}
        if "name" in config.get("model", {}):
            choices["model.name"] = str(config.model.name)
        cells = read_grid(OmegaConf.to_container(config.grid, resolve=False))
        if grids and all("like" in cell.values for cell in cells):  # architectures and data are those of the runs before
            choices = dict(grids[0].choices)
        grids.append(Grid(name, Path(str(config.hydra.sweep.dir)), cells, choices))
    return grids
