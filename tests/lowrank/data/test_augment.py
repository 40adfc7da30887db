"""Views against a slow and obvious reference, and their replay."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

import lowrank.data.augment as augment_module
from lowrank.data import (
    AugmentationSettings,
    apply_augmentations,
    augment_images,
    default_augmentation,
    draw_augmentations,
    normalise,
    normaliser,
)
from lowrank.errors import InputError
from lowrank.kernels import dispatch

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


def make_images(n: int, height: int, width: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + height)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


def reference(image: np.ndarray, draws: tuple[int, ...], augmentation: AugmentationSettings, mean, std) -> np.ndarray:
    """Augment one image (H, W, C) to (C, H, W): normalise, pad with zeros, crop, mirror, cut."""
    down, right, flip, cut_row, cut_column = draws
    height, width, channels = image.shape
    offset = np.array([255 * m for m in mean[:channels]], np.float32)
    scale = np.array([1 / (255 * s) for s in std[:channels]], np.float32)
    normal = (image.astype(np.float32) - offset) * scale
    pad = augmentation.shift
    padded = np.pad(normal, ((pad, pad), (pad, pad), (0, 0)))
    view = padded[pad + down : pad + down + height, pad + right : pad + right + width].copy()
    if flip:
        view = view[:, ::-1].copy()
    top, left = cut_row - augmentation.cutout // 2, cut_column - augmentation.cutout // 2
    view[max(top, 0) : max(top + augmentation.cutout, 0), max(left, 0) : max(left + augmentation.cutout, 0)] = 0
    return view.transpose(2, 0, 1)


def check_against_reference(
    images: torch.Tensor, indices: torch.Tensor, epoch: int, augmentation: AugmentationSettings
) -> None:
    _, height, width, channels = images.shape
    mean, std = MEAN[:channels], STD[:channels]
    fast = augment_images(images, indices, epoch, augmentation, mean, std)
    rows = torch.stack(list(draw_augmentations(augmentation, epoch, indices, height, width)), 1).tolist()
    slow = np.stack([reference(images[i].numpy(), tuple(rows[i]), augmentation, mean, std) for i in range(len(images))])
    assert torch.equal(fast, torch.from_numpy(slow))


@pytest.mark.parametrize(
    ("shape", "augmentation"),
    [
        ((64, 32, 32, 3), AugmentationSettings(shift=4, flip=True, cutout=8)),
        ((64, 8, 8, 1), AugmentationSettings(shift=1, cutout=2)),
        ((64, 28, 28, 1), AugmentationSettings(shift=2, flip=True, cutout=8)),
        ((32, 9, 14, 3), AugmentationSettings(shift=3, flip=True, cutout=5, seed=9)),
        ((32, 6, 6, 3), AugmentationSettings(cutout=20)),
        ((32, 6, 6, 3), AugmentationSettings(shift=9)),
        ((32, 6, 6, 3), AugmentationSettings(flip=True)),
    ],
)
def test_equals_the_reference(shape: tuple[int, int, int, int], augmentation: AugmentationSettings):
    check_against_reference(make_images(*shape), torch.arange(shape[0]) * 7 + 3, 5, augmentation)


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.builds(
        AugmentationSettings,
        shift=st.integers(0, 6),
        flip=st.booleans(),
        cutout=st.integers(0, 8),
        seed=st.integers(-9, 2**40),
    ),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference_for_any_shape(n, height, width, channels, augmentation, epoch):
    check_against_reference(make_images(n, height, width, channels), torch.arange(n) + 40, epoch, augmentation)


def test_augmentation_of_an_image_does_not_depend_on_its_batch():
    augmentation = AugmentationSettings(shift=4, flip=True, cutout=8)
    images, indices = make_images(40, 16, 16, 3), torch.arange(40) * 11
    together = augment_images(images, indices, 3, augmentation, MEAN, STD)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment_images(images[order], indices[order], 3, augmentation, MEAN, STD), together[order])
    assert torch.equal(augment_images(images[7:8], indices[7:8], 3, augmentation, MEAN, STD), together[7:8])


def test_augmentation_differs_by_epoch_seed_and_index():
    augmentation = AugmentationSettings(shift=4, flip=True, cutout=8)
    image = make_images(1, 16, 16, 3).expand(30, -1, -1, -1)
    base = augment_images(image, torch.arange(30), 0, augmentation, MEAN, STD)
    other_seed = augmentation.model_copy(update={"seed": 1})
    for other in (
        augment_images(image, torch.arange(30), 1, augmentation, MEAN, STD),
        augment_images(image, torch.arange(30), 0, other_seed, MEAN, STD),
        augment_images(image, torch.arange(30) + 30, 0, augmentation, MEAN, STD),
    ):
        same = (other == base).flatten(1).all(1).sum()
        assert same <= 1
    assert len(base.flatten(1).unique(dim=0)) >= 28


def test_draws_cover_their_ranges():
    numbers = draw_augmentations(AugmentationSettings(shift=2, flip=True, cutout=3), 0, torch.arange(3000), 6, 8)
    assert numbers.down.unique().tolist() == [-2, -1, 0, 1, 2]
    assert numbers.right.unique().tolist() == [-2, -1, 0, 1, 2]
    assert numbers.flip.unique().tolist() == [0, 1]
    assert numbers.cut_row.unique().tolist() == list(range(6))
    assert numbers.cut_column.unique().tolist() == list(range(8))


def test_without_augmentation_images_are_only_normalised():
    images = make_images(5, 8, 8, 3)
    plain = normalise(images, normaliser(MEAN, STD))
    assert torch.equal(augment_images(images, torch.arange(5), 0, AugmentationSettings(), MEAN, STD), plain)
    expected = (images[2, 3, 4, 1].double() / 255 - MEAN[1]) / STD[1]
    assert float(plain[2, 1, 3, 4]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_strides(dtype: torch.dtype):
    images = make_images(4, 8, 6, 3)
    augmented = augment_images(images, torch.arange(4), 0, AugmentationSettings(shift=1), MEAN, STD, dtype)
    assert augmented.shape == (4, 3, 8, 6)
    assert augmented.dtype == dtype
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    full = augment_images(images, torch.arange(4), 0, AugmentationSettings(shift=1), MEAN, STD)
    assert torch.equal(augmented, full.to(dtype))


def test_traces_into_one_graph_without_breaks():
    images, positions = make_images(12, 8, 8, 3), torch.tensor([3, 1, 7, 7])
    numbers = draw_augmentations(AugmentationSettings(shift=2, flip=True, cutout=4), 1, positions, 8, 8)
    norm = normaliser(MEAN, STD)
    compiled = torch.compile(apply_augmentations, backend="eager", fullgraph=True)
    expected = apply_augmentations(images, positions, numbers, 4, norm)
    assert torch.equal(compiled(images, positions, numbers, 4, norm), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_a_gpu(dtype):
    images, indices = make_images(300, 32, 32, 3), torch.arange(300)
    augmentation = AugmentationSettings(shift=4, flip=True, cutout=8)
    cpu = augment_images(images, indices, 2, augmentation, MEAN, STD, dtype)
    assert torch.equal(augment_images(images.cuda(), indices.cuda(), 2, augmentation, MEAN, STD, dtype).cpu(), cpu)


class TritonError(Exception):
    """Stands for the base class of Triton's own errors."""


@pytest.mark.parametrize("kind", [RuntimeError, OSError, TritonError])
def test_a_machine_that_cannot_compile_the_kernel_augments_without_it(kind, monkeypatch):
    def try_out(device: torch.device) -> None:
        raise kind("Python.h: no such file")

    modules = SimpleNamespace(try_out=try_out, TritonError=TritonError)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    monkeypatch.setattr(dispatch, "import_module", lambda name: modules)
    dispatch.load_kernels.cache_clear()
    with pytest.warns(UserWarning, match="without their Triton kernel on cuda: Python.h: no such file"):
        assert augment_module._kernels(torch.device("cuda")) is None
    dispatch.load_kernels.cache_clear()


def test_default_augmentation():
    assert default_augmentation("digits", (1, 8, 8)) == AugmentationSettings(shift=1, flip=False, cutout=2)
    assert default_augmentation("fashion_mnist", (1, 28, 28)) == AugmentationSettings(shift=2, flip=True, cutout=8)
    for name in ("cifar10", "cifar100", "parquet:somewhere", "folder:somewhere", "csv:somewhere"):
        assert default_augmentation(name, (3, 32, 32)) == AugmentationSettings(shift=4, flip=True, cutout=8)
    with pytest.raises(
        InputError, match=r"^unknown data set 'mnits'; choose from: cifar10, cifar100, csv:DIR, digits, "
    ):
        default_augmentation("mnits", (1, 28, 28))


@pytest.mark.parametrize(
    ("name", "height", "width", "shift", "cutout"),
    [
        ("folder:somewhere", 8, 8, 1, 2), ("folder:somewhere", 16, 16, 2, 4), ("csv:somewhere", 28, 28, 3, 7),
        ("parquet:somewhere", 64, 10, 1, 2), ("folder:somewhere", 3, 3, 0, 0), ("folder:somewhere", 224, 224, 28, 8),
        ("idx:somewhere", 28, 28, 2, 7), ("idx:somewhere", 14, 14, 1, 3),
    ],
)  # fmt: skip
def test_sets_on_disk_are_shifted_by_one_share_of_the_side_at_every_size(name, height, width, shift, cutout):
    augmentation = default_augmentation(name, (3, height, width))
    assert (augmentation.shift, augmentation.cutout) == (shift, cutout)


def test_settings_are_checked_and_frozen():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        AugmentationSettings(shift=-1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        AugmentationSettings(rotate=3)
    with pytest.raises(ValidationError, match="frozen"):
        AugmentationSettings().shift = 3
