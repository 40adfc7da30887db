"""Torchvision's sets from files in its own layout, small ones whose checksums are put where the real ones stand."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lowrank.data import DataSettings, ImageData, clear_cache, load_data
from lowrank.errors import InputError
from lowrank.utils.torchvision_compat import torchvision

NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once


@pytest.fixture(autouse=True)
def _own_cache():
    clear_cache()
    yield
    clear_cache()


class OldDtype:
    """Pickles as the dtypes of 2009 did, with integers for booleans."""

    def __reduce__(self):
        return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)


class OldArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self):
        make, arguments, _ = self.array.__reduce__()
        return make, arguments, (1, self.array.shape, OldDtype(), False, self.array.tobytes())


def planes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)


def save(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five batches of 20 and a test batch of 20."""
    maker, folder = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    labels = [i % 10 for i in range(20)]
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    sums = [
        [name, save(folder / name, {"data": OldArray(planes(20, seed)), "labels": labels})]
        for seed, name in enumerate(names)
    ]
    meta = save(folder / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(maker, "train_list", sums[:5])
    monkeypatch.setattr(maker, "test_list", sums[5:])
    monkeypatch.setattr(maker, "meta", {**maker.meta, "md5": meta})
    monkeypatch.setattr(maker, "url", NOWHERE + "cifar.tar.gz")
    return tmp_path


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 training and 20 test images of 28x28 as idx files."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 20)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
        sides = b"".join(side.to_bytes(4, "big") for side in images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sides + images.tobytes())
        labels = bytes(i % 10 for i in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + labels)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [NOWHERE])
    return tmp_path


def load(root: Path, name: str = "cifar10", download: bool = False, **changes) -> ImageData:
    return load_data(DataSettings(name=name, **changes), root, download)


def fails(message: str, root: Path, name: str = "cifar10", download: bool = False) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(root, name, download)
    assert "\n" not in str(caught.value)


def test_cifar10(cifar10: Path):
    data = load(cifar10)
    assert data.image_shape == (3, 32, 32)
    assert data.classes[3] == "class 3"
    assert [len(s) for s in (data.train, data.val, data.test)] == [80, 20, 20]
    assert data.test.indices.tolist() == list(range(100, 120))
    published = np.concatenate([planes(20, seed) for seed in range(5)]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(data.train.images.numpy(), published[data.train.indices])
    assert (data.train.labels == data.train.indices % 10).all()


def test_cifar10_is_not_downloaded_when_it_is_there(cifar10: Path):
    assert len(load(cifar10, download=True).train) == 80


def test_the_default_folder_is_data(cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    cifar10.joinpath("data").mkdir()
    cifar10.joinpath("cifar-10-batches-py").rename(cifar10 / "data" / "cifar-10-batches-py")
    monkeypatch.chdir(cifar10)
    assert len(load_data(DataSettings(name="cifar10")).train) == 80


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    maker, folder = torchvision.datasets.CIFAR100, tmp_path / "cifar-100-python"
    fine = [i % 4 for i in range(40)]
    entry = {"data": planes(40, 0), "fine_labels": fine, "coarse_labels": [0] * 40}
    monkeypatch.setattr(maker, "train_list", [["train", save(folder / "train", entry)]])
    monkeypatch.setattr(maker, "test_list", [["test", save(folder / "test", entry)]])
    meta = save(folder / "meta", {"fine_label_names": list("abcd")})
    monkeypatch.setattr(maker, "meta", {**maker.meta, "md5": meta})
    data = load(tmp_path, "cifar100")
    assert data.classes == tuple("abcd")
    assert (len(data.train), len(data.val), len(data.test)) == (32, 8, 40)
    assert data.test.labels.tolist() == fine


def test_a_damaged_batch(cifar10: Path):
    path = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    for download in (False, True):
        fails(
            rf"^data set 'cifar10': {path} is damaged: its md5 must be \w{{32}}, but got \w{{32}}; delete it",
            cifar10,
            download=download,
        )


def test_a_missing_batch(cifar10: Path):
    path = cifar10 / "cifar-10-batches-py" / "test_batch"
    path.unlink()
    fails(rf"^data set 'cifar10' is not complete under {cifar10}: {path} is missing; allow the download, ", cifar10)
    fails(
        rf"^data set 'cifar10' is not under {cifar10} and could not be downloaded \(.*refused.*\); put",
        cifar10,
        download=True,
    )


def test_fashion_mnist(fashion: Path):
    data = load(fashion, "fashion_mnist")
    assert data.image_shape == (1, 28, 28)
    assert data.classes[0] == "T-shirt/top"
    assert [len(s) for s in (data.train, data.val, data.test)] == [48, 12, 20]
    published = np.random.default_rng(20).integers(0, 256, (20, 28, 28), np.uint8)
    assert np.array_equal(data.test.images[..., 0].numpy(), published)


@pytest.mark.parametrize("damage", ["short", "magic", "empty"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_unreadable_idx_file(fashion: Path, damage: str, name: str):
    path = fashion / "FashionMNIST" / "raw" / name
    content = path.read_bytes()
    path.write_bytes({"short": content[:-1], "magic": b"\x1f\x8b" + content[2:], "empty": b""}[damage])
    fails(rf"^data set 'fashion_mnist': {path} is damaged: an idx file of bytes in ", fashion, "fashion_mnist")


def test_labels_that_do_not_fit_the_images(fashion: Path):
    path = fashion / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 8, 1]) + (59).to_bytes(4, "big") + bytes(59))
    fails(
        r"the training files must hold one label below 10 for each image, but got 60 images and 59",
        fashion,
        "fashion_mnist",
    )


def test_fashion_mnist_missing(fashion: Path):
    (fashion / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    fails(r"t10k-labels-idx1-ubyte is missing; allow the download", fashion, "fashion_mnist")
    fails(
        r"could not be downloaded \(Error downloading .*\); put torchvision's files there",
        fashion,
        "fashion_mnist",
        True,
    )


@pytest.fixture
def download(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Pretend that torchvision downloads the files; the list has the folders that it was asked to fill."""
    source = fashion / "FashionMNIST" / "raw"
    source = source.rename(fashion / "server")
    folders = []

    def fill(dataset) -> None:
        folders.append(Path(dataset.root))
        Path(dataset.raw_folder).mkdir(parents=True)
        for path in source.iterdir():
            (Path(dataset.raw_folder) / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", fill)
    return folders


def test_a_download_reaches_the_folder_when_it_is_whole(fashion: Path, download: list[Path]):
    assert len(load(fashion / "data", "fashion_mnist", True).train) == 48
    assert len(download) == 1
    assert download[0].parent == fashion / "data"
    assert not download[0].exists()  # a temporary folder
    clear_cache()
    assert len(load(fashion / "data", "fashion_mnist", True).train) == 48
    assert len(download) == 1


def test_damage_after_the_download_is_seen(fashion: Path, download: list[Path]):
    load(fashion / "data", "fashion_mnist", True)
    path = fashion / "data" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    clear_cache()
    fails(
        rf"{path} is damaged: its sha256 must be that of {path.name}.sha256, but got ",
        fashion / "data",
        "fashion_mnist",
    )


def test_a_process_that_waited_downloads_nothing(fashion: Path, download: list[Path], monkeypatch: pytest.MonkeyPatch):
    target = fashion / "data" / "FashionMNIST" / "raw"

    @contextmanager
    def other_downloads(path: Path):
        assert path == fashion / "data" / ".fashion_mnist.lock"
        shutil.copytree(fashion / "server", target)
        yield

    monkeypatch.setattr("lowrank.data.reading.builtin.hold_lock", other_downloads)
    assert len(load(fashion / "data", "fashion_mnist", True).train) == 48
    assert download == []


def test_a_folder_that_cannot_be_made_is_one_line(fashion: Path, download: list[Path]):
    (fashion / "file").touch()
    fails(
        r"'fashion_mnist' is not under .*/file/data and cannot be put there: ",
        fashion / "file" / "data",
        "fashion_mnist",
        True,
    )


def test_fingerprint(cifar10: Path):
    base = load(cifar10).fingerprint
    folder = cifar10 / "cifar-10-batches-py"
    changed = planes(20, 5)
    changed[4, 100] ^= 1
    torchvision.datasets.CIFAR10.test_list[0][1] = save(
        folder / "test_batch", {"data": changed, "labels": [i % 10 for i in range(20)]}
    )
    clear_cache()
    assert load(cifar10).fingerprint != base
