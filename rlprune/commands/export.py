"""`rlprune export`: the pruned network of a run as a file that runs without rlprune, checked against torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlprune.commands.job import command
from rlprune.skeleton import ExportConfig

if TYPE_CHECKING:
    import torch

    from rlprune.results.artefact import Artefact


@command("export")
def main(config: ExportConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Rebuild the network, write it, compare its scores on real images, and set its size beside the dense network's."""
    import torch

    from rlprune.commands.finished import open_artefact, open_run
    from rlprune.data.base import sample
    from rlprune.export.export import export_network, require_target
    from rlprune.export.from_artefact import default_target, metadata_of, result_of, size_table
    from rlprune.files import write_text
    from rlprune.results.artefact import find_artefact
    from rlprune.results.record import write_result
    from rlprune.results.tables import to_markdown
    from rlprune.seeding import numpy_generator

    out = default_target(find_artefact(Path(str(config.run))), config.format) if config.out is None else Path(config.out)
    require_target(out, config.format, config.opset)  # before the data is read
    if config.images:
        folder, artefact, setup = open_run(config, choices)
        shown = sample(setup.splits.search, config.images, numpy_generator(config.seed, "export")).load()
        images = setup.splits.normalization(shown.pixels)
    else:
        (folder, artefact), images = open_artefact(config), None
    example = torch.zeros(2 if config.dynamic_batch else 1, *artefact.origin.shape)
    exported = export_network(
        artefact.network, example, out, config.format,
        opset=config.opset, dynamic_batch=config.dynamic_batch, fold_bn=config.fold_bn,
        images=images, tolerance=config.tolerance, metadata=metadata_of(artefact),
    )  # fmt: skip
    dense = _dense_bytes(config, artefact, example, run_dir) if config.dense else None
    table = to_markdown(size_table(artefact, exported, dense))
    write_text(run_dir / "table.md", table + "\n")
    write_result(run_dir, {"command": "export", "choices": choices, "run": str(folder)} | result_of(exported, artefact, dense))
    print(f"\n{table}\n\n{exported}\nwrote {exported.path}")


def _dense_bytes(config: ExportConfig, artefact: "Artefact", example: "torch.Tensor", run_dir: Path) -> int:
    import logging

    from rlprune.export.export import file_bytes
    from rlprune.export.from_artefact import metadata_of

    logging.getLogger("rlprune").info("dense: its file is measured with random weights, which take as much room, and not kept")
    return file_bytes(
        artefact.dense, example, config.format,
        opset=config.opset, dynamic_batch=config.dynamic_batch, fold_bn=config.fold_bn, metadata=metadata_of(artefact), folder=run_dir,
    )  # fmt: skip
