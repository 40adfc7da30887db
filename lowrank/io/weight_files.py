"""Weights as people have them: safetensors, torch's state dictionaries, and this library's own files.

Reading runs no code of a file: pickles are read by torch's restricted unpickler, which makes tensors and plain values
only. Entry points: `load_weights` puts a file's weights into a network, `read_weights` only reads them.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.errors import InputError, unknown
from lowrank.io.model_file import METADATA, ModelSpecification, parse_specification
from lowrank.io.tensor_file import load_tensors
from lowrank.networks import Logits
from lowrank.utils import file_hash, first_line

FileFormat = Literal["safetensors", "torch", "lowrank"]  # `lowrank`: safetensors with this library's metadata

SECTIONS = (
    "state_dict", "model_state_dict", "model", "network", "net", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip  # where checkpoints keep the weights, in the order in which they are looked for
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")  # wrappers put these before all names
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # the file of weights in a folder
_TRIAL_PREFIX, _TRIAL_EPOCH = "network.", "epoch"  # keys of a trial's checkpoint, beside those of its optimizer
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", "auxiliary.")  # trained along, and used by training alone
_COUNTER = "num_batches_tracked"  # of batch norms; evaluation does not use it
_AVERAGE_COUNTER = "n_averaged"  # of torch's AveragedModel
_SHOWN = 3  # names in a message

# Plain values beside the weights: torchvision's scripts store their arguments, others an error as a number of numpy
_scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
_PLAIN_VALUES: list[Any] = [
    argparse.Namespace, np.dtype, _scalar, (_scalar, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")},
]  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """The weights of a file, before they are compared with a network.

    Attributes:
        path: the file.
        sha256: of its content.
        format: how it is written.
        tensors: by name, on the CPU.
        section: the key of the dictionary that held the tensors; None where the file holds nothing else.
        other_sections: further keys with weights, which were not taken.
        specification: the model that one of this library's own files describes.
    """

    path: Path
    sha256: str
    format: FileFormat
    tensors: Mapping[str, Tensor] = field(repr=False)
    section: str | None = None
    other_sections: tuple[str, ...] = ()
    specification: ModelSpecification | None = None


@dataclass(frozen=True)
class NewHead:
    """A last layer that does not come from the file.

    Attributes:
        name: of the layer.
        stored_outputs: of that layer in the file; None where the file has no such layer.
        outputs: of the network's own.
    """

    name: str
    stored_outputs: int | None
    outputs: int


@dataclass(frozen=True)
class WeightReport:
    """What `load_weights` did.

    Attributes:
        path: the file.
        sha256: of its content.
        format: how it is written.
        section: the key of the dictionary whose tensors were taken; None where the file holds nothing else.
        other_sections: further keys with weights, which were not taken.
        prefix: what was stripped from all names.
        keys: names of the tensors that were loaded.
        missing: names that the network has and the file has not: counters, tied weights and those of a new head.
        unexpected: names that were left out: counters, auxiliary heads and those of another head.
        dtypes: of the floating tensors in the file.
        new_head: the last layer, where it keeps the network's own weights.
    """

    path: Path
    sha256: str
    format: FileFormat
    section: str | None
    other_sections: tuple[str, ...]
    prefix: str
    keys: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    dtypes: tuple[str, ...]
    new_head: NewHead | None = None

    def lines(self) -> list[str]:
        """Describe what was loaded.

        Returns:
            One line, and a second one for a head that begins anew.
        """
        notes = [f"{len(self.keys)} tensors"]
        if self.section is not None:
            others = f" (not {', '.join(f'`{key}`' for key in self.other_sections)})" if self.other_sections else ""
            notes.append(f"from `{self.section}`{others}")
        if self.prefix:
            notes.append(f"prefix `{self.prefix}` stripped")
        if self.dtypes != ("float32",):
            notes.append(f"stored as {', '.join(self.dtypes)}")
        lines = [f"weights: {self.path} ({self.format}, sha256 {self.sha256[:12]}): {', '.join(notes)}"]
        if self.new_head is not None:
            head = self.new_head
            reason = "it is not in the file"
            if head.stored_outputs is not None:
                reason = f"the file's has {head.stored_outputs:,} outputs, this network's {head.outputs:,}"
            lines.append(f"the last layer `{head.name}` begins anew: {reason}")
        return lines


def read_weights(path: Path | str, *, section: str | None = None) -> WeightFile:
    """Read the weights of a file without running code of the file.

    Args:
        path: a safetensors file, a file of `torch.save`, or a folder that holds `model.safetensors` or
            `pytorch_model.bin`.
        section: the key of the dictionary with the weights, for a file that has several; None for the first of
            SECTIONS that is there.

    Returns:
        The tensors and where they come from.

    Raises:
        InputError: the file is missing or damaged, holds other objects than tensors, or has no such section.
    """
    path = _find_file(Path(path).expanduser())
    if _is_safetensors(path):
        tensors, metadata = load_tensors(path)
        specification = None
        if METADATA in metadata:
            try:
                specification = parse_specification(metadata)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        if section is not None:
            raise InputError(f"{path} has no section {section!r}: a safetensors file has none")
        kind: FileFormat = "lowrank" if specification else "safetensors"
        return WeightFile(path, file_hash(path), kind, _select_network(tensors), specification=specification)
    content = _load_torch(path)
    keys: list[str] = []
    others: tuple[str, ...] = ()
    while not _is_state_dict(content):
        key, others = _choose_section(path, content, section if not keys else None)
        keys.append(key)
        content = content[key]
    if section is not None and not keys:
        raise InputError(f"{path} has no section {section!r}: it holds the weights themselves")
    return WeightFile(path, file_hash(path), "torch", _select_network(content), ".".join(keys) or None, others)


def load_weights(
    network: nn.Module, path: Path | str, *, allow_new_head: bool = False, section: str | None = None
) -> WeightReport:
    """Put the weights of a file into a network, all of them or none.

    Names and shapes must agree but for a prefix that all names share, counters of batch norms, and auxiliary heads
    that the network has not. Values are cast to the network's dtypes.

    Args:
        network: is changed in place; nothing is changed where an error is raised.
        path: as for `read_weights`.
        allow_new_head: where the last layer has another number of outputs, or is not in the file, let it keep the
            weights that it has.
        section: as for `read_weights`.

    Returns:
        What was loaded.

    Raises:
        InputError: the file cannot be read or does not fit the network; one line that names the first few names.
    """
    file = read_weights(path, section=section)
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    prefix, stored = _strip_prefixes(file.tensors, expected)
    absent = [
        name for name in expected
        if name not in stored and not name.endswith(_COUNTER) and not _is_tied(name, expected, stored)
    ]  # fmt: skip
    surplus = [
        name for name in stored
        if name not in expected and not name.endswith(_COUNTER) and not name.startswith(_AUXILIARY_HEADS)
    ]  # fmt: skip
    reshaped = [name for name in expected if name in stored and stored[name].shape != expected[name].shape]
    head = _find_new_head(network, absent, reshaped, expected, stored)
    of_head = {name for name in stored if head is not None and name.startswith(_inside(head.name))}
    if head is not None:
        if not allow_new_head:
            raise _head_error(file, network, head)
        absent, reshaped, surplus = [], [], [name for name in surplus if name not in of_head]
    if absent or surplus or reshaped:
        raise _misfit_error(file, network, absent, surplus, reshaped, expected, stored)
    loaded = {name: stored[name] for name in expected if name in stored and name not in of_head}
    cast = {name: _cast(file, name, tensor, expected[name].dtype) for name, tensor in loaded.items()}
    network.load_state_dict(cast, strict=False)
    return WeightReport(
        path=file.path, sha256=file.sha256, format=file.format, section=file.section,
        other_sections=file.other_sections, prefix=prefix, keys=tuple(loaded),
        missing=tuple(name for name in expected if name not in loaded),
        unexpected=tuple(name for name in stored if name not in loaded),
        dtypes=tuple(sorted({_dtype_name(each) for each in loaded.values() if each.is_floating_point()})),
        new_head=head,
    )  # fmt: skip


def _inside(layer: str) -> str:
    """The prefix of a layer's tensors; a network may be one layer alone."""
    return f"{layer}." if layer else ""


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"there is no file of weights {path}")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise InputError(f"the folder {path} must hold {' or '.join(FOLDER_FILES)}; or name the file itself")


def _is_safetensors(path: Path) -> bool:
    """Whether the content is that of a safetensors file: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (
        len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    )


def _load_torch(path: Path) -> Any:
    """Read a file of `torch.save`, restricted to tensors and plain values."""
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of archives of code, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged or foreign file raises anything
        text = str(error)
        if "TorchScript" in text:  # an archive of torch.jit.save
            reason = "is a TorchScript archive, which is code; save `network.state_dict()` by torch.save instead"
        elif named := re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", text):
            reason = (
                f"holds a pickled `{named[1]}`, and reading that would run code; save `network.state_dict()` by "
                f"torch.save, or the tensors as safetensors, instead"
            )
        else:
            cause = first_line(error, 120)
            if not any(map(str.isalpha, cause)):  # a KeyError of the unpickler holds the number of a byte alone
                cause = "it can be read as neither"
            reason = f"must be a safetensors file or a whole file of torch.save, but {cause}"
        raise InputError(f"{path} {reason}") from error


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )  # fmt: skip


def _choose_section(path: Path, content: Any, section: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the key of the dictionary with the weights, and other keys that also hold some."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} must hold a dictionary of tensors, but holds a {type(content).__name__}; save "
            f"`network.state_dict()` by torch.save instead"
        )
    if not content:
        raise InputError(f"{path} must hold a dictionary of tensors, but holds an empty one")
    choices = [str(key) for key, value in content.items() if isinstance(value, Mapping) and _holds_weights(value)]
    if section is not None:
        if section not in choices:
            raise unknown(f"section of {path}", section, choices)
        return section, tuple(key for key in choices if key != section)
    known = [key for key in SECTIONS if key in choices]
    if known or len(choices) == 1:
        chosen = known[0] if known else choices[0]
        return chosen, tuple(key for key in choices if key != chosen)
    if choices:
        raise InputError(
            f"{path} holds several dictionaries of tensors ({_name_some(choices)}); one must be called "
            f"{', '.join(SECTIONS[:3])}, or all be saved as one"
        )
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    raise InputError(
        f"{path} must hold a dictionary of tensors, or one under {', '.join(SECTIONS[:3])}; but has "
        f"{_name_some(strange)} beside tensors or instead of them"
    )


def _holds_weights(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is one of tensors, or holds one under a usual key."""
    return _is_state_dict(content) or any(_is_state_dict(content.get(key)) for key in SECTIONS)


def _select_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the network alone: a trial's checkpoint has those of its training beside them."""
    network = {
        name.removeprefix(_TRIAL_PREFIX): value for name, value in tensors.items() if name.startswith(_TRIAL_PREFIX)
    }
    if network and _TRIAL_EPOCH in tensors:
        return network
    return {name: value for name, value in tensors.items() if name != _AVERAGE_COUNTER}


def _strip_prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
    """Strip prefixes that all names share, as long as more names become the network's."""
    prefix, current = "", tensors
    best = ("", tensors)
    best_matches = len(tensors.keys() & expected.keys())
    while shared := next((each for each in PREFIXES if all(name.startswith(each) for name in current)), None):
        prefix, current = prefix + shared, {name.removeprefix(shared): value for name, value in current.items()}
        matches = len(current.keys() & expected.keys())
        if matches > best_matches:
            best, best_matches = (prefix, current), matches
    return best


def _is_tied(name: str, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> bool:
    """Whether the network has this tensor under a second name that the file stores."""
    tensor = expected[name]
    return tensor.numel() > 0 and any(
        other != name and other in stored and value.shape == tensor.shape and value.data_ptr() == tensor.data_ptr() != 0
        for other, value in expected.items()
    )


def _find_new_head(
    network: nn.Module, absent: list[str], reshaped: list[str], expected: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
) -> NewHead | None:  # fmt: skip
    """Return the last layer, where it alone does not fit and only by its outputs, or is not in the file."""
    owners = {name.rpartition(".")[0] for name in (*absent, *reshaped)}
    if len(owners) != 1:
        return None
    name = owners.pop()
    layer, weight = network.get_submodule(name), f"{_inside(name)}weight"
    layers = [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not isinstance(layer, nn.Linear | nn.Conv2d) or name != layers[-1] or weight not in (*absent, *reshaped):
        return None
    if any(stored[each].shape[1:] != expected[each].shape[1:] for each in reshaped):
        return None
    return NewHead(name, len(stored[weight]) if weight in reshaped else None, len(expected[weight]))


def _head_error(file: WeightFile, network: nn.Module, head: NewHead) -> InputError:
    stored = "no such layer" if head.stored_outputs is None else f"{head.stored_outputs:,}"
    return InputError(
        f"{file.path}: the last layer `{head.name}` of {type(network).__name__} has {head.outputs:,} outputs, but the "
        f"file has {stored}; train it first on the classes of these images"
    )


def _misfit_error(
    file: WeightFile, network: nn.Module, absent: list[str], surplus: list[str], reshaped: list[str],
    expected: Mapping[str, Tensor], stored: Mapping[str, Tensor],
) -> InputError:  # fmt: skip
    shapes = [f"{name} {_times(stored[name])} instead of {_times(expected[name])}" for name in reshaped]
    faults = [
        f"{len(names)} {what} ({_name_some(names)})"
        for what, names in (("missing", absent), ("unexpected", surplus), ("of another shape", shapes))
        if names
    ]
    about = ""
    if (model := file.specification) is not None:
        about = f"; it holds a {model.method.name} {model.network.name} of width {model.network.width:g}"
    elif isinstance(network, Logits):
        about = "; transformers may store tensors by other names than its networks have: weights DEFAULT, those in the "
        about += "folder of `hf:`, are read by transformers itself"
    return InputError(f"{file.path}: its tensors do not fit {type(network).__name__}: {', '.join(faults)}{about}")


def _name_some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _times(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cast(file: WeightFile, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a tensor between dtypes of one kind; quantised weights are not cast."""
    if name.endswith(_COUNTER) and tensor.is_floating_point():  # people halve every tensor of a state
        tensor = torch.nan_to_num(tensor).round().to(torch.int64)
    same_kind = tensor.is_floating_point() == dtype.is_floating_point and tensor.is_complex() == dtype.is_complex
    if tensor.is_quantized or tensor.layout != torch.strided or not same_kind:
        wanted = str(dtype).removeprefix("torch.")
        raise InputError(f"{file.path}: `{name}` must be plain {wanted} or convert to it, but is {_dtype_name(tensor)}")
    cast = tensor.to(dtype)
    if cast.is_floating_point() and not bool(torch.isfinite(cast).all()):
        raise InputError(f"{file.path}: `{name}` must be finite in {_dtype_name(cast)}, but has NaN or infinite values")
    return cast
