"""Decompositions that do not give up where a GPU's library refuses a well-formed matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def factor_matrix(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the thin SVD of a matrix from its smaller Gram matrix.

    On a GPU this is several times as fast as an SVD. U * S @ V is the matrix to rounding. Singular values below 1e-8 of
    the largest are not exact, and their vectors on the longer side need not be orthogonal to the others.

    Args:
        matrix: (M, N), float64.

    Returns:
        U (M, K), S (K), descending up to rounding, and V (K, N) with K = min(M, N).
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    basis = robust_eigh(wide @ wide.mT)[1].flip(1)  # (K, K)
    scaled = basis.mT @ wide  # S V
    values = scaled.norm(dim=1)
    other = scaled / values.clamp_min(1e-300)[:, None]
    return (other.mT, values, basis.mT) if tall else (basis, values, other)


def robust_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues and eigenvectors of a symmetric matrix, at last on the CPU.

    On an H200, cusolver refused well-formed matrices with CUSOLVER_STATUS_INVALID_VALUE (November 2026).

    Args:
        matrix: (M, M); only its symmetric part counts.

    Returns:
        Eigenvalues (M), ascending, and eigenvectors (M, M) in columns, on the device of `matrix`.

    Raises:
        torch.linalg.LinAlgError: the CPU cannot decompose it either.
    """
    symmetric = (matrix + matrix.mT) / 2
    if matrix.is_cuda:
        try:
            values, vectors = torch.linalg.eigh(symmetric)
        except RuntimeError:
            pass  # the CPU tries
        else:
            if bool(values.isfinite().all()):
                return values, vectors
    values, vectors = torch.linalg.eigh(symmetric.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)
