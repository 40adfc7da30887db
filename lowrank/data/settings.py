"""Settings of a data set and of the augmentation of its images."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from os.path import expanduser, isdir
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from lowrank.errors import InputError, unknown
from lowrank.utils import absolute_path

BUILTIN = ("digits", "cifar10", "cifar100", "fashion_mnist")
ON_DISK = ("parquet", "folder", "csv", "idx")
DATA_FOLDER = Path("data")  # in the working directory, unless the user names another
CHOICES = (*BUILTIN, *(f"{kind}:DIR" for kind in ON_DISK))

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]  # filters of Pillow
ResizeMode = Literal["crop", "squash", "pad"]
_PREPROCESSING_FIELDS = ("crop", "interpolation", "mean", "std", "channels", "resize")
_READING_FIELDS = ("image", "label", "skip_broken", "workers")
_OPERATING_FIELDS = ("resident_mb", "loader_seconds", "workers")  # change no pixel and no split


def _as_number(value: object) -> object:
    """Turn the text of a number into the number: a command line gives texts, and Literal compares types."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class DataSettings(BaseModel):
    """Which images, and how they are split.

    Frozen, so that it can be the key of a cache.

    Attributes:
        name: digits, cifar10, cifar100, fashion_mnist, parquet:DIR, folder:DIR, csv:DIR or idx:DIR (a relative DIR
            starts at the working directory; csv also takes the file itself; idx has the files of MNIST's names).
        image: name of the column of images in Parquet files, or of their file names in CSV files; by default one of the
            usual names.
        label: likewise the column of labels.
        train_images: train on a stratified subset of that many images, which also bounds the validation split.
        val_fraction: the share of the published training set that is held out for validation; not used where the set
            has a validation part.
        split_seed: chooses the validation split and the training subset, never the test set.
        resident_mb: megabytes (1e6 bytes) of decoded uint8 images up to which a set lives decoded on the device; a
            larger one is streamed.
        channels: 1 makes all images grey, 3 gives all three colours; auto takes 3 if any image has colours.
        image_size: side in pixels of the square that images of parquet, folder and csv sets are resized to.
        resize: how an image becomes that square: `crop` takes its middle square, `squash` changes its proportions,
            `pad` adds black bars.
        crop: side of the middle square as a share of the image's shorter side.
        interpolation: filter of the resizing.
        mean: of each channel in units of 0..1, which is subtracted from the pixels; by default that of the training
            images. Weights that were trained elsewhere expect their own.
        std: likewise the deviation, which the pixels are divided by; given together with `mean`.
        skip_broken: leave out up to so many images that cannot be read; more of them are an error.
        workers: processes that decode a streamed set for each trial, at most one for each core of the machine; 0
            decodes in the trial's own process, null takes the machine's cores over the trials that run at once, from
            2 to 32.
        loader_seconds: time without any progress in reading, after which it counts as hung.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "digits"
    image: str | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)
    train_images: int | None = Field(default=None, ge=1)
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0, lt=2**63)
    resident_mb: float = Field(default=1024, ge=0)
    channels: Annotated[Literal["auto", 1, 3], BeforeValidator(_as_number)] = "auto"
    image_size: int | None = Field(default=None, ge=1)
    resize: ResizeMode = "crop"
    crop: float = Field(default=1.0, gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(default=None, min_length=1)
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=1)
    skip_broken: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=0, le=1024)
    loader_seconds: float = Field(default=120, gt=0)

    @model_validator(mode="after")
    def _check_preprocessing(self) -> DataSettings:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be given together")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"`mean` and `std` must have one value for each channel, but got {len(self.mean)} and {len(self.std)}"
            )
        if self.image_size is None and (self.crop != 1 or self.interpolation != "bilinear"):
            raise ValueError("`crop` and `interpolation` are of a resizing; give `image_size` too")
        if self.image_size is None and self.resize != "crop":
            raise ValueError(f"`resize: {self.resize}` needs a size; give `image_size` too")
        if self.resize != "crop" and self.crop != 1:
            raise ValueError(f"`crop` is of `resize: crop`, but got `resize: {self.resize}`")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialise: Callable[[DataSettings], dict[str, object]]) -> dict[str, object]:
        """Leave out what is the default of fields that came later, as records did before there were such fields."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in serialise(self).items()
            if name not in (*_PREPROCESSING_FIELDS, *_READING_FIELDS) or getattr(self, name) != fields[name].default
        }

    def preprocessing(self) -> dict[str, object]:
        """Return what the pixels are subjected to beyond the default; it belongs to the fingerprint.

        Returns:
            The values by field, of those that change pixels.
        """
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in _PREPROCESSING_FIELDS}
        return {name: value for name, value in values.items() if value != fields[name].default}

    def contents(self) -> tuple[tuple[str, Any], ...]:
        """Return the fields that decide pixels and splits, as the key of a cache.

        Returns:
            Names and values of all fields but those that only say where images are and how they are loaded.
        """
        return tuple((name, getattr(self, name)) for name in type(self).model_fields if name not in _OPERATING_FIELDS)


class AugmentationSettings(BaseModel):
    """Random augmentation of the training images. Frozen.

    Attributes:
        shift: largest translation in pixels, in each direction and on both axes; the border has the mean colour.
        flip: mirror left to right with probability one half.
        cutout: side in pixels of a square set to the mean colour; its centre is uniform over the image, and the part
            beyond the edge is clipped.
        seed: of all random numbers; it belongs to the study, not to the trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shift: int = Field(default=0, ge=0)
    flip: bool = False
    cutout: int = Field(default=0, ge=0)
    seed: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether augmentation leaves every image as it is."""
        return self.shift == 0 and not self.flip and self.cutout == 0


_DEFAULT_AUGMENTATION = {
    "digits": AugmentationSettings(shift=1, cutout=2),
    "fashion_mnist": AugmentationSettings(shift=2, flip=True, cutout=8),
    "cifar10": AugmentationSettings(shift=4, flip=True, cutout=8),
    "cifar100": AugmentationSettings(shift=4, flip=True, cutout=8),
    "parquet": AugmentationSettings(shift=4, flip=True, cutout=8),
    "folder": AugmentationSettings(shift=4, flip=True, cutout=8),
    "csv": AugmentationSettings(shift=4, flip=True, cutout=8),
    "idx": AugmentationSettings(shift=2, cutout=8),
}
_SHIFT_SIDES = {"idx": 28}  # side in pixels of the images that the shift of a set on disk belongs to; others: 32
_LARGEST_CUTOUT = 4  # a cutout that nobody asked for is at most the side over this


def parse_data_name(name: str) -> tuple[str, str | None]:
    """Split the name of a data set into its kind and its folder.

    Args:
        name: as in `DataSettings`.

    Returns:
        Kind and folder, e.g. ("parquet", "DIR") or ("digits", None).

    Raises:
        InputError: the name is none of CHOICES, or names no folder.
    """
    if name in BUILTIN:
        return name, None
    kind, colon, folder = name.partition(":")
    if kind not in ON_DISK:
        error = unknown("data set", name, CHOICES)
        raise InputError(f"{error}; a folder of images is folder:{name}") if isdir(expanduser(name)) else error
    if not colon or not folder:
        raise InputError(f"data set {name!r} must name its folder, e.g. {kind}:DIR")
    return kind, folder


def absolute_data_name(name: str) -> str:
    """Make the folder in the name of a data set absolute.

    Workers and later commands may have another working directory.

    Args:
        name: as in `DataSettings`.

    Returns:
        The name; as it is where it has no folder.
    """
    kind, colon, folder = name.partition(":")
    return f"{kind}:{absolute_path(folder, 'the data folder')}" if kind in ON_DISK and colon and folder else name


def check_data_folder(name: str, data_dir: Path | None, source: str, *, by_name: bool = True) -> None:
    """Check that images which a file names lie in the folder of data sets.

    Spaces and records may come from anybody: they must not choose what is read on this machine.

    Args:
        name: of the data set.
        data_dir: the folder that the user has typed; None for `data` in the working directory.
        source: what names the images, for the message.
        by_name: whether the command has an option `--data`; else it has `--data-dir` alone.

    Raises:
        InputError: the images lie elsewhere.
    """
    _, colon, folder = name.partition(":")
    path, allowed = absolute_path(folder, "the data folder"), absolute_path(data_dir or DATA_FOLDER, "--data-dir")
    if colon and not path.is_relative_to(allowed):
        option = f"name the data yourself: --data {shlex.quote(absolute_data_name(name))}" if by_name else ""
        option = option or f"give --data-dir {shlex.quote(str(path))}"
        raise InputError(f"{source} reads {folder}, which is outside the data folder {allowed}; to allow it, {option}")


def default_augmentation(data_name: str, image_shape: tuple[int, int, int]) -> AugmentationSettings:
    """Return the augmentation that suits a data set, with seed 0.

    That of a built-in set was chosen for it. That of other sets shifts by the same share of the side at every size:
    by an eighth, which is the study's 4 pixels of 32, and images of `idx` by a fourteenth. It cuts out at most a
    quarter of the side.

    Args:
        data_name: as in `DataSettings`.
        image_shape: (C, H, W) of its images.

    Returns:
        The settings.

    Raises:
        InputError: the data set is unknown.
    """
    kind, folder = parse_data_name(data_name)
    augmentation, side = _DEFAULT_AUGMENTATION[kind], min(image_shape[1:])
    if folder is None:
        return augmentation
    shift, reference_side = _shift_share(kind)
    scaled = {"shift": shift * side // reference_side, "cutout": min(augmentation.cutout, side // _LARGEST_CUTOUT)}
    return augmentation.model_copy(update=scaled)


def default_shift_share(data_name: str) -> tuple[int, int] | None:
    """Return by which share of the side a data set on disk is shifted.

    Args:
        data_name: as in `DataSettings`.

    Returns:
        Pixels, and of how many, e.g. (4, 32); None for a built-in set, whose shift was chosen for its size.

    Raises:
        InputError: the data set is unknown.
    """
    kind, folder = parse_data_name(data_name)
    return None if folder is None else _shift_share(kind)


def _shift_share(kind: str) -> tuple[int, int]:
    """Return the shift of a kind of sets on disk in pixels, and of how many pixels."""
    return _DEFAULT_AUGMENTATION[kind].shift, _SHIFT_SIDES.get(kind, 32)
