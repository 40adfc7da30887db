"""A model in one safetensors file: its tensors, and as JSON metadata the specification that builds it.

A merged model is stored as plain convolutions with the specification of the structured model that it was merged from;
reading builds that model, merges it and loads the tensors.

Reading runs no code from the file. The network is named, never stored, so a name of the user's code in a file is only
imported when the caller gives the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lowrank.compression import (
    NetworkPlan,
    SizedMethod,
    build_chains,
    build_sized_student,
    count_mult_adds,
    count_parameters,
    merge,
    network_plan,
    network_to_count,
)
from lowrank.errors import InfeasibleError, InputError, UncountableError
from lowrank.io.image_preprocessing import PREPROCESSING_KEY, ImagePreprocessing
from lowrank.io.tensor_file import load_tensors, read_metadata, save_tensors
from lowrank.layers import Dense, Method, Separable, disable_fused_encoders, make_method, project_attention
from lowrank.networks import (
    ImageShape,
    NetworkSettings,
    absolute_name,
    check_own_code,
    for_counting,
    is_own_code,
    make_network,
    same_file_elsewhere,
    without_weights,
)
from lowrank.utils import last_line, validate_model

METADATA = "lowrank_model"  # the key of the specification in the file's metadata
MERGED_KEY = "lowrank_merged"  # a second key, in the file of a merged model
COMBINED, SEPARATE = "combined", "apart"  # K x K convolutions, or depthwise and pointwise ones
VERSION = 1

Size = Annotated[int, Field(ge=1, le=1_000_000)]


class _Allocation(BaseModel):
    """The method of each group of layers; checked by the network's own groups and the methods' own classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    by: Literal["stage", "layer", "energy", "sensitivity"]
    methods: dict[str, dict[str, object]]


class _Layer(BaseModel):
    """What one layer of a compressed network became; the names are checked by the network itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    method: str
    ranks: list[Size] = Field(min_length=1, max_length=3)
    bias: bool


class _Metadata(BaseModel):
    """The specification as the file has it; `method` is checked by the method's own class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    version: int
    network: dict[str, object]
    method: dict[str, object]
    allocation: _Allocation | None = None  # of a budget that is not shared evenly: see lowrank.compression.allocation
    layers: dict[str, _Layer] | None = None  # of a compressed network: see lowrank.deployment.compressor
    projected_attention: bool = False
    image_shape: list[Size] = Field(min_length=3, max_length=3)
    classes: Size


class ModelSpecification(BaseModel):
    """Everything that it takes to build a model.

    Attributes:
        network: the dense network.
        method: of the substituted sites.
        image_shape: (C, H, W).
        classes: number of classes.
        allocation: where layers differ in size, in the form that `NetworkPlan.sized` takes.
        layers: of a compressed network, the factors of each layer by name: `method`, `ranks` and `bias`. The `method`
            of the sites is then "dense".
        projected_attention: whether its attention runs four projections as layers of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    network: NetworkSettings
    method: Method
    image_shape: tuple[Size, Size, Size]
    classes: Size
    allocation: Mapping[str, object] | None = None
    layers: dict[str, dict[str, object]] | None = None
    projected_attention: bool = False

    def plan(self) -> NetworkPlan:
        """Return the sites of the network, for these images and classes."""
        return network_plan(self.network, self.image_shape, self.classes)

    def sized(self, plan: NetworkPlan) -> SizedMethod:
        """Return the method of each site; raises InputError for an invalid allocation."""
        return plan.sized(self.method.model_dump(), self.allocation)

    def params(self) -> int:
        """Count the parameters without an auxiliary head; raises InfeasibleError if the model cannot be built."""
        if self.layers:
            network = network_to_count(self.network, self.image_shape, self.classes)
            with torch.device("meta"):
                self._with_layers(network)
            return count_parameters(network, for_counting(self.network))
        plan = self.plan()
        sized = self.sized(plan)
        reason = plan.infeasible(sized)
        if reason is not None:
            raise InfeasibleError(reason)
        return plan.params(sized)

    def mult_adds(self) -> int:
        """Count the mult-adds for one image, as the method counts them (a rebuilt map as the dense one)."""
        if self.layers:
            return count_mult_adds(self.build(), torch.zeros(1, *self.image_shape))
        plan = self.plan()
        return plan.mult_adds(self.sized(plan))

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a file with such a model."""
        layers = {name: _Layer.model_validate(settings) for name, settings in (self.layers or {}).items()}
        content = _Metadata(
            version=VERSION, network=self.network.model_dump(mode="json"), method=self.method.model_dump(mode="json"),
            allocation=_Allocation.model_validate(self.allocation) if self.allocation else None, classes=self.classes,
            image_shape=list(self.image_shape), layers=layers, projected_attention=self.projected_attention,
        )  # fmt: skip
        absent = {name for name in ("allocation", "layers", "projected_attention") if not getattr(self, name)}
        return {METADATA: content.model_dump_json(exclude=absent or None)}

    def build(self) -> nn.Module:
        """Build the model with initial weights; trained weights that the settings name are not downloaded."""
        settings = without_weights(self.network)
        if self.layers:
            return self._with_layers(make_network(settings, self.image_shape, self.classes))
        method = self.method.model_dump()
        return build_sized_student(settings, method, self.image_shape, self.classes, allocation=self.allocation).network

    def _with_layers(self, network: nn.Module) -> nn.Module:
        """Put the factors of a compressed network, untrained, into the layers of the dense one, in place."""
        assert self.layers
        if self.projected_attention:
            project_attention(network)
        else:
            disable_fused_encoders(network)
        build_chains(network, self.layers)
        return network


def save_model(
    path: Path,
    model: nn.Module,
    *,
    network: NetworkSettings,
    method: SizedMethod,
    image_shape: ImageShape,
    classes: int,
    preprocessing: ImagePreprocessing | None = None,
    checksum: bool = True,
) -> None:
    """Write a model and the settings that describe it, atomically.

    Args:
        path: the file.
        model: as `build_student` makes it.
        network: the dense network.
        method: of the substituted sites.
        image_shape: (C, H, W).
        classes: number of classes.
        preprocessing: what it expects of an image, and the names of its classes; None where nobody knows.
        checksum: as in `write_model`.

    Raises:
        InputError: the model has another number of parameters than the settings say, for example a merged one.
        OSError: the file cannot be written.
    """
    settings = network_plan(network, image_shape, classes).settings(method)
    specification = ModelSpecification(
        network=network, method=make_method(settings["method"]), allocation=settings.get("allocation"),
        image_shape=image_shape, classes=classes,
    )  # fmt: skip
    write_model(path, model, specification, preprocessing, checksum=checksum)


def write_model(
    path: Path, model: nn.Module, specification: ModelSpecification, preprocessing: ImagePreprocessing | None = None,
    *, checksum: bool = True,
) -> None:  # fmt: skip
    """Write a model and its specification, atomically.

    Args:
        path: the file.
        model: as the specification builds it.
        specification: everything that it takes to build it.
        preprocessing: what it expects of an image, and the names of its classes; None where nobody knows.
        checksum: add checksums. Without them and without a preprocessing the same model gives the same file, byte by
            byte, so that the file's hash can name it.

    Raises:
        InputError: the model has another number of parameters than the specification says.
        OSError: the file cannot be written.
    """
    params = count_parameters(model, specification.network)
    expected = specification.params()
    if params != expected:
        raise InputError(f"the settings describe a model of {expected:,} parameters, but this one has {params:,}")
    save_tensors(Path(path), model.state_dict(), _metadata(specification, preprocessing), checksum=checksum)


def _metadata(specification: ModelSpecification, preprocessing: ImagePreprocessing | None) -> dict[str, str]:
    stored = {} if preprocessing is None else {PREPROCESSING_KEY: preprocessing.model_dump_json()}
    return {**specification.metadata(), **stored}


def load_model(path: Path, *, trusted_network: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Read a model.

    Args:
        path: the file.
        trusted_network: the network of the user's code that the file may name. For `path/to/file.py:function` the path
            may be another than in the file: where the code lies now.
        device: of the model.

    Returns:
        The model, in evaluation mode, with the dtype that it was saved with.

    Raises:
        InputError: the file is missing, damaged or no model, its tensors do not fit its settings, or it names code
            that is not trusted.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    try:
        specification = _trusted(parse_specification(metadata), trusted_network)
        model = _build(specification, tensors)
    except (InputError, UncountableError) as error:
        raise InputError(f"{path}: {error}") from error
    model.load_state_dict(tensors)
    return model.to(device).eval()


def save_merged(
    path: Path, model: nn.Module, specification: ModelSpecification, preprocessing: ImagePreprocessing | None = None,
    *, combined: bool,
) -> None:  # fmt: skip
    """Write a merged model, atomically.

    Args:
        path: the file.
        model: as `lowrank.compression.merging.merge` makes it.
        specification: of the structured model that was merged.
        preprocessing: what it expects of an image, and the names of its classes; None where nobody knows.
        combined: as in the call of `merge`: one K x K convolution for each site, or depthwise and pointwise ones.

    Raises:
        OSError: the file cannot be written.
    """
    form = {MERGED_KEY: COMBINED if combined else SEPARATE}
    save_tensors(Path(path), model.state_dict(), {**_metadata(specification, preprocessing), **form})


def load_merged(path: Path, *, trusted_network: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Read a merged model.

    Args:
        path: the file.
        trusted_network: as in `load_model`.
        device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: the file is missing, damaged, no merged model, its tensors do not fit its settings, or it names
            code that is not trusted.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    specification = _parse(path, metadata)
    if metadata.get(MERGED_KEY) not in (COMBINED, SEPARATE):
        raise InputError(f"{path} holds a structured model, which `load_model` reads, and no merged one")
    try:
        specification = _trusted(specification, trusted_network)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    combined = metadata[MERGED_KEY] == COMBINED
    _check_merged_size(path, specification, tensors, combined)
    model = merge(specification.build(), combined=combined)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its settings: {last_line(error)}") from error
    return model.to(device).eval()


def _check_merged_size(
    path: Path, specification: ModelSpecification, tensors: Mapping[str, Tensor], combined: bool
) -> None:  # fmt: skip
    """Raise InputError if the settings describe a far larger model, before any memory is taken for it."""
    form: SizedMethod = Dense() if combined else Separable()
    stored, expected = sum(tensor.numel() for tensor in tensors.values()), specification.plan().params(form)
    if stored < expected / 2:  # merging adds biases and drops normalisations: the two are not the same to the digit
        raise InputError(f"{path}: its settings describe {expected:,} parameters, but it stores {stored:,} numbers")


def load_any_model(
    path: Path, *, trusted_network: str | None = None, device: torch.device | str = "cpu"
) -> nn.Module:  # fmt: skip
    """Read a model, structured or merged.

    Args:
        path: the file.
        trusted_network: as in `load_model`.
        device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: as of `load_model` and `load_merged`.
    """
    is_merged = Path(path).is_file() and MERGED_KEY in read_metadata(Path(path))
    load = load_merged if is_merged else load_model
    return load(path, trusted_network=trusted_network, device=device)


def read_specification(path: Path) -> ModelSpecification:
    """Read the specification of a model or merged model, without building it.

    Args:
        path: the file.

    Returns:
        What the file says that it contains.

    Raises:
        InputError: the file is missing, damaged or no model.
    """
    path = Path(path)
    return _parse(path, _read(path)[1])


def _parse(path: Path, metadata: Mapping[str, str]) -> ModelSpecification:
    """Read the specification; an InputError names the file."""
    try:
        return parse_specification(metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a file; an InputError names the file."""
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    return load_tensors(path)


def parse_specification(metadata: Mapping[str, str]) -> ModelSpecification:
    """Read the specification in the metadata of a file.

    Args:
        metadata: of a safetensors file.

    Returns:
        What they say that the file contains.

    Raises:
        InputError: they describe no model of this library, or one that cannot be.
    """
    if METADATA not in metadata:
        raise InputError(f"holds no model of this library: its metadata have no `{METADATA}`")
    try:
        fields = json.loads(metadata[METADATA])
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"its `{METADATA}` is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        raise InputError(f"its `{METADATA}` must be of version {VERSION}")
    content = validate_model(_Metadata, fields, METADATA)
    network = validate_model(NetworkSettings, content.network, f"{METADATA}.network")
    channels, height, width = content.image_shape
    return ModelSpecification(
        network=network, method=make_method(content.method), image_shape=(channels, height, width),
        classes=content.classes, allocation=content.allocation.model_dump() if content.allocation else None,
        layers={name: layer.model_dump() for name, layer in content.layers.items()} if content.layers else None,
        projected_attention=content.projected_attention,
    )  # fmt: skip


def _trusted(specification: ModelSpecification, allowed: str | None) -> ModelSpecification:
    """Return the specification with the network that the caller trusts.

    A file may not choose which module of the user's Python is imported. Where it names a function of a file, the caller
    may give the same one in another folder, which is then used.
    """
    name = specification.network.name
    if allowed is not None and allowed != name and is_own_code(name):
        allowed = absolute_name(allowed)
        if same_file_elsewhere(name, allowed):
            network = specification.network.model_copy(update={"name": allowed})
            return specification.model_copy(update={"network": network})
    trusted = () if allowed is None else (allowed,)
    check_own_code([name], trusted, source="it", permission="`trusted_network={name}`")
    return specification


def _build(specification: ModelSpecification, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build the model and check that `tensors` fit it by name, shape and dtype; they are not loaded yet."""
    stored, expected = sum(tensor.numel() for tensor in tensors.values()), specification.params()
    if stored < expected:  # before any memory is taken for it
        raise InputError(f"its settings describe {expected:,} parameters, but it stores {stored:,} numbers")
    model = specification.build()
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        _cast_floating(model, dtypes.pop())
    _check_fit(model.state_dict(), tensors)
    return model


def _cast_floating(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model in place; `model.to(dtype)` would cut off the imaginary part of complex buffers."""
    casts = {torch.float32: model.float, torch.float64: model.double, torch.float16: model.half,
             torch.bfloat16: model.bfloat16}  # fmt: skip
    if dtype in casts:
        casts[dtype]()


def _check_fit(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise an InputError that names the first tensor that is missing, unknown, or of another shape or dtype."""
    for name in sorted(expected.keys() ^ stored.keys()):
        raise InputError(f"it stores no `{name}`" if name in expected else f"its `{name}` has no place in the model")
    for name, tensor in expected.items():
        if (tensor.shape, tensor.dtype) != (stored[name].shape, stored[name].dtype):
            raise InputError(f"its `{name}` is {_describe(stored[name])}, but the model has {_describe(tensor)}")


def _describe(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
