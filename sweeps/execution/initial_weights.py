"""Sets the weights that a trial starts from: those of a trained network, from a file, of its builder, or of a trial."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lowrank.compression import fit_student, init_from_network, output_errors
from lowrank.data import ImageData, draw_training_images
from lowrank.errors import InputError
from lowrank.layers import KernelChain
from sweeps.execution.checkpoint_relay import CheckpointLocation
from sweeps.records import TrialSpec
from sweeps.trials import check_fingerprint, load_initial_network, load_trained_network

MEASURED = 256  # images over which outputs are compared where a start needs none


def set_initial_weights(
    student: nn.Module,
    specification: TrialSpec,
    data: ImageData,
    study_dir: str,
    relay: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, object]]:
    """Set the weights that a student starts from, in place.

    Without a `start` in its specification they stay as drawn.

    Args:
        student: the network of the specification.
        specification: of the trial.
        data: its data set.
        study_dir: folder of the study.
        relay: name of the checkpoint relay, through which the weights of a trial come; None for none.
        progress: called with lines on how far a fit is.

    Returns:
        For each layer that was fitted its name, method and ranks (where it has any), `weight_error`
        (||W - dense|| / ||dense||) and `output_error` (root of the share of the outputs' variance that is missed).

    Raises:
        InputError: the weights are missing, have changed since the study began, or belong to another network.
    """
    start = specification.start
    if start is None:
        return []
    settings = specification.network
    if start.trial_id is not None:
        location = CheckpointLocation(study_dir, start.trial_id, relay)
        location.download()
        if not location.path.is_file():
            raise InputError(f"the weights to start from are not there: {location.path}")
        dense, _ = load_trained_network(settings, location.path, data)
    else:
        check_fingerprint(specification, (data.image_shape, len(data.classes)))
        dense = load_initial_network(settings, start.source, data, seed=specification.seed)
    device = next(student.parameters()).device
    images, _ = draw_training_images(data, start.calibration or MEASURED, start.seed or 0, device)
    dense = dense.to(device).eval()
    if start.how is not None:
        fitted = fit_student(
            student, dense, images, in_order=start.how != "outputs", through_relu=start.how == "in_order_relu",
            progress=progress,
        )  # fmt: skip
        return [
            _describe(fit.name, student.get_submodule(fit.name), fit.weight_error, fit.output_error)
            for fit in fitted.layers
        ]
    report = init_from_network(student, dense)
    errors = output_errors(student, dense, images)
    return [
        _describe(layer.name, student.get_submodule(layer.name), layer.error, errors[layer.name])
        for layer in report.layers if layer.name in errors
    ]  # fmt: skip


def _describe(name: str, layer: nn.Module, weight_error: float, output_error: float) -> dict[str, object]:
    factors = {"method": layer.method.name, "ranks": list(layer.ranks)} if isinstance(layer, KernelChain) else {}
    return {"name": name, **factors, "weight_error": weight_error, "output_error": output_error}
