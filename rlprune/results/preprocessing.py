"""Pictures as a pruned network takes them: read as its data set was, and normalised."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rlprune.data.base import Normalization
from rlprune.data.files import Geometry, as_rgb
from rlprune.errors import UserError
from rlprune.results.artefact import find_artefact, read_plan
from rlprune.results.origin import Origin


@dataclass(frozen=True)
class Preprocessing:
    """From pictures to the batch that a network takes; made by `load_preprocessing`.

    Args:
        class_names: of the network's outputs, in their order.
        mean: of each channel of pixels in [0, 1], subtracted from them.
        std: by which they are divided afterwards.
        image_size: pixels, (height, width).
        resize: pixels that the shorter side of a picture gets before the centre is cut out; None squeezes the whole into `image_size`.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    resize: int | None

    def __call__(self, images: Image.Image | Sequence[Image.Image] | Tensor) -> Tensor:
        """A normalised float32 batch, shape (N, C, H, W), equal to what the network was tested on.

        Args:
            images: a picture of any size and mode, some of them, or uint8 pixels of shape (N, C, H, W) or (C, H, W).

        Raises:
            UserError: they are something else, or pixels of another shape.
        """
        return Normalization(self.mean, self.std)(self._pixels(images))

    def _pixels(self, images: object) -> Tensor:
        if isinstance(images, Tensor):
            pixels = images.unsqueeze(0) if images.ndim == 3 else images
            wanted = (len(self.mean), *self.image_size)
            if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != wanted:
                raise UserError(
                    f"images: are {images.dtype} of shape {tuple(images.shape)}; the network takes uint8 pixels of shape (N, "
                    f"{', '.join(map(str, wanted))}), and PIL pictures of any size"
                )
            return pixels
        pictures = [images] if isinstance(images, Image.Image) else images
        if not isinstance(pictures, Sequence) or not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
            raise UserError(f"images: are a {type(images).__name__}; pass a PIL picture, a list of them, or a uint8 tensor")
        return torch.stack([self._read(picture) for picture in pictures])

    def _read(self, picture: Image.Image) -> Tensor:
        """uint8, shape (C, H, W)."""
        try:
            picture = as_rgb(picture)
            height, width = self.image_size
            picture = Geometry(height, self.resize)(picture) if height == width else picture
        except (OSError, ValueError) as error:
            raise UserError(f"images: hold no readable picture ({error})") from error
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if len(self.mean) not in (1, 3):
            raise UserError(f"images: the network takes {len(self.mean)} channels, a picture has 3; pass uint8 pixels")
        pixels = np.array(picture.convert("L"))[:, :, None] if len(self.mean) == 1 else np.array(picture)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def load_preprocessing(path: str | Path) -> Preprocessing:
    """What turns pictures into the batch that the network of `rlprune.load(path)` takes.

    Args:
        path: of a run, or of an artefact in it.

    Raises:
        UserError: there is no plan, or it is damaged.
    """
    folder = find_artefact(Path(path), "path")
    _, origin, _ = read_plan(folder / "plan.json")
    return Preprocessing(origin.class_names, origin.mean, origin.std, origin.image_size, _resize(origin, folder))


def _resize(origin: Origin, folder: Path) -> int | None:
    """Of data sets of photographs; the others have images of one size."""
    resize = origin.dataset_settings.get("resize")
    if type(resize) is not int:
        return None
    if not max(origin.image_size) <= resize <= 8192:
        raise UserError(f"{folder / 'plan.json'}: resize={resize} cannot be; the file is damaged, use another run")
    return resize
