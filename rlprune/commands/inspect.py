"""`rlprune inspect`: what can be removed from a network, what cannot and why, and what it costs; or what a data set holds."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlprune.commands.job import command
from rlprune.skeleton import InspectConfig

if TYPE_CHECKING:
    from rlprune.results.inspection import Inspected
    from rlprune.setup import Setup


@command("inspect")
def main(config: InspectConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Print and draw groups, what a run removed of them, and, if asked, the proof of every group; with `sheet`, the data set instead."""
    from rlprune.commands.finished import plan_of_run
    from rlprune.commands.setup import make_setup

    if config.run is not None:
        _show_network(config, plan_of_run(config), run_dir)
    elif config.sheet:
        _show_data(config, make_setup(config, choices), run_dir, choices["dataset"])
    else:
        _show_network(config, _of_model(config, make_setup(config, choices)), run_dir)


def _show_data(config: InspectConfig, setup: "Setup", run_dir: Path, name: str) -> None:
    from rlprune.files import write_text
    from rlprune.results.sheet import class_table, draw_sheet, summary
    from rlprune.results.tables import to_markdown

    text = f"dataset={name}: {summary(setup)}\n\n{to_markdown(class_table(setup))}"
    draw_sheet(run_dir / "sheet.png", setup, randaugment=config.training.randaugment, seed=config.seed)
    write_text(run_dir / "dataset.md", text + "\n")
    print(f"{text}\n\nwrote {run_dir / 'sheet.png'} and dataset.md")


def _of_model(config: InspectConfig, setup: "Setup") -> "Inspected":
    """The dense network that the line describes."""
    import torch

    from rlprune.commands.setup import load_checkpoint, make_network
    from rlprune.graph import trace
    from rlprune.provenance import provenance
    from rlprune.results.inspection import Inspected

    network = make_network(config, setup.origin).to(setup.execution.device)
    if config.checkpoint is not None:
        load_checkpoint(network, config.checkpoint)
    side = provenance(network).side if config.image_size is None else config.image_size
    channels, *size = setup.origin.shape
    example = torch.randn(1, channels, *([side, side] if side else size), generator=torch.Generator().manual_seed(config.seed))
    example = example.to(setup.execution.device)
    graph = trace(network, example, ignore=config.ignore, prove=False if config.verify else None)
    return Inspected(setup.origin.network_name, network, graph, None, example)


def _show_network(config: InspectConfig, subject: "Inspected", run_dir: Path) -> None:
    from rlprune.errors import UserError
    from rlprune.files import write_text
    from rlprune.results.drawing import draw
    from rlprune.results.inspection import inspection_text

    report = subject.prove(config.seed) if config.verify else None
    text = inspection_text(subject, report)
    write_text(run_dir / "groups.md", text + "\n")
    drawn = "" if config.draw == "none" else f"groups.{config.draw}"
    if drawn:
        draw(subject.graph, run_dir / drawn, subject.keep, title=subject.title)
    hint = f"\n\nwhat each group costs when it is pruned alone: rlprune sensitivity run={config.run}" if config.run is not None else ""
    print(f"{text}{hint}\n\nwrote {run_dir / 'groups.md'}{f' and {drawn}' if drawn else ''}")
    if report and not report.exact:
        failed = ", ".join(report.failed) or "together"
        raise UserError(f"groups {failed}: removing differs from zeroing; leave them alone with ignore=[...]")
