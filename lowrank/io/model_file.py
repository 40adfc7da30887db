"""A model in one safetensors file: its tensors, and beside them as JSON what it takes to build it again.

Reading runs no code from the file. The network is named, never stored, so a name of the user's own code in a file is
only followed when the caller gives the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.merging import merge
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import AUXILIARY, build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError, InputError, UncountableError
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers.base_method import Method
from lowrank.layers.registry import make_method
from lowrank.networks.base import ImageShape
from lowrank.networks.registry import NetworkSettings
from lowrank.utils.text import last_line
from lowrank.utils.validation import validate_model

METADATA = "lowrank_model"  # the one key of the file's metadata
FORM = "lowrank_merged"  # a second key, in the file of a merged model
COMBINED, APART = "combined", "apart"  # K x K convolutions, or depthwise and pointwise ones
VERSION = 1

Size = Annotated[int, Field(ge=1, le=1_000_000)]


class _Shared(BaseModel):
    """The method of each group of layers; checked by the network's own groups and the methods' own classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    by: Literal["stage", "layer"]
    methods: dict[str, dict[str, Any]]


class _About(BaseModel):
    """What the file says of itself; `method` is checked by the method's own class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    version: int
    network: dict[str, Any]
    method: dict[str, Any]
    allocation: _Shared | None = None  # of a budget that is not shared evenly: see lowrank.compression.allocation
    image_shape: list[Size] = Field(min_length=3, max_length=3)
    classes: Size


class ModelSpecification(BaseModel):
    """Which network, with which method in its substituted sites, for which images (C, H, W) and how many classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    network: NetworkSettings
    method: Method
    image_shape: tuple[Size, Size, Size]
    classes: Size
    allocation: dict[str, Any] | None = None  # where layers differ in size, in the form of `NetworkPlan.sized`

    def plan(self) -> NetworkPlan:
        """The network's sites, for these images and classes."""
        return network_plan(self.network, self.image_shape, self.classes)

    def sized(self, plan: NetworkPlan) -> SizedMethod:
        """What stands in the sites; raises InputError for an allocation that is none."""
        return plan.sized(self.method.model_dump(), self.allocation)

    def params(self) -> int:
        """Exact parameters of the model, an auxiliary head left out; raises InfeasibleError where there can be none."""
        plan = self.plan()
        sized = self.sized(plan)
        reason = plan.infeasible(sized)
        if reason is not None:
            raise InfeasibleError(reason)
        return plan.params(sized)

    def mult_adds(self) -> int:
        """Mult-adds for one image, as the method charges them (a rebuilt map as the dense one)."""
        plan = self.plan()
        return plan.mult_adds(self.sized(plan))

    def metadata(self) -> dict[str, str]:
        """What a file's metadata say of such a model."""
        about = _About(
            version=VERSION, network=self.network.model_dump(mode="json"), method=self.method.model_dump(mode="json"),
            allocation=_Shared(**self.allocation) if self.allocation else None, classes=self.classes,
            image_shape=list(self.image_shape),
        )  # fmt: skip
        return {METADATA: about.model_dump_json(exclude=None if self.allocation else {"allocation"})}

    def build(self) -> nn.Module:
        """The model, started from scratch; trained weights that the settings name are not fetched."""
        settings = self.network.model_copy(update={"weights": None})
        plan = network_plan(settings, self.image_shape, self.classes)
        return build_student(settings, plan, self.sized(plan), self.image_shape, self.classes, seed=0)


def save_model(
    path: Path,
    model: nn.Module,
    *,
    network: NetworkSettings,
    method: SizedMethod,
    image_shape: ImageShape,
    classes: int,
) -> None:
    """Write a model that these settings describe, atomically.

    Raises InputError when the model has another number of parameters than they say (one that was merged since, for
    example), OSError when the file cannot be written.
    """
    about = network_plan(network, image_shape, classes).settings(method)
    found = ModelSpecification(
        network=network, method=make_method(about["method"]), allocation=about.get("allocation"),
        image_shape=image_shape, classes=classes,
    )  # fmt: skip
    own = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(f"{AUXILIARY}."))
    if own != found.params():
        raise InputError(f"the settings describe a model of {found.params():,} parameters, but this one has {own:,}")
    # Copies, because a tensor under two names is stored under both
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    # Its hash names a teacher: the same model is the same file
    save_tensors(Path(path), tensors, found.metadata(), checked=False)


def load_model(path: Path, *, trusted_network: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The model of a file, in evaluation mode, with the dtype it was saved with.

    `trusted_network` allows the network `package.module:function` of the user's own that the file names. Raises
    InputError, in one line, for a file that is missing, damaged, no model or one whose tensors do not fit its
    settings.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    tensors, metadata = load_tensors(path)
    try:
        found = _specification(metadata)
        _check_own(found.network.name, trusted_network)
        model = _built(found, tensors)
    except (InputError, UncountableError) as error:
        raise InputError(f"{path}: {error}") from error
    model.load_state_dict(tensors)
    return model.to(device).eval()


def save_merged(path: Path, model: nn.Module, specification: ModelSpecification, *, combined: bool) -> None:
    """Write `model`, which was merged with the same `combined`, atomically; raises OSError when that cannot be."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_tensors(Path(path), tensors, {**specification.metadata(), FORM: COMBINED if combined else APART})


def load_merged(path: Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The merged model of a file, in evaluation mode.

    Raises:
        InputError: the file is missing, damaged, no merged model, or its tensors do not fit its settings.
    """
    specification = read_specification(path)
    tensors, metadata = load_tensors(path)
    if metadata.get(FORM) not in (COMBINED, APART):
        raise InputError(f"{path} holds a structured model, which `load_model` reads, and no merged one")
    model = merge(specification.build(), combined=metadata[FORM] == COMBINED)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its settings: {last_line(error)}") from error
    return model.to(device).eval()


def read_specification(path: Path) -> ModelSpecification:
    """What a file says that it holds; raises InputError as `load_model`."""
    if not Path(path).is_file():
        raise InputError(f"there is no model file {path}")
    try:
        return _specification(load_tensors(Path(path))[1])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _specification(metadata: Mapping[str, str]) -> ModelSpecification:
    if METADATA not in metadata:
        raise InputError(f"holds no model of this library: its metadata have no `{METADATA}`")
    try:
        content = json.loads(metadata[METADATA])
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"its `{METADATA}` is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise InputError(f"its `{METADATA}` must be of version {VERSION}")
    about = validate_model(_About, content, METADATA)
    network = validate_model(NetworkSettings, about.network, f"{METADATA}.network")
    channels, height, width = about.image_shape
    return ModelSpecification(
        network=network, method=make_method(about.method), image_shape=(channels, height, width), classes=about.classes,
        allocation=about.allocation.model_dump() if about.allocation else None,
    )  # fmt: skip


def _check_own(name: str, allowed: str | None) -> None:
    """A file may not choose which module of the user's Python is imported."""
    if ":" in name and not name.startswith("torchvision:") and name != allowed:
        raise InputError(f"it names the network {name!r}, which is code of your own; allow it by `trusted_network`")


def _built(found: ModelSpecification, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model that `tensors` fit by name, shape and dtype, its values not yet set."""
    stored, expected = sum(tensor.numel() for tensor in tensors.values()), found.params()
    if stored < expected:  # before any memory is taken for it
        raise InputError(f"its settings describe {expected:,} parameters, but it stores {stored:,} numbers")
    model = found.build()
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    _check_fit(model.state_dict(), tensors)
    return model


def _check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises InputError that names the first tensor that is missing, left over, or of another shape or dtype."""
    for name in sorted(expected.keys() ^ found.keys()):
        raise InputError(f"it stores no `{name}`" if name in expected else f"its `{name}` has no place in the model")
    for name, tensor in expected.items():
        kinds = [f"{'x'.join(map(str, each.shape)) or 'scalar'} {each.dtype}" for each in (tensor, found[name])]
        if kinds[0] != kinds[1]:
            raise InputError(f"its `{name}` is {kinds[1]}, but the model has {kinds[0]}")
