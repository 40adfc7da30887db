"""The entries of ACDC's layers as matrices, and the gradient of the diagonals from that of the entries.

C^T diag(d) C is the sum of a Toeplitz and a Hankel matrix. With h_m = t_m / 2, t_m = sum_n c_n^2 d_n cos(pi n m / N),
c_0^2 = 1/N and c_n^2 = 2/N, entry (j, k) is h_|j-k| + h_(j+k+1), and h is even about m = N. So its entries need no
matrix product, and the gradient by d needs only the sums of the entries' gradients along diagonals and antidiagonals:
both cost as much as reading the entries once. On a GPU Triton kernels do that where Triton is installed, else plain
torch.

Letters: G maps of one shape, L layers, N width, C the orthonormal DCT-II, P the riffle of channels between layers, M
rows, S slots of a stack. `halves` are rows (2N): h_0 .. h_(N-1), then h_1 .. h_N.
"""

from __future__ import annotations

from math import pi
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.kernels import load_kernels


def toeplitz_and_hankel(halves: Tensor) -> Tensor:
    """Return the entries (M, N, N) of `halves` (M, 2N): each part is a sliding window over one vector."""
    near, after = halves.chunk(2, 1)
    width = near.shape[1]
    toeplitz = torch.cat([near[:, 1:].flip(1), near], 1).unfold(1, width, 1).flip(1)
    hankel = torch.cat([after, after[:, :-1].flip(1)], 1).unfold(1, width, 1)
    return toeplitz + hankel


def diagonal_sums(entries: Tensor) -> Tensor:
    """Apply the transpose of `toeplitz_and_hankel`: (M, N, N) -> (M, 2N).

    The matrix is read in rows one entry longer than they are, so that each row is shifted by one from the row before
    and a column holds one antidiagonal.
    """
    width = entries.shape[1]
    sides = torch.cat([entries.flip(2), entries])
    shifted = functional.pad(sides, (0, width)).flatten(1)[:, : width * (2 * width - 1)]
    difference, total = shifted.unflatten(1, (width, 2 * width - 1)).sum(1).chunk(2)
    near = difference[:, width - 1 :] + functional.pad(difference[:, : width - 1].flip(1), (1, 0))
    after = total[:, :width] + functional.pad(total[:, width:].flip(1), (0, 1))
    return torch.cat([near, after], 1)


def halves_matrix(width: int, like: Tensor) -> Tensor:
    """Return the matrix (N, 2N) that turns diagonals (M, N) into `halves` (M, 2N).

    Args:
        width: N.
        like: a tensor of the device and dtype of the result.
    """
    index = torch.arange(width, device=like.device)
    orders = torch.cat([index, index + 1])
    angles = (index[:, None] * orders % (2 * width)).to(torch.float64) * (pi / width)  # a full turn is 2N
    matrix = angles.cos() / width
    matrix[0] /= 2
    return matrix.to(like.dtype)


def multiply_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows by a transposed matrix, in their own dtype even under autocast.

    Args:
        rows: (M, K).
        matrix: (E, K), contiguous.

    Returns:
        (M, E).
    """
    if kernels := _kernels(rows.device):
        product: Tensor = kernels.multiply_rows(rows.contiguous(), matrix)
        return product
    return torch.mm(rows, matrix.mT, out=rows.new_empty(len(rows), len(matrix)))  # autocast leaves `out` forms alone


def write_matrices(first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor, out: Tensor) -> None:
    """Write each layer's matrix diag(first) C^T diag(second) C, times the layer's gain, at the layer's slot.

    The rows of all layers but the first are those of P^T times the matrix. Entries are computed in the dtype of `first`
    and rounded once, to that of `out`.

    Args:
        first: diagonals (G, L, N).
        halves: (G * L, 2N), of the other diagonals.
        gains: (L,).
        slots: (L,).
        out: (S, G, N, N), changed in place.
    """
    if kernels := _kernels(out.device):
        kernels.write_matrices(first, halves, gains, slots, out)
        return
    maps, layers, width = first.shape
    matrices = (first * gains[:, None]).flatten(0, 1)[:, :, None] * toeplitz_and_hankel(halves)
    matrices = matrices.view(maps, layers, width, width).transpose(0, 1)
    matrices[1:] = matrices[1:, :, _unriffled_rows(width, out.device)]
    out[slots] = matrices.to(out.dtype)


def matrices_backward(
    gradient: Tensor, first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `write_matrices`, summed in the dtype of `first`.

    Args:
        gradient: of `out`, (S, G, N, N).
        first: as `write_matrices` took it, as are the others.
        halves: (G * L, 2N).
        gains: (L,).
        slots: (L,).

    Returns:
        Those by `first` (G, L, N) and by `halves` (G * L, 2N).
    """
    if kernels := _kernels(gradient.device):
        gradients: tuple[Tensor, Tensor] = kernels.matrices_backward(gradient, first, halves, gains, slots)
        return gradients
    by_entries = gradient[slots].transpose(0, 1).to(first.dtype)  # (G, L, N, N)
    order = _unriffled_rows(first.shape[2], gradient.device)
    by_entries[:, 1:] = by_entries[:, 1:, torch.argsort(order)]
    by_entries *= gains[:, None, None]
    by_first = (by_entries * toeplitz_and_hankel(halves).view_as(by_entries)).sum(3)
    return by_first, diagonal_sums((by_entries * first[..., None]).flatten(0, 1))


def _unriffled_rows(width: int, device: torch.device) -> Tensor:
    """Return the channel that each row of P^T reads: P takes even channels first, then odd ones."""
    rows = torch.arange(width, device=device)
    return rows % 2 * ((width + 1) // 2) + rows // 2


def _kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the same functions by Triton, where they can be used."""
    return load_kernels("lowrank.layers.acdc.triton", device, "ACDC goes without its Triton kernels")
