"""What a network expects of an image, as it is stored with models and used to prepare images.

`lowrank.io.preprocessing` finds it for weights from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from lowrank.data import ImageData, Interpolation, ResizeMode
from lowrank.errors import InputError
from lowrank.utils import validate_model

PREPROCESSING_KEY = "lowrank_preprocessing"  # of its JSON, in the metadata of safetensors and ONNX files
_SHOWN = 3  # names in a message


class ImagePreprocessing(BaseModel):
    """What a network expects of an image. Frozen.

    Attributes:
        mean: that is subtracted from each channel, in units of `value_range`; None for that of the training images.
        std: that each channel is divided by, likewise.
        image_size: side in pixels of the square that the network gets; None for the images as they are.
        resize: how an image becomes that square: its middle square, squashed, or padded with black bars.
        crop: side of the middle square that is taken, as a share of the image's shorter side.
        interpolation: filter of the resizing.
        value_range: what pixels of 0 and 255 become before the mean is subtracted.
        channel_order: rgb or bgr.
        classes: names in the order of the network's outputs; None where nobody says.
        source: where all of this comes from, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    mean: tuple[float, ...] | None = Field(default=None, min_length=1)
    std: tuple[float, ...] | None = Field(default=None, min_length=1)
    image_size: int | None = Field(default=None, ge=1)
    resize: ResizeMode = "crop"
    crop: float = Field(default=1.0, gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    value_range: tuple[float, float] = (0.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    classes: tuple[str, ...] | None = None
    source: str

    @model_validator(mode="after")
    def _check_statistics(self) -> ImagePreprocessing:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be given together")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(
                    f"`mean` and `std` must have one value for each channel, but got {len(self.mean)} and "
                    f"{len(self.std)}"
                )
            if min(self.std) <= 0:
                raise ValueError(f"`std` must be greater than 0, but got {min(self.std):g}")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"`value_range` must rise, but got {self.value_range[0]:g} and {self.value_range[1]:g}")
        return self

    def data_fields(self) -> dict[str, object]:
        """Express the preprocessing as fields of `lowrank.data.DataSettings`.

        Returns:
            `mean` and `std` in units of 0..1, `image_size`, `resize`, `crop` and `interpolation`; only what differs
            from the settings' defaults.

        Raises:
            InputError: the network expects another order of the channels than red, green, blue.
        """
        if self.channel_order != "rgb":
            raise InputError(
                f"images are read as rgb, but {self.source} says {self.channel_order}; reverse the input channels of "
                f"the first layer's weights, and the mean and deviation"
            )
        fields: dict[str, object] = {}
        if self.mean is not None and self.std is not None:
            fields["mean"], fields["std"] = self._unit_statistics(self.mean, self.std)
        if self.image_size is not None:
            fields["image_size"] = self.image_size
            fields |= {"resize": self.resize} if self.resize != "crop" else {}
            fields |= {"crop": self.crop} if self.crop != 1 else {}
            fields |= {"interpolation": self.interpolation} if self.interpolation != "bilinear" else {}
        return fields

    def _unit_statistics(
        self, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Express mean and deviation in units of 0..1."""
        low, high = self.value_range
        return tuple((value - low) / (high - low) for value in mean), tuple(value / (high - low) for value in std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels into the network's input.

        Args:
            pixels: uint8 (B, C, H, W); rgb, of the size that the network gets.

        Returns:
            float32 (B, C, H, W).

        Raises:
            InputError: mean and deviation are not known, or are those of another number of channels.
        """
        if self.mean is None or self.std is None:
            raise InputError(f"{self.source} says no mean and deviation of the channels")
        if len(self.mean) not in (1, pixels.shape[1]):
            raise InputError(f"{self.source} is for {len(self.mean)} channels, but the images have {pixels.shape[1]}")
        mean, std = (255 * torch.tensor(values) for values in self._unit_statistics(self.mean, self.std))
        ordered = pixels.flip(1) if self.channel_order == "bgr" else pixels
        return (ordered.float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def describe(self) -> str:
        """Describe the preprocessing for cards and messages.

        Returns:
            One line.
        """
        parts = []
        if self.image_size is not None:
            share = "" if self.crop == 1 else f" of {100 * self.crop:.3g} % of the shorter side"
            whole = {"crop": f"middle square{share}", "squash": "whole image", "pad": "image with black bars"}
            size = f"{self.image_size} x {self.image_size}"
            parts.append(f"{whole[self.resize]} resized to {size} ({self.interpolation})")
        low, high = self.value_range
        parts.append(f"{self.channel_order} values from {low:g} to {high:g}")
        if self.mean is not None and self.std is not None:
            mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
            parts.append(f"mean ({mean}), deviation ({std})")
        if self.classes is not None:
            parts.append(f"{len(self.classes):,} named classes")
        return f"{'; '.join(parts)}; from {self.source}"

    def class_positions(self, data_classes: Sequence[str]) -> tuple[int, ...] | None:
        """Find the classes of a data set among the network's outputs.

        Args:
            data_classes: names of the set's classes.

        Returns:
            The output of each class; None where the names of the network's classes are not known.

        Raises:
            InputError: the network knows no class of some name, or several.
        """
        if self.classes is None:
            return None
        unmatched = [name for name in data_classes if self.classes.count(name) != 1]
        if unmatched:
            shown = ", ".join(unmatched[:_SHOWN]) + (", ..." if len(unmatched) > _SHOWN else "")
            raise InputError(
                f"every class of the images must be one class of the network, but {len(unmatched)} of "
                f"{len(data_classes)} are not ({shown}); {self.source} has {', '.join(self.classes[:_SHOWN])}, ..."
            )
        return tuple(self.classes.index(name) for name in data_classes)


def override_preprocessing(
    found: ImagePreprocessing | None, values: Mapping[str, Any], source: str = "values given"
) -> ImagePreprocessing | None:
    """Replace parts of a preprocessing by explicit values.

    Args:
        found: what the weights say; None where they say nothing.
        values: fields of `ImagePreprocessing`; those that are None are not given. A mean and deviation are in units of
            0..1.
        source: where the values come from, in words.

    Returns:
        The preprocessing; `found` where no value is given.

    Raises:
        InputError: a value cannot be.
    """
    changes = {name: value for name, value in values.items() if value is not None}
    if not changes:
        return found
    fields = {} if found is None else {name: getattr(found, name) for name in type(found).model_fields}
    if "mean" in changes or "std" in changes:
        fields |= {"mean": None, "std": None, "value_range": (0.0, 1.0)}
    sources = [source] if found is None else [found.source, f"{', '.join(changes)}: {source}"]
    return validate_model(ImagePreprocessing, {**fields, **changes, "source": "; ".join(sources)})


def data_preprocessing(data: ImageData, classes: Sequence[str] | None = None) -> ImagePreprocessing:
    """Describe how a data set's images become the input of a network.

    Args:
        data: the set.
        classes: names of its classes that replace its own; None for its own.

    Returns:
        The preprocessing, with mean and deviation in units of 0..1.

    Raises:
        InputError: `classes` are not as many as the set has.
    """
    if classes is not None and len(classes) != len(data.classes):
        raise InputError(f"{data.name} has {len(data.classes)} classes, but got {len(classes)} names")
    height, width = data.image_shape[1:]
    return ImagePreprocessing(
        mean=data.mean, std=data.std, image_size=height if height == width else None, crop=data.settings.crop,
        resize=data.settings.resize, interpolation=data.settings.interpolation, classes=tuple(classes or data.classes),
        source=f"data set {data.name}",
    )  # fmt: skip


def parse_preprocessing(metadata: Mapping[str, str], where: str) -> ImagePreprocessing | None:
    """Read a preprocessing from the metadata of a file.

    Args:
        metadata: of a safetensors or ONNX file.
        where: the file, for messages.

    Returns:
        The preprocessing; None where the metadata have none.

    Raises:
        InputError: it is damaged.
    """
    if PREPROCESSING_KEY not in metadata:
        return None
    try:
        fields = json.loads(metadata[PREPROCESSING_KEY])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its `{PREPROCESSING_KEY}` is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: its `{PREPROCESSING_KEY}` must be a JSON object")
    return validate_model(ImagePreprocessing, fields, f"{PREPROCESSING_KEY} of {where}")
