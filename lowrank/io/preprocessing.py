"""What trained weights expect of an image: read from where torchvision, timm and Hugging Face say it.

Entry point: `find_preprocessing`. Nothing is downloaded, and no code of a file is run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.data import Interpolation, ResizeMode
from lowrank.errors import InputError, unknown
from lowrank.io.image_preprocessing import ImagePreprocessing, parse_preprocessing
from lowrank.io.tensor_file import read_metadata
from lowrank.io.weight_files import FOLDER_FILES
from lowrank.networks import NetworkSettings, default_images, make_network, without_weights
from lowrank.utils import file_hash, validate_model

CLASSIFIER_FILE = "images.json"  # beside the model in a folder of `lowrank.serving`
CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"  # of timm and Hugging Face
_TIMM_KEY = "pretrained_cfg"
_TORCHVISION = "torchvision:"
_TORCHVISION_FILE = re.compile(r"[\w-]+-([0-9a-f]{8})\.pth")  # as torchvision downloads it; the digits are of its hash
_PIL_FILTERS: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
_TIMM_MODES: dict[str, ResizeMode] = {"center": "crop", "squash": "squash", "border": "pad"}
_PLACEHOLDER = re.compile(r"LABEL_\d+")  # Hugging Face's name of a class without one
_CONVNEXT_SIZE = 384  # from this size on Hugging Face's ConvNeXT does not crop


def find_preprocessing(reference: Path | str) -> ImagePreprocessing | None:
    """Find what weights expect of an image.

    Looked at in this order: `images.json` beside the file and the metadata of a safetensors file (this library's),
    `pretrained_cfg` in those metadata or in `config.json` (timm's), `preprocessor_config.json` (Hugging Face's), and
    whether the file is one of torchvision's.

    Args:
        reference: a file of weights or its folder, or weights of torchvision such as `resnet18/IMAGENET1K_V1`, also
            with `torchvision:` before it.

    Returns:
        The preprocessing; None where nobody says.

    Raises:
        InputError: there is no such file and no such weights of torchvision, or what is said cannot be.
    """
    path = Path(reference).expanduser()
    if not path.exists():
        return _torchvision_preprocessing(str(reference))
    folder = path if path.is_dir() else path.parent
    if (folder / CLASSIFIER_FILE).is_file():
        return _from_classifier(folder / CLASSIFIER_FILE)
    weights = folder / FOLDER_FILES[0] if path.is_dir() else path
    metadata = read_metadata(weights) if weights.is_file() and weights.suffix == ".safetensors" else {}
    if (stored := parse_preprocessing(metadata, str(weights))) is not None:
        return stored
    if _TIMM_KEY in metadata:
        return _from_timm(_parse_json(metadata[_TIMM_KEY], f"`{_TIMM_KEY}` of {path}"), f"`{_TIMM_KEY}` of {path}")
    config = _read_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if _TIMM_KEY in config:
        where = f"`{_TIMM_KEY}` of {folder / CONFIG_FILE}"
        return _from_timm(config[_TIMM_KEY], where, config)
    if (folder / PROCESSOR_FILE).is_file():
        return _from_processor(_read_object(folder / PROCESSOR_FILE), str(folder / PROCESSOR_FILE), config)
    return _torchvision_file(path)


def network_preprocessing(network: nn.Module) -> ImagePreprocessing | None:
    """Read what a network of timm expects of an image.

    Args:
        network: the model object.

    Returns:
        What its `pretrained_cfg` says; None for a network that has none.

    Raises:
        InputError: what it says cannot be.
    """
    settings = getattr(network, _TIMM_KEY, None) or getattr(network, "default_cfg", None)
    if settings is not None and not isinstance(settings, Mapping):
        settings = vars(settings)  # timm's dataclass
    return _from_timm(settings, f"`{_TIMM_KEY}` of the {type(network).__name__}") if settings else None


def published_preprocessing(settings: NetworkSettings) -> ImagePreprocessing | None:
    """Find what the published weights of a network expect of an image.

    Args:
        settings: of the network, with the trained weights that they name.

    Returns:
        The preprocessing; None where nobody says, and for networks whose settings name no weights.

    Raises:
        InputError: the name or the weights are unknown, or what is said cannot be.
    """
    kind, _, name = settings.name.partition(":")
    if settings.weights is None:
        return None
    if kind == "torchvision":
        return find_preprocessing(f"{settings.name}/{settings.weights}")
    if kind == "hf":
        return find_preprocessing(Path(name))
    if kind == "timm":
        return network_preprocessing(make_network(without_weights(settings), *default_images(settings.name)))
    return None


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """Read names of classes, in the order of a network's outputs.

    Args:
        path: a JSON list of names; a JSON object of names by index (`{"0": "cat"}`) or of indices by name
            (`{"cat": 0}`); or a text with one name a line.

    Returns:
        The names.

    Raises:
        InputError: the file cannot be read, or its indices are not 0, 1, 2 and so on.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class names cannot be read: {path}: {error}") from error
    if text.lstrip()[:1] not in ("[", "{"):
        names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        names = _parse_json(text, str(path))
        if isinstance(names, dict):
            names = _names_in_order(names, str(path))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{path} must hold names of classes: a JSON list, a JSON object by index, or one name a line")
    return tuple(names)


def _names_in_order(names: Mapping[str, Any], where: str) -> list[Any]:
    """The names of an object that maps indices to names, or names to indices."""
    if names and all(type(value) is int for value in names.values()):
        by_index = {index: name for name, index in names.items()}
    else:
        by_index = {int(key) if key.isdecimal() else -1: name for key, name in names.items()}
    if sorted(by_index) != list(range(len(names))):
        raise InputError(f"{where}: indices of classes must be 0 to {len(names) - 1}, each once")
    return [by_index[index] for index in range(len(names))]


# Sources


def _from_classifier(path: Path) -> ImagePreprocessing:
    content = _read_object(path)
    try:
        example: Any = content["example"]
        sides = {len(example[0]), len(example[0][0])}
    except (KeyError, IndexError, TypeError):
        sides = set()
    fields = {name: value for name, value in content.items() if name not in ("example", "source")}
    return _make({"image_size": sides.pop() if len(sides) == 1 else None, **fields}, str(path))


def _from_timm(settings: Any, where: str, config: Mapping[str, Any] | None = None) -> ImagePreprocessing:
    if not isinstance(settings, Mapping):
        raise InputError(f"{where} must be an object, but got {settings!r}")
    names = settings.get("label_names") or (config or {}).get("label_names")
    size, source, crop = settings.get("input_size"), where, settings.get("crop_pct")
    mode = str(settings.get("crop_mode") or "center")
    resize = _TIMM_MODES.get(mode, "crop")
    if mode not in _TIMM_MODES:
        source, crop = f"{where} (crop_mode {mode}, here the middle square)", 1.0
    elif resize != "crop" and crop not in (None, 1.0):  # timm enlarges the whole image by it and cuts off its edges
        source, crop = f"{where} (crop_mode {mode}, here without its crop_pct of {crop:g})", 1.0
    interpolation = settings.get("interpolation") or "bilinear"
    return _make({
        "mean": settings.get("mean"), "std": settings.get("std"), "crop": 1.0 if crop is None else crop,
        "image_size": None if size is None else _side(size[1:] if isinstance(size, Sequence) else size, where),
        "resize": resize,
        "interpolation": "bilinear" if interpolation == "random" else interpolation,
        "classes": _names(names),
    }, source)  # fmt: skip


def _from_processor(settings: Mapping[str, Any], where: str, config: Mapping[str, Any]) -> ImagePreprocessing:
    """Read Hugging Face's `preprocessor_config.json`, and names of classes from its `config.json`."""
    is_resized = settings.get("do_resize", True) and settings.get("size") is not None
    resized = _side(settings["size"], where) if is_resized else None
    cropped = None
    if settings.get("do_center_crop") and settings.get("crop_size") is not None:
        cropped = _side(settings["crop_size"], where)
    share = min(1.0, cropped / resized) if cropped and resized else 1.0
    squeezed = is_resized and not _keeps_aspect(settings["size"])
    if settings.get("crop_pct") is not None and resized is not None:  # ConvNeXT crops small images, squeezes large ones
        squeezed = resized >= _CONVNEXT_SIZE
        share = 1.0 if squeezed else settings["crop_pct"]
    changed = " (images squeezed to a square before they are cropped, here not)" if squeezed and share < 1 else ""
    scale = _number(settings, "rescale_factor", 1 / 255, where) if settings.get("do_rescale", True) else 1.0
    low = -1.0 if settings.get("offset") or settings.get("rescale_offset") else 0.0
    normalised = settings.get("do_normalize", True) and settings.get("image_mean") is not None
    channels = 3
    resample = _number(settings, "resample", 2, where)
    if resample not in _PIL_FILTERS:
        raise unknown(f"`resample` of {where}", resample, _PIL_FILTERS)
    return _make({
        "mean": settings["image_mean"] if normalised else (0.0,) * channels,
        "std": settings.get("image_std") if normalised else (1.0,) * channels,
        "image_size": cropped or resized, "crop": share, "resize": "squash" if squeezed and share == 1 else "crop",
        "interpolation": _PIL_FILTERS[int(resample)],
        "value_range": (low, low + 255 * scale),
        "channel_order": "bgr" if settings.get("do_flip_channel_order") else "rgb",
        "classes": _names(config.get("id2label"), where),
    }, where + changed)  # fmt: skip


def _torchvision_preprocessing(reference: str) -> ImagePreprocessing:
    """Read the transforms of torchvision's weights by name, without downloading the weights."""
    name, slash, weights = reference.removeprefix(_TORCHVISION).partition("/")
    from lowrank.utils import torchvision  # as slow to import as torch itself

    models = torchvision.models
    names = models.list_models(module=models)
    if name not in names:
        if reference.startswith(_TORCHVISION):
            raise unknown("torchvision network", name, names)
        raise InputError(
            f"there is no file {reference}, and no such weights of torchvision (NETWORK/WEIGHTS, such as "
            f"resnet18/IMAGENET1K_V1)"
        )
    choices = models.get_model_weights(name).__members__
    if not slash or weights not in choices:
        raise unknown(f"weights of torchvision:{name} (torchvision:{name}/WEIGHTS)", weights, choices)
    return _from_torchvision(choices[weights])


def _torchvision_file(path: Path) -> ImagePreprocessing | None:
    """Recognise a file that torchvision downloaded by its name and hash."""
    match = _TORCHVISION_FILE.fullmatch(path.name)
    if match is None or not path.is_file() or not file_hash(path).startswith(match[1]):
        return None
    from lowrank.utils import torchvision

    models = torchvision.models
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            if weights.url.rpartition("/")[2] == path.name:
                return _from_torchvision(weights)
    return None


def _from_torchvision(weights: Any) -> ImagePreprocessing:
    transforms = weights.transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return _make({
        "mean": transforms.mean, "std": transforms.std, "image_size": size, "crop": min(1.0, size / resized),
        "interpolation": transforms.interpolation.value, "classes": weights.meta["categories"],
    }, f"torchvision's {weights}")  # fmt: skip


# Parts


def _make(fields: Mapping[str, Any], source: str) -> ImagePreprocessing:
    return validate_model(ImagePreprocessing, {**fields, "source": source}, source)


def _side(size: Any, where: str) -> int:
    """The side of a square in pixels, from a number, a pair, or an object as Hugging Face writes it."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
    if sides and all(side == sides[0] for side in sides) and _is_number(sides[0]) and sides[0] >= 1:
        return int(sides[0])
    raise InputError(f"{where}: images must be square, of a side in pixels, but got {size!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(settings: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = default if settings.get(key) is None else settings[key]
    if not _is_number(value):
        raise InputError(f"`{key}` of {where} must be a number, but got {value!r}")
    return float(value)


def _keeps_aspect(size: Any) -> bool:
    """Whether Hugging Face's `size` is that of the shorter side alone."""
    return isinstance(size, Mapping) and "shortest_edge" in size


def _names(names: Any, where: str = "") -> tuple[str, ...] | None:
    """Names of classes from a list or an object by index; None where there are none but placeholders."""
    if not names or not isinstance(names, Mapping | list | tuple):
        return None
    ordered = _names_in_order(names, where) if isinstance(names, Mapping) else list(names)
    named = tuple(str(name) for name in ordered)
    return None if all(_PLACEHOLDER.fullmatch(name) for name in named) else named


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} must be JSON, but {error}") from error


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = _parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object")
    return content
