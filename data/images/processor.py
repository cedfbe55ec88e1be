"""How a model wants its images: transformers' own image processor (PIL backend, no torchvision), in two steps.

The first step, resize and crop, gives what the model sees as 8-bit pixels, which are also what is shown; the second is
one affine map to floats. Together they are the processor's pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from attlas.data.images.labels import config_classes
from attlas.errors import CheckpointError, ImageDataError

MAX_PIXELS = 100_000_000
_SERVICE_KEYS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "_valid_processor_keys",
    "transformers_version",
}
_PROBES = ((97, 131), (131, 97), (64, 64))  # heights and widths that tell whether the size depends on the image


@dataclass(frozen=True)
class ImageSpec:
    """How a model wants its images.

    Attributes:
        mean, std: per channel, of pixels after `scale`; 0 and 1 where the processor does not normalise.
        scale: factor of 8-bit pixels, 1/255 for most.
        processor: transformers' processor, of which resize and crop are used.
        classes: the classifier's class names in its order, or none.
        name: where it came from.
        size: (height, width) in pixels, found by trying the processor; None where it depends on the image (shortest
            edge without a crop).

    Raises:
        CheckpointError: the processor does anything but resize, crop, rescale and normalise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    processor: Any = field(compare=False, repr=False)
    classes: tuple[str, ...] = ()
    name: str = "the processor"
    size: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self._probe())

    @property
    def n_channels(self) -> int:
        return len(self.mean)

    @classmethod
    def from_folder(cls, folder: Path) -> ImageSpec:
        """Read preprocessor_config.json, and channels and class names from config.json where there is one.

        Raises:
            CheckpointError: no such file, not JSON, or a processor that cannot be followed; says why.
        """
        path = Path(folder) / "preprocessor_config.json"
        config = _json(path)
        model = _json(path.with_name("config.json")) if path.with_name("config.json").is_file() else {}
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(
                str(folder), backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # unknown types, sizes and values come in many classes
            kind = config.get("image_processor_type") or config.get("feature_extractor_type")
            if not kind:
                raise CheckpointError(
                    f"'{path}' names no image_processor_type, and a {model.get('model_type', 'model')} has none of its "
                    "own; add one, such as ViTImageProcessor"
                ) from error
            raise CheckpointError(f"'{path}': image processor {kind} cannot be opened ({_short(error)})") from error
        known = _SERVICE_KEYS | set(getattr(processor, "_valid_kwargs_names", ()))
        strange = sorted(key for key, value in config.items() if key not in known and value is not None)
        if strange:
            kind = type(processor).__name__.removesuffix("Pil")
            raise CheckpointError(f"'{path}': {kind} knows no {', '.join(map(repr, strange))}; remove or mend the keys")
        has_classifier = any("Classif" in str(a) for a in model.get("architectures") or ())
        classes = config_classes(model.get("id2label")) if has_classifier else ()
        return cls.of(processor, model.get("num_channels"), classes, str(path))

    @classmethod
    def of(
        cls, processor: Any, n_channels: int | None = None, classes: tuple[str, ...] = (), name: str = "the processor"
    ) -> ImageSpec:
        """From a transformers image processor in memory.

        Raises:
            CheckpointError: it does anything but resize, crop, rescale and normalise, or its means do not fit the
                channels.
        """
        mean, std = (_values(getattr(processor, key, None)) for key in ("image_mean", "image_std"))
        normalises = bool(getattr(processor, "do_normalize", False))
        channels = n_channels or (len(mean) if normalises and len(mean) in (1, 3) else 3)
        if normalises:
            mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
            mean, std = (tuple(float(x) for x in v) for v in (mean, std))
        else:
            mean, std = (0.0,) * channels, (1.0,) * channels
        if channels not in (1, 3) or len(mean) != channels or len(std) != channels or 0 in std:
            raise CheckpointError(
                f"{name}: {channels} channels with image_mean {list(mean)} and image_std {list(std)}; "
                "give one value a channel, for 1 or 3 channels"
            )
        factor = getattr(processor, "rescale_factor", None) or 1 / 255
        scale = float(factor) if getattr(processor, "do_rescale", False) else 1.0
        return cls(mean, std, scale, processor, classes, name)

    def resized(self, size: tuple[int, int]) -> ImageSpec:
        """The same for another (height, width): images are resized to it whole, without a crop."""
        processor = copy.deepcopy(self.processor)
        processor.size = type(processor.size)(height=size[0], width=size[1])
        processor.do_resize, processor.do_center_crop = True, False
        return dataclasses.replace(self, processor=processor)

    def _probe(self) -> tuple[int, int] | None:
        """The size of what the model sees, found by trying; the two steps must give the processor's own pixels."""
        sizes = set()
        noise = np.random.default_rng(0)
        for height, width in _PROBES:
            image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image = image.convert("L" if self.n_channels == 1 else "RGB")
            try:
                whole = np.asarray(self.processor(image, do_convert_rgb=False)["pixel_values"][0], dtype=np.float32)
                seen = self.seen(image)
                same = whole.shape == (self.n_channels, *seen.shape[:2])
                same = same and np.allclose(whole, self.normalise(seen[None])[0].numpy(), atol=1e-4)
            except Exception as error:
                raise CheckpointError(f"{self.name} gives no pixels ({_short(error)})") from error
            if not same:
                kind = type(self.processor).__name__.removesuffix("Pil")
                raise CheckpointError(
                    f"{self.name}: {kind} does more than resize, crop, rescale and normalise, which attlas cannot follow"
                )
            sizes.add(seen.shape[:2])
        return sizes.pop() if len(sizes) == 1 else None

    def seen(self, image: Image.Image) -> np.ndarray:
        """An 8-bit image (mode L or RGB) resized and cropped: uint8 [H, W, C]."""
        found = self.processor(image, do_rescale=False, do_normalize=False, do_convert_rgb=False)["pixel_values"][0]
        return np.ascontiguousarray(np.moveaxis(np.asarray(found), 0, -1)).astype(np.uint8)

    def normalise(self, images: np.ndarray) -> Tensor:
        """uint8 [n, H, W, C] → float32 [n, C, H, W]."""
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() * self.scale
        mean, std = torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.std).view(1, -1, 1, 1)
        return (x - mean) / std


def to_array(image: bytes | Image.Image | np.ndarray | Path, spec: ImageSpec) -> np.ndarray:
    """Any image as uint8 [H, W, C] as the model sees it: upright, 8-bit, on white where transparent, resized, cropped.

    Raises:
        ImageDataError: not an image, corrupt, of values that are no brightness, or of more than 100 million pixels.

    Example:
        >>> from attlas.data.images import to_array
        >>> to_array(np.zeros((20, 30, 3), np.uint8), vit_model.image_spec).shape  # what the model sees, before normalisation
        (32, 32, 1)
    """
    what = image if isinstance(image, Path) else "this upload"
    try:
        if isinstance(image, np.ndarray):
            opened = Image.fromarray(eight_bit(image))
        elif isinstance(image, Image.Image):
            opened = image
        else:
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        if opened.width * opened.height > MAX_PIXELS:
            raise ImageDataError(f"an image of {opened.width} × {opened.height} pixels is too large; shrink it first")
        opened = ImageOps.exif_transpose(opened)
        if opened.mode.startswith(("I", "F")):
            deep = np.asarray(opened)
            opened = Image.fromarray(eight_bit(deep.astype(np.uint16) if opened.format == "PNG" else deep))
        if opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info:
            rgba = opened.convert("RGBA")
            opened = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        opened = opened.convert("L" if spec.n_channels == 1 else "RGB")
    except ImageDataError as error:
        raise ImageDataError(f"'{what}': {error}") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
        raise ImageDataError(
            f"'{what}' is not an image that can be read ({type(error).__name__}); use PNG or JPEG"
        ) from error
    return spec.seen(opened)


def to_pixels(image: bytes | Image.Image | np.ndarray | Path, spec: ImageSpec) -> Tensor:
    """Any image as float32 [C, H, W], normalised for a model; raises as to_array does.

    Example:
        >>> from attlas.data.images import to_pixels
        >>> to_pixels(np.zeros((20, 30, 3), np.uint8), vit_model.image_spec).shape  # [channels, height, width]
        torch.Size([1, 32, 32])
    """
    return spec.normalise(to_array(image, spec)[None])[0]


def eight_bit(values: np.ndarray) -> np.ndarray:
    """Brightness as uint8: 16-bit integers over their whole range; floats and wider integers over 0–1, 0–255 or
    0–65,535, the least that holds them.

    Raises:
        ImageDataError: negative, not finite, or larger.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if not values.size or not np.isfinite(values).all() or values.min() < 0 or values.max() > 65_535:
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        raise ImageDataError(f"values from {low:.4g} to {high:.4g} are no brightness; scale them to 0–1 or 0–255")
    tops = (65_535,) if values.dtype in (np.dtype("<u2"), np.dtype(">u2")) else (255, 65_535)
    tops = (1, *tops) if np.issubdtype(values.dtype, np.floating) else tops
    top = next(t for t in tops if values.max() <= t)
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _short(error: Exception, longest: int = 160) -> str:
    """The first line of an error; transformers may list a hundred names in it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= longest else first[:longest] + "…"


def _values(value: Any) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(value or ())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}': {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds no JSON object but {type(found).__name__}; restore it")
    return found
