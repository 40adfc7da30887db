"""Makes a trained network smaller without training it: the library's form of `python -m lowrank.compress`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor, nn

from lowrank.compression import (
    Candidate,
    Choice,
    Layer,
    LayerFit,
    LayerList,
    LayerOutputs,
    Problem,
    Replay,
    allocate,
    batches_of,
    check_classifier,
    collect_all_moments,
    count_calls,
    count_mult_adds,
    divergence,
    efficient,
    energy_candidates,
    find_nearer_batch_norms,
    fit_in_order,
    fitting_count,
    kernel_of,
    layer_named,
    least_costs,
    list_layers,
    make_problems,
    measured_candidates,
    merged_layer,
    network_logits,
    probe_places,
    replace_module,
    storage_limit,
)
from lowrank.deployment.attention import project_where_equal
from lowrank.deployment.compressed import Compressed, LayerReport, other_parameters
from lowrank.deployment.given_images import (
    check_labels,
    check_logits_finite,
    check_repeatable,
    check_weights,
    first_images,
    labelled_images,
)
from lowrank.errors import InfeasibleError, InputError, unknown
from lowrank.layers import SVD, CPKernel, Dense, SpatialSVD, TensorTrainKernel, Tucker2, WholeKernelMethod
from lowrank.networks import copy_network, unwrap_network
from lowrank.utils import Countdown, format_counted

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
"""Steps of L-BFGS for the factors that are measured."""
REPEATED_IMAGES = 16
"""Images on which a second run must give the same logits."""
SHOWN_SHARE = 0.01
"""Share of all parameters from which a module that is neither a convolution nor a linear map is reported."""
ATTENTION_IMAGES = 8
"""Images on which logits must stay the same when attention gets projections of its own."""
_DENSE = Dense()

Progress = Callable[[str], None]
Forms = Sequence[Sequence[tuple[int, int]]]
"""Parameters and mult-adds of what each layer can become."""


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
        batches: calibration images, or pairs of images and labels, as the network takes them, in random order; not
            more of them are read than `calibration` asks for. Labels only serve to print errors.
        budget: share of all parameters of the network that may remain, in (0, 1]; or shares of "params" and
            "mult_adds".
        method: one of METHODS, or "auto".
        allocation: "energy", "sensitivity" or "auto".
        keep: shell-style patterns of names of layers that stay as they are, or one such pattern.
        only: patterns of the layers that alone may be replaced, likewise; None for all.
        calibration: how many images are used.
        validation: images and labels that choose among variants; by default a part of the calibration images.
        progress: called with one line for each step.

    Returns:
        The smaller network with its counts and errors.

    Raises:
        InfeasibleError: the network cannot be that small; the least possible size is named.
        InputError: a setting is wrong, or the network has nothing that can be replaced.
    """
    with torch.inference_mode(False):  # factors are fitted by their gradients, whatever the caller's mode
        compressor = Compressor(
            network, batches, keep=keep, only=only, calibration=calibration, validation=validation, progress=progress
        )
        return compressor.compress(budget, method=method, allocation=allocation)


@dataclass(frozen=True)
class _Variant:
    """A compressed network that may be chosen, and how near it is to the given network."""

    method: str
    allocation: str
    network: nn.Module
    fits: list[LayerFit]
    logits: Tensor
    divergence: float
    batch_norms_reestimated: bool = False


class Compressor:
    """Compresses one network to several budgets from one calibration.

    Args:
        network: the trained network, any `nn.Module` from images (B, C, H, W) to logits (B, K); unchanged.
        batches: calibration images, or pairs of images and labels, as the network takes them, in random order; not
            more of them are read than `calibration` asks for. Labels only serve to print errors.
        keep: shell-style patterns of names of layers that stay as they are, or one such pattern.
        only: patterns of the layers that alone may be replaced, likewise; None for all.
        calibration: how many images are used.
        validation: images and labels that choose among variants; by default a part of the calibration images.
        progress: called with one line for each step.

    Raises:
        InputError: the network has nothing that can be replaced, returns anything but logits, or there are no images.
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
        check_weights(network)
        network = unwrap_network(network)
        device = next(network.parameters()).device
        self.progress = progress
        images, labels = first_images(batches, calibration, device)
        keep = (keep,) if isinstance(keep, str) else keep
        only = (only,) if isinstance(only, str) else only
        if only is not None and not only:
            raise InputError("only must name a layer or be None, but is empty")
        self.choosing_labels: Tensor | None
        if validation is not None:
            self.calibration = images
            self.choosing_images, self.choosing_labels = labelled_images(validation, device)
        else:
            cut = fitting_count(len(images))
            self.calibration, self.choosing_images = images[:cut], images[cut:]
            self.choosing_labels = None if labels is None else labels[cut:]
        check_classifier(network, images[:1], None)
        check_repeatable(network, images[:REPEATED_IMAGES])
        self.dense, self.projected_attention = project_where_equal(
            copy_network(network).eval(), images[:ATTENTION_IMAGES], progress
        )
        self.layer_list: LayerList = list_layers(self.dense, images[:1], keep, only)
        if not self.layer_list.layers:
            raise InputError(f"nothing can be made smaller: {_largest_kept(self.dense, self.layer_list)}")
        self.reference = network_logits(self.dense, self.choosing_images)
        check_logits_finite(network, self.reference)
        if self.choosing_labels is not None:
            check_labels(self.choosing_labels, self.reference.shape[1])
        self._tables: dict[tuple[str, str], dict[str, list[Candidate]]] = {}
        self._divergences: dict[tuple[str, tuple[object, ...]], float] = {}

    def batches(self) -> Iterator[Tensor]:
        """The calibration images, a batch at a time."""
        return iter(batches_of(self.calibration))

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
        if allocation not in ("auto", *ALLOCATIONS):
            raise unknown("allocation", allocation, ("auto", *ALLOCATIONS))
        self.check_budget(budget, method)
        limits, methods = self._limits(budget), _tried(method)
        best: _Variant | None = None
        for name in methods:
            variant = self._variant(name, "sensitivity" if allocation == "auto" else allocation, limits)
            if variant is not None and (best is None or variant.divergence < best.divergence):
                best = variant
            if best is not None and best.divergence < NEAR_ENOUGH:
                break
        if best is None:
            raise InfeasibleError(self._least_size([self._table_forms(name) for name in methods]))
        best = self._with_batch_norms(best)
        return self._report(best, time.perf_counter() - begin)

    def check_least_size(self, budget: float | Mapping[str, float], method: str = "auto") -> None:
        """Check that rank 1 everywhere is within a budget, without calibration.

        This is exact for a limit on parameters, and for every limit if one method is named.

        Args:
            budget: as for `compress`.
            method: one of METHODS, or "auto".

        Raises:
            InfeasibleError: the network cannot be that small; a size that can be reached is named.
            InputError: a setting is wrong.
        """
        if method != "auto" and method not in METHODS:
            raise unknown("method", method, ("auto", *METHODS))
        limits = self._limits(budget)
        forms = [self._smallest_forms(name) for name in _tried(method)]
        if all(_exceed(limits, layers) for layers in forms):
            # Of its two methods "mixed" has, for certain, the form with fewer parameters
            raise InfeasibleError(self._least_size([[[min(costs)] for costs in layers] for layers in forms]))

    def check_budget(self, budget: float | Mapping[str, float], method: str = "auto") -> None:
        """Check that the network can be so small; calibrates, unless `check_least_size` already refuses.

        Args:
            budget: as for `compress`.
            method: one of METHODS, or "auto".

        Raises:
            InfeasibleError: the network cannot be that small; the least possible size is named.
            InputError: a setting is wrong.
        """
        self.check_least_size(budget, method)
        limits, methods = self._limits(budget), _tried(method)
        if all(allocate(self.tables(name, "energy"), limits) is None for name in methods):
            raise InfeasibleError(self._least_size([self._table_forms(name) for name in methods]))

    def _smallest_forms(self, method: str) -> Forms:
        """The costs of each layer at rank 1; of "mixed", those of each method of AUTO."""
        names = AUTO if method == "mixed" else (method,)
        methods = [METHODS[name](bias=True) for name in names]  # type: ignore[call-arg]
        return [[least_costs(layer.shape, settings) for settings in methods] for layer in self.layer_list.layers]

    def _table_forms(self, method: str) -> Forms:
        """The costs of each layer's candidates."""
        return [[one.costs for one in candidates] for candidates in self.tables(method, "energy").values()]

    def _limits(self, budget: float | Mapping[str, float]) -> tuple[float | None, float | None]:
        """The most parameters and mult-adds of the replaceable layers together."""
        if not isinstance(budget, Mapping | Real):
            raise InputError(f"the budget must be a share or shares of params and mult_adds, but got {budget!r}")
        shares = dict(budget) if isinstance(budget, Mapping) else {"params": budget}
        if not shares:
            raise InputError("the budget must limit params, mult_adds or both, but got {}")
        for name, share in shares.items():
            if name not in ("params", "mult_adds"):
                raise unknown("limit", name, ("params", "mult_adds"))
            if not isinstance(share, Real) or not 0 < share <= 1:
                raise InputError(f"the budget on {name} must be a share in (0, 1], but got {share}")
        replaceable = {
            "params": sum(_DENSE.params(layer.shape) for layer in self.layer_list.layers),
            "mult_adds": sum(_DENSE.mult_adds(layer.shape) for layer in self.layer_list.layers),
        }
        totals = {"params": self.layer_list.params, "mult_adds": self.layer_list.mult_adds}
        params, mult_adds = (
            shares[name] * totals[name] - (totals[name] - replaceable[name]) if name in shares else None
            for name in totals
        )
        return params, mult_adds

    def _least_size(self, forms: Sequence[Forms]) -> str:
        """Say how small the network can be; each limit is named with the least share that it can have.

        Args:
            forms: of each method that may be chosen.
        """
        lines, stays = [], []
        for axis, (name, total) in enumerate(
            (("parameters", self.layer_list.params), ("mult-adds", self.layer_list.mult_adds))
        ):
            dense = [(_DENSE.params, _DENSE.mult_adds)[axis](layer.shape) for layer in self.layer_list.layers]
            fixed = total - sum(dense)
            least = min(_least(layers, axis) for layers in forms)
            share = math.ceil(1000 * (fixed + least) / total) / 1000  # rounded up: a budget that can be reached
            lines.append(f"{fixed + least:,} of {total:,} {name} ({share:.1%})")
            stays.append(f"{fixed:,}")
        least_size, never = " and ".join(lines), " and ".join(stays)
        return (
            f"the network cannot be that small: its least size is {least_size}, of which {never} are never replaced; "
            f"{_largest_kept(self.dense, self.layer_list)}"
        )

    @cached_property
    def _problems(self) -> dict[str, list[Problem]]:
        """The least-squares problems of each layer on the dense network's own inputs, by group."""
        layers = [self.dense.get_submodule(layer.name) for layer in self.layer_list.layers]
        self.progress(f"calibrating {format_counted(len(layers), 'layer')} on {len(self.calibration):,} images")
        names = [layer.name for layer in self.layer_list.layers]
        calls = sum(layer.calls for layer in self.layer_list.layers) * len(batches_of(self.calibration))
        countdown, began = Countdown(self.progress, "calibrating", calls, announced=True), time.perf_counter()
        moments = collect_all_moments(self.dense, names, self.batches(), self._outputs, countdown.step)
        self.progress(f"calibrated in {time.perf_counter() - began:.1f} s")
        return {
            name: make_problems(moments.pop(name), kernel_of(layer))  # type: ignore[arg-type]
            for name, layer in zip(names, layers, strict=True)
        }

    @cached_property
    def _outputs(self) -> LayerOutputs:
        return LayerOutputs(storage_limit(self.calibration.device))

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
            self._tables[key] = self._make_tables(method, allocation)
        return self._tables[key]

    def _make_tables(self, method: str, allocation: str) -> dict[str, list[Candidate]]:
        layers = self.layer_list.layers
        if method == "mixed":
            tables = [self.tables(name, allocation) for name in AUTO]
            return {
                layer.name: efficient(candidate for table in tables for candidate in table[layer.name])
                for layer in layers
            }
        if allocation == "energy":
            settings = METHODS[method](bias=True)  # type: ignore[call-arg]
            problems = self._problems
            countdown = Countdown(self.progress, f"listing ranks of {method}", len(layers))
            return {
                layer.name: energy_candidates(layer, settings, problems[layer.name]) for layer in countdown.over(layers)
            }
        energies = self.tables(method, "energy")
        countdown = Countdown(self.progress, f"measuring the loss with fewer ranks of {method}", len(layers))
        return {layer.name: self._measured(layer, energies[layer.name]) for layer in countdown.over(layers)}

    def _measured(self, layer: Layer, candidates: list[Candidate]) -> list[Candidate]:
        """A layer's candidates with the rise of the loss that was measured at some of them."""
        measured = {}
        for probe in probe_places(candidates, PROBES):
            choice = candidates[probe].choice
            assert choice is not None  # the dense form is never measured
            # Of a linear map or a 1 x 1 kernel all methods have the same factors, those of `svd`
            factors = choice.ranks[:1] if layer.shape.kernel_area == 1 else (choice.method.name, *choice.ranks)
            key = layer.name, factors
            if key not in self._divergences:
                self._divergences[key] = self._divergence_with(layer, choice)
            measured[probe] = self._divergences[key]
        return measured_candidates(candidates, measured) if measured else candidates

    @torch.no_grad()
    def _divergence_with(self, layer: Layer, choice: Choice) -> float:
        """The divergence from the dense network when this layer alone is replaced."""
        plain = self.dense.get_submodule(layer.name)
        assert isinstance(plain, nn.Conv2d | nn.Linear)
        reference = self._probe_reference  # of the dense network, before a layer is replaced
        merged = merged_layer(layer, choice, plain, self._problems[layer.name], PROBE_ROUNDS)
        replace_module(self.dense, layer.name, merged)
        logits = []
        try:
            for index, images in enumerate(batches_of(self.calibration[:PROBE_IMAGES])):
                with self._probe_replay.before(layer.name, index):
                    logits.append(self.dense(images).float())
        finally:
            replace_module(self.dense, layer.name, plain)
        return divergence(torch.cat(logits), reference)

    @cached_property
    def _probe_replay(self) -> Replay:
        """What runs before a layer gives the same at each of its sizes."""
        image = self.calibration[:1]
        return Replay(self.dense, count_calls(self.dense, image), storage_limit(image.device))

    @cached_property
    def _probe_reference(self) -> Tensor:
        """The dense network's logits on the images over which rises of the loss are measured."""
        return network_logits(self.dense, self.calibration[:PROBE_IMAGES])

    def _variant(self, method: str, allocation: str, limits: tuple[float | None, float | None]) -> _Variant | None:
        """The network compressed by one method; None if it cannot be that small."""
        candidates = allocate(self.tables(method, allocation), limits)
        if candidates is None:
            return None
        choices = {name: candidate.choice for name, candidate in candidates.items()}
        order = [*self.layer_list.layers]
        if self.layer_list.refits_last:
            choices[self.layer_list.last] = None
            order.append(layer_named(self.dense, self.layer_list.last, self.calibration[:1]))
        countdown = Countdown(self.progress, f"fitting {method}, ranks by {allocation}", len(order))
        network, fits = fit_in_order(
            self.dense, order, choices, self.batches, outputs=self._outputs, progress=countdown.step
        )
        logits = network_logits(network, self.choosing_images)
        return _Variant(method, allocation, network, fits, logits, divergence(logits, self.reference))

    def _with_batch_norms(self, variant: _Variant) -> _Variant:
        """The variant with batch norms estimated again, if that brings it nearer to the dense network."""
        nearer = find_nearer_batch_norms(
            variant.network, self.batches, self.choosing_images, self.reference, variant.divergence
        )
        return variant if nearer is None else replace(variant, **vars(nearer), batch_norms_reestimated=True)

    def _error(self, logits: Tensor) -> float | None:
        if self.choosing_labels is None:
            return None
        return 100 * float((logits.argmax(1) != self.choosing_labels).double().mean())

    def _report(self, variant: _Variant, seconds: float) -> Compressed:
        return Compressed(
            network=variant.network, method=variant.method, allocation=variant.allocation,
            layers=tuple(self._layer_reports(variant)), dense_params=self.layer_list.params,
            params=sum(value.numel() for value in variant.network.parameters()),
            mult_adds=count_mult_adds(variant.network, self.calibration[:1]),
            dense_mult_adds=self.layer_list.mult_adds, divergence=variant.divergence,
            error_before=self._error(self.reference), error_after=self._error(variant.logits),
            batch_norms_reestimated=variant.batch_norms_reestimated, projected_attention=self.projected_attention,
            seconds=seconds,
        )  # fmt: skip

    def _layer_reports(self, variant: _Variant) -> Iterable[LayerReport]:
        fits = {fit.name: fit for fit in variant.fits}
        by_name = {layer.name: layer for layer in self.layer_list.layers}
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
                reason=self.layer_list.reasons.get(name, "") or ("" if choice else self._dense_reason(variant, name)),
            )  # fmt: skip
        least = SHOWN_SHARE * self.layer_list.params
        yield from (report for report in other_parameters(self.dense) if report.params >= least)

    def _dense_reason(self, variant: _Variant, name: str) -> str:
        """Why a layer that may be replaced stays dense."""
        candidates = self.tables(variant.method, variant.allocation).get(name, [])
        if all(fit.choice is None for fit in variant.fits):
            return "the budget is met without factors"
        if any(candidate.choice is not None for candidate in candidates):
            return "the budget is met with less loss by other layers"
        return "no factors are smaller"


def _largest_kept(network: nn.Module, layers: LayerList) -> str:
    """Name the largest part of a network that is never replaced, with the reason."""
    plain = [
        LayerReport.unreplaced(name, _kind(module), sum(value.numel() for value in module.parameters()), reason)
        for name, reason in layers.reasons.items()
        if isinstance(module := network.get_submodule(name), nn.Conv2d | nn.Linear)
    ]
    largest = max([*plain, *other_parameters(network)], key=lambda report: report.params)
    return f"the largest is `{largest.name}` ({largest.kind}, {largest.params:,} parameters): {largest.reason}"


def _least(forms: Forms, axis: int) -> int:
    """The least parameters (axis 0) or mult-adds (axis 1) of all layers together."""
    return sum(min(costs[axis] for costs in layer) for layer in forms)


def _exceed(limits: tuple[float | None, float | None], forms: Forms) -> bool:
    """Whether even the least parameters or mult-adds of all layers together exceed their limit."""
    return any(limit is not None and _least(forms, axis) > limit for axis, limit in enumerate(limits))


def _tried(method: str) -> tuple[str, ...]:
    return (*AUTO, "mixed") if method == "auto" else (method,)


def _kind(module: nn.Conv2d | nn.Linear) -> str:
    return "linear" if isinstance(module, nn.Linear) else "{} x {}".format(*module.kernel_size)
