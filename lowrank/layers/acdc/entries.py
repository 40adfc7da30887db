"""The entries of ACDC's layers as matrices, and the way back from the gradient of the entries to the diagonals.

C^T diag(d) C is a Toeplitz and a Hankel matrix: with h_m = t_m / 2, t_m = sum_n c_n^2 d_n cos(pi n m / N), c_0^2 =
1/N and c_n^2 = 2/N, entry (j, k) is h_|j-k| + h_(j+k+1), and h is even about m = N. So its entries need no product,
and the gradient by d needs no more than the sums of the entries' gradients along diagonals and antidiagonals: both
cost as much as going over the entries once. On a GPU Triton kernels do that, where Triton is; else plain torch.

Letters: G maps of one shape, L layers, N width, C the orthonormal DCT-II, P the riffle of channels between layers.
`halves` are rows (2N): h_0 .. h_(N-1), then h_1 .. h_N.
"""

from __future__ import annotations

from math import pi
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.kernels.dispatch import load_kernels


def toeplitz_and_hankel(halves: Tensor) -> Tensor:
    """Entries (M, N, N) of `halves` (M, 2N): each part is a sliding window over one vector."""
    near, after = halves.chunk(2, 1)
    width = near.shape[1]
    toeplitz = torch.cat([near[:, 1:].flip(1), near], 1).unfold(1, width, 1).flip(1)
    hankel = torch.cat([after, after[:, :-1].flip(1)], 1).unfold(1, width, 1)
    return toeplitz + hankel


def diagonal_sums(entries: Tensor) -> Tensor:
    """The transpose of `toeplitz_and_hankel`: (M, N, N) -> (M, 2N).

    Rows read one entry longer than they are slide by one each, so that a column then holds one antidiagonal.
    """
    width = entries.shape[1]
    sides = torch.cat([entries.flip(2), entries])
    slid = functional.pad(sides, (0, width)).flatten(1)[:, : width * (2 * width - 1)]
    difference, total = slid.unflatten(1, (width, 2 * width - 1)).sum(1).chunk(2)
    near = difference[:, width - 1 :] + functional.pad(difference[:, : width - 1].flip(1), (1, 0))
    after = total[:, :width] + functional.pad(total[:, width:].flip(1), (0, 1))
    return torch.cat([near, after], 1)


def waves(width: int, like: Tensor) -> Tensor:
    """The matrix (N, 2N) by which diagonals (M, N) give `halves` (M, 2N), as `like`."""
    index = torch.arange(width, device=like.device)
    places = torch.cat([index, index + 1])
    angles = (index[:, None] * places % (2 * width)).to(torch.float64) * (pi / width)  # a whole turn is 2N
    found = angles.cos() / width
    found[0] /= 2
    return found.to(like.dtype)


def project(given: Tensor, matrix: Tensor) -> Tensor:
    """Rows `given` (M, K) times a contiguous `matrix` (E, K), transposed: (M, E), in their own dtype under autocast."""
    if kernels := _kernels(given.device):
        projected: Tensor = kernels.project(given.contiguous(), matrix)
        return projected
    return torch.mm(given, matrix.mT, out=given.new_empty(len(given), len(matrix)))  # `out`: not by autocast


def form(first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor, out: Tensor) -> None:
    """Write diag(first) C^T diag(second) C times the layer's gain into `out` (S, G, N, N) at the layer's slot.

    `first` is (G, L, N), `halves` (G * L, 2N) of `second`, `gains` (L), `slots` (L). Rows of all layers but the first
    are those of P^T times the matrix. Computed in the dtype of `first` and rounded once, to that of `out`.
    """
    if kernels := _kernels(out.device):
        kernels.form(first, halves, gains, slots, out)
        return
    maps, layers, width = first.shape
    scaled = (first * gains[:, None]).flatten(0, 1)[:, :, None] * toeplitz_and_hankel(halves)
    scaled = scaled.view(maps, layers, width, width).transpose(0, 1)
    scaled[1:] = scaled[1:, :, _riffled_back(width, out.device)]
    out[slots] = scaled.to(out.dtype)


def form_back(gradient: Tensor, first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by `first` (G, L, N) and `halves` (G * L, 2N), from that by what `form` wrote (S, G, N, N).

    Each in the dtype of `first`, in which sums run.
    """
    if kernels := _kernels(gradient.device):
        found: tuple[Tensor, Tensor] = kernels.form_back(gradient, first, halves, gains, slots)
        return found
    by_entries = gradient[slots].transpose(0, 1).to(first.dtype)  # (G, L, N, N)
    back = _riffled_back(first.shape[2], gradient.device)
    by_entries[:, 1:] = by_entries[:, 1:, torch.argsort(back)]
    by_entries *= gains[:, None, None]
    by_first = (by_entries * toeplitz_and_hankel(halves).view_as(by_entries)).sum(3)
    return by_first, diagonal_sums((by_entries * first[..., None]).flatten(0, 1))


def _riffled_back(width: int, device: torch.device) -> Tensor:
    """The channel that each row of P^T reads: P takes even channels first, then odd ones."""
    rows = torch.arange(width, device=device)
    return rows % 2 * ((width + 1) // 2) + rows // 2


def _kernels(device: torch.device) -> ModuleType | None:
    """The same functions by Triton, where that can be."""
    return load_kernels("lowrank.layers.acdc.triton", device, "ACDC goes without its Triton kernels")
