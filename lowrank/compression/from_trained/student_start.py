"""Starts a network that is already built, with factors in its layers, from a trained dense network.

`lowrank.compress` builds the network that it fits. A sweep has the student already, of given methods and ranks; here
its factors are set so that it computes nearly what the trained network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.allocation import divergence
from lowrank.compression.from_trained.batch_norm import find_nearer_batch_norms
from lowrank.compression.from_trained.calibration import batches_of, fitting_count, network_logits
from lowrank.compression.from_trained.in_order import Choice, LayerFit, fit_in_order
from lowrank.compression.from_trained.layer_list import layer_named, list_layers
from lowrank.compression.init_from_dense import structured_layers
from lowrank.errors import InputError
from lowrank.layers import KernelChain
from lowrank.utils import Countdown, keep_modes


@dataclass(frozen=True)
class StudentFit:
    """What `fit_student` did.

    Attributes:
        layers: one fit for each layer that was fitted, in the order in which they run.
        batch_norms_reestimated: whether running statistics of batch norms were replaced.
    """

    layers: tuple[LayerFit, ...]
    batch_norms_reestimated: bool


@torch.no_grad()
def fit_student(
    student: nn.Module,
    dense: nn.Module,
    images: Tensor,
    *,
    in_order: bool = True,
    through_relu: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> StudentFit:
    """Set a student, in place, so that its layers give what the trained ones give.

    All of its state is set.

    Layers that stay dense are fitted again too, the classifier among them, once something before them has changed.

    Args:
        student: the trained network with a `KernelChain` in some of its layers; it keeps its mode.
        dense: the trained network, on the same device; unchanged but for its mode, which becomes evaluation.
        images: calibration images (B, C, H, W), normalised, on the same device; at least 2.
        in_order: fit each layer on what the layers before it, already replaced, really give; otherwise on what the
            trained network gives there.
        through_relu: fit layers with a ReLU directly behind them to what is left after it.
        progress: called with a line on how far the fit is, every few seconds, where standard error is a terminal.

    Returns:
        How well each layer was met, and whether batch norms were estimated again.

    Raises:
        InputError: a replaced layer is of another kind, or no plain layer of the trained network.
    """
    chains = dict(structured_layers(student))
    for name, layer in chains.items():
        if not isinstance(layer, KernelChain):
            raise InputError(f"`{name}` is a {type(layer).__name__}, but only factors of whole kernels are fitted")
    listed = list_layers(dense.eval(), images[:1])
    choices: dict[str, Choice | None] = {layer.name: None for layer in listed.layers}
    for name, layer in chains.items():
        if name not in choices:
            raise InputError(f"`{name}` cannot be fitted: {listed.reasons.get(name, 'the trained network lacks it')}")
        assert isinstance(layer, KernelChain)
        choices[name] = Choice(layer.method, layer.ranks)
    order = [*listed.layers]
    if listed.refits_last:
        choices[listed.last] = None
        order.append(layer_named(dense, listed.last, images[:1]))
    count = fitting_count(len(images))
    fitting, judging = images[:count], images[count:]  # these only decide whether batch norms are estimated again

    def batches() -> Iterator[Tensor]:
        return iter(batches_of(fitting))

    countdown = Countdown(progress, "fitting", len(order), announced=True)
    fitted, fits = fit_in_order(
        dense, order, choices, batches, in_order=in_order, progress=countdown.step, through_relu=through_relu
    )
    reference = network_logits(dense, judging)
    before = divergence(network_logits(fitted, judging), reference)
    nearer = find_nearer_batch_norms(fitted, batches, judging, reference, before)
    student.load_state_dict((fitted if nearer is None else nearer.network).state_dict())
    return StudentFit(tuple(fits), nearer is not None)


@torch.no_grad()
def output_errors(student: nn.Module, dense: nn.Module, images: Tensor) -> dict[str, float]:
    """Measure how far the outputs of structured layers are from the replaced ones'.

    Both get the inputs that the trained network gives them.

    Args:
        student: with structured layers.
        dense: the trained network, on the same device; put into evaluation mode.
        images: calibration images (B, C, H, W), normalised.

    Returns:
        By name of the layer, the root of the share of the outputs' variance that is missed.
    """
    layers = dict(structured_layers(student))
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in layers}  # missed, squares, positions
    totals: dict[str, Tensor] = {}

    def make_hook(name: str, layer: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            axis = 1 if isinstance(module, nn.Conv2d) else output.dim() - 1
            others = [index for index in range(output.dim()) if index != axis]
            y, ours = output.double(), layer(inputs[0]).double()
            totals[name] = totals.get(name, 0) + y.sum(others)
            missed, squares, positions = (y - ours).square().sum(), y.square().sum(), y.numel() // y.shape[axis]
            sums[name] += torch.tensor([float(missed), float(squares), positions], dtype=torch.float64)

        return hook

    handles = [
        dense.get_submodule(name).register_forward_hook(make_hook(name, layer)) for name, layer in layers.items()
    ]
    try:
        dense.eval()
        with keep_modes(student):
            student.eval()
            for part in batches_of(images):
                dense(part)
    finally:
        for handle in handles:
            handle.remove()
    errors = {}
    for name, total in totals.items():
        missed, squares, positions = sums[name].tolist()
        variance = squares - float(total.square().sum()) / positions
        errors[name] = (missed / max(variance, 1e-300)) ** 0.5
    return errors
