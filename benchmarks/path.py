"""`python -m benchmarks.path`: through how many of our modules three things go.

A module counts if a function that somebody wrote in it had a frame on the stack. What runs while a module is imported
does not count: bodies of modules and classes, what they call, and `lowrank.utils.lazy_exports`. Nor do functions that
have no lines to step through: the methods that `dataclass` writes.

* `trial`: one trial of one epoch, from `read_space` to its row in MLflow, in one process without Ray. What comes after
  the row at the end of a study (tables, summary, best models) does not belong to it. The modules that only open the
  study, once for all of its trials, are counted a second time by themselves.
* `teacher`: from a trial's specification to the first target that its student reads from the teacher's cache.
* `export`: from a folder of `models/` to a classifier that answers, and to its files in other forms.

Three kinds are counted apart: modules of `sweeps` and `analysis`, which lead the way; those that plan, build and run
the network itself (`NETWORK`), of which another network has others; and the rest of `lowrank`.
"""

from __future__ import annotations

import gc
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

OUR_PACKAGES = ("lowrank", "sweeps", "analysis")
IMPORTING = "lowrank.utils.lazy_exports"
GENERATED = "<string>"  # the file of what `dataclass` writes
OPENING = "opening the study"
NETWORK = ("lowrank.networks.", "lowrank.layers.", "lowrank.kernels.", "lowrank.compression.")
SETTINGS = [  # of a trial that can be built as it is first proposed
    "network.width=0.25", "train.epochs=1", "data.train_images=200", "references=[]", "search.trials=1",
    "method.name=tensor_train", "budget.params=0.5",
]  # fmt: skip


class ModuleRecorder:
    """The names of our modules of which a function is called, in whatever thread, by step of the way.

    Attributes:
        modules: by name of the step.
        step: that is taken now.
    """

    def __init__(self) -> None:
        self.modules: dict[str, set[str]] = {}
        self.step = ""
        self._importing = threading.local()

    def trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """Take each call of a function; see `sys.settrace`."""
        code = frame.f_code
        if code.co_name == "<module>":
            self._importing.depth = self._depth() + 1
            frame.f_trace_lines = False  # its end is all that matters
            return self._trace_import
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_filename != GENERATED:
            name = str(frame.f_globals.get("__name__", ""))
            if name.partition(".")[0] in OUR_PACKAGES and name != IMPORTING and not self._depth():
                self.modules.setdefault(self.step, set()).add(name)
        return None

    def _trace_import(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "return":
            self._importing.depth -= 1
        return self._trace_import

    def _depth(self) -> int:
        """How many modules this thread imports now, one within the other."""
        return int(getattr(self._importing, "depth", 0))


def record_modules(way: Callable[[], Iterator[str]]) -> dict[str, set[str]]:
    """Take a way.

    Args:
        way: yields the name of each of its steps before it takes it.

    Returns:
        By step, the names of our modules of which a function was called.
    """
    recorder, before = ModuleRecorder(), sys.gettrace()
    threading.settrace(recorder.trace)
    sys.settrace(recorder.trace)
    try:
        for step in way():
            recorder.step = step
    finally:
        sys.settrace(before)
        threading.settrace(None)  # which ends it
    return recorder.modules


def run_trial(folder: Path) -> Callable[[], Iterator[str]]:
    """Prepare one trial; the function takes it from its space to MLflow."""
    from ray.tune.schedulers import FIFOScheduler

    from lowrank.data import load_data
    from sweeps.execution.callbacks import ExecutionConfig, Recorder, TuneSearcher
    from sweeps.execution.trainable import TrialTrainable
    from sweeps.records import Event, Journal, StudyRecord
    from sweeps.resources.shares import Share
    from sweeps.resources.slots import TrialResources
    from sweeps.search import ProposalPrefetcher, Search, make_proposer
    from sweeps.space import read_space
    from sweeps.tracking.follower import Follower
    from sweeps.tracking.uri import default_tracking_uri
    from sweeps.trials import Resolver

    uri = default_tracking_uri(folder)

    def way() -> Iterator[str]:
        yield OPENING
        space = read_space("tt_dims", SETTINGS)
        resolver = Resolver(space, load_data(space.data))
        journal, record = Journal(folder / "journal.jsonl"), StudyRecord()
        journal.append(Event.STUDY, sync=True, name="path")
        follower = Follower(folder, uri)
        follower.read()
        assert follower.carry(now=True), follower.error
        search = Search(space, resolver, make_proposer(space, folder, resolver.points), journal, record)
        share = Share(cpus=1.0, gpus=0.0, concurrent=1)
        config = ExecutionConfig(
            study_dir=folder, data_dir=None, resources=TrialResources(share, None, ("processes", {})),
            max_concurrent=None, seconds=None, on_change=lambda: None,
        )  # fmt: skip
        recorder = Recorder(search, FIFOScheduler(), config)
        yield "the trial"
        with ProposalPrefetcher(search, depth=1) as prefetcher:
            searcher, suggested = TuneSearcher(search, config, prefetcher, None), None
            while suggested is None:  # none is ready yet: Tune asks again too
                suggested = searcher.suggest("1")
            worker: Any = TrialTrainable(suggested)
            done = False
            while not done:
                result = worker.step()
                recorder.on_trial_result(0, [], None, result)  # type: ignore[arg-type]  # it looks at the result alone
                done = bool(result.get("done"))
        journal.close()
        follower.read()
        assert follower.carry(now=True), follower.error

    return way


def read_teacher(folder: Path) -> Callable[[], Iterator[str]]:
    """Prepare a trial with a teacher; the function takes its setting to the first target from the cache."""
    from lowrank.data import DataSettings, load_data
    from sweeps.space import parse_space
    from sweeps.teachers.cache_options import CacheOptions
    from sweeps.teachers.worker import make_teacher
    from sweeps.trials import Resolver, resolve_teacher
    from tests.support.teachers import write_teacher

    data = load_data(DataSettings(train_images=200))
    write_teacher(folder, "good", data)
    space = parse_space("path", {
        "question": "How far is a target?", "network": {"name": "resnet9", "width": 0.0625},
        "data": {"train_images": 200}, "teacher": "good",
        "train": {"epochs": 1, "attention_weight": 60}, "method": {"name": "bottleneck", "rank_scale": 0.5},
        "search": {"stop": "none", "sampler": "grid"},
    })  # fmt: skip
    options = CacheOptions(str(folder / "cache"))

    def target(resolver: Resolver) -> None:
        specification = resolver.resolve({}).specification
        teacher = make_teacher(specification, data, "cpu", options)
        assert type(teacher).__name__ == "CachedTeacher"
        teacher.signals(data.train.images[:4], torch.arange(4), 0)

    target(Resolver(space, data, resolve_teacher(space, data, folder)))  # fills the cache

    def way() -> Iterator[str]:
        yield "the target"
        specification = trained.specification
        teacher = make_teacher(specification, data, "cpu", options)
        teacher.signals(data.train.images[:4], torch.arange(4), 0)

    trained = Resolver(space, data, resolve_teacher(space, data, folder)).resolve({})
    return way


def load_exported(folder: Path) -> Callable[[], Iterator[str]]:
    """Prepare a folder of `models/`; the function reads it, writes its forms and compares them."""
    from lowrank.compression import network_plan
    from lowrank.data import load_data
    from lowrank.deployment.formats import export_formats
    from lowrank.io import load_model, read_specification
    from lowrank.serving import MODEL_FILE, read_preprocessing, save_classifier
    from sweeps.space import read_space
    from sweeps.trials import Resolver, make_student

    space = read_space("tt_dims", SETTINGS)
    data = load_data(space.data)
    trial = Resolver(space, data).reference("separable")
    student, _ = make_student(trial.specification, data)
    save_classifier(
        folder / "model", student.eval(), data, trial.specification.model(data.image_shape, len(data.classes))
    )

    def way() -> Iterator[str]:
        yield "the files"
        path = folder / "model" / MODEL_FILE
        network, specification = load_model(path), read_specification(path)
        images = torch.randn(2, *specification.image_shape)
        export_formats(
            network, specification, [(images, None)], folder / "files", lambda name: None,
            preprocessing=read_preprocessing(folder / "model"),
        )  # fmt: skip

    (folder / "files").mkdir()
    network_plan.cache_clear()  # as in a process of its own
    return way


WAYS = {"trial": (run_trial, 25), "teacher": (read_teacher, 10), "export": (load_exported, 8)}


def measure(name: str) -> dict[str, set[str]]:
    """Take a way once; returns its modules by step."""
    prepare, _ = WAYS[name]
    with tempfile.TemporaryDirectory() as folder:
        way = prepare(Path(folder))
        gc.collect()  # so that nothing which ran before is closed on the way
        return record_modules(way)


def main() -> int:
    """Take each way once and print its modules."""
    for name, (_, goal) in WAYS.items():
        steps = measure(name)
        modules = set().union(*steps.values())
        kinds = {
            "of sweeps and analysis": sorted(module for module in modules if not module.startswith("lowrank.")),
            "of the network itself": sorted(module for module in modules if module.startswith(NETWORK)),
        }
        kinds["the rest of lowrank"] = sorted(modules.difference(*kinds.values()))
        counts = ", ".join(f"{len(members)} {kind}" for kind, members in kinds.items())
        later = set().union(*(members for step, members in steps.items() if step != OPENING))
        opening = f"; {len(modules - later)} of them only open the study" if OPENING in steps else ""
        print(f"{name}: {len(modules)} modules: {counts}{opening} (goal: {goal})")
        for module in (module for members in kinds.values() for module in members):
            print(f"  {module}{'' if module in later else ' (opening)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
