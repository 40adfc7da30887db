"""Views against a slow and obvious reference, and their replay."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lowrank.data import (
    AugmentationSettings,
    apply_augmentations,
    augment,
    default_augmentation,
    draw_augmentations,
    normalise,
    normaliser,
)
from lowrank.data import augment as views_module
from lowrank.errors import InputError
from lowrank.kernels import dispatch

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


def make_images(n: int, height: int, width: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + height)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


def slow_view(image: np.ndarray, numbers: tuple[int, ...], views: AugmentationSettings, mean, std) -> np.ndarray:
    """One image (H, W, C) to its view (C, H, W): normalise, pad with zeros, crop, mirror, cut."""
    down, right, flip, cut_row, cut_column = numbers
    height, width, channels = image.shape
    offset = np.array([255 * m for m in mean[:channels]], np.float32)
    scale = np.array([1 / (255 * s) for s in std[:channels]], np.float32)
    normal = (image.astype(np.float32) - offset) * scale
    pad = views.shift
    padded = np.pad(normal, ((pad, pad), (pad, pad), (0, 0)))
    view = padded[pad + down : pad + down + height, pad + right : pad + right + width].copy()
    if flip:
        view = view[:, ::-1].copy()
    top, left = cut_row - views.cutout // 2, cut_column - views.cutout // 2
    view[max(top, 0) : max(top + views.cutout, 0), max(left, 0) : max(left + views.cutout, 0)] = 0
    return view.transpose(2, 0, 1)


def check_against_reference(
    images: torch.Tensor, indices: torch.Tensor, epoch: int, views: AugmentationSettings
) -> None:
    _, height, width, channels = images.shape
    mean, std = MEAN[:channels], STD[:channels]
    fast = augment(images, indices, epoch, views, mean, std)
    rows = torch.stack(list(draw_augmentations(views, epoch, indices, height, width)), 1).tolist()
    slow = np.stack([slow_view(images[i].numpy(), tuple(rows[i]), views, mean, std) for i in range(len(images))])
    assert torch.equal(fast, torch.from_numpy(slow))


@pytest.mark.parametrize(
    ("shape", "views"),
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
def test_equals_the_reference(shape: tuple[int, int, int, int], views: AugmentationSettings):
    check_against_reference(make_images(*shape), torch.arange(shape[0]) * 7 + 3, 5, views)


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
def test_equals_the_reference_for_any_shape(n, height, width, channels, views, epoch):
    check_against_reference(make_images(n, height, width, channels), torch.arange(n) + 40, epoch, views)


def test_a_view_does_not_depend_on_its_batch():
    views = AugmentationSettings(shift=4, flip=True, cutout=8)
    images, indices = make_images(40, 16, 16, 3), torch.arange(40) * 11
    together = augment(images, indices, 3, views, MEAN, STD)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], indices[order], 3, views, MEAN, STD), together[order])
    assert torch.equal(augment(images[7:8], indices[7:8], 3, views, MEAN, STD), together[7:8])


def test_views_differ_by_epoch_seed_and_index():
    views = AugmentationSettings(shift=4, flip=True, cutout=8)
    image = make_images(1, 16, 16, 3).expand(30, -1, -1, -1)
    base = augment(image, torch.arange(30), 0, views, MEAN, STD)
    other_seed = views.model_copy(update={"seed": 1})
    for other in (
        augment(image, torch.arange(30), 1, views, MEAN, STD),
        augment(image, torch.arange(30), 0, other_seed, MEAN, STD),
        augment(image, torch.arange(30) + 30, 0, views, MEAN, STD),
    ):
        same = (other == base).flatten(1).all(1).sum()
        assert same <= 1
    assert len(base.flatten(1).unique(dim=0)) >= 28


def test_numbers_cover_their_ranges():
    numbers = draw_augmentations(AugmentationSettings(shift=2, flip=True, cutout=3), 0, torch.arange(3000), 6, 8)
    assert numbers.down.unique().tolist() == [-2, -1, 0, 1, 2]
    assert numbers.right.unique().tolist() == [-2, -1, 0, 1, 2]
    assert numbers.flip.unique().tolist() == [0, 1]
    assert numbers.cut_row.unique().tolist() == list(range(6))
    assert numbers.cut_column.unique().tolist() == list(range(8))


def test_identity_views_are_normalised_images():
    images = make_images(5, 8, 8, 3)
    plain = normalise(images, normaliser(MEAN, STD))
    assert torch.equal(augment(images, torch.arange(5), 0, AugmentationSettings(), MEAN, STD), plain)
    wanted = (images[2, 3, 4, 1].double() / 255 - MEAN[1]) / STD[1]
    assert float(plain[2, 1, 3, 4]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_strides(dtype: torch.dtype):
    images = make_images(4, 8, 6, 3)
    made = augment(images, torch.arange(4), 0, AugmentationSettings(shift=1), MEAN, STD, dtype)
    assert made.shape == (4, 3, 8, 6)
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    full = augment(images, torch.arange(4), 0, AugmentationSettings(shift=1), MEAN, STD)
    assert torch.equal(made, full.to(dtype))


def test_traces_into_one_graph_without_breaks():
    images, positions = make_images(12, 8, 8, 3), torch.tensor([3, 1, 7, 7])
    numbers = draw_augmentations(AugmentationSettings(shift=2, flip=True, cutout=4), 1, positions, 8, 8)
    norm = normaliser(MEAN, STD)
    compiled = torch.compile(apply_augmentations, backend="eager", fullgraph=True)
    wanted = apply_augmentations(images, positions, numbers, 4, norm)
    assert torch.equal(compiled(images, positions, numbers, 4, norm), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_a_gpu(dtype):
    images, indices = make_images(300, 32, 32, 3), torch.arange(300)
    views = AugmentationSettings(shift=4, flip=True, cutout=8)
    cpu = augment(images, indices, 2, views, MEAN, STD, dtype)
    assert torch.equal(augment(images.cuda(), indices.cuda(), 2, views, MEAN, STD, dtype).cpu(), cpu)


def test_a_machine_that_cannot_compile_the_kernel_makes_views_without_it(monkeypatch):
    def try_out(device: torch.device) -> None:
        raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    monkeypatch.setattr(dispatch, "import_module", lambda name: SimpleNamespace(try_out=try_out))
    dispatch.load_kernels.cache_clear()
    with pytest.warns(UserWarning, match="without their Triton kernel on cuda: Python.h: no such file"):
        assert views_module._kernels(torch.device("cuda")) is None
    dispatch.load_kernels.cache_clear()


def test_default_views():
    assert default_augmentation("digits") == AugmentationSettings(shift=1, flip=False, cutout=2)
    assert default_augmentation("fashion_mnist") == AugmentationSettings(shift=2, flip=True, cutout=8)
    for name in ("cifar10", "cifar100", "parquet:somewhere", "folder:somewhere"):
        assert default_augmentation(name) == AugmentationSettings(shift=4, flip=True, cutout=8)
    with pytest.raises(InputError, match=r"^unknown data set 'mnits'; choose from: cifar10, cifar100, digits, "):
        default_augmentation("mnits")


def test_settings_are_checked_and_frozen():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        AugmentationSettings(shift=-1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        AugmentationSettings(rotate=3)
    with pytest.raises(ValidationError, match="frozen"):
        AugmentationSettings().shift = 3
