"""Where Hydra looks for plug-ins, as `rlprune_grid`."""

from rlprune.commands import launchers


class OneBoxLauncher(launchers.OneBoxLauncher):
    """`hydra/launcher=one_box`."""


class RayLauncher(launchers.RayLauncher):
    """`hydra/launcher=ray_cluster`."""
