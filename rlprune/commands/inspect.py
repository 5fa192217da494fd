"""`rlprune inspect`: what can be removed from a network, what cannot and why, and what it costs."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.config import InspectConfig


@command("inspect")
def main(config: InspectConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Print groups, kept layers, MACs, parameters and, if asked, the proof of every group."""
    from rlprune.checkpoint import load_into, load_weights
    from rlprune.commands.setup import make_network, make_setup
    from rlprune.errors import UserError
    from rlprune.files import write_text
    from rlprune.graph import trace, verify
    from rlprune.results.tables import count as short
    from rlprune.results.tables import frozen_table, group_table, to_markdown

    setup = make_setup(config, choices)
    network = make_network(config, setup).to(setup.execution.device)
    if config.checkpoint is not None:
        load_into(network, load_weights(Path(config.checkpoint))[0], f"checkpoint={config.checkpoint}")
    graph = trace(network, setup.example(), ignore=config.ignore, prove=not config.verify)
    verdicts = verify(network, setup.example(), graph) if config.verify else {}
    failed = [name for name, verdict in verdicts.items() if not verdict.exact]
    size = f"{short(graph.macs({}))} MACs, {short(graph.params({}))} parameters"
    parts = [
        *(f"warning: {warning}" for warning in graph.warnings),
        to_markdown(group_table(graph, verdicts)) if graph.groups else "no channel can be removed",
        to_markdown(frozen_table(graph)) if graph.frozen else "",
        f"{len(graph.groups)} groups, {graph.num_channels} prunable channels; {size}",
        "every group: zeroed equals removed, in float64" if config.verify and not failed else "",
    ]
    text = "\n\n".join(part for part in parts if part)
    print(text)
    write_text(run_dir / "groups.md", text + "\n")
    if failed:
        raise UserError(f"groups {', '.join(failed)}: removing differs from zeroing; leave them alone with ignore=[...]")
