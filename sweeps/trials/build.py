"""Build what a specification describes: the student, its trainer and its data set. Ray is not needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lowrank.compression import SizedStudent, VariationalSettings, build_sized_student, make_variational
from lowrank.data import DecoderPool, ImageData, load_data
from lowrank.distillation import Teacher
from lowrank.errors import InputError
from lowrank.layers import Bayesian, make_method
from lowrank.training import DataParallelGroup, Trainer
from sweeps.records import MethodSection, TrialSpec


def make_trainer(
    specification: TrialSpec, data: ImageData, device: str,
    find_teacher: Callable[[], Teacher] | None = None, group: DataParallelGroup | None = None,
    notify: Callable[[str], None] = warnings.warn, decoding_cores: int | None = None,
) -> Trainer:  # fmt: skip
    """Build the trainer of a specification, at its first epoch.

    Args:
        specification: of the trial.
        data: the trial's data set.
        device: `cpu`, or a GPU such as `cuda`.
        find_teacher: makes the teacher of a specification that has one; called when the student is built.
        group: the processes that share each batch; None for this process alone.
        notify: called with each line for the user.
        decoding_cores: on which a streamed set is decoded by default; None for as many as this process has threads.

    Returns:
        The trainer; its network has its initial weights.

    Raises:
        InputError: the specification names what this code does not have.
    """
    network, decay_ratio = make_student(specification, data)
    section = specification.teacher
    teacher = find_teacher() if section is not None and find_teacher is not None else None
    return Trainer(
        network, data, specification.train, augmentation=specification.views, order_seed=specification.seed,
        decay_ratio=decay_ratio, device=device, teacher=teacher,
        taps=section.student_taps if section else (), cache_epochs=section.views if section else None, group=group,
        notify=notify, variational=variational_settings(specification), decoders=DecoderPool(decoding_cores),
    )  # fmt: skip


def variational_settings(specification: TrialSpec) -> VariationalSettings | None:
    """Return what a trial's variational layers are made from.

    Args:
        specification: of the trial.

    Returns:
        The settings; None for a trial without such layers.

    Raises:
        InputError: the specification names what this code does not have.
    """
    method = make_method(specification.method.settings())
    return VariationalSettings(method=method, network=specification.network) if isinstance(method, Bayesian) else None


def make_student(specification: TrialSpec, data: ImageData) -> tuple[nn.Module, float]:
    """Build the network of a specification.

    Args:
        specification: of the trial.
        data: the trial's data set.

    Returns:
        The network with its initial weights, and K / N: its parameters over those of the network that it replaces, by
        which weight decay is scaled (lowrank.training.weight_decay).

    Raises:
        InputError: the specification names what this code does not have.
    """
    variational = variational_settings(specification)
    if variational is not None:
        plain = specification.model_copy(update={"method": MethodSection(name="dense")})
        network = _build_sized(plain, data).network
        make_variational(network, variational.method)
        return network, 1.0
    network, plan, sized = _build_sized(specification, data)
    return network, plan.params(sized) / plan.params(make_method({"name": plan.base}))


def _build_sized(specification: TrialSpec, data: ImageData) -> SizedStudent:
    """Build the network of a specification whose method stands in its sites."""
    allocation = specification.allocation.settings() if specification.allocation else None
    return build_sized_student(
        specification.network, specification.method.settings(), data.image_shape, len(data.classes),
        allocation=allocation, seed=specification.seed,
    )  # fmt: skip


def load_trial_data(specification: TrialSpec, data_dir: str | Path | None) -> ImageData:
    """Load the data set of a specification.

    Args:
        specification: of the trial.
        data_dir: where data sets are found; None for the default.

    Returns:
        The images.

    Raises:
        InputError: this machine holds other images than the study began with.
    """
    expected = specification.data.fingerprint
    data = load_data(specification.data.data_settings, Path(data_dir) if data_dir else None)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} here has the fingerprint {data.fingerprint}, but the study has {expected}")
    return data
