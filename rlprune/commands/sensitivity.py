"""`rlprune sensitivity`: what each channel group costs when it is pruned alone, on a dense and on a pruned network."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlprune.commands.job import command
from rlprune.skeleton import SensitivityConfig

if TYPE_CHECKING:
    from rlprune.search.sensitivity import Subject
    from rlprune.setup import Setup


@command("sensitivity")
def main(config: SensitivityConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Load or train the dense network, take the pruned one of a run, measure, draw."""
    import logging

    from rlprune.commands.finished import subjects_of_run
    from rlprune.commands.setup import require
    from rlprune.config import build
    from rlprune.results.record import Clock, Identity
    from rlprune.results.sensitivity import sensitivity_text
    from rlprune.search.candidates import as_it_is
    from rlprune.search.measure import make_score, search_evaluator
    from rlprune.search.sensitivity import SensitivityJob
    from rlprune.training.refresh import Recalibration

    criterion = build(config.criterion, "criterion")
    require(criterion, config.criterion, "criterion", "scores", "calibration_images")
    clock = Clock()
    with clock.phase("networks"):
        setup, subjects = _of_model(config, choices, run_dir) if config.run is None else subjects_of_run(config, choices)
    first, images = subjects[0], config.recalibrate_bn
    job = SensitivityJob(
        subjects,
        shares=sorted(set(config.shares)),
        score=make_score(criterion, setup, config.seed),
        evaluator=search_evaluator(setup, first.network, samples=config.samples, seed=config.seed, doubtful=bool(first.graph.doubts)),
        setup=setup,
        identity=Identity("sensitivity", run_dir, choices, config.seed),
        refresh=Recalibration(setup, images, config.seed) if images else as_it_is,
        facts={"run": config.run},
        clock=clock,
    )
    frame = job.run()
    print(f"\n{sensitivity_text(frame, len(job.evaluator))}\n")
    logging.getLogger("rlprune").info("wrote to %s: sensitivity.csv  sensitivity.png  curves.png  table.md  result.json", run_dir)


def _of_model(config: SensitivityConfig, choices: dict[str, str], run_dir: Path) -> tuple["Setup", list["Subject"]]:
    """The dense network that the line describes, as `rlprune prune` would start from it."""
    from rlprune.commands.setup import make_dense, prepare
    from rlprune.graph import freeze_failures, trace
    from rlprune.search.sensitivity import Subject, require_units

    setup, network = prepare(config, choices, run_dir)
    graph = trace(network, setup.example(), ignore=config.ignore, prove=False)
    require_units([graph], choices["model"])  # before a network is trained
    dense = make_dense(config, setup, network, choices, run_dir)
    graph = freeze_failures(dense.network, graph, setup.example())
    return setup, [Subject("dense", dense.network, graph, dense.path)]
