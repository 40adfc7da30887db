"""What the headers of all images of a set decide: colour, size, broken files, equal pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank.data import DataSettings, ImageData, clear_cache, load_data
from lowrank.data.reading import image_scan
from lowrank.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_IMAGE_CACHE", str(tmp_path / "cache"))
    clear_cache()
    yield
    clear_cache()


def write_grey_set(root: Path, images: int, digits: int = 1) -> Path:
    """Two classes of so many grey images each; file names have so many digits at least."""
    rng = np.random.default_rng(0)
    for label in "ab":
        folder = root / label
        folder.mkdir(parents=True)
        for number in range(images):
            Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(folder / f"{number:0{digits}}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_grey_set(tmp_path / "set", 10)


def load(root: Path, **changes) -> ImageData:
    return load_data(DataSettings(name=f"folder:{root}", **changes))


def fails(root: Path, message: str, **changes) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(root, **changes)
    assert "\n" not in str(caught.value)


def test_one_image_with_colours_decides_for_all(root: Path):
    assert load(root).image_shape == (1, 4, 4)
    Image.new("RGB", (4, 4), (200, 0, 0)).save(root / "b" / "7.png")
    clear_cache()
    data = load(root)
    assert data.image_shape == (3, 4, 4)
    assert data.notes == ("1 image with colours, 19 grey: all are read as RGB",)


def test_a_single_image_with_colours_decides_wherever_it_is_among_many(tmp_path: Path):
    """No sample of headers would do: all but one of 202 images are grey, and that one is a training image."""
    root = write_grey_set(tmp_path / "many", 101, digits=3)
    grey = load(root)
    assert grey.image_shape == (1, 4, 4)
    training = grey.train.indices.numpy()
    # 64 evenly spaced headers, and the first 64, decided once
    probes = training[np.linspace(0, len(training) - 1, 64).astype(int)]
    unseen = [index for index in training[64:].tolist() if index not in probes]
    for index in (unseen[0], unseen[-1]):
        path = Path(grey.train.store.origin(index))
        before = path.read_bytes()
        Image.new("RGB", (4, 4), (200, 0, 0)).save(path)
        clear_cache()
        data = load(root)
        assert data.image_shape == (3, 4, 4)
        assert data.notes == ("1 image with colours, 201 grey: all are read as RGB",)
        position = (data.train.indices == index).nonzero().item()
        assert data.train.images[position].unique(dim=0).tolist() == [[[200, 0, 0]] * 4]
        path.write_bytes(before)


def test_pictures_in_several_classes_are_said(root: Path):
    shutil.copy(root / "a" / "0.png", root / "b" / "copy.png")
    notes = load(root, val_fraction=0.1).notes
    assert f"1 image is in several classes, such as {root}/a/0.png ('a') = {root}/b/copy.png ('b')" in notes
    shutil.copy(root / "a" / "1.png", root / "b" / "other.png")
    shutil.copy(root / "a" / "1.png", root / "a" / "again.png")
    clear_cache()
    assert any(note.startswith("2 images are in several classes, such as ") for note in load(root).notes)


def test_equal_pictures_of_one_class_are_in_no_other(root: Path):
    shutil.copy(root / "a" / "0.png", root / "a" / "copy.png")
    assert not any("several classes" in note for note in load(root).notes)


def test_channels_as_the_settings_say(root: Path):
    assert load(root, channels=3).image_shape == (3, 4, 4)
    Image.new("RGB", (4, 4), (200, 0, 0)).save(root / "b" / "7.png")
    clear_cache()
    data = load(root, channels=1)
    assert data.image_shape == (1, 4, 4)
    assert data.notes == ("1 image with colours, 19 grey: all are read as grey",)


def test_headers_are_not_read_where_the_settings_say_it_all(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_scan, "read_header", lambda *_, **__: pytest.fail("a header was read"))
    assert load(root, channels=1, image_size=3).image_shape == (1, 3, 3)


def test_many_sizes_are_summed_up(root: Path):
    for number in range(4):
        Image.new("L", (9, 3 + number)).save(root / "a" / f"{number}.png")
    fails(
        root,
        r"20 images have 5 sizes: 4x4 \(16 images\), 9x\d \(1 image\), 9x\d \(1 image\), from 4x4 to 9x6; set "
        r"`data.image_size`",
    )


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_images_of_several_sizes_are_resized_as_the_settings_say(root: Path, mode: str):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(root / "a" / "0.png")
    data = load(root, image_size=4, resize=mode)
    split = next(split for split in (data.train, data.val, data.test) if 0 in split.indices)
    image = split.images[split.indices.tolist().index(0), ..., 0]
    expected = Image.fromarray(wide).resize((4, 4), Image.Resampling.BILINEAR)
    if mode == "crop":
        assert (image == 255).all()
    elif mode == "squash":
        assert np.array_equal(image, np.asarray(expected))
    else:
        assert image[0].max() == 0
        assert image[1:3].max() > 0


def test_how_images_are_resized_belongs_to_the_fingerprint(root: Path):
    sets = [load(root, image_size=3, resize=mode, resident_mb=0) for mode in ("crop", "squash", "pad")]
    assert len({data.fingerprint for data in sets}) == 3


def test_broken_images_are_named_and_may_be_skipped(root: Path):
    (root / "a" / "3.png").write_bytes(b"nothing")
    whole = (root / "b" / "5.png").read_bytes()
    (root / "b" / "5.png").write_bytes(whole[:-30])  # only its pixels are missing
    fails(root, rf"^{root}/a/3.png: must be a readable image, .*; `data.skip_broken: 1` would leave it out$")
    fails(root, rf"^{root}/a/3.png: .*; so must {root}/b/5.png; `data.skip_broken: 2` would .* them out", skip_broken=1)
    data = load(root, skip_broken=2)
    used = torch.cat([data.train.indices, data.val.indices, data.test.indices])
    assert sorted(used.tolist()) == [index for index in range(20) if index not in (3, 15)]
    assert data.notes[0].startswith(f"left out, because broken: 2 images ({root}/a/3.png: must be a readable image")
    assert "b/5.png" in data.notes[0]


@pytest.mark.parametrize("cached", [0, 2000])
@pytest.mark.parametrize("resident_mb", [0, 100])
def test_a_link_that_leads_nowhere_is_a_broken_image(root: Path, monkeypatch, cached: int, resident_mb: float):
    monkeypatch.setattr(image_scan, "MIN_CACHED_IMAGES", cached)
    (root / "a" / "link.png").symlink_to(root / "nowhere.png")
    fails(root, rf"^{root}/a/link.png: must be readable, but .*No such file or directory", resident_mb=resident_mb)
    data = load(root, skip_broken=1, resident_mb=resident_mb)
    assert sum(map(len, (data.train, data.val, data.test))) == 20
    given = {"channels": 1, "image_size": 4, "mean": (0.5,), "std": (0.2,)}  # then no header is read
    fails(root, rf"^{root}/a/link.png: must be readable, but .*No such file", resident_mb=resident_mb, **given)


def test_a_class_whose_broken_images_leave_too_few_is_named(root: Path):
    for number in range(8):
        (root / "b" / f"{number}.png").write_bytes(b"broken")
    fails(root, r"each class needs at least 3 images, .*, but 'b' has 2$", skip_broken=8)
    for number in (8, 9):
        (root / "b" / f"{number}.png").write_bytes(b"broken")
    clear_cache()
    fails(root, r"there must be at least 2 classes, but all 10 images of training are of class 'a'$", skip_broken=10)


def test_nothing_but_broken_images(root: Path):
    for path in root.glob("*/*.png"):
        path.write_bytes(b"nothing")
    fails(
        root,
        rf"^data set .*: {root}/a/0.png: must be a readable image, but .* reads; no other image can be read either$",
        skip_broken=99,
    )


def test_the_same_picture_in_two_splits_is_named(tmp_path: Path, root: Path):
    for part in ("train", "test"):
        shutil.copytree(root, tmp_path / "parts" / part)
    for path in sorted((tmp_path / "parts" / "test").glob("*/*.png"))[2:]:
        Image.effect_noise((4, 4), 90).save(path)
    data = load(tmp_path / "parts")
    leaks = [note for note in data.notes if " too, such as " in note]
    assert len(leaks) in (1, 2)  # in training, in validation, or one in each
    counted = sum(int(note.split()[0]) for note in leaks)
    assert counted == 2
    assert all(f"{tmp_path}/parts/test/a/" in note and f"{tmp_path}/parts/train/a/" in note for note in leaks)


def test_pictures_that_differ_are_no_leak(root: Path):
    assert load(root).notes == ()


def test_one_class(root: Path):
    shutil.rmtree(root / "b")
    fails(root, "^data set .*: there must be at least 2 classes, but all 10 images of training are of class 'a'$")


def test_classes_with_too_few_images_are_named_with_their_counts(root: Path):
    for number in range(8):
        (root / "a" / f"{number}.png").unlink()
    fails(root, "each class needs at least 3 images, because validation and test images are held .*, but 'a' has 2$")


@pytest.mark.parametrize("resident_mb", [100, 0])
@pytest.mark.parametrize("statistics", [{}, {"mean": (0.5,), "std": (0.5,)}])
def test_equal_training_images(root: Path, resident_mb: float, statistics: dict):
    for path in root.glob("*/*.png"):
        Image.new("L", (4, 4), 7).save(path)
    fails(
        root,
        "^data set .*: training images must differ, but all 13 images are equal$",
        resident_mb=resident_mb,
        **statistics,
    )


def test_what_is_done_to_images_is_said(root: Path):
    Image.new("LA", (4, 4), (0, 9)).save(root / "a" / "0.png")
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(root / "a" / "1.png")
    Image.fromarray(np.full((4, 4), 99, np.uint16)).save(root / "a" / "2.png")
    assert load(root).notes == (
        "1 image is laid on white because of transparent pixels",
        "2 images are brought from 16 bits a channel to 8",
    )


def test_another_decoder_gives_a_streamed_set_another_fingerprint(root: Path, monkeypatch: pytest.MonkeyPatch):
    base = load(root, resident_mb=0).fingerprint
    monkeypatch.setattr("lowrank.data.dataset.DECODER_VERSION", 99)
    clear_cache()
    assert load(root, resident_mb=0).fingerprint == base  # its images are as they ever were
    Image.new("LA", (4, 4), (0, 9)).save(root / "a" / "0.png")
    clear_cache()
    other = load(root, resident_mb=0).fingerprint
    monkeypatch.undo()
    clear_cache()
    assert load(root, resident_mb=0).fingerprint != other


def test_the_scan_of_a_large_set_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LOWRANK_IMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_scan, "MIN_CACHED_IMAGES", 0)
    first = load(root)
    monkeypatch.setattr(image_scan, "read_header", lambda *_, **__: pytest.fail("a header was read again"))
    clear_cache()
    assert load(root).fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("LOWRANK_IMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_scan, "MIN_CACHED_IMAGES", 0)
    Image.new("RGB", (4, 4), (200, 0, 0)).save(root / "b" / "7.png")
    clear_cache()
    assert load(root).image_shape == (3, 4, 4)
