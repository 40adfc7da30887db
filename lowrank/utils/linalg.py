"""Decompositions that do not give up where a GPU's library refuses a well-formed matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def robust_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the thin SVD of a matrix, at last on the CPU.

    It is computed on the matrix's device if some driver there takes it. On an H200, cusolver's gesvdj refused matrices
    with CUSOLVER_STATUS_INVALID_VALUE (November 2026).

    Args:
        matrix: (M, N).

    Returns:
        U (M, K), S (K) and Vh (K, N) with K = min(M, N), on the device of `matrix`.

    Raises:
        torch.linalg.LinAlgError: the CPU cannot decompose it either, as when an entry is not finite.
    """
    for driver in (None, "gesvd") if matrix.is_cuda else ():
        try:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False, driver=driver)
        except RuntimeError:  # LinAlgError among them: the next driver tries
            continue
        if bool(values.isfinite().all()):
            return left, values, right
    left, values, right = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    return left.to(matrix.device), values.to(matrix.device), right.to(matrix.device)


def robust_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues and eigenvectors of a symmetric matrix, at last on the CPU.

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
