"""The networks, dense as published, by name.

A network's class is imported when one is made: the names alone need no torch.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lowrank.errors import InputError, unknown
from lowrank.networks.images import CIFAR_IMAGE, IMAGENET_IMAGE, ImageShape
from lowrank.utils import read_module_names, validate_model

if TYPE_CHECKING:
    from torch import nn


def _field(default: Any, **limits: Any) -> Any:
    """A field of some networks only, which dumps leave out at its default."""
    return Field(default=default, exclude_if=lambda value: value == default, **limits)


Channels = Annotated[int, Field(ge=1, le=1_000_000)]


class NetworkSettings(BaseModel):
    """Which network, and how it differs from the published one.

    Attributes:
        name: one of NETWORK_NAMES.
        width: multiple of the inner channels.
        linear: substitute also the linear maps that the network does not exclude.
        weights: name of trained weights of a torchvision network; DEFAULT for those of a timm or hf network.
        auxiliary: add DARTS's second head, which only training uses.
        stem: of resnet18, as published for ImageNet or for images of CIFAR's size.
        patch: side in pixels of the patches that vit cuts an image into.
        depth: blocks of vit.
        heads: attention heads of vit.
        frozen: whether layers whose parameters have `requires_grad` False are kept, or replaced by frozen ones.
        substitute_all: substitute every convolution and linear map but the one that gives the classes; otherwise
            the stem, linear maps and those that the network names stay.
        keep: shell-style patterns of the layers that stay as they are.
        only: patterns of the layers that alone are replaced; None for all.
        hidden: outputs of the hidden layers of mlp.
        inputs: of mlp, how many pixels it reads; which ones is a buffer of the network; None for all.
        channels: of vgg16 and resnet9, the outputs of each convolution in the order of the network; None as published.
        transform_input: of torchvision's googlenet and inception_v3, convert images from ImageNet's normalisation to
            the one that their published weights were trained with; always so where `weights` names those.

    The last twelve are left out of dumps at their defaults, so that trial ids of studies from before they were there
    stay the same. Their defaults must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "resnet9"
    width: float = Field(default=1.0, gt=0, le=16)
    linear: bool = False
    weights: str | None = None
    auxiliary: bool = False
    stem: Literal["imagenet", "small"] = _field("imagenet")
    patch: int = _field(4, ge=1)
    depth: int = _field(6, ge=1, le=256)
    heads: int = _field(3, ge=1, le=192)
    frozen: Literal["keep", "replace"] = _field("keep")
    substitute_all: bool = _field(False)
    keep: tuple[str, ...] = _field(())
    only: tuple[str, ...] | None = _field(None)
    transform_input: bool = _field(False)
    hidden: tuple[Channels, ...] = _field((512, 512), min_length=1, max_length=64)
    inputs: Channels | None = _field(None)
    channels: tuple[Channels, ...] | None = _field(None, min_length=1, max_length=1000)

    _module_names = field_validator("keep", "only", mode="before")(read_module_names)


Maker = Callable[[re.Match[str], NetworkSettings, ImageShape, int], "nn.Module"]


def _resnet9(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.resnet9 import ResNet9

    return ResNet9(image[0], classes, width=settings.width, channels=settings.channels)


def _wide_resnet(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.wide_resnet import WideResNet

    return WideResNet(image[0], classes, depth=int(match[1]), widen=int(match[2]), width=settings.width)


def _wrn50_2(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.wide_resnet50_2 import WideResNet50

    return WideResNet50(image[0], classes, width=settings.width)


def _darts(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.darts import DARTS

    return DARTS(image[0], classes, width=settings.width, auxiliary=settings.auxiliary)


def _mobilenet_v2(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.mobilenet_v2 import MobileNetV2

    return MobileNetV2(image[0], classes, width=settings.width)


def _vgg16(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.vgg16 import VGG16

    return VGG16(image[0], classes, width=settings.width, channels=settings.channels)


def _resnet18(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.resnet18 import ResNet18

    return ResNet18(image[0], classes, width=settings.width, stem=settings.stem)


def _vit(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.vit import ViT

    return ViT(
        image, classes, width=settings.width, patch=settings.patch, depth=settings.depth, heads=settings.heads
    )  # fmt: skip


def _mlp(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.mlp import MLP

    return MLP(image, classes, width=settings.width, hidden=settings.hidden, inputs=settings.inputs)


def _torchvision(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import torchvision_network

    return torchvision_network(match[1], image, classes, settings.weights, trained=settings.transform_input)


def _timm(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import timm_network

    return timm_network(match[1], image, classes, settings.weights)


def _timm_images(match: re.Match[str]) -> tuple[ImageShape, int]:
    from lowrank.networks.external import timm_images

    return timm_images(match[1])


def _transformers(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import transformers_network

    return transformers_network(match[1], image, classes, settings.weights)


def _transformers_images(match: re.Match[str]) -> tuple[ImageShape, int]:
    from lowrank.networks.external import transformers_images

    return transformers_images(match[1])


def _imported(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import imported_network

    return imported_network(settings.name, image, classes, settings.width)


@dataclass(frozen=True)
class _Entry:
    """One kind of network.

    Attributes:
        pattern: of its names.
        shown: how the name is written, for messages.
        make: makes it.
        image: (C, H, W) of the images that it was published for.
        classes: number of their classes.
        fields: those of NETWORK_FIELDS that it has.
        find_images: returns images and classes by the name, where each name was published for others.
        has_width: whether `width` makes it thinner; a function of the user's says so itself.
        has_weights: whether `weights` names trained ones.
    """

    pattern: str
    shown: str
    make: Maker
    image: ImageShape = CIFAR_IMAGE
    classes: int = 10
    fields: tuple[str, ...] = ()
    find_images: Callable[[re.Match[str]], tuple[ImageShape, int]] | None = None
    has_width: bool = True
    has_weights: bool = False


CONVERTING_NETWORKS = ("torchvision:googlenet", "torchvision:inception_v3")
"""Networks whose published weights were trained on images of another normalisation, see `transform_input`."""

NETWORK_FIELDS = ("stem", "patch", "depth", "heads", "hidden", "inputs", "channels")
"""Fields of the settings that only some networks have."""

# A network is one file and one line here.
_TABLE = (
    _Entry(r"resnet9", "resnet9", _resnet9, fields=("channels",)),
    _Entry(r"wrn_50_2", "wrn_50_2", _wrn50_2, IMAGENET_IMAGE, 1000),
    _Entry(r"wrn_(\d{1,6})_(\d{1,6})", "wrn_D_W (such as wrn_28_10)", _wide_resnet),
    _Entry(r"darts", "darts", _darts),
    _Entry(r"mobilenet_v2", "mobilenet_v2", _mobilenet_v2, IMAGENET_IMAGE, 1000),
    _Entry(r"vgg16", "vgg16", _vgg16, fields=("channels",)),
    _Entry(r"resnet18", "resnet18", _resnet18, IMAGENET_IMAGE, 1000, fields=("stem",)),
    _Entry(r"vit", "vit", _vit, fields=("patch", "depth", "heads")),
    _Entry(r"mlp", "mlp", _mlp, fields=("hidden", "inputs")),
    _Entry(
        r"torchvision:(.*)", "torchvision:NAME (such as torchvision:resnet18)", _torchvision, IMAGENET_IMAGE, 1000,
        has_width=False, has_weights=True,
    ),
    _Entry(
        r"timm:(.*)", "timm:NAME (such as timm:vit_tiny_patch16_224; needs timm)", _timm,
        find_images=_timm_images, has_width=False, has_weights=True,
    ),
    _Entry(
        r"hf:(.+)", "hf:FOLDER (an image classifier saved by transformers)", _transformers,
        find_images=_transformers_images, has_width=False, has_weights=True,
    ),
    _Entry(r".+\.py:\w+", "path/to/file.py:function (your own)", _imported),
    _Entry(r"[A-Za-z_][\w.]*:\w+", "package.module:function (your own)", _imported),
)  # fmt: skip
NETWORK_NAMES = tuple(entry.shown for entry in _TABLE)


def _find(name: str) -> tuple[_Entry, re.Match[str]]:
    for entry in _TABLE:
        match = re.fullmatch(entry.pattern, name)
        if match is not None:
            return entry, match
    if name.endswith(".py"):
        from lowrank.networks.external import function_missing

        raise function_missing(name)
    raise unknown("network", name, NETWORK_NAMES)


def is_own_code(name: str) -> bool:
    """Tell whether making a network imports a module of the user's.

    Args:
        name: of the network, which may come from a file of anybody's.

    Returns:
        True for `package.module:function`, and for any other name with a colon that is not in the table.
    """
    makers = (entry.make for entry in _TABLE if re.fullmatch(entry.pattern, name))
    return next((maker is _imported for maker in makers), ":" in name)


def check_own_code(
    names: Iterable[str], trusted: bool | Collection[str], *, source: str, permission: str = "--allow-code"
) -> None:  # fmt: skip
    """Check that networks which data name may be made.

    This is the gate before every import of the user's code.

    Args:
        names: of networks, as a file of anybody's has them.
        trusted: the names that the user has typed; True for all of them, False for none.
        source: what names them, as the message begins.
        permission: what the user types to allow it; `{name}` in it stands for the name.

    Raises:
        InputError: one is code of somebody's that is not trusted.
    """
    for name in names:
        if is_own_code(name) and trusted is not True and (trusted is False or name not in trusted):
            raise InputError(
                f"{source} names code to run, the network {name!r}; {permission.format(name=repr(name))} allows it, "
                "if you trust who wrote it"
            )


def default_images(name: str) -> tuple[ImageShape, int]:
    """Return what a network was published for.

    Args:
        name: of the network.

    Returns:
        The shape of the images (C, H, W) and the number of classes.

    Raises:
        InputError: the name is unknown, or the package that has such networks is not installed.
    """
    entry, match = _find(name)
    return (entry.image, entry.classes) if entry.find_images is None else entry.find_images(match)


def takes_width(name: str) -> bool:
    """Tell whether a network can be made thinner or wider.

    Args:
        name: of the network; a module of the user's is imported, so its name must be one that may run code.

    Returns:
        Whether it has a `width`.

    Raises:
        InputError: the name is unknown, or the user's function cannot be imported.
    """
    entry, _ = _find(name)
    if entry.make is not _imported:
        return entry.has_width
    from lowrank.networks.external import function_takes_width

    return function_takes_width(name)


def without_weights(settings: NetworkSettings) -> NetworkSettings:
    """Return the settings of the same network with initial weights.

    Args:
        settings: of a network.

    Returns:
        A copy that names no trained weights, and converts images as the network with them does.
    """
    converts = settings.transform_input or (settings.weights is not None and settings.name in CONVERTING_NETWORKS)
    return settings.model_copy(update={"weights": None, "transform_input": converts})


def for_counting(settings: NetworkSettings) -> NetworkSettings:
    """Return the settings without trained weights and auxiliary head.

    Counting leaves both out.

    Args:
        settings: of a network.

    Returns:
        A copy with neither.

    Raises:
        InputError: the name is unknown, or trained weights are named of a network that has none.
    """
    _check_weights(settings, _find(settings.name)[0])
    return settings.model_copy(update={"weights": None, "auxiliary": False})


def make_network(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> nn.Module:
    """Make a dense network.

    Weights are drawn from torch's global generator: seed it first.

    Args:
        settings: which network.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        The network.

    Raises:
        InputError: the name is unknown, a setting does not fit the network, or the images are too small.
    """
    entry, match = _find(settings.name)
    _check_weights(settings, entry)
    if settings.width != 1.0 and not entry.has_width:
        from lowrank.networks.external import width_unsupported

        raise width_unsupported(settings.name)
    if settings.auxiliary and entry.make is not _darts:
        raise InputError(f"{settings.name} has no `auxiliary` head; darts has")
    if settings.transform_input and settings.name not in CONVERTING_NETWORKS:
        raise InputError(f"{settings.name} has no `transform_input`; {' and '.join(CONVERTING_NETWORKS)} have")
    for field in NETWORK_FIELDS:
        if field not in entry.fields and getattr(settings, field) != NetworkSettings.model_fields[field].default:
            owners = [other.shown for other in _TABLE if field in other.fields]
            verb = "has" if len(owners) == 1 else "have"
            raise InputError(f"{settings.name} has no `{field}`; {' and '.join(owners)} {verb}")
    network = entry.make(match, settings, image_shape, classes)
    min_size = getattr(network, "min_image_size", 1)
    if min(image_shape[1:]) < min_size:
        height, width = image_shape[1:]
        raise InputError(
            f"{settings.name} needs images of at least {min_size} x {min_size}, but got {height} x {width}"
        )
    return network


def _check_weights(settings: NetworkSettings, entry: _Entry) -> None:
    if settings.weights is not None and not entry.has_weights:
        owners = ", ".join(other.pattern.partition(":")[0] for other in _TABLE if other.has_weights)
        raise InputError(
            f"`weights` are those of {owners} networks: {settings.name} has none, but got {settings.weights!r}"
        )


def add_network_options(parser: argparse._ArgumentGroup) -> None:
    """Declare options that name a network and the layers that are replaced.

    Args:
        parser: a group of options; receives --network, --width, --keep, --only, and one for each of NETWORK_FIELDS but
            `inputs` and `channels`, which follow from a training.
    """
    parser.add_argument("--network", required=True, metavar="NAME", help="; ".join(NETWORK_NAMES))
    parser.add_argument("--width", type=float, metavar="SHARE", help="inner channels relative to the published ones")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers that stay as they are, e.g. 'layer4.*'"
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="replace these layers only, e.g. '*.mlp.*'")
    parser.add_argument("--stem", metavar="NAME", help="of resnet18: imagenet (default) or small")
    parser.add_argument("--patch", type=int, metavar="P", help="of vit: side of a patch in pixels (default: 4)")
    parser.add_argument("--depth", type=int, metavar="N", help="of vit: number of blocks (default: 6)")
    parser.add_argument("--heads", type=int, metavar="N", help="of vit: heads of attention (default: 3)")
    parser.add_argument(
        "--hidden", type=int, nargs="+", metavar="N", help="of mlp: outputs of its hidden layers (default: 512 512)"
    )


def network_from_options(name: str, fields: Mapping[str, object], options: Mapping[str, object]) -> NetworkSettings:
    """Read the network that a command line names.

    Args:
        name: the value of --network.
        fields: of the settings.
        options: values by option, None where nothing was typed; of them `width` and NETWORK_FIELDS are read, which
            `add_network_options` declares.

    Returns:
        The settings.

    Raises:
        InputError: a value is not allowed, or the network has no such field.
    """
    from lowrank.networks.external.user_code import absolute_name  # records outlive the working folder

    typed = {field: value for field in ("width", *NETWORK_FIELDS) if (value := options.get(field)) is not None}
    return validate_model(NetworkSettings, {"name": absolute_name(name), **typed, **fields}, "network")
