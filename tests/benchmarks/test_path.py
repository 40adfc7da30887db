"""Through how many modules a trial, a teacher's target and an export go, and what counts as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from benchmarks import path

# As docs/results/simplicity.md has them. One more needs a reason: raise the number here and on that page together
MOST_MODULES = {"trial": 99, "teacher": 6, "export": 25}


@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
@pytest.mark.parametrize("name", ["trial", "teacher", pytest.param("export", marks=pytest.mark.slow)])
def test_a_way_has_no_more_modules_than_its_page_says(name: str) -> None:
    modules = set().union(*path.measure(name).values())
    assert len(modules) <= MOST_MODULES[name], sorted(modules)


def make_module(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module


def modules_of(call: Callable[[], object]) -> set[str]:
    """The modules that one step counts."""

    def way() -> Iterator[str]:
        yield "the step"
        call()

    return path.record_modules(way).get("the step", set())


def test_a_module_counts_by_a_call_of_its_functions() -> None:
    ours, others = (make_module(name, "def answer():\n    return 1") for name in ("sweeps.made", "elsewhere.made"))
    assert modules_of(lambda: (ours.answer(), others.answer())) == {"sweeps.made"}


def test_what_an_import_calls_does_not_count() -> None:
    ours = make_module("sweeps.made", "def answer():\n    return 1")
    ours.__dict__["load"] = lambda: make_module("elsewhere.made", "import sys\nsys.modules['sweeps.made'].answer()")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(path.sys.modules, "sweeps.made", ours)
        assert modules_of(ours.load) == set()
        assert modules_of(lambda: (ours.load(), ours.answer())) == {"sweeps.made"}


def test_methods_that_dataclass_writes_do_not_count() -> None:
    ours = make_module("sweeps.made", "import dataclasses\n@dataclasses.dataclass\nclass Record:\n    number: int")
    assert modules_of(lambda: ours.Record(1)) == set()
