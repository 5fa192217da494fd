"""`rlprune train`: a dense network, kept where `rlprune prune` finds it, or a pruned architecture from scratch."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from rlprune.commands.job import command
from rlprune.skeleton import TrainConfig


@command("train")
def main(config: TrainConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Train anew, from `checkpoint`, or the architecture of `like`; keep the weights, test once."""
    from rlprune.commands.like import read_like
    from rlprune.commands.setup import make_dense, prepare
    from rlprune.commands.tracking import make_tracking
    from rlprune.graph import trace
    from rlprune.results.finish import Tested, finish
    from rlprune.results.record import Clock, Identity
    from rlprune.search.resume import forget_states
    from rlprune.training.evaluate import Evaluator

    clock, tracking = Clock(), make_tracking(config, choices)
    like = read_like(config, choices)
    setup, network = prepare(config, choices, run_dir) if like is None else like.prepare(choices, run_dir)
    dense, facts = None, {}
    with tracking.of(run_dir, config, choices):
        with clock.phase("dense" if like is None else "training"):
            if like is None:
                dense = make_dense(config, setup, network, choices, run_dir, train=True, on_epoch=partial(tracking.log, "dense training"))
            else:
                facts = like.train(setup, network, run_dir, partial(tracking.log, "training from scratch"))
        evaluator = Evaluator(setup.splits.search, setup.splits.normalization, setup.execution)
        name, level, sparsity = ("dense", 0.0, 0.0) if like is None else ("from scratch", like.source.level, like.sparsity)
        tested = Tested(name, network, level, sparsity, trace(network, setup.example(), prove=False).macs({}))
        job = Identity("train", run_dir, choices, config.seed)
        rows = finish([tested], history=None, dense=dense, evaluator=evaluator, setup=setup, clock=clock, job=job, facts=facts)
        tracking.finish({row.name: asdict(row) for row in rows}, run_dir)
        if like is not None:
            like.compare(run_dir)
        forget_states(run_dir / "checkpoint")
