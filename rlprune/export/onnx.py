"""ONNX files: written by torch's exporter, run by onnxruntime."""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.export.capture import INPUT, OUTPUT, capture, quiet
from rlprune.files import write_atomically

OLDEST_OPSET = 18  # that torch's exporter has operators for; older ones it would have to convert to, which fails silently
LARGEST = 2**31 - 2**20  # bytes; a file that is one message of protobuf ends at 2 GiB


def require_onnx() -> None:
    """Refuse early where a package is missing.

    Raises:
        UserError: names it.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with quiet():
                import_module(name)
        except ImportError as error:
            raise UserError(f"format=onnx: needs {name}; pip install 'rlprune[onnx]'") from error


def check_opset(opset: int | None) -> None:
    """Refuse an operator set that nothing here can write.

    Raises:
        UserError: says which there are.
    """
    require_onnx()
    newest = import_module("onnx").defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset={opset}: must be in {OLDEST_OPSET}..{newest} (onnx {version('onnx')}), or null for torch's default")


def export_onnx(
    network: nn.Module, example: Tensor, path: Path, *, opset: int | None, dynamic_batch: bool, metadata: Mapping[str, str]
) -> None:
    """Write a network as one ONNX file, atomically. It is not compared with anything.

    Args:
        network: as it is in eval mode; its own mode does not matter. Input `images`, output `scores`.
        example: images on its device, shape (n, C, H, W).
        path: of the file.
        opset: ONNX operator set; None for torch's default.
        dynamic_batch: takes any number of images; otherwise as many as the example has.
        metadata: goes into the file's `metadata_props`.

    Raises:
        UserError: a package is missing, the network cannot be captured, ONNX lacks one of its operators, or it is too large for one file.
    """
    check_opset(opset)
    tensors = {tensor.data_ptr() or id(tensor): tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]}
    if sum(tensors.values()) > LARGEST:
        raise UserError(f"format=onnx: weights of {sum(tensors.values()) / 1e9:.1f} GB; a file holds 2 GB; use format=torch_export")
    program = capture(network, example, dynamic_batch=dynamic_batch)
    shapes: Any = ({0: "batch"},) if dynamic_batch else None
    try:
        with torch.no_grad(), quiet():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # torch's, onnxscript's and onnx's
        raise _explained(error, program) from error
    found = written.model.opset_imports.get("")
    if opset is not None and found != opset:
        raise UserError(f"opset={opset}: torch {torch.__version__} cannot write it and would write {found}; set opset={found}, or null")
    _strip(written.model)
    written.model.metadata_props.update(metadata)

    def write(temporary: Path) -> None:
        with quiet():
            written.save(temporary)

    write_atomically(path, write)


def _strip(model: Any) -> None:
    """Drop what the exporter notes on every operator and tensor, for those who debug it: half of a small file, and paths of the machine."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            for noted in (node, *node.outputs):
                noted.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _explained(error: Exception, program: torch.export.ExportedProgram) -> UserError:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = "\n".join(str(link) for link in chain)
    if lacking := re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text):
        where = _layer(program, lacking[1].rpartition(".")[2])
        return UserError(f"format=onnx: ONNX has no operator for {lacking[1]}{where}; replace it, or use format=torch_export")
    first = str(chain[-1]).strip().splitlines() or ["no message"]
    return UserError(f"format=onnx: torch's exporter failed ({type(chain[-1]).__name__}: {first[0]}); try format=torch_export")


def _layer(program: torch.export.ExportedProgram, operator: str) -> str:
    """The first layer with an operator of this name: ` (in layer1.0)`; empty where there is none, as decomposition has made it."""
    stacks = (node.meta.get("nn_module_stack") for node in program.graph.nodes if operator in str(node.target))
    layers = [path for path, _ in (next(stacks, None) or {}).values() if path]
    return f" (in {layers[-1]})" if layers else ""


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The network in an ONNX file, run by onnxruntime on the CPU: images → scores.

    Raises:
        UserError: onnxruntime cannot read the file, or cannot run it on these images.
    """
    require_onnx()
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its own lines, beside the exception
    options.intra_op_num_threads = torch.get_num_threads()
    known = f"onnxruntime {version('onnxruntime')}"
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if newest := re.search(r"support for domain ai.onnx is till opset (\d+)", str(error)):
            raise UserError(f"opset: {known} reads sets up to {newest[1]}; take one of these") from error
        raise UserError(f"format=onnx: {known} does not read the file ({_first(error)}); set a lower opset") from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])
        except Exception as error:
            raise UserError(f"format=onnx: {known} cannot run it on {len(images)} images ({_first(error)})") from error

    return run


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
