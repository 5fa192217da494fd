"""`rlprune prune`: the main job."""

from functools import partial
from pathlib import Path

from rlprune.commands.job import command
from rlprune.skeleton import PruneConfig


@command("prune")
def main(config: PruneConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Train or load, trace, search, prune, recover, test once, write."""
    from rlprune.commands.setup import make_dense, make_joint, make_network, make_start, prepare, require
    from rlprune.commands.tracking import make_tracking
    from rlprune.config import build
    from rlprune.results.record import Identity
    from rlprune.search.job import PruneJob
    from rlprune.training.recipe import make_recovery

    tracking = make_tracking(config, choices)
    agent = build(config.agent, "agent")
    reward = build(config.reward, "reward")
    criterion = build(config.criterion, "criterion")
    evaluator = build(config.evaluator, "evaluator")
    recovery = make_recovery(config.recovery)
    require(agent, config.agent, "agent", "decide", "candidates_per_step")
    require(evaluator, config.evaluator, "evaluator", "start")
    require(criterion, config.criterion, "criterion", "scores", "calibration_images")
    setup, network = prepare(config, choices, run_dir)
    job = PruneJob(
        agent=agent,
        reward=reward,
        criterion=criterion,
        workers=evaluator,
        recovery=recovery,
        setup=setup,
        schedule=config.schedule,
        budget=config.budget,
        search=config.search,
        latency=config.latency,
        ignore=config.ignore,
        identity=Identity("prune", run_dir, choices, config.seed),
        resume=config.resume is not None,
        save_minutes=config.training.save_minutes,
        cache=Path(config.paths.outputs) / "cache",
        joint=lambda network, epochs: make_joint(config, setup, network, epochs, run_dir, partial(tracking.log, "joint training")),
        reference=lambda: train_dense(make_network(config, setup.origin)),
        tracking=tracking,
    )
    train_dense = partial(make_dense, config, setup, choices=choices, run_dir=run_dir, on_epoch=partial(tracking.log, "dense training"))
    job.check(network)
    with tracking.of(run_dir, config, choices):
        with job.clock.phase("dense"):
            dense = make_start(config, setup, network) if config.schedule.joint else train_dense(network)
        job.run(dense)
