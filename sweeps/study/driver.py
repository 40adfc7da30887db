"""Run a study: journal, resources, search, training, test errors, summary, tracking, and what to do next."""

from __future__ import annotations

import enum
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import InputError
from lowrank.networks import user_modules
from lowrank.utils import (
    ExitCode,
    commit,
    format_counted,
    module_command,
    module_environment,
    one_line,
    redact,
    relative_path,
    usable_cores,
)
from sweeps.records import (
    JOURNAL_FILE,
    MLFLOW_FILE,
    MODELS_FOLDER,
    TERMINAL,
    Event,
    EventFields,
    FullDiskError,
    HeaderData,
    HeaderHardware,
    HeaderNetwork,
    HeaderStratum,
    Journal,
    Role,
    Status,
    StudyHeader,
    StudyHistory,
    StudyLostError,
    StudyRecord,
    apply_event,
    is_study_disk_full,
    resume_command,
    write_space_file,
)
from sweeps.search import (
    EmptyProposer,
    OptunaProposer,
    Proposer,
    Search,
    SiblingResults,
    absolute_names,
    earlier_studies,
    make_proposer,
    warm_start,
)
from sweeps.space import Space, StoredOptions, StudyConfig, check_process_shards, own_networks, permission_options
from sweeps.storage import StudyMirror
from sweeps.study.final_evaluation import evaluate_front
from sweeps.study.free_space import check_free_space
from sweeps.study.retrain import Retrain
from sweeps.study.retrain_report import retrain_lines
from sweeps.study.summary_process import SummaryProcess
from sweeps.teachers import CACHE_FOLDER, CacheOptions
from sweeps.tracking import TrackingProcess
from sweeps.trials import Resolver, left_out_lines, reachable_strata
from sweeps.utils import code_fingerprints, command, hardware, missing_bytecode, monotonic_time, versions

if TYPE_CHECKING:
    from sweeps.resources import TrialResources

NOTHING_COMPLETED = 1


class CloseReason(enum.StrEnum):
    """Why a run of the driver over a study ended; the values are in the journal."""

    FINISHED = "finished"
    TIME = "time"
    INTERRUPTED = "interrupted"
    FAILED = "failed"  # by an error of the driver; the event says which


@dataclass
class RunEnd:
    """How a run of the driver over a study ended; `error` is one line, which the journal keeps too."""

    reason: CloseReason = CloseReason.INTERRUPTED
    error: str = ""


@dataclass(frozen=True)
class _Hooks:
    """What is called while trials run.

    `before_exit` closes the records before the process is ended from outside, and returns what is not stored;
    `tracking_error` returns a line where the tracking process has trouble that the user does not know of.
    """

    before_exit: Callable[[], str | None]
    tracking_error: Callable[[], str | None]


def run_study(
    space: Space, resolver: Resolver, config: StudyConfig, retrain: Retrain | None = None,
    history: StudyHistory | None = None, mirror: StudyMirror | None = None,
) -> int:  # fmt: skip
    """Run a study, or go on with it, to its end, the limit of time or an interruption; its lock must be held.

    Args:
        space: what is searched.
        resolver: makes trials of points.
        config: folders, addresses and limits.
        retrain: recorded trials to propose instead of points of the space.
        history: of a study that is resumed, as far as it was read.
        mirror: stores the folder; started when the journal is open.

    Returns:
        The exit code.

    Raises:
        InputError: the space cannot be searched, the cluster cannot be used, or a new study finds a journal.
        FullDiskError: the disk takes no more records.
        StudyLostError: another driver has taken the study over.
    """
    # These take seconds to import: only after the input has been checked
    import torch

    from sweeps.cluster import connect, count_cards, is_connected
    from sweeps.execution import measure_on_cards
    from sweeps.resources import ExpectedResources, ResourcePlanner

    resolver.use_folder(config.folder)
    on_missing = print if config.resumed else None
    earlier = earlier_studies(space.search.warm_start, config.folder.parent, on_missing)
    # A trial that is reproduced must be trained again, not taken from a sibling
    siblings = SiblingResults() if config.origin else SiblingResults.read(config.folder)
    strata, unreachable = reachable_strata(space, resolver)
    total, expected = expected_trials(space, resolver), None
    if config.address is None and not is_connected():  # a Ray that runs says itself what it offers
        expected = ExpectedResources.of(space, total, usable_cores(), count_cards(), require_gpus=config.gpus_asked)
    with nullcontext() if expected is None else expected.begin_service() as service:
        connect(
            config.address, own_networks=own_networks(space), allow_open_ports=config.allow_open_ports,
            workers=None if expected is None else expected.workers,
        )  # fmt: skip
        resolver.close()
        planner = ResourcePlanner(space, total, require_gpus=config.gpus_asked, address=config.address)
        siblings.device = "cuda" if planner.share.gpus else "cpu"
        check_process_shards(space, planner.share.processes, len(resolver.data.train))
        params = resolver.reference("dense").counts["params"]
        warning = check_free_space(config.folder, params, planner.share.concurrent, total)
        if warning:
            print(warning, flush=True)
        for line in filter(None, (missing_bytecode(torch), *left_out_lines(space, resolver, unreachable))):
            print(line, flush=True)
        path = config.folder / JOURNAL_FILE
        _check_journal(path, config)
        resolver.use_folder(config.folder)
        with closing(Journal(path)) as journal, planner.sharing_modes(service) as modes:
            if mirror is not None:
                mirror.on_loss(journal.refuse)
                mirror.start()
            record = (history or StudyHistory(path)).update()
            _write_space(space, config)
            _write_header(journal, record, space, resolver, config, unreachable)
            if retrain is not None and config.origin is not None:
                retrain.propose(journal, record, config.folder, config.origin)
            if config.note or config.tags:
                apply_event(record, journal.append(Event.ANNOTATED, sync=True, note=config.note, tags=config.tags))
            tracking = TrackingProcess.start(config.folder, config.tracking_uri)
            with _record_end(journal, config.folder) as end:
                proposer: Proposer = EmptyProposer()  # recorded trials are trained again, and no point of the space
                if config.origin is None:
                    proposer = make_proposer(space, config.folder, resolver.points, resolver.training_cost)
                if isinstance(proposer, OptunaProposer):
                    if count := proposer.restore(record.trials.values(), strata):
                        line = f"{format_counted(count, 'proposal')} added to Optuna's record from the journal"
                        print(line, flush=True)
                    print(*warm_start(proposer, resolver, earlier), sep="\n", end="\n" if earlier else "", flush=True)
                resources = planner.resolve(resolver, journal, record, config.data_dir, modes, measure_on_cards)
                event = journal.append(
                    Event.RESOURCES, sync=True, since=monotonic_time() - config.began, **resources.as_event()
                )
                apply_event(record, event)
                search = Search(space, resolver, proposer, journal, record, strata, siblings)
                hooks = _Hooks(lambda: _close_records(journal, mirror), tracking.new_error)
                _search(search, config, resources, total, hooks, end)
    print(*retrain_lines(record), sep="\n", end="\n" if config.origin else "", flush=True)
    _print_next_step(space, config, end.reason, tracking.finish())
    if config.profile:
        _run_analysis("profile", config.folder)
    if end.reason is CloseReason.INTERRUPTED:
        return ExitCode.INTERRUPTED
    return exit_code(record, end.reason) or (ExitCode.FAILED if end.error else ExitCode.DONE)


@contextmanager
def _record_end(journal: Journal, folder: Path) -> Iterator[RunEnd]:
    """Journal how the block has ended, an error with its text; Ctrl-C ends there, another error is raised again."""
    end = RunEnd()
    try:
        yield end
    except KeyboardInterrupt:
        pass  # every completed step is in the journal
    except Exception as error:
        end.reason, end.error = CloseReason.FAILED, one_line(error)
        if not is_study_disk_full(error, folder):
            raise
        raise FullDiskError(journal.path) from error  # Ray and Optuna raise errors of their own for a full disk
    finally:
        journal.append(Event.CLOSED, sync=True, reason=str(end.reason), **({"error": end.error} if end.error else {}))


def exit_code(record: StudyRecord, reason: CloseReason) -> int:
    """Give the exit code of a run of the driver that was not interrupted.

    Args:
        record: of the study.
        reason: why the run ended.

    Returns:
        `NOTHING_COMPLETED` where the study has no trial that was completed; where it has ended, also if every trial of
        the search has failed: the references alone answer nothing. Otherwise `ExitCode.DONE`.
    """
    failed = reason is CloseReason.FINISHED and search_failed(record)
    return ExitCode.DONE if record.has_completed and not failed else NOTHING_COMPLETED


def _check_journal(path: Path, config: StudyConfig) -> None:
    """Check that a new study has no journal yet: somebody who holds no lock may have put one there meanwhile."""
    if not config.resumed and path.exists():
        raise InputError(
            f"{config.folder} has got a journal while this study was being prepared; give this one another --name, or "
            f"go on with that one by --resume {config.name}"
        )


def _close_records(journal: Journal, mirror: StudyMirror | None) -> str | None:
    """Close the journal in another thread than the main one, which cannot go on, and store what came last.

    Returns a line that says what is not stored.
    """
    try:
        journal.append(Event.CLOSED, sync=True, reason=str(CloseReason.INTERRUPTED))
    except (OSError, StudyLostError) as error:
        return str(error)
    journal.freeze()
    return mirror.finish() if mirror is not None else None


def _search(
    search: Search, config: StudyConfig, resources: TrialResources, total: int, hooks: _Hooks, end: RunEnd
) -> None:
    """Train, evaluate the front on the test split, and draw and print the results; `end` is told how it ended.

    The test split is looked at when the study ends finished for the first time, and where the user says so: errors of
    each further look could guide the search.
    """
    with SummaryProcess(config.folder) as summary:
        reason = _train(search, config, resources, total, hooks, summary)
        search.journal.raise_if_refused()
        if reason is CloseReason.FINISHED:
            look = config.test or not search.record.finished_ends
            for line in evaluate_front(search, config.folder, search.resolver.data, look=look):
                print(line, flush=True)
        elif config.test:
            print("the search has not ended: the test split was not looked at", flush=True)
        # Before the study closes, so that MLflow gets the picture
        end.error = _print_summary(config.folder, search.record, summary)
    end.reason = reason


def search_failed(record: StudyRecord) -> bool:
    """Tell whether every trial of the search that was launched has failed, whatever references did.

    Args:
        record: of the study.

    Returns:
        True if there were such trials, and all failed.
    """
    searched = [trial for trial in record.trials.values() if trial.role is not Role.REFERENCE and trial.ended]
    launched = [trial for trial in searched if trial.status is not Status.INFEASIBLE and not trial.broken]
    return bool(launched) and all(trial.status is Status.FAILED for trial in launched)


def _write_space(space: Space, config: StudyConfig) -> None:
    """Write the space and the options; without the password of a tracking URI, which a resume must name again."""
    uri = config.tracking_uri
    options = StoredOptions(
        space=space.name, data_dir=str(config.data_dir) if config.data_dir else None,
        tracking_uri=redact(uri) if uri else None, teachers=str(config.teachers),
        cache_dir=str(config.cache_dir) if config.cache_dir else None,
        storage=config.storage, origin=config.origin,
    )  # fmt: skip
    source = space.source
    search = source.get("search")
    if space.search.warm_start and isinstance(search, dict):
        names = absolute_names(space.search.warm_start, config.folder.parent)
        source = {**source, "search": {**search, "warm_start": names}}
    write_space_file(config.folder, source, options)


def _write_header(
    journal: Journal, record: StudyRecord, space: Space, resolver: Resolver, config: StudyConfig,
    unreachable: dict[str, str],
) -> None:  # fmt: skip
    data = resolver.data
    modules = {name: path for network in own_networks(space) for name, path in user_modules(network).items()}
    references = {name: resolver.reference(name).counts["params"] for name in ("dense", "separable")}
    header = StudyHeader(
        name=config.name, question=space.question, space=space.source,
        data=HeaderData(
            name=data.name, fingerprint=data.fingerprint, classes=len(data.classes), image_shape=data.image_shape,
            train_images=len(data.train), val_images=len(data.val), test_images=len(data.test),
            class_names=tuple(data.classes), notes=tuple(data.notes),
            class_counts={name: tuple(data.class_counts(name)) for name in ("train", "val", "test")},
        ),
        teacher=resolver.teacher.header() if resolver.teacher else None,
        network=HeaderNetwork(**space.network.model_dump()), references=references, seed=space.search.seed,
        strata=tuple(
            HeaderStratum(
                label=stratum.label, params=stratum.limit if stratum.limit != float("inf") else None,
                unreachable=unreachable.get(stratum.label, ""),
            )
            for stratum in resolver.label_strata
        ) if config.origin is None else (),  # trials that are trained again come as they are on record
        versions=versions(), hardware=HeaderHardware(**hardware()), commit=commit(),
        code=code_fingerprints(modules), command=command(),
        tracking_uri=redact(config.tracking_uri) if config.tracking_uri else None,
    )  # fmt: skip
    if config.origin is not None:
        header = header.model_copy(update={"origin": config.origin})
    changes = record.header.code_changes(header)
    fields: EventFields = header.to_json()
    apply_event(record, journal.append(Event.STUDY, sync=True, **fields))
    if changes:  # trials from before and from now may differ in more than their settings
        note = f"resumed with other code than before: {'; '.join(changes)}"
        print(note, flush=True)
        apply_event(record, journal.append(Event.ANNOTATED, sync=True, note=note, tags={}))


def _train(
    search: Search, config: StudyConfig, resources: TrialResources, total: int, hooks: _Hooks, summary: SummaryProcess
) -> CloseReason:  # fmt: skip
    """Train until the search is over, the time is up or Ctrl-C; returns which.

    `total` is the number of trials. `summary` is started when the last of them leave a slot free.
    """
    from sweeps.execution import ExecutionConfig, run_search
    from sweeps.study.progress_view import ProgressView
    from sweeps.teachers import build_caches

    growing = resources.growing
    holding = f"{resources.share.concurrent} at a time, each on {resources.share}"
    if growing is not None:
        holding = (
            f"up to {resources.share.concurrent} at a time, each on {resources.share.cpus:g} CPU and part of a card"
        )
    print(
        f"{config.name}: {search.space.question}\n"
        f"up to {format_counted(total, 'trial')}, {holding}; "
        f"everything is kept in {relative_path(config.folder)}", flush=True,
    )  # fmt: skip
    cache = _cache_options(search, config)
    build_caches(search, cache, config, resources.share)

    def count_trials() -> int:
        return max(total, sum(trial.status is not Status.INFEASIBLE for trial in search.record.trials.values()))

    with ProgressView(search.record, count_trials) as view:

        def on_change() -> None:
            if line := hooks.tracking_error():
                view.print_line(line)
            for line in growing.take_lines() if growing is not None else ():
                view.print_line(line)
            if search.is_exhausted() and search.count_running() < resources.share.concurrent:
                summary.start()
            view.update()

        use_relay = bool(config.storage and config.address)  # several machines without a disk that they share
        out_of_time = run_search(search, ExecutionConfig(
            study_dir=config.folder, data_dir=config.data_dir, resources=resources,
            max_concurrent=search.space.resources.max_concurrent, seconds=config.seconds, on_change=on_change,
            cache=cache, use_relay=use_relay, before_exit=hooks.before_exit,
        ))  # fmt: skip
    if search.is_over():
        return CloseReason.FINISHED
    return CloseReason.TIME if out_of_time else CloseReason.INTERRUPTED


def _cache_options(search: Search, config: StudyConfig) -> CacheOptions:
    """Where the teacher cache lies: beside the studies, so that they share it, or where the user says."""
    teacher, default = search.resolver.teacher, config.folder.parent / CACHE_FOLDER
    if teacher is None or not teacher.settings.cache:
        return CacheOptions()
    return CacheOptions(str(config.cache_dir or default), (str(default),))


def expected_trials(space: Space, resolver: Resolver) -> int:
    """Count the trials that a study can have.

    Args:
        space: what is searched.
        resolver: makes its trials.

    Returns:
        The largest number of trials, references included, further seeds of the final front not.
    """
    grid = space.search.sampler == "grid"
    rows = (resolver.points.size() or 0) * space.search.repeats if grid else space.search.trials
    references = len(resolver.references()[0]) * (space.search.repeats if grid else 1)
    return min(space.search.trials, rows) + references


def _print_summary(folder: Path, record: StudyRecord, summary: SummaryProcess) -> str:
    """Print and draw the front and the answer; or, if no trial was completed, print how the trials ended.

    Returns what went wrong with the summary; "" for nothing.
    """
    if record.has_completed:
        code = _report_failure("summary", folder, summary.run())
        return f"the summary failed with exit code {code}" if code else ""
    ends = Counter((trial.status, trial.reason) for trial in record.trials.values() if trial.status in TERMINAL)
    for (status, reason), count in ends.most_common(5):
        print(f"{count} {status.replace('_', ' ')}: {reason}")
    print("no trial was completed, so there is no front")
    if any(trial.status is Status.DIVERGED for trial in record.trials.values()):
        print("where the training diverged, a lower rate may help: --set train.lr=...")
    return ""


def _run_analysis(subcommand: str, folder: Path) -> int:
    """Run `python -m analysis`, which stands above this package and is not imported by it; returns its exit code."""
    command = module_command("analysis", subcommand, folder)
    return _report_failure(
        subcommand, folder, subprocess.run(command, env=module_environment(), check=False).returncode
    )


def _report_failure(subcommand: str, folder: Path, code: int) -> int:
    """Print how to repeat a command that has failed; returns its exit code."""
    if code != 0:
        repeat = shlex.join(["python", "-m", "analysis", subcommand, relative_path(folder)])
        print(f"the {subcommand} failed with exit code {code}; the study itself is whole, repeat it: {repeat}")
    return code


def _print_next_step(space: Space, config: StudyConfig, reason: CloseReason, tracking_message: str | None) -> None:
    if tracking_message:
        print(tracking_message)
    if reason is not CloseReason.FINISHED:
        cause = "the time is used up" if reason is CloseReason.TIME else "interrupted"
        command = resume_command(config.folder, config.storage) + permission_options(space)
        print(f"{cause}; nothing is lost. Go on with: {command}")
        return
    models = config.folder / MODELS_FOLDER
    if models.is_dir():
        print(f"networks of the front and the references, one folder a trial: {relative_path(models)}")
    report = shlex.join(["python", "-m", "analysis", "report", "--study", relative_path(config.folder)])
    print(f"a page with pictures and tables: {report}")
    if models.is_dir():
        export = shlex.join(["python", "-m", "analysis", "export", "--study", relative_path(config.folder)])
        permission = " --allow-code" if own_networks(space) else ""
        print(f"weights, ONNX and a model card of the best network: {export}{permission}")
    if not config.tracking_uri:
        uri = shlex.quote(f"sqlite:///{relative_path(config.folder)}/{MLFLOW_FILE}")
        print(f"every trial in MLflow: mlflow ui --backend-store-uri {uri}")
