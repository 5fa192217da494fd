"""`rlprune inspect`: what can be removed from a network, what cannot and why, and what it costs; or what a data set holds."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlprune.commands.job import command
from rlprune.skeleton import InspectConfig

if TYPE_CHECKING:
    from rlprune.setup import Setup


@command("inspect")
def main(config: InspectConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Print groups, kept layers, MACs, parameters and, if asked, the proof of every group; with `sheet`, the data set instead."""
    from rlprune.commands.setup import make_setup

    setup = make_setup(config, choices)
    if config.sheet:
        _show_data(config, setup, run_dir, choices["dataset"])
    else:
        _show_network(config, setup, run_dir)


def _show_data(config: InspectConfig, setup: "Setup", run_dir: Path, name: str) -> None:
    from rlprune.files import write_text
    from rlprune.results.sheet import class_table, draw_sheet, summary
    from rlprune.results.tables import to_markdown

    text = f"dataset={name}: {summary(setup)}\n\n{to_markdown(class_table(setup))}"
    draw_sheet(run_dir / "sheet.png", setup, randaugment=config.training.randaugment, seed=config.seed)
    write_text(run_dir / "dataset.md", text + "\n")
    print(f"{text}\n\nwrote {run_dir / 'sheet.png'} and dataset.md")


def _show_network(config: InspectConfig, setup: "Setup", run_dir: Path) -> None:
    import torch

    from rlprune.commands.setup import load_checkpoint, make_network
    from rlprune.errors import UserError
    from rlprune.files import write_text
    from rlprune.graph import trace, verify
    from rlprune.provenance import provenance
    from rlprune.results.tables import count as short
    from rlprune.results.tables import frozen_table, group_table, to_markdown

    network = make_network(config, setup.origin).to(setup.execution.device)
    if config.checkpoint is not None:
        load_checkpoint(network, config.checkpoint)
    side = provenance(network).side if config.image_size is None else config.image_size
    if side is not None and side < 1:
        raise UserError(f"image_size={side}: must be ≥ 1")
    channels, *size = setup.origin.shape
    example = torch.randn(1, channels, *([side, side] if side else size), generator=torch.Generator().manual_seed(config.seed))
    example = example.to(setup.execution.device)
    graph = trace(network, example, ignore=config.ignore, prove=False if config.verify else None)
    report = verify(network, example, graph, seed=config.seed) if config.verify else None
    cost = f"{short(graph.macs({}))} MACs, {short(graph.params({}))} parameters"
    parts = [
        *(f"warning: {warning}" for warning in graph.warnings),
        to_markdown(group_table(graph, report.groups if report else {})) if graph.groups else "no channel can be removed",
        to_markdown(frozen_table(graph)) if graph.frozen else "",
        f"images of {'×'.join(map(str, example.shape[1:]))}: {len(graph.groups)} groups, {graph.num_channels} prunable channels; {cost}",
    ]
    if report and graph.groups:
        proof = f"every group, and all at once: zeroed equals removed, outputs and gradients (tolerance {report.together.tolerance:.0e})"
        parts.append(proof if report.exact else f"all at once: {report.together}")
    text = "\n\n".join(part for part in parts if part)
    print(text)
    write_text(run_dir / "groups.md", text + "\n")
    if report and not report.exact:
        failed = ", ".join(report.failed) or "together"
        raise UserError(f"groups {failed}: removing differs from zeroing; leave them alone with ignore=[...]")
