"""Makes a trained network smaller without training it: the library's form of `python -m lowrank.compress`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from lowrank.compression import (
    GIVES_CLASSES,
    Candidate,
    Choice,
    Layer,
    LayerFit,
    LayerList,
    Problem,
    allocate,
    collect_moments,
    count_mult_adds,
    divergence,
    efficient,
    energy_candidates,
    fit_in_order,
    fit_layer,
    kernel_of,
    layer_calls,
    list_layers,
    make_problems,
    measured_candidates,
    probe_places,
    reestimate_batch_norms,
    replace_module,
)
from lowrank.errors import InfeasibleError, InputError, unknown
from lowrank.layers import (
    SVD,
    CPKernel,
    Dense,
    SpatialSVD,
    TensorTrainKernel,
    Tucker2,
    WholeKernelMethod,
    disable_fused_encoders,
    project_attention,
)
from lowrank.utils import first_line

METHODS: dict[str, type[WholeKernelMethod]] = {
    "svd": SVD,
    "spatial_svd": SpatialSVD,
    "tucker2": Tucker2,
    "cp_kernel": CPKernel,
    "tensor_train_kernel": TensorTrainKernel,
}
AUTO = ("spatial_svd", "tucker2")
"""What `auto` tries: each alone, and the best of them layer by layer."""
NEAR_ENOUGH = 1e-3
"""Divergence (nats) below which `auto` looks no further: no class changes then but by a tie."""
ALLOCATIONS = ("energy", "sensitivity")
PROBES = 7
"""Sizes of each layer at which the rise of the loss is measured."""
PROBE_IMAGES = 512
"""Calibration images over which it is measured."""
PROBE_ROUNDS = 4
HELD_BACK = 0.25
"""Share of the calibration images by which variants are compared where no other images are given."""
BATCH = 256
ATTENTION_IMAGES = 8
"""Images on which logits must stay the same when attention gets projections of its own."""
_DENSE = Dense()

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name.
        kind: "linear", or the kernel such as "3 x 3".
        method: its factors; "dense" where it stays.
        ranks: the ranks of one group; empty where it stays dense.
        params: parameters after.
        dense_params: parameters before.
        weight_error: ||W - dense|| / ||dense||; None where the weight was not touched.
        output_error: root of the share of the outputs' variance that is missed; None likewise.
        reason: why it stays dense; "" where it does not.
    """

    name: str
    kind: str
    method: str
    ranks: tuple[int, ...]
    params: int
    dense_params: int
    weight_error: float | None
    output_error: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed network and what is known of it.

    Attributes:
        network: the network with factors in its layers, in evaluation mode.
        method: the factors' kind; "mixed" where layers differ.
        allocation: how ranks were shared out.
        layers: one report a layer.
        params: parameters, exactly.
        dense_params: those of the given network.
        mult_adds: mult-adds for one image, as torch counts what runs.
        dense_mult_adds: those of the given network.
        divergence: mean Kullback-Leibler divergence (nats) from the given network on the images that chose.
        error_before: error of the given network in percent on the images that chose; None without labels.
        error_after: error of the compressed network on the same images, before any training.
        batch_norms_reestimated: whether running statistics of batch norms were replaced.
        projected_attention: how many attention modules became a `ProjectedAttention`.
        seconds: time that it took, without the preparation that several budgets share.
    """

    network: nn.Module = field(repr=False)
    method: str
    allocation: str
    layers: tuple[LayerReport, ...] = field(repr=False)
    params: int
    dense_params: int
    mult_adds: int
    dense_mult_adds: int
    divergence: float
    error_before: float | None
    error_after: float | None
    batch_norms_reestimated: bool
    projected_attention: int
    seconds: float


def compress_network(
    network: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    budget: float | Mapping[str, float] = 0.5,
    *,
    method: str = "auto",
    allocation: str = "auto",
    keep: Sequence[str] = (),
    only: Sequence[str] | None = None,
    calibration: int = 1024,
    validation: tuple[Tensor, Tensor] | None = None,
    progress: Progress = lambda message: None,
) -> Compressed:
    """Make a smaller copy of a trained network, without training.

    Args:
        network: the trained network, any `nn.Module` from images (B, C, H, W) to logits (B, K); unchanged.
        batches: calibration images, or pairs of images and labels, as the network takes them; not more of them are
            read than `calibration` asks for. Labels only serve to print errors.
        budget: share of all parameters of the network that may remain, in (0, 1]; or shares of "params" and
            "mult_adds".
        method: one of METHODS, or "auto".
        allocation: "energy", "sensitivity" or "auto".
        keep: shell-style patterns of names of layers that stay as they are.
        only: patterns of the layers that alone may be replaced.
        calibration: how many images are used.
        validation: images and labels that choose among variants; by default a part of the calibration images.
        progress: called with one line for each step.

    Returns:
        The smaller network with its counts and errors.

    Raises:
        InfeasibleError: the network cannot be that small; the least possible size is named.
        InputError: a setting is wrong, or the network has nothing that can be replaced.
    """
    compressor = Compressor(
        network, batches, keep=keep, only=only, calibration=calibration, validation=validation, progress=progress
    )
    return compressor.compress(budget, method=method, allocation=allocation)


@dataclass(frozen=True)
class _Variant:
    method: str
    allocation: str
    student: nn.Module
    fits: list[LayerFit]
    divergence: float
    reestimated: bool = False


class Compressor:
    """Compresses one network to several budgets from one calibration.

    Args:
        network: the trained network, any `nn.Module` from images (B, C, H, W) to logits (B, K); unchanged.
        batches: calibration images, or pairs of images and labels, as the network takes them; not more of them are
            read than `calibration` asks for. Labels only serve to print errors.
        keep: shell-style patterns of names of layers that stay as they are.
        only: patterns of the layers that alone may be replaced.
        calibration: how many images are used.
        validation: images and labels that choose among variants; by default a part of the calibration images.
        progress: called with one line for each step.

    Raises:
        InputError: the network has nothing that can be replaced, or there are no images.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Iterable[Tensor | tuple[Tensor, Tensor]],
        *,
        keep: Sequence[str] = (),
        only: Sequence[str] | None = None,
        calibration: int = 1024,
        validation: tuple[Tensor, Tensor] | None = None,
        progress: Progress = lambda message: None,
    ):
        device = next(network.parameters()).device
        self.dense = copy.deepcopy(network).eval()
        images, labels = _read(batches, calibration, device)
        self.labels: Tensor | None
        if validation is not None:
            self.calibration, self.judges, self.labels = images, validation[0].to(device), validation[1].to(device)
        else:
            cut = len(images) - max(1, round(HELD_BACK * len(images)))
            self.calibration, self.judges = images[:cut], images[cut:]
            self.labels = None if labels is None else labels[cut:]
        self.progress = progress
        self.dense, self.projected_attention = _project_attention(self.dense, images[:ATTENTION_IMAGES], progress)
        self.listed: LayerList = list_layers(self.dense, images[:1], keep, only)
        self.reference = self._logits(self.dense, self.judges)
        self._tables: dict[tuple[str, str], dict[str, list[Candidate]]] = {}
        self._problems = {layer.name: self._problems_of(layer) for layer in self.listed.layers}

    def batches(self) -> Iterator[Tensor]:
        """The calibration images, a batch at a time."""
        return iter(self.calibration.split(BATCH))

    def compress(
        self, budget: float | Mapping[str, float], *, method: str = "auto", allocation: str = "auto"
    ) -> Compressed:
        """Make a copy of the network within one budget.

        Args:
            budget: share of all parameters that may remain, in (0, 1]; or shares of "params" and "mult_adds".
            method: one of METHODS, or "auto".
            allocation: "energy", "sensitivity" or "auto".

        Returns:
            The smaller network with its counts and errors.

        Raises:
            InfeasibleError: the network cannot be that small; the least possible size is named.
            InputError: a setting is wrong.
        """
        begin = time.perf_counter()
        if method != "auto" and method not in METHODS:
            raise unknown("method", method, ("auto", *METHODS))
        if allocation not in ("auto", *ALLOCATIONS):
            raise unknown("allocation", allocation, ("auto", *ALLOCATIONS))
        limits = self._limits(budget)
        methods = (*AUTO, "mixed") if method == "auto" else (method,)
        allocations = ("sensitivity",) if allocation == "auto" else (allocation,)
        best: _Variant | None = None
        for name in methods:
            for kind in allocations:
                variant = self._variant(name, kind, limits)
                if variant is not None and (best is None or variant.divergence < best.divergence):
                    best = variant
            if best is not None and best.divergence < NEAR_ENOUGH:
                break
        if best is None:
            raise InfeasibleError(self._least(methods))
        best = self._with_batch_norms(best)
        return self._report(best, time.perf_counter() - begin)

    def _limits(self, budget: float | Mapping[str, float]) -> tuple[float | None, float | None]:
        """The most parameters and mult-adds of the replaceable layers together."""
        shares = dict(budget) if isinstance(budget, Mapping) else {"params": float(budget)}
        for name, share in shares.items():
            if name not in ("params", "mult_adds"):
                raise unknown("limit", name, ("params", "mult_adds"))
            if not 0 < share <= 1:
                raise InputError(f"the budget on {name} must be a share in (0, 1], but got {share:g}")
        inside = [0, 0]
        for layer in self.listed.layers:
            inside[0] += _DENSE.params(layer.shape)
            inside[1] += _DENSE.mult_adds(layer.shape)
        totals = {"params": self.listed.params, "mult_adds": self.listed.mult_adds}
        return tuple(  # type: ignore[return-value]
            shares[name] * totals[name] - (totals[name] - within) if name in shares else None
            for name, within in zip(totals, inside, strict=True)
        )

    def _least(self, methods: Sequence[str]) -> str:
        tables = [self.tables(name, "energy") for name in methods]
        fixed = self.listed.params - sum(_DENSE.params(layer.shape) for layer in self.listed.layers)
        least = min(sum(min(one.costs[0] for one in table) for table in tables_of.values()) for tables_of in tables)
        return (
            f"the network cannot be that small: its least size is {fixed + least:,} of {self.listed.params:,} "
            f"parameters ({(fixed + least) / self.listed.params:.1%}), of which {fixed:,} are never replaced"
        )

    def tables(self, method: str, allocation: str) -> dict[str, list[Candidate]]:
        """The candidates of every layer with their expected errors, made once.

        Args:
            method: one of METHODS, or "mixed" for the best of AUTO in each layer.
            allocation: "energy" or "sensitivity".

        Returns:
            The candidates by layer, from cheap to dear.
        """
        key = method, allocation
        if key not in self._tables:
            self._tables[key] = {
                layer.name: self._candidates(layer, method, allocation) for layer in self.listed.layers
            }
        return self._tables[key]

    def _candidates(self, layer: Layer, method: str, allocation: str) -> list[Candidate]:
        if method == "mixed":
            return efficient(one for name in AUTO for one in self.tables(name, allocation)[layer.name])
        if allocation == "energy":
            settings = METHODS[method](bias=True)  # type: ignore[call-arg]
            return energy_candidates(layer, settings, self._problems[layer.name])
        candidates = self.tables(method, "energy")[layer.name]
        self.progress(f"measuring what {method} costs in {layer.name}")
        measured = {place: self._rise(layer, candidates[place].choice) for place in probe_places(candidates, PROBES)}
        return measured_candidates(candidates, measured) if measured else candidates

    def _rise(self, layer: Layer, choice: Choice | None) -> float:
        """The divergence from the dense network when this layer alone is replaced."""
        plain = self.dense.get_submodule(layer.name)
        assert isinstance(plain, nn.Conv2d | nn.Linear)
        reference = self._probe_reference  # of the dense network, before a layer is replaced
        module, _ = fit_layer(layer, choice, plain, self._problems[layer.name], PROBE_ROUNDS)
        replace_module(self.dense, layer.name, module)
        try:
            changed = self._logits(self.dense, self.calibration[:PROBE_IMAGES])
        finally:
            replace_module(self.dense, layer.name, plain)
        return divergence(changed, reference)

    @cached_property
    def _probe_reference(self) -> Tensor:
        """The dense network's logits on the images over which rises of the loss are measured."""
        return self._logits(self.dense, self.calibration[:PROBE_IMAGES])

    def _problems_of(self, layer: Layer) -> list[Problem]:
        plain = self.dense.get_submodule(layer.name)
        assert isinstance(plain, nn.Conv2d | nn.Linear)
        pairs = (pair for images in self.batches() for pair in layer_calls(self.dense, plain, images, layer.calls))
        return make_problems(collect_moments(plain, pairs), kernel_of(plain))

    def _variant(self, method: str, allocation: str, limits: tuple[float | None, float | None]) -> _Variant | None:
        picked = allocate(self.tables(method, allocation), limits)
        if picked is None:
            return None
        choices = {name: candidate.choice for name, candidate in picked.items()}
        order = [*self.listed.layers]
        if self._fits_last():
            choices[self.listed.last] = None
            order.append(self._last_layer())
        self.progress(f"fitting {method}, ranks by {allocation}")
        student, fits = fit_in_order(self.dense, order, choices, self.batches)
        return _Variant(
            method, allocation, student, fits, divergence(self._logits(student, self.judges), self.reference)
        )

    def _fits_last(self) -> bool:
        """Whether the classifier, which keeps its form, is fitted again to what enters it."""
        return self.listed.reasons.get(self.listed.last) == GIVES_CLASSES

    def _last_layer(self) -> Layer:
        from lowrank.compression import layer_named

        return layer_named(self.dense, self.listed.last, self.calibration[:1])

    def _with_batch_norms(self, variant: _Variant) -> _Variant:
        """The variant with batch norms estimated again, if that brings it nearer to the dense network."""
        renewed = reestimate_batch_norms(variant.student, self.batches)
        after = divergence(self._logits(renewed, self.judges), self.reference)
        if after >= variant.divergence:
            return variant
        return _Variant(variant.method, variant.allocation, renewed, variant.fits, after, True)

    @torch.no_grad()
    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        return torch.cat([network(part).float() for part in images.split(BATCH)])

    def _error(self, logits: Tensor) -> float | None:
        if self.labels is None:
            return None
        return 100 * float((logits.argmax(1) != self.labels).double().mean())

    def _report(self, variant: _Variant, seconds: float) -> Compressed:
        image = self.calibration[:1]
        return Compressed(
            network=variant.student, method=variant.method, allocation=variant.allocation,
            layers=tuple(self._layer_reports(variant)), dense_params=self.listed.params,
            params=sum(value.numel() for value in variant.student.parameters()),
            mult_adds=count_mult_adds(variant.student, image), dense_mult_adds=self.listed.mult_adds,
            divergence=variant.divergence, error_before=self._error(self.reference),
            error_after=self._error(self._logits(variant.student, self.judges)),
            batch_norms_reestimated=variant.reestimated, projected_attention=self.projected_attention,
            seconds=seconds,
        )  # fmt: skip

    def _layer_reports(self, variant: _Variant) -> Iterable[LayerReport]:
        fits = {fit.name: fit for fit in variant.fits}
        by_name = {layer.name: layer for layer in self.listed.layers}
        for name, module in self.dense.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            fit = fits.get(name)
            choice = fit.choice if fit else None
            before = sum(value.numel() for value in module.parameters())
            after = choice.method.chain_params(by_name[name].shape, choice.ranks) if choice else before
            yield LayerReport(
                name=name, kind=_kind(module), method=choice.method.name if choice else "dense",
                ranks=choice.ranks if choice else (), params=after, dense_params=before,
                weight_error=fit.weight_error if fit else None, output_error=fit.output_error if fit else None,
                reason=self.listed.reasons.get(name, "" if choice else "factors would not pay here"),
            )  # fmt: skip


@torch.no_grad()
def _project_attention(network: nn.Module, images: Tensor, progress: Progress) -> tuple[nn.Module, int]:
    """Give attention projections of its own, unless the network then computes something else.

    A network may read the weights of its attention by itself; its attention stays as it is.

    Args:
        network: in evaluation mode; is changed where it has transformer encoders.
        images: on which the logits are compared.
        progress: is told why attention stays.

    Returns:
        The network, and how many attention modules were replaced.
    """
    disable_fused_encoders(network)
    projected = copy.deepcopy(network)
    count = project_attention(projected)
    if count == 0:
        return network, 0
    before = network(images).double()
    try:
        after = projected(images).double()
    except Exception as error:  # the network's own code may raise anything
        progress(f"attention stays as it is, since the network reads its weights: {first_line(error)}")
        return network, 0
    precise = next(projected.parameters()).dtype in (torch.float32, torch.float64)
    difference = float((after - before).abs().max()) / max(1e-12, float(before.abs().max()))
    if not difference <= (1e-3 if precise else 5e-2):
        progress(f"attention stays as it is, since the logits would change by {difference:.1%}")
        return network, 0
    return projected, count


def _kind(module: nn.Conv2d | nn.Linear) -> str:
    return "linear" if isinstance(module, nn.Linear) else "{} x {}".format(*module.kernel_size)


def _read(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]], count: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The first `count` images, and their labels where every batch has some."""
    images, labels, seen = [], [], 0
    for batch in batches:
        part, target = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
        images.append(part.to(device))
        if target is not None:
            labels.append(target.to(device))
        seen += len(part)
        if seen >= count:
            break
    if seen < 2:
        raise InputError(f"at least 2 calibration images are needed, but got {seen}")
    both = len(labels) == len(images)
    return torch.cat(images)[:count], torch.cat(labels)[:count] if both else None
