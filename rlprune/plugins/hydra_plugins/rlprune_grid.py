"""Where Hydra looks for plug-ins: packages called `hydra_plugins`, on any path; `rlprune.commands.sweeper` puts this one there."""

from rlprune.commands import sweeper


class GridSweeper(sweeper.GridSweeper):
    """`hydra/sweeper=grid`."""
