"""Finds and loads trained teachers: folders with weights and a record, files of weights, or torchvision's weights.

A teacher is named by `NAME` (a folder under the folder of teachers), by a path to such a folder or to a .safetensors
file of `lowrank.io.model_file`, or by `torchvision:NETWORK/WEIGHTS` such as `torchvision:resnet18/IMAGENET1K_V1`.
Loading runs no code from a file. The record says which images a teacher has seen: one that was trained on other splits
may have seen the students' validation images, and would make their errors look smaller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lowrank.data import ImageData
from lowrank.errors import InputError, unknown
from lowrank.io import find_preprocessing, load_model, load_weights, read_specification, read_weights
from lowrank.networks import ImageShape, NetworkSettings, check_own_code, make_network
from lowrank.networks.external import torchvision_network
from lowrank.utils import file_hash, validate_model

RECORD_FILE = "teacher.json"
WEIGHTS_FILE = "model.safetensors"
VERSION = 1
TORCHVISION = "torchvision:"
_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # heads of two torchvision networks that only training uses


class TeacherRecord(BaseModel):
    """How a teacher was trained, and how good it is.

    Errors are in percent; `seconds` are those of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = VERSION
    name: str
    network: dict[str, object]
    method: dict[str, object]
    params: int = Field(ge=1)
    image_shape: tuple[int, int, int]  # (C, H, W)
    classes: int = Field(ge=1)
    data: dict[str, object]  # settings, and the fingerprint of images and splits
    train: dict[str, object]
    views: dict[str, object]
    seed: int
    specification_id: str
    val_error: float
    val_loss: float
    test_error: float  # measured once, after training
    sha256: str  # of the weights' file
    seconds: float
    registered_at: str
    command: str
    commit: str
    versions: dict[str, str]
    hardware: dict[str, object]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the images and splits that it was trained on."""
        return str(self.data["fingerprint"])


@dataclass(frozen=True)
class BuiltAs:
    """The network of a file that holds weights alone.

    Attributes:
        network: which network.
        image_shape: (C, H, W) of its images.
        classes: number of its classes.
    """

    network: NetworkSettings
    image_shape: ImageShape
    classes: int

    def make(self) -> nn.Module:
        """Build the network; torch's generators stay as they are."""
        with torch.random.fork_rng(devices=[]):
            return make_network(self.network, self.image_shape, self.classes)


@dataclass(frozen=True)
class TeacherWeights:
    """The weights of a teacher, found but not loaded.

    Attributes:
        reference: absolute path of the weights, or torchvision's name of them.
        sha256: hash of the weights.
        network: the teacher's network.
        image_shape: (C, H, W) of the images that it takes; None for any size with three channels.
        classes: number of its classes.
        record: how it was trained; None if unknown.
        trusted_network: network of the user's code that the file may name.
        bare: whether the file holds weights alone, so that `network` must say which network they are of.
    """

    reference: str
    sha256: str
    network: NetworkSettings
    image_shape: ImageShape | None
    classes: int
    record: TeacherRecord | None = None
    trusted_network: str | None = None
    bare: bool = False

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Load the network in evaluation mode.

        Args:
            device: where to put it.

        Returns:
            The network.

        Raises:
            InputError: the weights are gone, damaged, or have changed since they were found.
        """
        built_as = None
        if self.bare:
            assert self.image_shape is not None
            built_as = BuiltAs(self.network, self.image_shape, self.classes)
        return load_teacher(
            self.reference, self.sha256, device, trusted_network=self.trusted_network, built_as=built_as
        )  # fmt: skip

    def check(self, data: ImageData, *, allow_unverified: bool = False) -> None:
        """Check that the teacher fits a data set.

        Args:
            data: the students' images and splits.
            allow_unverified: accept a teacher without a record of what it was trained on.

        Raises:
            InputError: it was trained on other images, classes or splits, or with another normalisation.
        """
        label = f"the teacher {self.reference}"
        if self.classes != len(data.classes):
            raise InputError(f"{label} has {self.classes} classes, but {data.name} has {len(data.classes)}")
        if self.image_shape not in (None, data.image_shape):
            raise InputError(f"{label} was trained on images of {_times(self.image_shape)}, but those of {data.name} "
                             f"are {_times(data.image_shape)}")  # fmt: skip
        if self.reference.startswith(TORCHVISION):
            self._check_preprocessing(label, data)
        if self.record is None:
            if not allow_unverified and not self.reference.startswith(TORCHVISION):
                raise InputError(
                    f"{label} has no {RECORD_FILE} beside it, so it may have been trained on the validation images of "
                    f"{data.name}; `teacher.unchecked: true` accepts it nevertheless"
                )
        elif self.record.fingerprint != data.fingerprint:
            raise InputError(
                f"{label} was trained on {self.record.data.get('name')} with the fingerprint "
                f"{self.record.fingerprint}, but the students' {data.name} has {data.fingerprint}: it may have seen "
                "their validation images"
            )

    def _check_preprocessing(self, label: str, data: ImageData) -> None:
        """Check that images are normalised as torchvision's weights expect, and that known classes are in order."""
        expected = find_preprocessing(self.reference)
        if expected is None or expected.mean is None or expected.std is None:
            return
        if not _are_close(expected.mean, data.mean) or not _are_close(expected.std, data.std):
            raise InputError(
                f"{label} expects pixels normalised by mean {_numbers(expected.mean)} and deviation "
                f"{_numbers(expected.std)}, but those of {data.name} are by {_numbers(data.mean)} and "
                f"{_numbers(data.std)}; set `data.mean` and `data.std` to what it expects"
            )
        names = expected.classes
        if names is not None and sorted(names) == sorted(data.classes) and list(names) != list(data.classes):
            raise InputError(f"{label} has the classes of {data.name} in another order: {', '.join(names[:3])}, ...")

    def differing_classes(self, data: ImageData) -> str | None:
        """Say that its classes have other names than those of a data set, so that only their order matches them.

        Args:
            data: with as many classes.

        Returns:
            One clause with the first two names that differ; None where they agree or the teacher's are not known.
        """
        expected = find_preprocessing(self.reference) if self.reference.startswith(TORCHVISION) else None
        names = () if expected is None or expected.classes is None else expected.classes
        pairs = ((name, other) for name, other in zip(names, data.classes, strict=False) if name != other)
        pair = next(pairs, None)
        return (
            pair and f"its classes are matched by their order: it calls {pair[0]!r} what {data.name} calls {pair[1]!r}"
        )


def _are_close(expected: Sequence[float], received: Sequence[float]) -> bool:
    """Tell whether statistics agree to the three digits that are published."""
    return len(expected) == len(received) and all(
        abs(one - other) < 1e-3 for one, other in zip(expected, received, strict=True)
    )


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


def _times(shape: ImageShape | None) -> str:
    return " x ".join(map(str, shape or ()))


def teacher_names(root: Path) -> list[str]:
    """List the teachers of a folder.

    Args:
        root: folder of teachers.

    Returns:
        Their names, sorted.
    """
    return sorted(path.parent.name for path in root.glob(f"*/{RECORD_FILE}"))


def find_teacher(name: str, root: Path, *, network: str | None = None) -> TeacherWeights:
    """Find a teacher by name and check the hash of its weights.

    The network is not loaded.

    Args:
        name: of a teacher in `root`, a path, or torchvision's name of weights.
        root: folder of teachers.
        network: name of the network that it must be; required for a network of the user's code.

    Returns:
        The teacher's weights.

    Raises:
        InputError: there is no such teacher, it is damaged, or it is another network.
    """
    if name.startswith(TORCHVISION):
        teacher = _find_torchvision(name)
    elif "/" in name or name.endswith(".safetensors"):
        teacher = _find_file(Path(name).expanduser().resolve())
    elif (root / name / RECORD_FILE).is_file():
        teacher = _find_file((root / name).resolve())
    else:
        names = ", ".join(teacher_names(root)) or "none yet"
        raise InputError(f"no teacher {name!r} in {root}; there are: {names}; python sweeps/teacher.py trains one")
    if network is not None and teacher.network.name != network:
        raise InputError(f"the teacher {name!r} is a {teacher.network.name}, but `teacher.network` says {network}")
    trusted = () if network is None else (network,)
    check_own_code(
        [teacher.network.name], trusted, source=f"the teacher {name!r}", permission="`teacher.network: {name}`"
    )
    return replace(teacher, trusted_network=network)


def teacher_from_weights(path: Path, built_as: BuiltAs) -> TeacherWeights:
    """Take any file of weights as a teacher; see `lowrank.io.weight_files`.

    Args:
        path: the file.
        built_as: the network that the weights are of.

    Returns:
        The teacher's weights.

    Raises:
        InputError: there is no such file, it cannot be read, or its weights do not fit the network.
    """
    if not path.is_file():
        raise InputError(f"there is no teacher at {path}")
    report = load_weights(built_as.make(), path)
    return TeacherWeights(
        str(path), report.sha256, built_as.network, built_as.image_shape, built_as.classes,
        read_record(path.with_name(RECORD_FILE)), bare=True,
    )  # fmt: skip


def is_bare(path: Path) -> bool:
    """Tell whether a file of weights does not say which network they are of.

    Args:
        path: the file.

    Returns:
        False for a file of this library.

    Raises:
        InputError: the file cannot be read.
    """
    return read_weights(path).specification is None


def _find_file(path: Path) -> TeacherWeights:
    """Find the teacher of a folder or of a file of weights."""
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file():
        raise InputError(f"there is no teacher at {path}: {weights} is missing")
    specification, sha256 = read_specification(weights), file_hash(weights)
    record = read_record(weights.with_name(RECORD_FILE))
    if record is not None and record.sha256 != sha256:
        raise InputError(f"the teacher {weights} is damaged: its sha256 is {sha256[:12]}..., but {RECORD_FILE} says "
                         f"{record.sha256[:12]}...")  # fmt: skip
    return TeacherWeights(
        str(weights), sha256, specification.network, specification.image_shape, specification.classes, record
    )


def read_record(path: Path) -> TeacherRecord | None:
    """Read the record of a teacher.

    Args:
        path: the record's file.

    Returns:
        The record; None if there is no such file.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise InputError(f"{path} must be of version {VERSION}")
    return validate_model(TeacherRecord, content, str(path))


def load_teacher(
    reference: str, sha256: str, device: torch.device | str = "cpu", *, trusted_network: str | None = None,
    built_as: BuiltAs | None = None,
) -> nn.Module:  # fmt: skip
    """Load a teacher by the fields of its TeacherWeights.

    Args:
        reference: absolute path of the weights, or torchvision's name of them.
        sha256: hash that the weights must have.
        device: where to put the network.
        trusted_network: network of the user's code that the file may name.
        built_as: the network of a file that holds weights alone; None where the file names it.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: the weights are gone, damaged, or have another hash.
    """
    if reference.startswith(TORCHVISION):
        network, state = _torchvision_network(reference)
        actual = _state_hash(reference, state)
    else:
        path = Path(reference)
        actual = file_hash(path) if path.is_file() else sha256  # load_model reports a missing file
        if built_as is None:
            network = load_model(path, trusted_network=trusted_network)
        else:
            network = built_as.make()
            load_weights(network, path)
    if actual != sha256:
        raise InputError(f"the teacher {reference} has changed: its sha256 is {actual[:12]}..., not {sha256[:12]}...")
    return network.to(device).eval()


def _find_torchvision(name: str) -> TeacherWeights:
    network, state = _torchvision_network(name)
    settings = NetworkSettings(name=name.partition("/")[0])
    classes = len(_torchvision_weights(name).meta["categories"])
    del network
    return TeacherWeights(name, _state_hash(name, state), settings, None, classes)


def _torchvision_weights(name: str) -> Any:
    from lowrank.utils import torchvision  # as slow to import as torch itself

    architecture, slash, weights = name.removeprefix(TORCHVISION).partition("/")
    models = torchvision.models
    if architecture not in models.list_models(module=models):
        raise unknown("torchvision network", architecture, models.list_models(module=models))
    choices = models.get_model_weights(architecture).__members__
    if not slash or weights not in choices:
        raise unknown(f"weights of torchvision:{architecture} (torchvision:{architecture}/WEIGHTS)", weights, choices)
    return choices[weights]


def _torchvision_network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make a network with torchvision's weights, which torchvision downloads once into its own cache."""
    weights = _torchvision_weights(name)
    try:
        state = dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except OSError as error:
        raise InputError(f"the weights {name} are not on this machine and cannot be downloaded: {error}") from error
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_HEADS)}
    settings = NetworkSettings(name=name.partition("/")[0])
    architecture, classes = settings.name.removeprefix(TORCHVISION), len(weights.meta["categories"])
    network = torchvision_network(architecture, (3, 224, 224), classes, None, trained=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights {name} are damaged: {' '.join(str(error).split())[:200]}") from error
    return network.eval(), state


def _state_hash(name: str, state: dict[str, Tensor]) -> str:
    """Hash names and contents of tensors with sha256."""
    sha = hashlib.sha256(name.encode())
    for key in sorted(state):
        sha.update(key.encode())
        sha.update(state[key].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
