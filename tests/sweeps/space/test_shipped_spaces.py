"""The shipped spaces: their settings are those of the study of 2018-19, to the last parameter."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, load_data
from lowrank.distillation.teacher import default_taps
from lowrank.errors import InputError
from lowrank.networks.registry import NetworkSettings, make_network
from sweeps.space.files import available_spaces, find_space, read_yaml
from sweeps.space.method_names import method_at
from sweeps.space.parse import read_space, resolve_content, space_from_content
from sweeps.space.run_options import RunOptions
from sweeps.study.series import parse_series
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher

OPTIONS = RunOptions()
NINE = (
    "methods", "weight_decay", "init", "allocation", "worth_it", "wrn_schedule", "darts_schedule", "imagenet_schedule",
)  # fmt: skip


def spaces_of(name: str, **options) -> list:
    path = find_space(name)
    content = read_yaml(path)
    if "studies" not in content:
        return [read_space(name, data__name=options.get("data"))]
    return [member.space for member in parse_series(content, path.stem, RunOptions(**options))]


def params_of(name: str, network: str) -> set[int]:
    """Parameters of every setting of a grid on the network in earnest."""
    space = read_space(name, data__name="cifar10")
    assert space.network.name == network
    plan = network_plan(NetworkSettings(name=network), (3, 32, 32), 10)
    sizes = set()
    for literals, domains in space.alternatives:
        for point in _values(domains):
            sizes.add(plan.params(method_at((literals, {}), point)))
    return sizes


def _values(domains) -> list[dict]:
    if not domains:
        return [{}]
    ((key, domain),) = domains.items()
    return [{key: value} for value in domain.grid()]


def test_the_settings_of_the_wide_resnet_have_the_published_sizes():
    sizes = params_of("wrn_schedule", "wrn_28_10")
    assert len(sizes) == 31
    published = {654272, 555498, 710327, 823674, 563594, 437354, 378314, 671050, 685723, 681248, 664226}
    assert published <= sizes
    assert min(sizes) == 378314
    assert 2_410_000 < max(sizes) < 2_414_000


def test_the_darts_settings_have_the_published_size():
    assert 428400 in params_of("darts_schedule", "darts")


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "lr", "decay"),
    [
        ("wrn_schedule", 200, 128, 0.1, 5e-4), ("darts_schedule", 600, 96, 0.025, 3e-4),
        ("imagenet_schedule", 90, 256, 0.1, 1e-4),
    ],
)  # fmt: skip
def test_the_schedules_on_their_own_data_use_the_recipes_of_the_study(name, epochs, batch, lr, decay):
    recipe = read_space(name, data__name="cifar10").recipe({})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (epochs, batch, lr, decay)


@pytest.mark.parametrize(
    ("name", "teacher", "drop_path"),
    [
        ("wrn_schedule", "cifar10_wrn_28_10", 0.0), ("darts_schedule", "cifar10_darts", 0.2),
        ("imagenet_schedule", "torchvision:wide_resnet50_2/IMAGENET1K_V1", 0.0),
    ],
)  # fmt: skip
def test_the_schedules_use_attention_transfer_and_drop_path_as_the_study_did(name, teacher, drop_path):
    space = read_space(name, data__name="cifar10")
    recipe = space.recipe({})
    assert (space.teacher.name, recipe.attention_weight, recipe.kd_weight) == (teacher, 1000, 0)
    assert recipe.drop_path == drop_path
    alone = read_space(name)
    assert (alone.teacher, alone.recipe({}).needs_teacher) == (None, False)


def test_each_stage_of_the_imagenet_student_has_a_tap_of_the_teacher():
    space = read_space("imagenet_schedule", data__name="folder:images")
    student = make_network(NetworkSettings(name="wrn_50_2", width=0.0625), (3, 32, 32), 10)
    teacher = make_network(NetworkSettings(name="torchvision:wide_resnet50_2"), (3, 224, 224), 1000)
    assert len(space.teacher.taps) == len(default_taps(student))
    assert set(space.teacher.taps) <= {name for name, _ in teacher.named_modules()}


def test_a_schedule_without_its_teacher_says_how_to_train_one(digits, tmp_path):
    space = read_space("wrn_schedule", ["teacher=somebody", "train.attention_weight=60"])
    with pytest.raises(InputError, match=r"no teacher 'somebody' in .*; python sweeps/teacher.py trains one"):
        resolve_teacher(space, digits, tmp_path)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataSettings())


@pytest.mark.parametrize("name", NINE)
def test_every_space_has_many_feasible_points_on_the_digits(name, digits):
    for space in spaces_of(name):
        resolver = Resolver(space, digits)
        assert space.network.width < 1 or space.network.name != "resnet9"  # minutes, not hours
        assert resolver.strata
        if space.search.sampler == "grid":
            points = resolver.points.grid()
            assert 5 <= len(points) <= 60


@pytest.mark.parametrize("name", ["methods", "weight_decay", "worth_it", "init", "allocation"])
def test_on_cifar10_the_network_has_full_width_and_the_recipe_of_the_data_set(name):
    for space in spaces_of(name, data="cifar10"):
        assert space.network.width == 1.0
        assert space.epochs == 128


def test_every_expected_space_is_shipped():
    assert set(NINE) <= set(available_spaces())


def _places(content, before: tuple = ()) -> list[tuple]:
    """Every place of a file's content, sections and the entries of lists included."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [before, *(place for key, value in inside for place in _places(value, (*before, key)))]


def _changed(content, place: tuple, value):
    """A copy with `value` at `place`; GONE takes out what is there."""
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    if value is GONE and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = _changed(copy[place[0]], place[1:], value)
    return copy


GONE = object()
FILES = {name: read_yaml(path) for name, path in available_spaces().items()}
PLACES = [(name, place) for name, content in FILES.items() for place in _places(content)[1:]]
VALUES = st.one_of(
    st.just(GONE), st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=True), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.sampled_from(["choice", "int", "x"]), st.integers()),
    st.sampled_from([
        {"min": 0.1, "max": 0.5}, {"min": 2, "max": 1}, {"choice": []}, {"uniform": [0.5, 2]}, {"int": [4, 2]}, "layer",
        {"choice": ["even", "stage"]}, [{"name": "a"}, {"name": "a"}], [{"name": "a", "space": "methods"}],
        {"name": "t", "views": {"int": [1, 3]}}, {"name": "t", "taps": [1, "x"]}, {"digits": {"a.b.c": 1}}, {"set": 3},
    ]),
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), VALUES, st.sampled_from([None, "cifar10"]))
def test_a_changed_space_file_is_valid_or_gives_one_clear_line(where, value, data):
    """With their teachers, windows, allocations and series."""
    name, place = where
    content = _changed(deepcopy(FILES[name]), place, deepcopy(value) if value is not GONE else value)
    said = ""
    try:
        if "studies" in content:
            parse_series(content, name, RunOptions(data=data))
        else:
            options = [], {"data.name": data} if data else {}
            space_from_content(name, resolve_content(content, [], options))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 500


@pytest.mark.parametrize("data", [None, "cifar10"])
def test_a_shipped_space_leaves_no_field_out_by_replacing_a_section(data, capsys):
    for name in available_spaces():
        spaces_of(name, data=data)
    assert capsys.readouterr().err == ""


def test_the_changed_files_cover_every_section():
    sections = {place[0] for _, place in PLACES if len(place) > 1}
    assert {"teacher", "budget", "studies", "by_data", "train", "method", "search", "start"} <= sections
    assert ("allocation", ("budget", "allocation")) in PLACES
