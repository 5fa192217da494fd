"""Any network of timm, by its name there (an optional package)."""

import difflib
import logging
from pathlib import Path
from typing import Any

from torch import nn

from rlprune.checkpoint import load_into, load_weights, without_prefix
from rlprune.errors import UserError
from rlprune.provenance import Provenance, mark

log = logging.getLogger(__name__)


def timm_network(*, name: str, weights: str | None, in_channels: int, num_classes: int) -> nn.Module:
    """Build a network; with published weights, whose classifier is drawn anew where the number of classes is another.

    Args:
        name: as in timm, such as `resnet50` or, with the name of its weights, `resnet50.a1_in1k`.
        weights: `DEFAULT`, or a file of them that was downloaded before; None draws them.
        in_channels: channels of an image; timm fits the first layer to it.
        num_classes: outputs.

    Raises:
        UserError: timm is missing, there is no such network, or its weights cannot be downloaded or read.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError("model=timm: needs the package timm; pip install 'rlprune[timm]'") from error
    base, _, tag = name.partition(".")
    names = timm.list_models()
    if base not in names:
        close = difflib.get_close_matches(base, names, n=4)
        near = f"did you mean {', '.join(close)}?" if close else "python -c 'import timm; print(timm.list_models())' lists them"
        raise UserError(f"model.name={name}: timm has no such network; {near}")
    tags = [path.partition(".")[2] for path in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UserError(f"model.name={name}: timm has no such weights of {base}; there are {', '.join(tags) or 'none'}")
    settings: dict[str, Any] = {"in_chans": in_channels, "num_classes": num_classes}
    if weights is not None and weights != "DEFAULT":
        return _from_file(timm.create_model(name, pretrained=False, **settings), Path(weights))
    if weights is not None and not tags:
        raise UserError(f"model.weights={weights}: timm publishes none for {name}; set model.weights=null")
    network: nn.Module = timm.create_model(name, pretrained=False, **settings) if weights is None else _download(timm, name, settings)
    shapes: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    side = int(shapes["input_size"][-1])
    if weights is None:
        return mark(network, Provenance(side=side))
    source = f"timm {base}.{shapes.get('tag') or tag}"
    return mark(network, Provenance(source, shapes["num_classes"] == num_classes, side, tuple(shapes["mean"]), tuple(shapes["std"])))


def _from_file(network: nn.Module, path: Path) -> nn.Module:
    """The network with the weights in a file, its classifier drawn anew where the file's has another number of classes."""
    if not path.is_file():
        raise UserError(f"model.weights={path}: is no file; name one, or choose DEFAULT or null")
    shapes: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    heads = shapes.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own, (found, metadata) = network.state_dict(), load_weights(path)
    found, shapes = without_prefix(found, own), {**shapes, **metadata}  # ours say how their images were normalised
    strangers = {
        name
        for name in own
        if name in found and found[name].shape != own[name].shape and any(name.startswith(f"{head}.") for head in heads)
    }
    load_into(network, {**found, **{name: own[name] for name in strangers}}, f"model.weights={path}")
    known = Provenance(str(path), not strangers, int(shapes["input_size"][-1]), tuple(shapes["mean"]), tuple(shapes["std"]))
    return mark(network, known)


def _download(timm: Any, name: str, settings: dict[str, Any]) -> nn.Module:
    log.info("model.weights=DEFAULT: from timm's cache or its hub")
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, **settings)
    except Exception as error:  # the hub's own exceptions, and what torch and safetensors say of broken files
        config = timm.get_pretrained_cfg(name)
        source = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors" if config.hf_hub_id else config.url
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.weights=DEFAULT: cannot be downloaded or read ({reason}); fetch {source} and set model.weights=FILE"
        ) from error
    return network
