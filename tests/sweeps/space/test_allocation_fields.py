"""Budgets, allocations, thin baselines and initial weights, from a space to the specification."""

from __future__ import annotations

import copy
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError, InputError
from sweeps.records.events import Role
from sweeps.records.fronts import front
from sweeps.space.parse import parse_space, read_space
from sweeps.trials.build import make_trainer
from sweeps.trials.resolver import Resolver, StepTimeError

BASE = {
    "question": "Which?",
    "data": {"name": "digits"},
    "network": {"name": "resnet9", "width": 0.125},
    "train": {"epochs": 2},
    "method": {"name": {"choice": ["tensor_train", "bottleneck", "shuffle", "thin_dense", "thin_separable"]}},
    "budget": {"params": {"choice": [0.45, 0.7]}, "relative_to": "separable"},
}


def made(digits, **sections) -> Resolver:
    content = copy.deepcopy(BASE)
    for name, fields in sections.items():
        content[name] = fields
    return Resolver(parse_space("small", content), digits)


def point(name: str = "tensor_train", **more) -> dict:
    return {"method.name": name, "budget.params": 0.7, **more}


def test_an_allocated_trial_is_built_from_its_specification(digits):
    resolver = made(digits, budget={**BASE["budget"], "allocation": "stage"})
    trial = resolver.resolve(point(**{"share.stage1": 2.0, "share.stage2": 1.0, "share.stage3": 0.5}))
    assert trial.specification.allocation.by == "stage"
    assert trial.specification.method.rank_scale is None
    trainer = make_trainer(trial.specification, digits, "cpu")
    assert sum(value.numel() for value in trainer.network.parameters()) == trial.counts["params"]
    assert 0 <= trial.counts["budget_gap"] == int(0.7 * trial.counts["separable_params"]) - trial.counts["params"]


def test_an_allocation_that_rounds_to_the_even_network_is_the_same_trial(digits):
    even = made(digits).resolve(point())
    resolver = made(digits, budget={**BASE["budget"], "allocation": {"choice": ["even", "layer"]}})
    shared = resolver.resolve(point(**{"budget.allocation": "layer"}))
    assert shared.trial_id == even.trial_id
    other = resolver.resolve(point(**{"budget.allocation": "layer", "share.stage2.0": 2.0}))
    assert other.trial_id != even.trial_id


def test_the_points_of_an_allocation_have_a_weight_for_each_group(digits):
    shares = {"allocation": {"choice": ["even", "stage"]}, "shares": {"choice": [0.5, 1.0]}}
    resolver = made(digits, budget={**BASE["budget"], **shares}, method={"name": "bottleneck"}, search={"stop": "none"})
    grid = resolver.points.grid()
    assert len(grid) == resolver.points.size() == 2 * (1 + 2**3)
    assert {name for each in grid for name in each if name.startswith("share.")} == {
        "share.stage1", "share.stage2", "share.stage3",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["thin_dense", "thin_separable"])
def test_a_thinner_network_is_a_method_of_a_space(digits, name):
    resolver = made(digits)
    trial = resolver.resolve(point(name))
    assert trial.specification.method.settings() == {"name": name.removeprefix("thin_")}
    assert trial.specification.network.width < 0.125 or name == "thin_separable"
    assert 0.8 * 10_225 < trial.counts["params"] <= 10_225
    assert trial.counts["separable_params"] == 14_608  # of the network that it is compared with
    plan = network_plan(trial.specification.network, (1, 8, 8), 10)
    assert plan.params(plan.sized(trial.specification.method.settings())) == trial.counts["params"]


def test_every_stratum_has_thin_references(digits):
    resolver = made(digits, references=["dense", "thin_dense"])
    trials, lines = resolver.references()
    assert [trial.counts["params"] <= limit for trial, limit in zip(trials[1:], (6_573, 10_225), strict=True)]
    assert [trial.role for trial in trials] == [Role.REFERENCE] * 3
    assert lines == []
    tiny = made(digits, budget={"params": {"choice": [20, 9_000]}}, references=["thin_dense"])
    trials, lines = tiny.references()
    assert len(trials) == 1
    assert lines[0].startswith("thin_dense at params <= 20: resnet9 has no width within the budget")


def test_repeats_differ_in_the_seed_alone_and_share_views(digits):
    resolver = made(digits)
    first, second = resolver.resolve(point()), resolver.resolve(point(), 1, Role.REPEAT)
    assert first.trial_id != second.trial_id
    assert first.point_id == second.point_id
    assert (first.specification.seed, second.specification.seed) == (0, 1)
    assert first.specification.views == second.specification.views


@pytest.mark.parametrize(
    ("budget", "name", "counts"),
    [
        ({"params": {"min": 9_000, "max": 10_000}}, "tensor_train", {"params": (9_000, 10_000)}),
        ({"bytes": 60_000}, "bottleneck", {"bytes": (55_000, 60_000)}),
        ({"params": 10_000, "mult_adds": 40_000}, "bottleneck", {"mult_adds": (30_000, 40_000), "params": (0, 10_000)}),
        ({"params": 0.7, "window": 0.9, "relative_to": "separable"}, "tucker", {"params": (9_202, 10_225)}),
        ({"bytes": 0.8, "relative_to": "separable"}, "tucker", {"bytes": (50_000, 66_000)}),
    ],
)
def test_solved_sizes_keep_limits_and_windows(digits, budget, name, counts):
    trial = made(digits, budget=budget, method={"name": name}).resolve({})
    for what, (low, high) in counts.items():
        assert low <= trial.counts[what] <= high
    assert trial.counts["budget_gap"] >= 0


def test_a_window_that_is_missed_is_infeasible_with_the_nearest_size(digits):
    resolver = made(digits, budget={"params": {"min": 9_990, "max": 10_000}}, method={"name": "shuffle"})
    with pytest.raises(
        InfeasibleError, match=r"shuffle .* has no setting that reaches the budget in resnet9: the nearest has 8,252"
    ):
        resolver.resolve({})


def test_a_network_whose_step_is_too_slow_is_infeasible_and_measured_once(digits, tmp_path, monkeypatch):
    resolver = made(digits, budget={"params": 10_000, "step_ms": 5.0}, method={"name": "bottleneck"})
    taken = [4.0, 7.5]
    monkeypatch.setattr(resolver.step_timer, "measure", lambda *_: taken.pop(0))
    resolver.step_timer.use_folder(tmp_path)
    assert resolver.resolve({}).counts["step_us"] == 4000
    assert resolver.resolve({}).counts["step_us"] == 4000
    with pytest.raises(StepTimeError, match=r"takes 7.50 ms on this machine, over the budget of 5.00 ms") as caught:
        resolver.resolve({"method.rank_scale": 1.0, "budget.params": 12_000})
    assert caught.value.excess == 2.5
    again = made(digits, budget={"params": 10_000, "step_ms": 5.0}, method={"name": "bottleneck"})
    again.step_timer.use_folder(tmp_path)
    monkeypatch.setattr(again.step_timer, "measure", lambda *_: pytest.fail("measured twice"))
    assert again.resolve({}).counts["step_us"] == 4000


def test_a_network_whose_step_does_not_fit_into_memory_is_infeasible(digits, monkeypatch):
    resolver = made(digits, budget={"params": 10_000, "step_ms": 5.0}, method={"name": "bottleneck"})

    def fail(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(resolver.step_timer, "measure", fail)
    with pytest.raises(StepTimeError, match="a training step does not fit into this machine's memory"):
        resolver.resolve({})


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: misaligned address"), BrokenProcessPool("it ended")])
def test_a_network_whose_step_ends_the_measurement_is_infeasible_and_the_study_goes_on(digits, monkeypatch, error):
    resolver = made(digits, budget={"params": 10_000, "step_ms": 5.0}, method={"name": "bottleneck"})

    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr(resolver.step_timer, "measure", fail)
    with pytest.raises(StepTimeError, match=f"a training step could not be measured: {error}"):
        resolver.resolve({})


def test_the_step_timer_measures_a_real_step(digits):
    resolver = made(digits, budget={"params": 10_000, "step_ms": 1e6}, method={"name": "bottleneck"})
    state = torch.get_rng_state()
    assert resolver.resolve({}).counts["step_us"] > 0
    assert resolver.step_timer.batch == 32
    assert torch.get_num_threads() >= 1
    assert state.shape == torch.get_rng_state().shape


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"budget": {"params": {"min": 9, "max": 3}}}, "`params.min` must be at most `params.max`, but got 9 and 3"),
        ({"budget": {"params": {"mix": 9}}}, r"`budget.params` must be a number, a domain or \{min: A, max: B\}"),
        ({"budget": {"params": 9e3, "step_ms": {"min": 1}}}, r"`budget.step_ms` must be a number, a domain or \{max"),
        ({"budget": {"params": 9e3, "shares": {"uniform": [0.5, 2]}}}, "needs `budget.allocation` to be stage or"),
        ({"budget": {"params": 9e3, "allocation": "stage", "shares": 2}}, "`budget.shares` must be a domain"),
        (
            {"budget": {"params": 9e3, "allocation": "row"}},
            "`budget.allocation`: must be 'even', 'stage', 'layer'",
        ),
        ({"budget": {"params": 9e3, "allocation": "stage", "shares": {"uniform": [0, 2]}}}, "`budget.shares`: must be"),
        ({"budget": {"params": 9e3, "window": 2}}, "`budget.window`: must be less than or equal to 1"),
        ({"method": {"name": "thin_dense"}, "budget": {}}, "thin_dense needs a size: give `budget.params`"),
        ({"network": {"width": {"choice": [0.1, 1.0]}}}, "`network.width` is solved from `budget` for thin_dense"),
        (
            {"start": "dense"},
            "`start: dense` needs trained weights: give them by `--weights FILE` or `start.",
        ),
        ({"start": {"how": "warm"}}, "`start.how`: must be 'scratch', 'dense', .* but got 'warm'"),
        ({"search": {"enqueue": [{"method.dims": 3}]}}, "not searched: 'method.dims'; choose from"),
        ({"search": {"enqueue": [{"method.name": "cp"}]}}, "`method.name` must lie in its domain, but got 'cp'"),
        ({"search": {"sampler": "grid", "repeats": 2}}, "`search.stop` must be none, but got asha"),
        ({"search": {"sampler": "grid", "warm_start": ["a"]}}, "`warm_start` cannot be used with a grid"),
        ({"by_data": {"digits": 3}}, "unknown section `by_data`"),
    ],
)
def test_a_mistake_gives_one_line_that_names_the_rule(digits, sections, message):
    with pytest.raises(InputError, match=message) as caught:
        made(digits, **sections)
    assert "\n" not in str(caught.value)


def test_missing_initial_weights_are_an_error_before_anything_starts(digits, tmp_path):
    method, weights = {"name": "bottleneck"}, str(tmp_path / "none.safetensors")
    resolver = made(digits, method=method, start={"how": "dense", "weights": weights})
    with pytest.raises(InputError, match=r"`start.weights`: there is no file .*none.safetensors"):
        resolver.resolve(point("bottleneck"))


def test_initial_weights_belong_to_the_id_but_their_path_does_not(digits, tmp_path):
    ids = set()
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
        start = {"how": "dense", "weights": str(tmp_path / name)}
        ids.add(made(digits, method={"name": "bottleneck"}, start=start).resolve({"budget.params": 0.7}).trial_id)
    assert len(ids) == 2
    resolver = made(digits, method={"name": "bottleneck"}, start="dense", references=["dense"])
    assert resolver.resolve({"budget.params": 0.7}).depends_on == resolver.reference("dense").trial_id


def test_by_data_sets_fields_for_one_data_set(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("question: Which?\nmethod: {name: cp}\nbudget: {params: 0.5, relative_to: separable}\n"
                    "by_data: {digits: {network.width: 0.25, search.trials: 5}}\n")  # fmt: skip
    assert (read_space(str(path)).network.width, read_space(str(path)).search.trials) == (0.25, 5)
    assert read_space(str(path), data__name="cifar10").network.width == 1.0
    assert read_space(str(path), ["network.width=0.5"]).network.width == 0.5


SECTIONS = st.fixed_dictionaries({
    "budget": st.fixed_dictionaries(
        {"params": st.one_of(st.floats(-1, 2), st.just({"choice": [0.5, 0.7]}), st.just({"min": 0.1, "max": 0.6}))},
        optional={
            "relative_to": st.sampled_from(["dense", "separable", "tucker"]),
            "allocation": st.sampled_from(["even", "stage", "layer", 3]),
            "shares": st.sampled_from([{"uniform": [0.5, 2]}, {"choice": [1, 2]}, 0.5, {"uniform": [-1, 2]}]),
            "window": st.floats(-0.5, 1.5), "bytes": st.sampled_from([0.5, {"max": 0.9}, {"min": 1}, "x"]),
        },
    ),
    "start": st.sampled_from(["scratch", "dense", {"choice": ["scratch", "dense"]}, {"how": 3}, 5, {}]),
    "references": st.sampled_from([[], ["dense"], ["thin_dense", "dense"], ["thin"], "dense"]),
    "search": st.fixed_dictionaries({}, optional={
        "sampler": st.sampled_from(["tpe", "grid", "qmc", "gp", "nsga2", "x"]), "repeats": st.integers(-1, 3),
        "stop": st.sampled_from(["none", "median", "hyperband", "all"]), "enqueue": st.sampled_from([[], [{}], [3], 3]),
    }),
})  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(SECTIONS)
def test_a_random_space_is_valid_or_gives_one_line(sections):
    said = ""
    try:
        parse_space("small", {**BASE, **sections})
    except InputError as error:
        said = str(error)
    assert "\n" not in said


def test_the_front_uses_mean_errors_over_seeds():
    from sweeps.records.events import Status
    from sweeps.records.model import TrialRecord

    def trial(name: str, point_id: str, params: int, error: float, role: Role = Role.SEARCH) -> TrialRecord:
        return TrialRecord(
            name, role, status=Status.COMPLETED, counts={"params": params}, point_id=point_id,
            epochs={1: {"val_error": error}},
        )  # fmt: skip

    lucky = [trial("a", "p", 10, 1.0), trial("b", "p", 10, 9.0, Role.REPEAT)]
    steady = [trial("c", "q", 10, 3.0), trial("d", "q", 10, 3.0, Role.REPEAT)]
    assert [[each.trial_id for each in seeds] for seeds in front([*lucky, *steady])] == [["c", "d"]]
    assert [[each.trial_id for each in seeds] for seeds in front([*lucky[:1], *steady[:1]])] == [["a"]]
