"""`rlprune bench`: how fast the dense and the pruned network of a run are on this machine, and the memory that they take."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlprune.commands.job import command
from rlprune.errors import UserError
from rlprune.skeleton import BenchConfig

if TYPE_CHECKING:
    from torch import nn


@command("bench")
def main(config: BenchConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Rebuild the networks, time them by turns on noise, draw."""
    import math

    import torch

    from rlprune.benchmark.bench import Bench, cpu_threads
    from rlprune.memory import require_memory
    from rlprune.results.bench import write_bench, write_rows
    from rlprune.results.record import Clock, Identity
    from rlprune.training.execution import choose_device

    device, clock = choose_device(config.device), Clock()
    with clock.phase("networks"):
        networks, shape = _of_model(config, choices) if config.run is None else _of_run(config, choices)
    shape = (shape[0], config.image_size, config.image_size) if config.image_size is not None else shape
    require_memory(4 * max(config.batch_sizes) * math.prod(shape), f"batch_sizes={config.batch_sizes}", "take fewer images")
    images = torch.randn(max(config.batch_sizes), *shape, generator=torch.Generator().manual_seed(config.seed)).to(device)
    bench = Bench(
        networks,
        images,
        batch_sizes=sorted(set(config.batch_sizes)),
        runtimes=list(dict.fromkeys(config.runtimes)),
        precisions=list(dict.fromkeys(config.precisions)),
        channels_last=str(config.channels_last).lower(),
        threads=config.threads,
        seconds=config.seconds,
        rounds=config.rounds,
    )
    with clock.phase("bench"):
        frame = bench.run(lambda frame: write_rows(run_dir, frame))  # what is measured outlives a kill
    with cpu_threads(config.threads):
        text = write_bench(frame, bench, Identity("bench", run_dir, choices, config.seed), clock, {"run": config.run})
    print(f"\n{text}\n\nwrote {run_dir / 'bench.md'}, bench.csv, bench.png and result.json")


def _of_run(config: BenchConfig, choices: dict[str, str]) -> "tuple[dict[str, nn.Module], tuple[int, ...]]":
    """The dense and the pruned network, and the shape of their images; the data set is not read."""
    from rlprune.commands.finished import load_dense, open_artefact

    folder, artefact = open_artefact(config)
    choices |= {"model": artefact.origin.model, "dataset": artefact.origin.dataset}
    load_dense(config, folder, artefact, otherwise=None)  # first weights are as fast
    return {"dense": artefact.dense, "pruned": artefact.network}, artefact.origin.shape


def _of_model(config: BenchConfig, choices: dict[str, str]) -> "tuple[dict[str, nn.Module], tuple[int, ...]]":
    """The dense network that the line describes; the data set says how many classes there are, and which images."""
    from rlprune.commands.finished import named
    from rlprune.commands.setup import load_checkpoint, make_dataset, make_network, make_origin
    from rlprune.data.base import split
    from rlprune.provenance import provenance

    if not named("model"):
        raise UserError("run: name a run folder, run=outputs/prune/RUN, or a network, model=resnet56")
    origin = make_origin(config, choices, split(make_dataset(config), config.seed))
    network = make_network(config, origin)
    if config.checkpoint is not None:
        load_checkpoint(network, config.checkpoint)
    side = provenance(network).side
    return {"dense": network}, origin.shape if side is None else (origin.in_channels, side, side)
