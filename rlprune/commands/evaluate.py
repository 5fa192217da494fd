"""`rlprune evaluate`: the accuracy of a pruned network, or of any checkpoint, on the test split."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.errors import UserError
from rlprune.skeleton import EvaluateConfig


@command("evaluate")
def main(config: EvaluateConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Rebuild a network from its files and test it, on the data it was made for unless another data set is named."""
    from rlprune.commands.finished import open_run
    from rlprune.commands.setup import make_dense, prepare
    from rlprune.graph import trace
    from rlprune.provenance import provenance
    from rlprune.results.finish import Tested, finish
    from rlprune.results.record import Clock, Identity
    from rlprune.training.evaluate import Evaluator
    from rlprune.training.merged import mergeable

    if config.run is None and config.checkpoint is None and config.model.get("weights") is None:
        raise UserError("run: name a run folder, run=outputs/prune/RUN, or weights, checkpoint=FILE with model=...")
    if config.run is None:
        setup, network = prepare(config, choices, None)
        if config.checkpoint is None and not provenance(network).complete:
            raise UserError("model.weights: their classifier has other classes than the data set; train it first: rlprune train ...")
        dense = make_dense(config, setup, network, choices, run_dir)
        name, network, sparsity, facts = "checkpoint" if config.checkpoint else "published", dense.network, 0.0, {"checkpoint": dense.path}
    else:
        folder, artefact, setup = open_run(config, choices)
        dense, network = None, artefact.network
        name = "from scratch" if artefact.plan.get("from_scratch") else "recovered"
        sparsity, facts = float(artefact.plan.get("sparsity", 0.0)), {"run": str(folder)}
    network.to(setup.execution.device)
    graph = trace(network, setup.example(), prove=False)
    pairs = () if graph.doubts else mergeable(network, setup.example())  # as the search does
    evaluator = Evaluator(setup.splits.search, setup.splits.normalization, setup.execution, pairs=pairs)
    tested = Tested(name, network, sparsity, sparsity, graph.macs({}))
    job = Identity("evaluate", run_dir, choices, config.seed)
    finish([tested], history=None, dense=dense, evaluator=evaluator, setup=setup, clock=Clock(), job=job, facts=facts)
