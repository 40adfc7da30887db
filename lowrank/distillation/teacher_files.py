"""Trained teachers: a folder with the weights and what is known of them, a file of weights, or torchvision's.

A teacher is written `NAME` (a folder under the folder of teachers), a path to such a folder or to a .safetensors file
of `lowrank.io.model_file`, or `torchvision:NETWORK/WEIGHTS` such as `torchvision:resnet18/IMAGENET1K_V1`. Loading
runs no
code from a file. The record says which images the teacher has seen: one that was trained on other splits may have seen
the students' validation images, and would spoil the search.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lowrank.data import ImageData
from lowrank.errors import InputError, unknown
from lowrank.io.model_file import load_model, read_specification
from lowrank.networks.images import ImageShape
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.utils.validation import validate_model

RECORD_FILE = "teacher.json"
WEIGHTS_FILE = "model.safetensors"
VERSION = 1
TORCHVISION = "torchvision:"
_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # trained along with two of torchvision's networks, never asked


class TeacherRecord(BaseModel):
    """What is known of a teacher; errors in percent, time in seconds of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = VERSION
    name: str
    network: dict[str, Any]
    method: dict[str, Any]
    params: int = Field(ge=1)
    image_shape: tuple[int, int, int]  # (C, H, W)
    classes: int = Field(ge=1)
    data: dict[str, Any]  # settings, and the fingerprint of images and splits
    train: dict[str, Any]
    views: dict[str, Any]
    seed: int
    specification_id: str
    val_error: float
    val_loss: float
    test_error: float  # looked at once, when training was over
    sha256: str  # of the weights' file
    seconds: float
    registered_at: str
    command: str
    commit: str
    versions: dict[str, str]
    hardware: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the images and splits that it was trained on."""
        return str(self.data["fingerprint"])


@dataclass(frozen=True)
class TeacherWeights:
    """A teacher that is there, its weights not yet loaded; `record` is None where nobody says how it was trained."""

    reference: str  # absolute path of the weights, or torchvision's name of them
    sha256: str
    network: NetworkSettings
    image_shape: ImageShape | None  # None: any, of three channels
    classes: int
    record: TeacherRecord | None = None
    own_network: str | None = None  # code of the caller's own that the file may name

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network, in evaluation mode; raises InputError for weights that have changed since."""
        return load_teacher(self.reference, self.sha256, device, own_network=self.own_network)

    def check(self, data: ImageData, *, allow_unverified: bool = False) -> None:
        """Raises InputError where it cannot teach on `data`: other images, other classes, or other splits.

        `allow_unverified` accepts a teacher of which nobody says on what it was trained.
        """
        who = f"the teacher {self.reference}"
        if self.classes != len(data.classes):
            raise InputError(f"{who} tells {self.classes} classes apart, but {data.name} has {len(data.classes)}")
        if self.image_shape not in (None, data.image_shape):
            raise InputError(f"{who} was trained on images of {_times(self.image_shape)}, but those of {data.name} "
                             f"are {_times(data.image_shape)}")  # fmt: skip
        if self.record is None:
            if not allow_unverified and not self.reference.startswith(TORCHVISION):
                raise InputError(
                    f"{who} has no {RECORD_FILE} beside it, so it may have been trained on the validation images of "
                    f"{data.name}; `teacher.unchecked: true` takes it all the same"
                )
        elif self.record.fingerprint != data.fingerprint:
            raise InputError(
                f"{who} was trained on {self.record.data.get('name')} with the fingerprint {self.record.fingerprint}, "
                f"but the students' {data.name} has {data.fingerprint}: it may have seen their validation images"
            )


def _times(shape: ImageShape | None) -> str:
    return " x ".join(map(str, shape or ()))


def teacher_names(root: Path) -> list[str]:
    """The teachers of a folder."""
    return sorted(path.parent.name for path in root.glob(f"*/{RECORD_FILE}"))


def find_teacher(name: str, root: Path, *, network: str | None = None) -> TeacherWeights:
    """The teacher that `name` stands for (see above), its weights' hash checked; loads nothing.

    Args:
        name: of a teacher in `root`, a path, or torchvision's name of weights.
        root: folder of teachers.
        network: the network that it must be, where the caller knows; needed for code of one's own.

    Raises:
        InputError: there is none, it is damaged, or it is another network.
    """
    if name.startswith(TORCHVISION):
        found = _torchvision(name)
    elif "/" in name or name.endswith(".safetensors"):
        found = _at(Path(name).expanduser().resolve())
    elif (root / name / RECORD_FILE).is_file():
        found = _at((root / name).resolve())
    else:
        listed = ", ".join(teacher_names(root)) or "none yet"
        raise InputError(f"no teacher {name!r} in {root}; there are: {listed}; python sweeps/teacher.py trains one")
    if network is not None and found.network.name != network:
        raise InputError(f"the teacher {name!r} is a {found.network.name}, but `teacher.network` says {network}")
    if ":" in found.network.name and not found.network.name.startswith(TORCHVISION) and network is None:
        raise InputError(f"the teacher {name!r} names the network {found.network.name!r}, which is code of your own; "
                         "allow it by `teacher.network`")  # fmt: skip
    return replace(found, own_network=network)


def _at(path: Path) -> TeacherWeights:
    """The teacher of a folder or of a file of weights."""
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file():
        raise InputError(f"there is no teacher at {path}: {weights} is missing")
    about, sha256 = read_specification(weights), file_hash(weights)
    record = read_record(weights.with_name(RECORD_FILE))
    if record is not None and record.sha256 != sha256:
        raise InputError(f"the teacher {weights} is damaged: its sha256 is {sha256[:12]}..., but {RECORD_FILE} says "
                         f"{record.sha256[:12]}...")  # fmt: skip
    return TeacherWeights(str(weights), sha256, about.network, about.image_shape, about.classes, record)


def read_record(path: Path) -> TeacherRecord | None:
    """What `path` says of a teacher; None when there is no such file; raises InputError for a damaged one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise InputError(f"{path} must be of version {VERSION}")
    return validate_model(TeacherRecord, content, str(path))


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_teacher(
    reference: str, sha256: str, device: torch.device | str = "cpu", *, own_network: str | None = None
) -> nn.Module:
    """The network behind a TeacherWeights's reference, in evaluation mode.

    Raises InputError when it is gone, damaged, or not the one with this hash.
    """
    if reference.startswith(TORCHVISION):
        network, state = _torchvision_network(reference)
        found = _state_hash(reference, state)
    else:
        path = Path(reference)
        found = file_hash(path) if path.is_file() else sha256  # a missing file is told by load_model
        network = load_model(path, trusted_network=own_network)
    if found != sha256:
        raise InputError(f"the teacher {reference} has changed: its sha256 is {found[:12]}..., not {sha256[:12]}...")
    return network.to(device).eval()


def _torchvision(name: str) -> TeacherWeights:
    network, state = _torchvision_network(name)
    settings = NetworkSettings(name=name.partition("/")[0])
    classes = len(_torchvision_weights(name).meta["categories"])
    del network
    return TeacherWeights(name, _state_hash(name, state), settings, None, classes)


def _torchvision_weights(name: str) -> Any:
    from lowrank.utils.torchvision_compat import torchvision  # as slow to import as torch itself

    kind, slash, weights = name.removeprefix(TORCHVISION).partition("/")
    models = torchvision.models
    if kind not in models.list_models(module=models):
        raise unknown("torchvision network", kind, models.list_models(module=models))
    choices = models.get_model_weights(kind).__members__
    if not slash or weights not in choices:
        raise unknown(f"weights of torchvision:{kind} (torchvision:{kind}/WEIGHTS)", weights, choices)
    return choices[weights]


def _torchvision_network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network with torchvision's weights, which torchvision fetches once into its own cache."""
    chosen = _torchvision_weights(name)
    try:
        state = dict(chosen.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except OSError as error:
        raise InputError(f"the weights {name} are neither here nor can be fetched: {error}") from error
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_HEADS)}
    settings = NetworkSettings(name=name.partition("/")[0])
    network = make_network(settings, (3, 224, 224), len(chosen.meta["categories"]))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights {name} are damaged: {' '.join(str(error).split())[:200]}") from error
    return network.eval(), state


def _state_hash(name: str, state: dict[str, Tensor]) -> str:
    """sha256 over names and contents of tensors."""
    sha = hashlib.sha256(name.encode())
    for key in sorted(state):
        sha.update(key.encode())
        sha.update(state[key].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
