"""The teacher of a space: what is refused, when it is part of a trial, and how a worker uses it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowrank.data import ImageData
from lowrank.distillation import cache as teacher_cache
from lowrank.distillation.cached_teacher import CachedTeacher
from lowrank.distillation.teacher import LiveTeacher
from lowrank.distillation.teacher_files import RECORD_FILE, WEIGHTS_FILE, TeacherWeights, find_teacher
from lowrank.errors import InputError
from lowrank.io import find_preprocessing
from lowrank.networks.registry import NetworkSettings
from sweeps.records.specification import Trial
from sweeps.space.model import Space
from sweeps.space.parse import parse_space, read_space
from sweeps.teachers.cache_options import NO_CACHE, CacheOptions
from sweeps.teachers.worker import make_teacher, open_cache
from sweeps.trials.build import make_trainer
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher, without_teacher
from tests.support.teachers import small_data, write_teacher

WEIGHTS = {"attention_weight": {"choice": [0, 60]}}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    write_teacher(folder, "good", data)
    write_teacher(folder, "other_splits", small_data(300))
    write_teacher(folder, "bare", data, record=False)
    return folder


def content(teacher: Any = "good", train: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    return {
        "question": "Which?", "data": {"train_images": 200}, "network": {"name": "wrn_10_1", "width": 0.5},
        "teacher": teacher, "train": {"epochs": 3, "batch_size": 64, **(WEIGHTS if train is None else train)},
        "method": {"name": "bottleneck", "rank_scale": 0.4}, "search": {"sampler": "grid"}, **sections,
    }  # fmt: skip


def space(*args: Any, **changes: Any) -> Space:
    return parse_space("small", content(*args, **changes))


def resolver(root: Path, data: ImageData, *args: Any, **changes: Any) -> Resolver:
    parsed = space(*args, **changes)
    return Resolver(parsed, data, resolve_teacher(parsed, data, root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "`train.attention_weight` above 0 needs a `teacher`"),
        ({"train": {}}, "`teacher` needs a loss with a weight above 0: give `train.attention_weight`"),
        (
            {"teacher": {"views": 3}},
            "`teacher` needs a `name` or a file of `weights`, or says under `train` how it is trained",
        ),
        ({"teacher": {"name": {"choice": ["a", "b"]}}}, "`teacher.name` cannot be searched"),
        ({"teacher": {"name": "good", "views": {"choice": [0, 2]}}}, "`teacher.views`: must be greater than or equal"),
        ({"teacher": {"name": "good", "tabs": []}}, "unknown field `teacher.tabs`; choose from: cache, "),
    ],
)
def test_mistakes_of_a_space_are_one_line(changes: dict[str, Any], message: str) -> None:
    changed = content(**changes)
    if changed["teacher"] is None:
        del changed["teacher"]
    with pytest.raises(InputError, match=message) as caught:
        parse_space("small", changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("nobody", r"no teacher 'nobody' in .*; there are: good, other_splits; python sweeps/teacher.py trains one"),
        ("other_splits", r"was trained on digits with the fingerprint \w+, .*may have seen their validation images"),
        ("ROOT/bare", r"has no teacher.json beside it, .*`teacher.unchecked: true` accepts it nevertheless"),
        ("/nowhere/model.safetensors", r"there is no teacher at /nowhere/model.safetensors"),
        ({"name": "good", "network": "wrn_16_2"}, r"is a wrn_10_1, but `teacher.network` says wrn_16_2"),
        ({"name": "good", "taps": ["stage1"]}, r"has 1 \(stage1\) and wrn_10_1 has 3 \(stage1, stage2, stage3\)"),
        ({"name": "good", "taps": ["stage9"]}, r"unknown tap 'stage9'; choose from: "),
        ({"name": "good", "student_taps": ["stage9"] * 3}, r"unknown tap 'stage9'; choose from: "),
        (
            "torchvision:resnet18/NOPE",
            r"unknown weights of torchvision:resnet18 .*'NOPE'; choose from: .*K_V1",
        ),
        ("torchvision:resnet5/DEFAULT", r"unknown torchvision network 'resnet5'"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(root: Path, data: ImageData, teacher: Any, message: str) -> None:
    named = teacher.replace("ROOT", str(root)) if isinstance(teacher, str) else teacher
    with pytest.raises(InputError, match=message) as caught:
        resolve_teacher(space(named), data, root)
    assert "\n" not in str(caught.value)


def test_other_classes_and_other_images_are_refused(root: Path, data: ImageData) -> None:
    weights = find_teacher("good", root)
    shape = (3, 8, 8)
    fewer = type(weights)(weights.reference, "x", weights.network, shape, 10)
    with pytest.raises(InputError, match="trained on images of 3 x 8 x 8, but those of digits are 1 x 8 x 8"):
        fewer.check(data)
    with pytest.raises(InputError, match="has 1000 classes, but digits has 10"):
        type(weights)(weights.reference, "x", weights.network, shape, 1000).check(data)


def test_a_file_of_weights_can_teach(root: Path, data: ImageData) -> None:
    by_file = resolve_teacher(space(str(root / "good" / WEIGHTS_FILE)), data, root)
    by_name = resolve_teacher(space("good"), data, root)
    bare = resolve_teacher(space({"name": f"{root}/bare", "unchecked": True}), data, root)
    assert by_file is not None
    assert by_name is not None
    assert bare is not None
    assert (by_file.name, by_name.name, bare.name) == ("good", "good", "bare")
    assert by_file.weights == by_name.weights
    assert by_file.sizes == ((8, 8), (4, 4), (2, 2))


@pytest.mark.parametrize("part", [WEIGHTS_FILE, RECORD_FILE])
def test_a_damaged_teacher_is_refused(tmp_path: Path, data: ImageData, part: str) -> None:
    folder = write_teacher(tmp_path, "hurt", data)
    path = folder / part
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged|is missing"):
        resolve_teacher(space("hurt"), data, tmp_path)


def test_a_teacher_that_was_changed_after_the_study_began_is_refused(tmp_path: Path, data: ImageData) -> None:
    folder = write_teacher(tmp_path, "new", data)
    weights = find_teacher("new", tmp_path)
    write_teacher(tmp_path, "newer", data, seed=1)
    (tmp_path / "newer" / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    with pytest.raises(InputError, match="has changed: its sha256 is"):
        weights.load()


def test_a_teacher_of_own_code_runs_only_if_the_space_names_that_code(tmp_path: Path, data: ImageData) -> None:
    settings = NetworkSettings(name="tests.support.own_teacher:network")
    write_teacher(tmp_path, "own", data, settings=settings)
    with pytest.raises(InputError, match=r"names code to run, .*; `teacher.network: .*` allows it"):
        resolve_teacher(space("own"), data, tmp_path)
    allowed = {"name": "own", "network": settings.name, "taps": ["0", "0", "0"]}
    assert resolve_teacher(space(allowed), data, tmp_path) is not None


def test_torchvision_weights_are_read_from_its_cache_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.utils.torchvision_compat import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    weights = find_teacher("torchvision:squeezenet1_1/IMAGENET1K_V1", tmp_path)
    assert weights.classes == 1000
    loaded = weights.load()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        (
            {"mean": (0.5, 0.5, 0.5)},
            r"expects pixels normalised by mean \[0.485, .*, but those .* by \[0.500, 0.500",
        ),
        ({"std": (0.2, 0.2, 0.2)}, r"set `data.mean` and `data.std` to what it expects"),
        ({"reversed": True}, r"has the classes of photos in another order: tench, goldfish"),
    ],
)
def test_torchvision_weights_need_their_own_normalisation_and_order(changes: dict[str, Any], message: str) -> None:
    names = tuple(find_preprocessing("torchvision:resnet18/IMAGENET1K_V1").classes)  # type: ignore[union-attr]
    fields = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), **changes}
    classes = names[::-1] if fields.pop("reversed", False) else names
    photos: Any = SimpleNamespace(name="photos", classes=classes, image_shape=(3, 64, 64), fingerprint="f", **fields)
    network = NetworkSettings(name="torchvision:resnet18")
    weights = TeacherWeights("torchvision:resnet18/IMAGENET1K_V1", "0" * 64, network, None, 1000)
    if not message:
        weights.check(photos)
        return
    with pytest.raises(InputError, match=message):
        weights.check(photos)


def test_classes_of_other_names_are_said() -> None:
    reference = "torchvision:resnet18/IMAGENET1K_V1"
    names = tuple(find_preprocessing(reference).classes)  # type: ignore[union-attr]
    weights = TeacherWeights(reference, "0" * 64, NetworkSettings(name="torchvision:resnet18"), None, 1000)
    same: Any = SimpleNamespace(name="photos", classes=names)
    assert weights.differing_classes(same) is None
    other: Any = SimpleNamespace(name="photos", classes=("n01440764", *names[1:]))
    assert weights.differing_classes(other) == (
        "its classes are matched by their order: it calls 'tench' what photos calls 'n01440764'"
    )


def points(by: Resolver) -> tuple[Trial, Trial]:
    """Return a trial without and one with the teacher."""
    return by.resolve({"train.attention_weight": 0}), by.resolve({"train.attention_weight": 60})


def test_only_a_trial_that_uses_the_teacher_depends_on_it(root: Path, data: ImageData) -> None:
    plain, distilled = points(resolver(root, data))
    alone = parse_space("alone", {key: value for key, value in content(train={}).items() if key != "teacher"})
    assert plain.trial_id == Resolver(alone, data).resolve({}).trial_id
    assert plain.specification.teacher is None
    assert distilled.specification.teacher.name == "good"
    assert distilled.trial_id != plain.trial_id


def test_the_trial_id_depends_on_weights_taps_and_views(root: Path, tmp_path: Path, data: ImageData) -> None:
    def trial_id(*args: Any, folder: Path = root) -> str:
        return points(resolver(folder, data, *args))[1].trial_id

    write_teacher(tmp_path, "renamed", data)
    write_teacher(tmp_path, "another", data, seed=1)
    first = trial_id()
    assert trial_id("renamed", folder=tmp_path) == first
    assert trial_id("another", folder=tmp_path) != first
    assert trial_id({"name": "good", "cache": False}) == first
    assert trial_id({"name": "good", "views": 3}) == first  # as many as epochs: every view is new
    assert trial_id({"name": "good", "views": 2}) != first
    assert trial_id({"name": "good", "taps": ["stage1", "stage2", "stage2"]}) != first


def test_without_attention_there_are_no_taps(root: Path, data: ImageData) -> None:
    section = resolver(root, data, train={"kd_weight": 0.5}).resolve({}).specification.teacher
    assert section.taps == section.student_taps == section.sizes == ()


def test_views_may_be_searched(root: Path, data: ImageData) -> None:
    searched = resolver(root, data, {"name": "good", "views": {"choice": [1, 2, None]}})
    views = [
        searched.resolve({"train.attention_weight": 60, "teacher.views": value}).specification.teacher.views
        for value in (1, 2, None)
    ]
    assert views == [1, 2, None]


def test_a_worker_reads_the_cache_and_trains_as_with_the_live_teacher(
    root: Path, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "RESERVE", 0)
    _, distilled = points(resolver(root, data))
    notices: list[str] = []
    types, losses = [], []
    for options in (NO_CACHE, CacheOptions(str(tmp_path)), CacheOptions(str(tmp_path))):

        def make_cached_teacher(options: CacheOptions = options) -> Any:
            teacher = make_teacher(distilled.specification, data, "cpu", options, notices.append)
            types.append(type(teacher))
            return teacher

        losses.append(
            make_trainer(distilled.specification, data, "cpu", make_cached_teacher).train_epoch()["train_loss"]
        )
    assert types == [LiveTeacher, CachedTeacher, CachedTeacher]
    assert losses[1] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # three steps apart, no longer the same weights
    assert [line.split(" in ")[0] for line in notices] == [notices[0].split(" in ")[0], "teacher cache: 3 epochs built"]


def test_maps_are_compared_at_the_smaller_size_of_both(root: Path, data: ImageData) -> None:
    later = {"name": "good", "student_taps": ["stage2", "stage3", "stage3"]}
    section = points(resolver(root, data, later))[1].specification.teacher
    assert section.student_taps == ("stage2", "stage3", "stage3")
    assert section.sizes == ((4, 4), (2, 2), (2, 2))


def test_an_older_record_has_the_sizes_of_the_teacher_and_trains_as_well(
    root: Path, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "RESERVE", 0)
    _, distilled = points(resolver(root, data, {"name": "good", "student_taps": ["stage2", "stage3", "stage3"]}))
    section = distilled.specification.teacher
    older = distilled.specification.model_copy(
        update={"teacher": section.model_copy(update={"sizes": ((8, 8), (4, 4), (2, 2))})}
    )
    losses = []
    for specification in (distilled.specification, older):
        teacher = make_teacher(specification, data, "cpu", CacheOptions(str(tmp_path)), lambda line: None)
        assert isinstance(teacher, CachedTeacher)
        trainer = make_trainer(specification, data, "cpu", lambda teacher=teacher: teacher)
        losses.append(trainer.train_epoch()["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # pooled after the cache instead of before


def test_the_cache_of_a_bfloat16_teacher_is_another(root: Path, tmp_path: Path, data: ImageData) -> None:
    _, distilled = points(resolver(root, data))
    options = CacheOptions(str(tmp_path))
    first, second = (
        open_cache(distilled.specification, data, options, dtype).key.digest for dtype in (None, torch.bfloat16)
    )
    assert first != second


def test_an_evaluation_needs_no_teacher(root: Path, data: ImageData) -> None:
    _, distilled = points(resolver(root, data))
    assert "error" in make_trainer(without_teacher(distilled.specification), data, "cpu").evaluate("val")


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distill = read_space("distill", ["teacher=teachers/best"])
    assert distill.teacher is not None
    assert distill.teacher.name == str(tmp_path / "teachers" / "best")
