"""`rlprune evaluate`: the accuracy of a pruned network, or of any checkpoint, on the test split."""

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from rlprune.commands.job import command
from rlprune.config import shipped
from rlprune.errors import UserError
from rlprune.skeleton import EvaluateConfig


@command("evaluate")
def main(config: EvaluateConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Rebuild a network from its files and test it, on the data it was made for unless another data set is named."""
    from rlprune.commands.setup import make_dense, make_network, make_setup, prepare
    from rlprune.graph import trace
    from rlprune.provenance import provenance
    from rlprune.results.artefact import find_artefact, load_artefact
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
        folder = find_artefact(Path(config.run))
        named = HydraConfig.get().overrides.task
        own = any(override.startswith("model=") for override in named)
        artefact = load_artefact(folder, partial(make_network, config)) if own else load_artefact(folder)
        config.dense_seed = int(artefact.plan.get("dense_seed", artefact.plan["seed"]))  # the same search split
        choices["model"] = artefact.origin.model
        if not any(override.startswith("dataset=") for override in named):
            choices["dataset"], limit = artefact.origin.dataset, config.dataset.get("limit")
            config.dataset = shipped("dataset", artefact.origin.dataset, artefact.origin.dataset_settings)
            config.dataset["limit"] = limit if limit is not None else config.dataset["limit"]
        setup = make_setup(config, choices).fitted_to(artefact.origin)
        dense, name, network = None, "recovered", artefact.network
        sparsity, facts = float(artefact.plan.get("sparsity", 0.0)), {"run": str(folder)}
    network.to(setup.execution.device)
    graph = trace(network, setup.example(), prove=False)
    pairs = () if graph.doubts else mergeable(network, setup.example())  # as the search does
    evaluator = Evaluator(setup.splits.search, setup.splits.normalization, setup.execution, pairs=pairs)
    tested = Tested(name, network, sparsity, sparsity, graph.macs({}))
    job = Identity("evaluate", run_dir, choices, config.seed)
    finish([tested], history=None, dense=dense, evaluator=evaluator, setup=setup, clock=Clock(), job=job, facts=facts)
