"""Fits a layer's factors to what the layer should give for calibration images.

With A = Cov(x) of the patches and B = Cov(y, x), the linear map with the least squared error is W* = B A^-1, and any
other W has tr((W - W*) A (W - W*)^T) more (Zhang et al. 2015, "Accelerating very deep convolutional networks for
classification and detection"). A ridge pulls W* to the trained weight, not to zero: where nothing before the layer was
compressed, W* is the trained weight. The mean goes into the bias and costs no rank.

Factors start from a truncation of W* in coordinates in which the input's channels are white. The last of them then has
a closed form given the others (for Tucker-2 the core and the last together), and L-BFGS moves all together from there.

Letters: I in-channels, O out-channels of one group, KH x KW the kernel, D = I * KH * KW, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.compression.from_trained.moments import Moments
from lowrank.layers import SVD, Decomposition, Tucker2, WholeKernelMethod, chain_product, leading_columns
from lowrank.utils import robust_eigh

RIDGE = 1e-3
"""Weight of the trained weights in W*, relative to the mean variance of a patch's entries."""
ROUNDS = 40
"""Steps of L-BFGS on factors that have no closed form."""
SMALLEST = 1e-10
"""Eigenvalues below this share of the largest are left out of an inverse root."""
END_RIDGE = 1e-9
"""Added to the diagonal of the least-squares problem of the last factors, relative to its mean."""


class ReducedMap(NamedTuple):
    """The best map from some combinations of a layer's whitened input channels to its targets.

    `reduce` (I, R1) makes the combinations and `weight` (O, R1, KH, KW) is the map. `values` (O), descending, and
    `vectors` (O, O) are the eigenvalues and eigenvectors of the covariance of what it gives.
    """

    reduce: Tensor
    weight: Tensor
    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Problem:
    """The least-squares problem of one group of one layer, in float64.

    Attributes:
        best: W* (O, I, KH, KW).
        metric: A with its ridge (D, D).
        x_mean: mean of the patches (D).
        y_mean: mean of the targets (O).
        energy: summed variance of the targets.
        rest: what even W* misses of `energy`.
    """

    best: Tensor
    metric: Tensor
    x_mean: Tensor
    y_mean: Tensor
    energy: float
    rest: float

    def error(self, weight: Tensor) -> float:
        """The share of the targets' variance that a weight (O, I, KH, KW) misses, W*'s own included."""
        gap = (weight - self.best).flatten(1)
        return (self.rest + ((gap @ self.metric) * gap).sum().item()) / max(self.energy, 1e-300)

    def bias(self, weight: Tensor) -> Tensor:
        """The bias (O) with which the mean error is zero."""
        return self.y_mean - weight.flatten(1) @ self.x_mean

    def decomposition(self, method: WholeKernelMethod) -> Decomposition:
        """What truncations of the whitened W* by a method share, computed once."""
        if method.name not in self._decompositions:
            self._decompositions[method.name] = method.decompose(self.whitened[0])
        return self._decompositions[method.name]

    @cached_property
    def _decompositions(self) -> dict[str, Decomposition]:
        return {}

    @cached_property
    def output_vectors(self) -> Tensor:
        """The eigenvectors (O, O) of W* A W*^T, those of the largest eigenvalues first."""
        best = self.best.flatten(1)
        return robust_eigh(best @ self.metric @ best.T)[1].flip(1)

    def reduced(self, in_rank: int) -> ReducedMap:
        """The best map from `in_rank` leading directions of the whitened input channels, computed once a rank."""
        if in_rank not in self._reduced_maps:
            self._reduced_maps[in_rank] = _reduce_channels(self, in_rank)
        return self._reduced_maps[in_rank]

    @cached_property
    def _reduced_maps(self) -> dict[int, ReducedMap]:
        return {}

    @cached_property
    def input_roots(self) -> tuple[Tensor, Tensor]:
        """C^1/2 and C^-1/2 (I, I) of the channels' covariance C, the mean of A's diagonal blocks over kernel taps."""
        channels, taps = self.best.shape[1], self.best[0, 0].numel()
        blocks = self.metric.reshape(channels, taps, channels, taps)
        values, vectors = robust_eigh(torch.einsum("iaja->ij", blocks) / taps)
        used = values > SMALLEST * values[-1].clamp_min(1e-300)
        root = torch.where(used, values.clamp_min(0).sqrt(), 0.0)
        inverse = torch.where(used, 1 / root.clamp_min(1e-300), 0.0)
        return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T

    @cached_property
    def single(self) -> tuple[Tensor, Tensor]:
        """`whitened` in float32, scaled so that the squared error is the share of the targets' variance."""
        target, metric = self.whitened
        return target.float(), (metric / max(self.energy, 1e-300)).float()

    @cached_property
    def whitened(self) -> tuple[Tensor, Tensor]:
        """W* (O, I, KH, KW) and A (D, D) in coordinates in which the input's channels are white."""
        root, inverse = self.input_roots
        channels, taps = self.best.shape[1], self.best[0, 0].numel()
        once = (inverse @ self.metric.reshape(channels, -1)).reshape(channels, taps, channels, taps)
        metric = torch.einsum("paib,iq->paqb", once, inverse).reshape(channels * taps, -1)
        return torch.einsum("oiab,ij->ojab", self.best, root), metric


def make_problems(moments: Moments, dense: Tensor, *, bias: bool = True, ridge: float = RIDGE) -> list[Problem]:
    """Set up the least-squares problem of each group.

    Args:
        moments: of the layer's inputs and targets.
        dense: the trained weight (O, I / g, KH, KW) of all groups.
        bias: whether the fitted layer has a bias, which then takes the mean; the moments about zero count without.
        ridge: see RIDGE.

    Returns:
        One problem a group, on the device of the moments.
    """
    problems = []
    moments = moments if bias else moments.about_zero()
    for group, weight in enumerate(dense.detach().to(moments.xx).chunk(len(moments.xx))):
        xx, yx, prior = moments.xx[group], moments.yx[group], weight.flatten(1)
        strength = ridge * xx.diagonal().mean().clamp_min(1e-30)
        metric = xx + strength * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        best = solve_positive(metric, (yx + strength * prior).T).T
        energy = moments.y_energy[group].item()
        missed = energy - 2 * (best * yx).sum().item() + ((best @ xx) * best).sum().item()
        problems.append(
            Problem(
                best.reshape(weight.shape),
                metric,
                moments.x_mean[group],
                moments.y_mean[group],
                energy,
                max(missed, 0.0),
            )
        )
    return problems


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a linear system with a symmetric positive definite matrix (N, N) and right sides (N, M)."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, right) if bool(failed) else torch.cholesky_solve(right, factor)


def fit_factors(
    method: WholeKernelMethod, problem: Problem, ranks: Sequence[int], *, rounds: int = ROUNDS
) -> tuple[list[Tensor], float]:
    """Fit one group's factors to its problem.

    Args:
        method: which factors; `svd` (and every 1 x 1 kernel) has a closed form.
        problem: the group's least-squares problem.
        ranks: the ranks of one group.
        rounds: steps of L-BFGS for the others; 0 leaves the first guess.

    Returns:
        One weight for each stage, and the share of the targets' variance that they miss.
    """
    if isinstance(method, SVD) or problem.best[0, 0].numel() == 1:
        weights = _output_subspace(problem, ranks[0])
        return weights, problem.error(chain_product(weights))
    if isinstance(method, Tucker2):
        weights = _reduced_tucker(problem, ranks)
    else:
        weights = _with_best_end(problem, method.truncate(problem.decomposition(method), ranks))
    error = problem.error(_unwhitened(problem, weights))
    if rounds:
        refined = _with_best_end(problem, _refined(weights, problem, rounds))
        refined_error = problem.error(_unwhitened(problem, refined))
        if refined_error < error:
            weights, error = refined, refined_error
    weights[0] = torch.einsum("rjab,ji->riab", weights[0], problem.input_roots[1])
    return weights, error


def _unwhitened(problem: Problem, weights: Sequence[Tensor]) -> Tensor:
    """The kernel (O, I, KH, KW) of factors that take whitened channels, for the channels as they are."""
    return torch.einsum("ojab,ji->oiab", chain_product(weights), problem.input_roots[1])


def _with_best_end(problem: Problem, weights: Sequence[Tensor]) -> list[Tensor]:
    """Replace the last factor by the best one for the others; all take whitened channels."""
    target, metric = problem.whitened
    channels = weights[-1][0].numel()
    identity = torch.eye(channels, dtype=target.dtype, device=target.device).reshape(channels, *weights[-1].shape[1:])
    features = chain_product([*weights[:-1], identity]).flatten(1)  # (R * a * b, D): what the last factor multiplies
    covariance = features @ metric
    end = _best_map(covariance @ features.T, target.flatten(1) @ covariance.T)
    return [*weights[:-1], end.reshape(weights[-1].shape)]


def _best_map(inner: Tensor, cross: Tensor) -> Tensor:
    """The best map (O, K) from features with covariance `inner` (K, K) to targets with `cross` (O, K)."""
    ridge = END_RIDGE * inner.diagonal().mean().clamp_min(1e-300)
    return solve_positive(inner + ridge * torch.eye(len(inner), dtype=inner.dtype, device=inner.device), cross.T).T


def _reduce_channels(problem: Problem, in_rank: int) -> ReducedMap:
    target, metric = problem.whitened
    out_channels, channels, height, width = target.shape
    taps = height * width
    reduce = leading_columns(problem.decomposition(Tucker2()).parts[0], in_rank)  # (I, R1)
    half = (reduce.T @ metric.reshape(channels, -1)).reshape(in_rank * taps, channels, taps)
    inner = torch.einsum("pjb,js->psb", half, reduce).flatten(1)  # (R1 * taps, R1 * taps)
    cross = torch.einsum("oja,pja->op", target.flatten(2), half)  # the metric is symmetric
    weight = _best_map(inner, cross)
    values, vectors = robust_eigh(weight @ cross.T)
    return ReducedMap(
        reduce, weight.reshape(out_channels, in_rank, height, width), values.flip(0).clamp_min(0), vectors.flip(1)
    )


def _reduced_tucker(problem: Problem, ranks: Sequence[int]) -> list[Tensor]:
    """Tucker-2 factors of whitened channels: leading channel directions, then the best core and the best last factor.

    The last two are a map of limited rank, the truncated best map from the reduced channels.
    """
    reduced = problem.reduced(ranks[0])
    basis = leading_columns(reduced.vectors, ranks[1])  # (O, R2)
    core = torch.einsum("os,orab->srab", basis, reduced.weight)
    return [reduced.reduce.T[:, :, None, None], core, basis[:, :, None, None]]


def _output_subspace(problem: Problem, rank: int) -> list[Tensor]:
    """The best factors of rank R: U^T W* and U, with U the leading eigenvectors of W* A W*^T."""
    basis = leading_columns(problem.output_vectors, rank)
    reduce = basis.T @ problem.best.flatten(1)
    return [reduce.reshape(-1, *problem.best.shape[1:]), basis[:, :, None, None]]


def _refined(weights: Sequence[Tensor], problem: Problem, rounds: int) -> list[Tensor]:
    """Lower the error of all factors together by L-BFGS in float32; they take whitened channels."""
    target, metric = problem.single
    factors = [
        weight.to(target, copy=True, memory_format=torch.contiguous_format).requires_grad_() for weight in weights
    ]
    optimizer = torch.optim.LBFGS(factors, max_iter=rounds, history_size=rounds, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        gap = (chain_product(factors) - target).flatten(1)
        with torch.no_grad():  # the metric is symmetric: one product gives the value and its gradient
            slope = gap @ metric
            value = (slope * gap).sum()
        gap.backward(2 * slope)
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return [factor.detach().double() for factor in factors]


def tucker_tails(problem: Problem, in_rank: int) -> Tensor:
    """What Tucker-2 misses of the targets' variance at one in-rank, by out-rank 0, 1, 2 ...; unscaled.

    The eigenvalues of the best map from the leading in-channels say what each out-rank keeps.
    """
    values = problem.reduced(in_rank).values
    kept = torch.cat([values.new_zeros(1), values.cumsum(0)])
    total = ((problem.best.flatten(1) @ problem.metric) * problem.best.flatten(1)).sum()
    return problem.rest + (total - kept).clamp_min(0)
