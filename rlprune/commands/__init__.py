"""One module a command: the only ones that know Hydra."""
