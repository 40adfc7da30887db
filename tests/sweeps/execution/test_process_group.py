"""A trial of several processes trains as one process does, and none outlives the others, whoever is killed."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError, LoaderHungError
from lowrank.training import DataParallelGroup, DivergedError
from lowrank.utils import ProcessorWatch
from sweeps.execution import group_worker, heartbeat, process_group
from sweeps.execution.group_worker import error_description
from sweeps.execution.heartbeat import HeartbeatWatch, StepWatch, heartbeat_path, start_heartbeat
from sweeps.execution.process_group import ProcessGroup
from sweeps.execution.spread_benchmark import measure_group
from sweeps.execution.trainable import TrialTrainable
from sweeps.execution.trial_config import TrialConfig, trial_config
from sweeps.execution.worker_errors import NetworkFailedError, WorkerLostError
from sweeps.records.image_errors import decode_wrong_images
from sweeps.records.specification import TrialSpec
from sweeps.space.checks import check_process_shards
from sweeps.space.parse import parse_space
from sweeps.teachers import CacheOptions
from tests.support.broken_network import MARK
from tests.support.environment import python_path
from tests.support.processes import group_worker_pids, listening_sockets
from tests.support.training import small_recipe, tensor_train
from tests.support.waiting import scaled, wait_until


def config(folder: Path, processes: int, network: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    data = load_data(DataSettings(train_images=200))
    recipe = small_recipe(batch_size=50, **train)
    specification = {
        "network": network or {"width": 0.125}, "method": {"name": "dense"} if network else tensor_train().model_dump(),
        "train": recipe.model_dump(), "views": {"shift": 1}, "seed": 0,
        "data": {**data.settings.model_dump(), "fingerprint": data.fingerprint},
    }  # fmt: skip
    return TrialConfig(
        trial_id=f"t{processes}", specification=TrialSpec.parse(specification), study_dir=str(folder),
        processes=processes,
    ).to_tune()  # fmt: skip


def have_ended(pids: Sequence[int]) -> bool:
    """Whether none of these runs; one that nobody has waited for yet has ended."""
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_trial_of_two_processes_trains_as_one_does_and_is_retried_after_a_loss(tmp_path):
    alone = TrialTrainable(config(tmp_path, 1, ema_decay=0.9))
    shared = TrialTrainable(config(tmp_path, 2, ema_decay=0.9))
    try:
        for _ in range(2):
            expected, actual = alone.step(), shared.step()
            for name in ("train_loss", "val_loss", "grad_norm"):
                assert actual["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-4)
        pids = group_worker_pids(os.getpid())
        hosts = {host for pid in pids for host, _ in listening_sockets(pid)}
        assert hosts == {"127.0.0.1"}  # they listen for each other, and nobody else can reach them
        shared.save_if_possible()
        os.kill(pids[1], signal.SIGKILL)
        result = shared.step()
        assert result["done"]
        assert result["lost"] == "the trial lost process 1 of 2 (exit code -9); it goes on in new ones"
        assert have_ended(pids)
        # The worker itself takes the next attempt
        assert shared.reset(config(tmp_path, 2, ema_decay=0.9))
        last, expected = shared.step(), alone.step()
        assert last["attempt"]["from_epoch"] == 2
        assert last["outcome"] == "completed"
        assert last["metrics"]["val_loss"] == pytest.approx(expected["metrics"]["val_loss"], rel=1e-4)
        assert decode_wrong_images(last["wrong_images"]).tolist() == (
            decode_wrong_images(expected["wrong_images"]).tolist()
        )
    finally:
        shared.cleanup()
    assert have_ended(pids)


@pytest.mark.slow
def test_a_process_that_runs_out_of_memory_ends_the_others_that_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    broken = {"name": "tests.support.broken_network:out_of_memory", "width": 0.125}
    worker = TrialTrainable(config(tmp_path, 2, broken, epochs=9))
    try:
        results = [worker.step()]
        pids = group_worker_pids(os.getpid())
        while "outcome" not in results[-1]:
            results.append(worker.step())
        assert results[-1]["outcome"] == "out_of_memory"
        assert results[-1]["reason"] == "CUDA out of memory. Tried to allocate 20.00 GiB."
        assert have_ended(pids)
        assert worker.reset(config(tmp_path, 2, broken, epochs=1))
        assert worker.step()["outcome"] == "completed"
    finally:
        worker.cleanup()


@pytest.mark.slow
def test_the_speed_of_a_trial_is_measured_in_one_process_and_in_two_and_none_is_left(tmp_path):
    specification = trial_config(config(tmp_path, 2)).specification
    for count in (1, 2):
        assert measure_group(specification, None, count, "cpu", 1) > 0
    assert group_worker_pids(os.getpid()) == []


def group_of(*commands: str) -> tuple[ProcessGroup, list[Connection]]:
    """A process group whose processes run these commands of a shell and answer nothing."""
    group = object.__new__(ProcessGroup)
    pipes = [Pipe() for _ in commands]
    group.count, group._folder = len(commands), tempfile.TemporaryDirectory()
    group._pipes = [ours for ours, _ in pipes]
    group._processes = [subprocess.Popen(["sh", "-c", command], start_new_session=True) for command in commands]
    return group, [theirs for _, theirs in pipes]


def test_a_group_that_does_nothing_is_given_up_and_says_what_it_was_to_do(monkeypatch):
    monkeypatch.setattr(process_group, "IDLE_SECONDS", 1.0)
    group, answers = group_of("exec sleep 600", "exec sleep 600")
    processes = list(group._processes)
    message = "the 2 processes of the trial did nothing for 1 s while they were to train_epoch; it goes on in new ones"
    with pytest.raises(WorkerLostError, match=message):
        group.train_epoch()
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2
    assert not group.alive
    for end in answers:
        end.close()


def test_a_group_that_computes_is_waited_for(monkeypatch):
    """One process waits for the other, whose child computes for longer than the limit."""
    monkeypatch.setattr(process_group, "IDLE_SECONDS", 0.5)
    group, answers = group_of("sh -c 'while :; do :; done'; :", "exec sleep 600")
    looks = []

    class Watch(ProcessorWatch):
        def is_idle(self) -> bool:
            looks.append(super().is_idle())
            if len(looks) == 12:  # each a quarter of the limit, or more, after the one before it
                for end in answers:
                    end.send_bytes(pickle.dumps((True, (1, {"val_error": 1.0}, []))))
            return looks[-1]

    monkeypatch.setattr(process_group, "ProcessorWatch", Watch)
    try:
        assert group.train_epoch() == {"val_error": 1.0}
    finally:
        os.killpg(group._processes[0].pid, signal.SIGKILL)
        group.close()
        for end in answers:
            end.close()


def test_a_process_without_a_sign_of_life_is_named_and_all_are_ended(monkeypatch):
    """The first one computes and touches its file; the second one is stopped."""
    monkeypatch.setattr(process_group, "HANG_SECONDS", 1.5)
    touch = 'while :; do touch "$0/heartbeat-0"; sleep 0.1; done'
    group, answers = group_of("exec sleep 600", "exec sleep 600")
    folder = Path(group._folder.name)
    (folder / "heartbeat-1").touch()
    beating = subprocess.Popen(["sh", "-c", touch, str(folder)])
    processes = list(group._processes)
    try:
        with pytest.raises(WorkerLostError, match="process 1 of 2 of the trial hangs: no step or sign of life for 2 s"):
            group.train_epoch()
    finally:
        beating.kill()
        beating.wait()
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2
    for end in answers:
        end.close()


class Following:
    """Stands for the group that is started beside one with a silent process."""

    started: list[Following] = []  # noqa: RUF012

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.alive, self.closed = arguments, True, False
        self.started.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def silent_group(monkeypatch) -> Iterator[tuple[ProcessGroup, list[Connection]]]:
    """A group of one process that gives no sign of life from the first moment; another one is started at once."""
    group, answers = group_of("exec sleep 600")
    group.device, group.threads = "cpu", 1
    (Path(group._folder.name) / "heartbeat-0").touch()
    Following.started = []
    monkeypatch.setattr(process_group, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(process_group, "SUSPICION_SECONDS", 0.05)
    monkeypatch.setattr(process_group, "ProcessGroup", Following)
    yield group, answers
    group.close()
    for end in answers:
        end.close()


def test_others_are_started_while_a_silent_process_is_waited_for(silent_group, monkeypatch):
    monkeypatch.setattr(process_group, "HANG_SECONDS", 0.5)
    group, _ = silent_group
    with pytest.raises(WorkerLostError, match="process 0 of 1 of the trial hangs"):
        group.train_epoch()
    (following,) = Following.started
    assert following.arguments == (1, "cpu", 1)
    assert not following.closed
    assert group.successor() is following
    assert group.successor() is not following  # which has its own next one


def test_others_that_could_not_start_are_replaced(silent_group, monkeypatch):
    monkeypatch.setattr(process_group, "HANG_SECONDS", 0.5)
    group, _ = silent_group
    with pytest.raises(WorkerLostError):
        group.train_epoch()
    first = Following.started[0]
    first.alive = False
    assert group.successor() is Following.started[1]
    assert first.closed


def test_a_machine_that_cannot_start_others_waits_for_the_silent_process_all_the_same(silent_group, monkeypatch):
    attempts: list[object] = []

    def refuse(*arguments: object) -> None:
        attempts.append(arguments)
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(process_group, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(process_group, "ProcessGroup", refuse)
    group, _ = silent_group
    with pytest.raises(WorkerLostError, match="process 0 of 1 of the trial hangs"):
        group.train_epoch()
    assert attempts


def test_a_group_that_cannot_start_all_of_its_processes_leaves_none(monkeypatch):
    start, begun = subprocess.Popen, []

    def start_one(*arguments: Any, **options: Any) -> Any:
        if begun:
            raise BlockingIOError("Resource temporarily unavailable")
        begun.append(start([sys.executable, "-c", "import signal; signal.pause()"]))
        return begun[0]

    monkeypatch.setattr(process_group.subprocess, "Popen", start_one)
    with pytest.raises(BlockingIOError):
        ProcessGroup(2, "cpu", 1)
    assert begun[0].poll() is not None


def test_others_end_again_where_a_silent_process_was_only_slow(silent_group):
    group, answers = silent_group

    def answer() -> None:
        wait_until(lambda: bool(Following.started), "the start of others")
        answers[0].send_bytes(pickle.dumps((True, (1, {"val_error": 1.0}, []))))

    thread = threading.Thread(target=answer)
    thread.start()
    assert group.train_epoch() == {"val_error": 1.0}
    thread.join()
    assert [following.closed for following in Following.started] == [True]


def test_a_training_hangs_once_a_step_takes_much_longer_than_any_before():
    now = [0.0]
    watch = StepWatch(40.0, clock=lambda: now[0])

    def goes_on(at: float, steps: int | None) -> bool:
        now[0] = at
        return watch.goes_on(steps)

    assert goes_on(0, None)
    assert goes_on(900, 0)  # it compiles
    assert goes_on(1800, 1)
    assert goes_on(1805, 2)
    assert goes_on(1899, 2)  # 20 steps of 5 s have not passed
    assert not goes_on(1906, 2)
    assert goes_on(1907, None)
    assert goes_on(1908, 1)
    assert goes_on(1909, 2)
    assert not goes_on(1950, 2)


def test_a_stopped_process_is_seen_by_its_file_and_one_that_has_not_begun_is_not_watched(tmp_path):
    now = [0.0]
    paths = [heartbeat_path(tmp_path, index) for index in range(2)]
    paths[0].touch()
    watch = HeartbeatWatch(paths, 40.0, clock=lambda: now[0])
    os.utime(paths[0], ns=(1, 1))
    now[0] = 30
    assert watch.silent() is None
    now[0] = 69
    assert watch.silent() is None
    now[0] = 71
    assert watch.silent() == 0


def test_a_process_that_says_that_it_hangs_is_seen_at_once(tmp_path, monkeypatch):
    """Nobody waits for the other's silence after it has waited for a step."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    folder = tmp_path / "group"
    folder.mkdir()
    paths = [heartbeat_path(folder, index) for index in range(2)]
    start_heartbeat(paths[0], lambda: True)
    watch = HeartbeatWatch(paths, 3600.0)
    assert watch.silent() is None
    start_heartbeat(paths[1], lambda: False)
    wait_until(lambda: watch.silent() is not None, "a process says that it hangs")
    assert watch.silent() == 1
    shutil.rmtree(folder)  # which ends the threads


def test_a_process_sees_its_own_card_alone(monkeypatch):
    group = object.__new__(ProcessGroup)
    group.device, group.count = "cuda", 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [group._card(index) for index in range(2)] == [{"CUDA_VISIBLE_DEVICES": card} for card in ("0", "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    assert [group._card(index) for index in range(2)] == [{"CUDA_VISIBLE_DEVICES": card} for card in ("3", "GPU-7")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InputError, match="2 processes need as many cards, but CUDA_VISIBLE_DEVICES is 3"):
        group._card(0)


@pytest.mark.slow
def test_a_stopped_process_is_seen_within_30_seconds_and_its_trial_goes_on_from_the_checkpoint(tmp_path):
    trial = TrialTrainable(config(tmp_path, 2, epochs=400))
    try:
        trial.step()
        trial.save_if_possible()
        pids = group_worker_pids(os.getpid())
        os.kill(pids[1], signal.SIGSTOP)
        assert "hangs: no step or sign of life for 30 s" in trial.step()["lost"]
        assert have_ended(pids)
        following = group_worker_pids(os.getpid())
        assert len(following) == 2  # started while the stopped one was waited for
        assert trial.reset(config(tmp_path, 2, epochs=400))
        assert group_worker_pids(os.getpid()) == following
        result = trial.step()
        assert result["attempt"]["from_epoch"] == 1
    finally:
        trial.cleanup()


def test_a_loader_that_hangs_in_one_process_is_a_lost_worker():
    error = error_description(LoaderHungError("nothing of the images could be read for 120 s"))
    assert isinstance(object.__new__(ProcessGroup)._make_error(error), WorkerLostError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such\nstage"), NetworkFailedError),
        (RuntimeError("Connection closed by peer"), WorkerLostError),  # of a norm that exchanges its statistics
    ],
)
def test_an_error_of_the_networks_own_forward_is_not_that_of_a_lost_process(error, expected, monkeypatch):
    group: Any = object.__new__(ProcessGroup)
    monkeypatch.setattr(group, "_has_lost_one", lambda: False, raising=False)
    layer = torch.nn.Identity()
    layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)) as caught:
        layer(0)
    made = group._make_error(error_description(caught.value))
    assert type(made) is expected
    assert str(made).startswith(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    assert "\n" not in str(made)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DivergedError("loss is NaN", epoch=3, step=2, layer="stage1"), DivergedError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), torch.OutOfMemoryError),
        (InputError("the weights to start from are not there: x"), InputError),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), WorkerLostError),
        (ZeroDivisionError("division by zero"), WorkerLostError),
    ],
)
def test_an_error_of_a_process_is_one_of_its_kind_in_the_trial(error, expected, monkeypatch):
    """It crosses a pipe as plain data, whatever its class needs to be pickled."""
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.02)
    group, answers = group_of("exec sleep 600", "exec sleep 600")
    answers[0].send_bytes(pickle.dumps((False, {**error_description(error), "notices": []})))
    with pytest.raises(expected) as raised:
        group.train_epoch()
    text = str(error).partition("\n")[0]
    assert str(raised.value) == (f"ZeroDivisionError: {text}" if isinstance(error, ZeroDivisionError) else text)
    if isinstance(raised.value, DivergedError):
        assert (raised.value.epoch, raised.value.step, raised.value.layer) == (3, 2, "stage1")
    assert not group.alive  # the others would wait for it
    for end in answers:
        end.close()


@pytest.mark.parametrize("reported", [True, False])
def test_a_lost_process_is_named_also_where_another_one_reports_that_it_cannot_reach_it(reported, monkeypatch):
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.2)
    group, answers = group_of("exec sleep 600", "exit 7")
    group._processes[1].wait()
    if reported:
        error = {**error_description(RuntimeError("Connection closed by peer")), "notices": []}
        answers[0].send_bytes(pickle.dumps((False, error)))
    else:
        answers[1].close()
    with pytest.raises(WorkerLostError, match=r"the trial lost process 1 of 2 \(exit code 7\); it goes on in new ones"):
        group.train_epoch()
    assert not group.alive
    answers[0].close()


def test_a_process_serves_commands_until_its_pipe_is_closed(capfd):
    """An error of a command is answered, and the process goes on."""
    ours, theirs = Pipe()

    class Worker:
        def double(self, number: int) -> int:
            return 2 * number

        def fail(self) -> None:
            raise KeyError("stage9")

        def take_notices(self) -> list[str]:
            return ["no cache"]

    thread = threading.Thread(target=group_worker.serve, args=(Worker(), theirs))
    thread.start()
    answers = []
    for command in (("double", (4,)), ("fail", ()), ("double", (5,))):
        ours.send_bytes(pickle.dumps(command))
        assert ours.poll(scaled())
        answers.append(pickle.loads(ours.recv_bytes()))
    ours.close()
    thread.join(scaled())
    assert not thread.is_alive()
    assert answers == [
        (True, 8),
        (False, {"kind": "other", "text": "KeyError: 'stage9'", "notices": ["no cache"]}),
        (True, 10),
    ]
    assert "Traceback" in capfd.readouterr().err  # for the log of the worker: the trial has one line of it
    theirs.close()


def started(code: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that runs `code` and prints the pids of its children, and these.

    It waits for the end of its standard input, which comes when the test closes it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": python_path()},
    )  # fmt: skip
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def check_children_end(process: subprocess.Popen[str], children: list[int]) -> None:
    try:
        assert children
        assert not have_ended(children)
        process.kill()
        wait_until(lambda: have_ended(children), "the end of the children")
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        for pid in children:
            if _runs(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_child_ends_with_a_killed_parent():
    check_children_end(
        *started("""
        import subprocess, sys
        code = "import sys; from lowrank.utils.processes import exit_with_parent; " \\
               "exit_with_parent(int(sys.argv[1])); " \\
            "print('ready', flush=True); sys.stdin.read()"
        import os
        child = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        sys.stdin.read()
    """)
    )


@pytest.mark.slow
def test_the_processes_of_a_trial_end_with_its_killed_worker():
    check_children_end(
        *started("""
        import os, sys
        from sweeps.execution.process_group import ProcessGroup
        from tests.support.processes import group_worker_pids, listening_sockets
        process_group = ProcessGroup(2, "cpu", 1)
        process_group.call_all("free_trainer")  # now they serve
        print(*group_worker_pids(os.getpid()), flush=True)
        sys.stdin.read()
    """)
    )


def test_decoders_that_hang_end_with_a_killed_worker(tmp_path):
    """Torch's own watchdog does not end them, because they wait for no batch."""
    check_children_end(
        *started(f"""
        mark = {str(tmp_path / "decoding")!r}
        import multiprocessing, os, threading
        import numpy, torch
        from lowrank.data import DataSettings, ImageData, AugmentationSettings, train_batches
        from lowrank.data.dataset import Split
        from lowrank.data.reading.image_store import ArrayStore

        class Hung(ArrayStore):
            def decode(self, indices, threads=None):
                open(mark, "w").close()
                threading.Event().wait()  # that nobody sets

        store = Hung(numpy.zeros((8, 4, 4, 1), numpy.uint8))
        split = Split(name="train", labels=torch.zeros(8, dtype=torch.int64), indices=torch.arange(8), resident=False,
                      store=store)
        data = ImageData(name="x", settings=DataSettings(), classes=("a", "b"), image_shape=(1, 4, 4), mean=(0.5,),
                         std=(0.3,), fingerprint="0" * 16, train=split, val=split, test=split)
        from tests.support.waiting import wait_until

        def print_pids():
            wait_until(lambda: os.path.exists(mark), "a decoder that hangs")
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)

        threading.Thread(target=print_pids, daemon=True).start()
        next(train_batches(data, "cpu", 4, augmentation=AugmentationSettings(), order_seed=0, epoch=0, workers=1))
    """)
    )


def test_a_batch_that_processes_cannot_share_is_refused_before_anything_is_trained(content):
    content["train"] |= {"batch_size": {"choice": [128, 100]}}
    space = parse_space("small", content)
    check_process_shards(space, 1, 1000)
    check_process_shards(space, 4, 1000)
    with pytest.raises(ValueError, match=r"8 processes of a trial must share each batch evenly, but got 100 images"):
        check_process_shards(space, 8, 1000)
    with pytest.raises(ValueError, match=r"but got 90 images"):
        check_process_shards(space, 4, 90)


def test_what_the_user_should_know_of_a_group_comes_with_its_epoch_or_its_error(tmp_path, monkeypatch):
    """Trials of several processes say too that their training is not compiled, also those that diverge at once."""

    class Diverging:
        epoch, steps_taken = 1, None

        def train_epoch(self) -> dict[str, float]:
            raise DivergedError("training loss nan", epoch=1, step=3, layer="x")

    class Plain(Diverging):
        def train_epoch(self) -> dict[str, float]:
            return {"val_error": 1.0}

    def make(trainer: Diverging) -> None:
        def make_trainer(*arguments: Any) -> Diverging:
            arguments[5]("training is not compiled")
            return trainer

        monkeypatch.setattr(group_worker, "make_trainer", make_trainer)

    monkeypatch.setattr(group_worker, "load_trial_data", lambda *_: SimpleNamespace(resident=True))
    ours, theirs = Pipe()
    worker = group_worker.GroupWorker(DataParallelGroup(0, 1), "cpu")
    threading.Thread(target=group_worker.serve, args=(worker, theirs), daemon=True).start()
    group = ProcessGroup.__new__(ProcessGroup)
    group._processes, group._pipes, group.count = [], [ours], 1
    group._folder = SimpleNamespace(name=str(tmp_path))  # type: ignore[assignment]
    notices: list[str] = []
    make(Plain())
    group.build(None, None, CacheOptions(), notices.append)  # type: ignore[arg-type]
    assert notices == []
    assert group.train_epoch() == {"val_error": 1.0}
    assert notices == ["training is not compiled"]
    make(Diverging())
    group.build(None, None, CacheOptions(), notices.append)  # type: ignore[arg-type]
    monkeypatch.setattr(ProcessGroup, "_end_processes", lambda group: None)
    with pytest.raises(DivergedError):
        group.train_epoch()
    assert notices == ["training is not compiled"] * 2
    ours.close()
