"""Fits a layer's factors to what the layer should give for calibration images.

With A = Cov(x) of the patches and B = Cov(y, x), the linear map with the least squared error is W* = B A^-1, and any
other W has tr((W - W*) A (W - W*)^T) more (Zhang et al. 2015, "Accelerating very deep convolutional networks for
classification and detection"). A ridge pulls W* to the trained weight, not to zero: where nothing before the layer was
compressed, W* is the trained weight. The mean goes into the bias and costs no rank.

Letters: I in-channels, O out-channels of one group, KH x KW the kernel, D = I * KH * KW, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowrank.compression.from_trained.moments import Moments
from lowrank.layers import SVD, WholeKernelMethod, chain_product, leading_vectors
from lowrank.utils import robust_eigh

RIDGE = 1e-3
"""Weight of the trained weights in W*, relative to the mean variance of a patch's entries."""
ROUNDS = 20
"""Steps of L-BFGS on factors that have no closed form."""
SMALLEST = 1e-10
"""Eigenvalues below this share of the largest are left out of an inverse root."""


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
        best = torch.linalg.solve(metric, (yx + strength * prior).T).T
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
    weights = method.truncate(problem.whitened[0], ranks)
    if rounds:
        weights = _refined(weights, problem, rounds)
    weights[0] = torch.einsum("rjab,ji->riab", weights[0], problem.input_roots[1])
    return weights, problem.error(chain_product(weights))


def _output_subspace(problem: Problem, rank: int) -> list[Tensor]:
    """The best factors of rank R: U^T W* and U, with U the leading eigenvectors of W* A W*^T."""
    best = problem.best.flatten(1)
    basis = leading_eigenvectors(best @ problem.metric @ best.T, rank)
    return [(basis.T @ best).reshape(-1, *problem.best.shape[1:]), basis[:, :, None, None]]


def leading_eigenvectors(matrix: Tensor, rank: int) -> Tensor:
    """The eigenvectors (M, R) of a symmetric matrix with the largest eigenvalues; columns beyond M are zero."""
    vectors = robust_eigh(matrix)[1].flip(1)[:, :rank]
    basis = matrix.new_zeros(len(matrix), rank)
    basis[:, : vectors.shape[1]] = vectors
    return basis


def _refined(weights: list[Tensor], problem: Problem, rounds: int) -> list[Tensor]:
    """Lower the error of all factors together by L-BFGS, in coordinates in which the input's channels are white."""
    target, metric = problem.whitened
    scale = max(problem.energy, 1e-300)
    factors = [weight.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for weight in weights]
    optimizer = torch.optim.LBFGS(factors, max_iter=rounds, history_size=rounds, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        gap = (chain_product(factors) - target).flatten(1)
        value = ((gap @ metric) * gap).sum() / scale
        value.backward()
        return value

    with torch.enable_grad():
        before = loss().item()
        optimizer.step(loss)
        after = loss().item()
    return [factor.detach() for factor in factors] if after < before else list(weights)


def tucker_tails(problem: Problem, in_rank: int) -> Tensor:
    """What Tucker-2 misses of the targets' variance at one in-rank, by out-rank 0, 1, 2 ...; unscaled.

    The in-channels are reduced to the leading vectors of the whitened kernel, then the best map from there is known
    in closed form and its output covariance's eigenvalues say what each out-rank keeps.
    """
    inverse, whitened = problem.input_roots[1], problem.whitened[0]
    vectors = leading_vectors(whitened.transpose(0, 1).flatten(1), in_rank)
    reduce = inverse @ vectors  # (I, R1)
    channels, taps = problem.best.shape[1], problem.best[0, 0].numel()
    metric = problem.metric.reshape(channels, taps, channels, taps)
    inner = torch.einsum("ir,iajb,js->rasb", reduce, metric, reduce).reshape(in_rank * taps, -1)
    cross = problem.best.flatten(1) @ problem.metric
    cross = torch.einsum("oia,ir->ora", cross.unflatten(1, (channels, taps)), reduce).flatten(1)
    inner = inner + 1e-9 * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    caught = cross @ torch.linalg.solve(inner, cross.T)
    values = robust_eigh(caught)[0].flip(0).clamp_min(0)
    total = ((problem.best.flatten(1) @ problem.metric) * problem.best.flatten(1)).sum()
    kept = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return problem.rest + (total - kept).clamp_min(0)
