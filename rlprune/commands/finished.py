"""What commands take up of a finished run: its pruned network, its data, and the dense network that it started from."""

import logging
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig

from rlprune.checkpoint import load_into, load_weights
from rlprune.commands.adopt import adopt_origin
from rlprune.commands.setup import load_checkpoint, make_execution, make_network, make_setup
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.graph import trace
from rlprune.provenance import provenance
from rlprune.results.artefact import Artefact, find_artefact, load_architecture, load_artefact
from rlprune.results.inspection import Inspected
from rlprune.search.sensitivity import Subject
from rlprune.setup import Setup
from rlprune.skeleton import BenchConfig, EvaluateConfig, ExportConfig, InspectConfig, SensitivityConfig

log = logging.getLogger(__name__)


def named(key: str) -> bool:
    """The command line says what this key is."""
    return any(override.lstrip("+").startswith(f"{key}=") for override in HydraConfig.get().overrides.task)


def open_artefact(config: EvaluateConfig | ExportConfig | SensitivityConfig | BenchConfig) -> tuple[Path, Artefact]:
    """The artefact folder of `config.run` and its network; the model that the line names, if it names one, and else the shipped one.

    Raises:
        UserError: the folder is none of a run, a file in it is damaged, or the run's network is not shipped and not named either.
    """
    folder = find_artefact(Path(str(config.run)))
    return folder, load_artefact(folder, partial(make_network, config)) if named("model") else load_artefact(folder)


def open_run(config: EvaluateConfig | ExportConfig | SensitivityConfig, choices: dict[str, str]) -> tuple[Path, Artefact, Setup]:
    """The artefact folder of `config.run`, its network, and the data it was made for, unless another data set is named.

    `config` and `choices` are brought in line with the run: the data set, and the seed of the search split.

    Raises:
        UserError: the folder is none of a run, a file in it is damaged, or the run's network is not shipped and not named either.
    """
    folder, artefact = open_artefact(config)
    dense_seed = int(artefact.plan.get("dense_seed", artefact.plan["seed"]))
    adopt_origin(config, choices, artefact.origin, dense_seed, HydraConfig.get().overrides.task)
    return folder, artefact, make_setup(config, choices).fitted_to(artefact.origin)


def plan_of_run(config: InspectConfig) -> Inspected:
    """What the plan of `config.run` made of its dense network. Its images are not needed, its weights only where they are to be proved.

    Raises:
        UserError: as `open_run`, or a setting contradicts the plan.
    """
    given = {"checkpoint": config.checkpoint, "ignore": config.ignore, "image_size": config.image_size, "sheet": config.sheet}
    keys = [override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task]
    settings = [key for key in keys if key.partition(".")[0] == "dataset" or (key.startswith("model.") and "model" not in keys)]
    contradicting = [key for key, value in given.items() if value] + settings
    if contradicting:
        raise UserError(f"{contradicting[0]}: goes not with run, whose plan says what the network is; leave one of them out")
    device = make_execution(config).device
    folder = find_artefact(Path(str(config.run)))
    load = load_artefact if config.verify else load_architecture
    artefact = load(folder, partial(make_network, config)) if named("model") else load(folder)
    example = torch.randn(1, *artefact.origin.shape, generator=torch.Generator().manual_seed(config.seed)).to(device)
    title = f"{folder}: {artefact.origin.network_name}"
    return Inspected(title, artefact.network.to(device).eval(), artefact.graph, artefact.keep, example)


def load_dense(config: SensitivityConfig | BenchConfig, folder: Path, artefact: Artefact, *, otherwise: str | None) -> str | None:
    """Give `artefact.dense` the weights that the run started from, or those of `config.checkpoint`; says where they are from.

    None where the run has none or they are gone; a warning then says why, and what is done `otherwise`.

    Raises:
        UserError: they are damaged, or of another network.
    """
    if config.checkpoint is not None:
        load_checkpoint(artefact.dense, config.checkpoint)
        return str(config.checkpoint)
    known = [path for path in (folder / "result.json", folder.parent / "result.json") if path.is_file()]
    source = read_json(known[0]).get("dense") if known else None
    if source is not None:
        for path in (Path(str(source)), Path(config.paths.outputs) / "dense" / Path(str(source)).name):
            if path.is_file():
                load_into(artefact.dense, load_weights(path)[0], str(path))
                return str(path)
    if provenance(artefact.dense).complete:  # published weights, which the command line names again
        return provenance(artefact.dense).weights
    why = f"its dense network ({source}) is no file here" if source is not None else "it names no dense network"
    if otherwise is not None:
        log.warning("run=%s: %s; %s (checkpoint=FILE names one)", config.run, why, otherwise)
    return None


def subjects_of_run(config: SensitivityConfig, choices: dict[str, str]) -> tuple[Setup, list[Subject]]:
    """The dense network that a run started from, where there is one, and the pruned network that it left.

    The seed is the run's, too, unless the line names one.

    Raises:
        UserError: as `open_run` and `load_dense`.
    """
    folder, artefact, setup = open_run(config, choices)
    config.seed = config.seed if named("seed") else int(artefact.plan["seed"])  # the images that the run looked at
    free = set(artefact.keep)
    if config.ignore:
        ignore = [*map(str, artefact.plan["ignore"]), *config.ignore]
        free &= {group.name for group in trace(artefact.dense, torch.zeros(2, *artefact.origin.shape), ignore=ignore, prove=False).groups}
    reasons = {group.name: "left alone" for group in artefact.graph.groups if group.name not in free}
    graph = artefact.graph.after(artefact.keep).freeze(reasons)
    subjects = [Subject("pruned", artefact.network.to(setup.execution.device), graph, str(folder))]
    source = load_dense(config, folder, artefact, otherwise="measuring the pruned network alone")
    if source is not None:
        dense = artefact.dense.to(setup.execution.device).eval()
        subjects.insert(0, Subject("dense", dense, artefact.graph.freeze(reasons), source))
    return setup, subjects
