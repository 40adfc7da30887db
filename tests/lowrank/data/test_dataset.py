"""load_data on digits: splits, cache, statistics, fingerprints, errors."""

from __future__ import annotations

from pathlib import Path
from timeit import timeit

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lowrank.data import DataSettings, ImageData, clear_cache, load_data
from lowrank.data.reading import builtin
from lowrank.data.reading.builtin import BUILTIN_SETS
from lowrank.data.settings import BUILTIN
from lowrank.errors import InputError
from lowrank.utils.validation import validate_model


@pytest.fixture(autouse=True)
def _own_cache():
    clear_cache()
    yield
    clear_cache()


def digits(**changes) -> ImageData:
    return load_data(DataSettings(**changes))


def test_what_is_known_of_built_in_sets_before_they_are_read():
    assert set(BUILTIN_SETS) == set(BUILTIN)
    data = digits()
    assert BUILTIN_SETS["digits"] == (data.image_shape, len(data.classes))


def test_digits():
    data = digits()
    assert data.image_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert (len(data.train), len(data.val), len(data.test)) == (1150, 288, 359)
    indices = torch.cat([data.train.indices, data.val.indices, data.test.indices])
    assert indices.sort().values.tolist() == list(range(1797))
    for split in (data.train, data.val, data.test):
        assert split.images.shape == (len(split), 8, 8, 1)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == split.indices.dtype == torch.int64
        shares = torch.bincount(split.labels).double() / len(split)
        assert (shares - 0.1).abs().max() < 0.006
    assert int(data.train.images.max()) == 255


def test_pixels_are_the_published_ones():
    from sklearn.datasets import load_digits

    published = load_digits()
    data = digits()
    for split in (data.train, data.val, data.test):
        places = split.indices.numpy()
        assert np.array_equal(split.labels.numpy(), published.target[places])
        assert np.abs(split.images[..., 0].numpy() / 255 * 16 - published.images[places]).max() < 0.04


def test_the_test_set_never_changes():
    base = digits()
    for other in (digits(split_seed=1), digits(val_fraction=0.5), digits(train_images=100)):
        assert torch.equal(other.test.indices, base.test.indices)
        assert not torch.equal(other.val.indices, base.val.indices)


def test_train_images_bounds_validation_too():
    data, full = digits(train_images=100), digits()
    assert (len(data.train), len(data.val), len(data.test)) == (100, 100, 359)
    assert torch.bincount(data.train.labels).tolist() == [10] * 10
    assert set(data.train.indices.tolist()) < set(full.train.indices.tolist())
    assert set(data.val.indices.tolist()) < set(full.val.indices.tolist())
    assert len(digits(train_images=1000).val) == 288


def test_the_test_split_is_decoded_when_it_is_asked_for():
    data = digits(train_images=100)
    assert data.train.is_decoded
    assert not data.test.is_decoded
    assert torch.equal(data.test.images, digits().test.images)


def test_statistics_are_those_of_the_training_split():
    data = digits(train_images=300)
    pixels = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), rel=1e-12)
    assert data.std[0] == pytest.approx(float(pixels.std(correction=0)), rel=1e-12)


def test_statistics_of_a_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lowrank.data.dataset.STATISTICS_IMAGES", 4)
    data = digits(train_images=10)
    pixels = data.train.images[[0, 2, 5, 7]].double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), rel=1e-12)


def test_the_cache_gives_the_same_object_at_once(tmp_path: Path):
    data = digits(train_images=50)
    assert digits(train_images=50) is data
    assert digits(train_images=51) is not data
    assert load_data(DataSettings(train_images=50), tmp_path) is not data
    assert load_data(DataSettings(train_images=50), download=False) is data
    assert timeit(lambda: digits(train_images=50), number=100) / 100 < 1e-3
    assert data.train.on("cpu").images is data.train.images
    clear_cache()
    assert digits(train_images=50) is not data


def test_settings_that_change_no_pixel_share_the_images():
    first = digits()
    second = digits(loader_seconds=60, workers=1)
    assert second.settings.loader_seconds == 60
    assert second.train.images is first.train.images
    streamed = digits(resident_mb=0)
    assert not streamed.resident
    assert digits(resident_mb=0, loader_seconds=60).train is streamed.train
    assert digits().train.images is first.train.images


def test_the_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lowrank.data.dataset._CACHED_BYTES", 3_000)
    first, second = digits(train_images=10), digits(train_images=20)  # 20 and 40 images of 64 bytes
    assert digits(train_images=10) is first
    third = digits(train_images=11)
    assert digits(train_images=11) is third
    assert digits(train_images=20) is not second


def test_the_cache_keeps_a_few_sets():
    first, last = digits(train_images=50), None
    for count in range(51, 55):
        last = digits(train_images=count)
    assert digits(train_images=54) is last
    assert digits(train_images=50) is not first


def test_fingerprint():
    base = digits()
    assert len(base.fingerprint) == 16
    assert int(base.fingerprint, 16) >= 0
    clear_cache()
    assert digits().fingerprint == base.fingerprint
    assert digits(resident_mb=2000).fingerprint == base.fingerprint
    changed = [
        digits(split_seed=1).fingerprint,
        digits(val_fraction=0.1).fingerprint,
        digits(train_images=500).fingerprint,
        digits(train_images=500, split_seed=1).fingerprint,
    ]
    assert len({base.fingerprint, *changed}) == 5


@pytest.mark.parametrize("resident_mb", [1000, 0])
def test_fingerprint_sees_one_pixel_and_one_label(monkeypatch: pytest.MonkeyPatch, resident_mb: float):
    published = builtin.load_digits()
    monkeypatch.setattr(builtin, "load_digits", lambda: published)
    seen = {digits(resident_mb=resident_mb).fingerprint}
    published.images[5, 3, 3] = 16 - published.images[5, 3, 3]
    clear_cache()
    seen.add(digits(resident_mb=resident_mb).fingerprint)
    published.labels[[0, 1]] = published.labels[[1, 0]]
    clear_cache()
    seen.add(digits(resident_mb=resident_mb).fingerprint)
    published.names = [f"digit {i}" for i in range(10)]
    clear_cache()
    seen.add(digits(resident_mb=resident_mb).fingerprint)
    assert len(seen) == 4


def test_fingerprint_sees_exchanged_classes(monkeypatch: pytest.MonkeyPatch):
    published = builtin.load_digits()
    monkeypatch.setattr(builtin, "load_digits", lambda: published)
    base = digits(split_seed=2)
    published.labels = np.choose(published.labels, [1, 0, *range(2, 10)])
    clear_cache()
    other = digits(split_seed=2)
    assert torch.equal(other.train.indices, base.train.indices)  # the splits do not tell
    assert other.fingerprint != base.fingerprint


def test_a_streamed_set_has_no_images_in_memory():
    data = digits(resident_mb=0.1)  # 1797 * 64 bytes are 0.115 MB
    assert not data.resident
    assert digits(resident_mb=0.12).resident
    assert torch.equal(data.train.decode(torch.tensor([4, 2])), digits().train.images[[4, 2]])
    with pytest.raises(InputError, match="the train split is over `resident_mb` and streamed"):
        _ = data.train.images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "mnist"},
            r"^unknown data set 'mnist'; choose from: .*, csv:DIR, .*, idx:DIR, parquet:DIR$",
        ),
        ({"name": "parquet"}, r"^data set 'parquet' must name its folder, e\.g\. parquet:DIR$"),
        ({"name": "folder:"}, r"^data set 'folder:' must name its folder, e\.g\. folder:DIR$"),
        ({"name": str(Path(__file__).parent)}, r"; a folder of images is folder:.*data$"),
        ({"name": "digits:x"}, r"^unknown data set 'digits:x'"),
        ({"train_images": 9}, r"^data set 'digits': `train_images` must be between 10 .* and 1150 .*, but got 9$"),
        ({"train_images": 1151}, r"^data set 'digits': `train_images` must be between 10 .*, but got 1151$"),
        ({"image_size": 8, "crop": 0.5}, r"^`image_size` is for parquet:DIR, folder:DIR and csv:DIR, but the data set"),
        ({"image_size": 16}, r"^`image_size` is for parquet:DIR, folder:DIR and csv:DIR, .* is 'digits'$"),
        ({"label": "kind"}, r"^`data.label` names a column of parquet:DIR and csv:DIR, .* is 'digits'$"),
    ],
)
def test_errors(settings: dict, message: str):
    with pytest.raises(InputError, match=message) as caught:
        load_data(DataSettings(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"train_images": 0}, {"val_fraction": 0}, {"val_fraction": 1}, {"resident_mb": -1}, {"images": 3}]
)
def test_settings_are_checked(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataSettings(**wrong)


class TestPreprocessing:
    """Mean and deviation that weights bring along."""

    def test_mean_and_std_of_the_settings(self):
        data = digits(mean=(0.25,), std=(0.5,))
        assert (data.mean, data.std) == ((0.25,), (0.5,))
        assert data.normaliser("cpu").offset.item() == 0.25 * 255
        assert data.fingerprint not in (digits().fingerprint, digits(mean=(0.5,), std=(0.5,)).fingerprint)

    def test_defaults_are_not_recorded(self):
        assert DataSettings().model_dump().keys().isdisjoint({"crop", "interpolation", "mean", "std"})
        settings = DataSettings(name="folder:d", image_size=8, crop=0.875, mean=(0.5,), std=(0.5,))
        recorded = settings.model_dump(mode="json")
        assert (recorded["crop"], recorded["mean"], "interpolation" in recorded) == (0.875, [0.5], False)
        assert DataSettings(**recorded) == settings
        assert "train_images" not in settings.model_dump(exclude_none=True)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"mean": [0.5]}, "`mean` and `std` must be given together"),
            ({"mean": [0.5], "std": [0.5, 0.5]}, "one value for each channel, but got 1 and 2"),
            ({"mean": [123.7], "std": [58.4]}, "`data.mean.0`: must be less than or equal to 1, but got 123.7"),
            ({"mean": [0.5], "std": [0]}, "`data.std.0`: must be greater than 0, but got 0"),
            ({"mean": [], "std": []}, "`data.mean`"),
            ({"resize": "squash"}, "`resize: squash` needs a size; give `image_size` too"),
            ({"image_size": 8, "resize": "pad", "crop": 0.5}, "`crop` is of `resize: crop`, but got `resize: pad`"),
            ({"channels": 2}, "`data.channels`"),
            ({"crop": 0.5}, "`crop` and `interpolation` are of a resizing; give `image_size` too"),
            ({"image_size": 8, "crop": 0}, "`data.crop`: must be greater than 0, but got 0"),
            ({"image_size": 8, "interpolation": "cubic"}, "`data.interpolation`: must be 'nearest', 'bilinear'"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, fields, message):
        with pytest.raises(InputError, match=message) as caught:
            validate_model(DataSettings, fields, "data")
        assert "\n" not in str(caught.value)

    def test_one_value_for_each_channel(self):
        with pytest.raises(InputError, match="one value for each channel of digits, 1, but have 3"):
            digits(mean=(0.5,) * 3, std=(0.5,) * 3)


class TestChannels:
    """Built-in sets with another number of channels."""

    def test_grey_as_rgb(self):
        data, grey = digits(channels=3), digits()
        assert data.image_shape == (3, 8, 8)
        assert all(torch.equal(data.train.images[..., channel], grey.train.images[..., 0]) for channel in range(3))
        assert data.fingerprint != grey.fingerprint
        assert digits(channels="auto").fingerprint == grey.fingerprint

    def test_colours_as_grey_are_those_of_pillow(self):
        from PIL import Image

        from lowrank.data.reading.image_store import ArrayStore

        pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
        grey = ArrayStore(pixels).with_channels(1).decode(np.arange(3))
        expected = [np.asarray(Image.fromarray(image).convert("L")) for image in pixels]
        assert np.array_equal(grey[..., 0], expected)

    @pytest.mark.parametrize("value", [1, "1", 3, "3", "auto"])
    def test_a_text_of_the_command_line_is_a_number_too(self, value):
        assert DataSettings(channels=value).channels == (value if value == "auto" else int(value))


def test_new_fields_at_their_defaults_are_not_recorded():
    assert set(DataSettings().model_dump()) == {
        "name", "train_images", "val_fraction", "split_seed", "resident_mb", "image_size", "loader_seconds",
    }  # fmt: skip
    reading = {"name": "csv:d", "label": "kind", "skip_broken": 2, "workers": 0}
    settings = DataSettings(**reading, channels=3, image_size=8, resize="pad")
    assert DataSettings(**settings.model_dump(mode="json")) == settings
    assert settings.preprocessing() == {"channels": 3, "resize": "pad"}


def test_classes_of_a_split_are_counted():
    data = digits(train_images=100)
    assert data.class_counts("train") == (10,) * 10
    assert sum(data.class_counts("test")) == len(data.test)


def test_a_set_of_one_size_may_be_asked_for_at_that_size():
    """Weights that were trained on it say the size that they expect."""
    assert load_data(DataSettings(image_size=8)).image_shape == (1, 8, 8)
