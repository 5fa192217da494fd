"""A network as a graph of torch's operators, which both formats are made of."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rlprune.errors import UserError
from rlprune.graph.run import call_model, evaluating

INPUT, OUTPUT = "images", "scores"


def capture(network: nn.Module, example: Tensor, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """What a network in eval mode does with images, without the images themselves.

    Args:
        network: on the device of the example; it is not changed.
        example: images, shape (n, C, H, W); their values do not matter.
        dynamic_batch: any number of images; otherwise as many as the example has.

    Raises:
        UserError: the network cannot run on the example, returns something else than one tensor, fixes its batch size though it should
            not, or does what a graph cannot.
    """
    if dynamic_batch and len(example) == 1:
        example = torch.cat([example, example])  # torch takes a size of 1 for one that is always so
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    with torch.no_grad(), evaluating(network):
        scores = call_model(network, example)
        if not isinstance(scores, Tensor):
            raise UserError(f"network: returns a {type(scores).__name__}, not one tensor; wrap it in a module that returns its scores")
        try:
            with quiet():
                program = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # the user's own code, traced by torch: of any kind
            raise _explained(error, len(example), dynamic_batch) from error
    program.example_inputs = None  # a file would carry them, and where on this machine the code lies
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _explained(error: Exception, batch: int, dynamic_batch: bool) -> UserError:
    text = str(error)
    if dynamic_batch and "as dynamic but your code specialized it" in text:
        return UserError(f"dynamic_batch=true: the network takes {batch} images and no other number; set dynamic_batch=false")
    line = re.search(r'The following call raised this error:\s+File "([^"]+)", line (\d+)', text)
    where = f" at {line[1]}:{line[2]}" if line else ""
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    return UserError(
        f"network: torch.export cannot follow it{where} ({type(error).__name__}: {first}); what it does must not depend on the pixels"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' prints, warnings and log; they speak to those who write exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
