"""`rlprune train`: a dense network, kept where `rlprune prune` finds it."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.config import RunConfig


@command("train")
def main(config: RunConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Train anew, or from `checkpoint`, keep the weights, test once."""
    from rlprune.commands.setup import make_dense, make_network, make_setup, require_scores
    from rlprune.graph import trace
    from rlprune.results.finish import Tested, finish
    from rlprune.results.record import Clock, Identity
    from rlprune.training.evaluate import Evaluator

    clock = Clock()
    setup = make_setup(config, choices)
    require_scores(make_network(config, setup), setup, choices)
    with clock.phase("dense"):
        dense = make_dense(config, setup, choices, train=True)
    evaluator = Evaluator(setup.splits.search, setup.splits.normalization, setup.execution)
    network = Tested("dense", dense.network, 0.0, 0.0, trace(dense.network, setup.example(), prove=False).macs({}))
    job = Identity("train", run_dir, choices, config.seed)
    finish([network], history=None, dense=dense, evaluator=evaluator, setup=setup, clock=clock, job=job)
