"""`rlprune train`: a dense network, kept where `rlprune prune` finds it."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.skeleton import TrainConfig


@command("train")
def main(config: TrainConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Train anew, or from `checkpoint`, keep the weights, test once."""
    from rlprune.commands.setup import make_dense, prepare
    from rlprune.graph import trace
    from rlprune.results.finish import Tested, finish
    from rlprune.results.record import Clock, Identity
    from rlprune.search.resume import forget_states
    from rlprune.training.evaluate import Evaluator

    clock = Clock()
    setup, network = prepare(config, choices, run_dir)
    with clock.phase("dense"):
        dense = make_dense(config, setup, network, choices, run_dir, train=True)
    evaluator = Evaluator(setup.splits.search, setup.splits.normalization, setup.execution)
    tested = Tested("dense", dense.network, 0.0, 0.0, trace(dense.network, setup.example(), prove=False).macs({}))
    job = Identity("train", run_dir, choices, config.seed)
    finish([tested], history=None, dense=dense, evaluator=evaluator, setup=setup, clock=clock, job=job)
    forget_states(run_dir / "checkpoint")
