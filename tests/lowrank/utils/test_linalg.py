"""Decompositions that fall back to the CPU, and an SVD from a Gram matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrank.utils.linalg import factor_matrix, robust_eigh


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_factors_of_a_matrix_are_its_svd(shape) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = factor_matrix(matrix)
    torch.testing.assert_close(left * values @ right, matrix)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix))
    for vectors in (left.mT @ left, right @ right.mT):
        torch.testing.assert_close(vectors, torch.eye(min(shape), dtype=torch.float64))


def test_factors_of_a_matrix_of_low_rank_multiply_to_it() -> None:
    thin = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = thin @ thin.mT * 1e-3
    left, values, right = factor_matrix(matrix)
    torch.testing.assert_close(left * values @ right, matrix)
    assert float(values[2:].max()) < 1e-7 * float(values[0])
    assert all(bool(part.isfinite().all()) for part in (left, values, right))


class OnGpu(Tensor):
    """A matrix that says that it is on a GPU, whose library refuses it."""

    is_cuda = True

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        plain = [arg.as_subclass(Tensor) if isinstance(arg, OnGpu) else arg for arg in args]
        if function is torch.linalg.eigh:
            raise RuntimeError("CUSOLVER_STATUS_INVALID_VALUE")
        answer = function(*plain, **(kwargs or {}))
        on_cpu = function is Tensor.cpu or not isinstance(answer, Tensor)
        return answer if on_cpu else answer.as_subclass(cls)


def test_a_matrix_that_the_gpu_refuses_is_decomposed_on_the_cpu() -> None:
    square = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = square + square.mT
    values, vectors = robust_eigh(square.as_subclass(OnGpu))
    torch.testing.assert_close(values, torch.linalg.eigvalsh(square))
    torch.testing.assert_close(vectors * values @ vectors.mT, square)
