"""The trials of a worker, in this process: how they end, what they save, where they resume."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError, LoaderHungError
from lowrank.io.tensor_file import load_tensors, saved_versions
from lowrank.training.divergence import DivergedError
from lowrank.training.engine.step import TrainStep
from lowrank.training.trainer import Trainer
from sweeps.cluster import device_lost
from sweeps.cluster.devices import assigned_device, out_of_memory
from sweeps.execution import trainable as trainable_module
from sweeps.execution.trainable import TrialTrainable
from sweeps.execution.trial_config import CHECKPOINT_SECONDS, TrialConfig
from sweeps.execution.worker_errors import NetworkFailedError, WorkerLostError, check_memory_is_back, comes_again
from sweeps.records.image_errors import decode_wrong_images
from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER
from sweeps.records.specification import TrialSpec
from sweeps.trials.trained_network import weights_fingerprint
from tests.support.specifications import change
from tests.support.training import small_recipe, tensor_train

WEIGHTS = Path(__file__).resolve().parents[2] / "data" / "digits_resnet9.safetensors"
CUDA_ERROR = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


class Seconds:
    """Of training that a kill may lose, as the trials of a test have it."""

    checkpoint = CHECKPOINT_SECONDS


def trial_config(folder: Path, **train: Any) -> TrialConfig:
    data = load_data(DataSettings(train_images=200))
    specification = {
        "network": {"width": 0.125}, "method": tensor_train().model_dump(),
        "train": small_recipe(**train).model_dump(), "views": {"shift": 1}, "seed": 0,
        "data": {**data.settings.model_dump(), "fingerprint": data.fingerprint},
    }  # fmt: skip
    return TrialConfig(
        trial_id="t", specification=TrialSpec.parse(specification), study_dir=str(folder),
        checkpoint_seconds=Seconds.checkpoint,
    )  # fmt: skip


def config(folder: Path, **train: Any) -> dict[str, Any]:
    return trial_config(folder, **train).to_tune()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint_every_epoch(monkeypatch):
    monkeypatch.setattr(Seconds, "checkpoint", -1.0)


def raising(monkeypatch, error: BaseException, method: str = "train_epoch", owner: type = Trainer) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: out of memory\nmore"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {error}"[:30])
@pytest.mark.parametrize("where", ["train_epoch", "__init__"])
def test_memory_that_runs_out_is_an_outcome_with_one_line(monkeypatch, tmp_path, error, where):
    raising(monkeypatch, error, where)
    result = TrialTrainable(config(tmp_path)).step()
    assert (result["done"], result["outcome"]) == (True, "out_of_memory")
    assert result["attempt"]["from_epoch"] == 0
    assert result["reason"] == (str(error).splitlines() or ["MemoryError"])[0]


def test_a_trial_decodes_on_its_share_of_the_machine(tmp_path):
    settings = dataclasses.replace(trial_config(tmp_path), decoding_cores=5)
    worker = TrialTrainable(settings.to_tune())
    assert worker.trainer.decoders.workers == 5


def test_real_exhaustion_of_cpu_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert out_of_memory(caught.value)
    assert not device_lost(caught.value)


def test_the_worker_trains_the_next_trial_after_one_that_ran_out_of_memory(monkeypatch, tmp_path):
    worker = TrialTrainable(config(tmp_path))
    with monkeypatch.context() as patch:
        raising(patch, OUT_OF_MEMORY[0])
        worker.step()
    assert worker.reset(config(tmp_path, epochs=1))
    assert worker.step()["outcome"] == "completed"


def test_notices_come_with_the_result_of_a_trial_that_diverges_or_runs_out_of_memory(monkeypatch, tmp_path):
    for error in (OUT_OF_MEMORY[0], DivergedError("loss nan", epoch=1, layer="x")):
        worker = TrialTrainable(config(tmp_path))
        worker.notices.append("training is not compiled")
        with monkeypatch.context() as patch:
            raising(patch, error)
            assert worker.step()["notices"] == ["training is not compiled"]
        assert worker.notices == []


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError(CUDA_ERROR), RuntimeError(CUDA_ERROR), RuntimeError("CUDNN_STATUS_INTERNAL_ERROR")]
)
def test_a_device_error_ends_the_worker_without_touching_the_device_again(monkeypatch, tmp_path, error):
    worker = TrialTrainable(config(tmp_path))
    worker.step()
    raising(monkeypatch, error)
    with pytest.raises(WorkerLostError) as caught:
        worker.step()
    assert str(caught.value) == str(error).splitlines()[0]
    raising(monkeypatch, AssertionError("the device was used"), "state")
    worker.cleanup()


def test_a_trial_uses_the_cards_it_was_assigned_and_fails_if_it_sees_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert assigned_device(0) == "cpu"
    assert assigned_device(2, [0, 1]) == "cuda"
    with pytest.raises(InputError, match=r"was given 1 of .*'s cards, but torch sees 2"):
        assigned_device(0.5, [1])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"was given 0.5 of .*'s cards, but torch .* sees none there"):
        assigned_device(0.5, [1])


def test_a_loader_that_hangs_ends_the_worker(monkeypatch, tmp_path):
    worker = TrialTrainable(config(tmp_path))
    raising(monkeypatch, LoaderHungError("no batch came from the loader's processes for 120 s"))
    with pytest.raises(WorkerLostError, match="no batch came"):
        worker.step()


@pytest.mark.parametrize(("owner", "method"), [(TrainStep, "update"), (Trainer, "evaluate")])
def test_an_epoch_that_fails_half_way_is_not_saved(monkeypatch, tmp_path, owner, method):
    """The worker then ends; weights that it saved would be half an epoch further than its history."""
    undisturbed = TrialTrainable(config(tmp_path / "whole", epochs=3))
    expected = [undisturbed.step()["metrics"]["val_loss"] for _ in range(3)]
    worker = TrialTrainable(replace(trial_config(tmp_path, epochs=3), checkpoint_seconds=0).to_tune())
    worker.step()
    with monkeypatch.context() as broken:
        raising(broken, LoaderHungError("no batch came from the loader's processes for 120 s"), method, owner)
        with pytest.raises(WorkerLostError):
            worker.step()
    worker.cleanup()
    again = TrialTrainable(config(tmp_path, epochs=3))
    first = again.step()
    epochs = [*first["history"], first["metrics"], again.step()["metrics"]]
    assert [epoch["val_loss"] for epoch in epochs] == expected


def test_any_other_error_is_raised_unchanged(monkeypatch, tmp_path):
    worker = TrialTrainable(config(tmp_path))
    raising(monkeypatch, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        worker.step()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("step three is\ntoo much"), "ValueError: step three is"),
        (RuntimeError("mat1 and mat2 shapes"), "RuntimeError: mat1 and mat2 shapes"),
        (SystemExit("bye"), "SystemExit: bye"),
    ],
)
def test_an_error_of_the_networks_own_forward_ends_the_trial_at_once(tmp_path, error, reason):
    """An epoch depends on the state before it alone, so the error would come again."""
    worker = TrialTrainable(config(tmp_path))
    worker.step()
    worker.trainer.network.classifier.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    result = worker.step()
    assert (result["done"], result["outcome"]) == (True, "failed")
    assert result["reason"].startswith(reason)
    assert "\n" not in result["reason"]
    assert worker.reset(config(tmp_path / "next", epochs=1))
    assert worker.step()["outcome"] == "completed"


def test_an_error_of_a_file_or_of_a_cards_library_may_not_come_again(tmp_path):
    def raised(error: Exception) -> Exception:
        layer = torch.nn.Identity()
        layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)) as caught:
            layer(0)
        return caught.value

    assert comes_again(raised(RuntimeError("shapes")), "cpu")
    assert not comes_again(raised(RuntimeError("cuDNN did not find a plan")), "cuda")
    assert comes_again(raised(IndexError("no such stage")), "cuda")
    assert not comes_again(raised(FileNotFoundError("table.npy")), "cpu")
    assert not comes_again(RuntimeError("outside of the network"), "cpu")


class LostGroup:
    """Stands for processes of which one is lost in the second epoch that they train."""

    alive = True

    def __init__(self, *arguments: object) -> None:
        self.epoch = 0

    def build(self, *arguments: object) -> None:
        self.epoch = 0

    def train_epoch(self) -> dict[str, float]:
        if self.epoch:
            raise WorkerLostError("the trial lost process 1 of 2")
        self.epoch = 1
        return {"val_error": 50.0, "epoch_seconds": 0.1}

    def state(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_the_loss_of_a_group_is_reported_with_the_attempt_if_no_epoch_has(monkeypatch, tmp_path, epochs_before):
    monkeypatch.setattr(trainable_module, "ProcessGroup", LostGroup)
    worker = TrialTrainable(replace(trial_config(tmp_path, epochs=3), processes=2).to_tune())
    worker.trainer.epoch = 1 - epochs_before  # the next epoch fails, or the one after it
    monkeypatch.setattr(worker, "is_checkpoint_due", lambda epoch_seconds: False)
    results = [worker.step() for _ in range(epochs_before + 1)]
    attempts = [result["attempt"] for result in results]
    assert attempts[0]["processes"] == 2
    assert [attempt and attempt.get("reason") for attempt in attempts] == (
        [None, None] if epochs_before else ["the trial lost process 1 of 2"]
    )
    assert results[-1]["lost"] == "the trial lost process 1 of 2"


def test_an_error_of_the_network_in_a_process_of_a_group_ends_the_trial_at_once(monkeypatch, tmp_path):
    class FailingGroup(LostGroup):
        def train_epoch(self) -> dict[str, float]:
            raise NetworkFailedError("ValueError: no such stage")

    monkeypatch.setattr(trainable_module, "ProcessGroup", FailingGroup)
    result = TrialTrainable(replace(trial_config(tmp_path, epochs=3), processes=2).to_tune()).step()
    assert (result["done"], result["outcome"], result["reason"]) == (True, "failed", "ValueError: no such stage")
    assert result["attempt"]["processes"] == 2


def test_an_error_of_the_set_up_is_raised_by_the_first_step_and_not_before(tmp_path):
    """Ray Tune does not retry a trial whose `reset_config` fails."""
    right = trial_config(tmp_path)
    other_images = change(right.specification, data={"fingerprint": "0" * 16})
    wrong = replace(right, specification=other_images).to_tune()
    worker = TrialTrainable(config(tmp_path))
    worker.step()
    assert worker.reset(wrong)
    with pytest.raises(ValueError, match="but the study has 0000000000000000"):
        worker.step()
    assert worker.reset(config(tmp_path))
    assert worker.step()["epoch"] == 1


def test_what_later_trials_leave_behind_can_still_be_collected(tmp_path, monkeypatch):
    """Frozen garbage never is; what was there before the first change of trial stays anyway."""
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    worker = TrialTrainable(config(tmp_path))
    for _ in range(3):
        assert worker.reset(config(tmp_path))
    assert len(frozen) == 1


def test_device_memory_that_does_not_come_back_ends_the_worker():
    data, device = load_data(DataSettings(train_images=200)), torch.device("cpu")
    data.train.on(device)
    images = data.train.images.numel() / 1e6
    check_memory_is_back(data, 999, device)
    with pytest.raises(WorkerLostError, match="2,000 MB of device memory did not come back after a trial"):
        check_memory_is_back(data, 2000, device)
    assert images < 1


def files(folder: Path) -> list[Path]:
    return saved_versions(folder / TRIALS_FOLDER / "t" / CHECKPOINT_FILE)


def curve(worker: TrialTrainable, epochs: int) -> list[float]:
    return [worker.step()["metrics"]["train_loss"] for _ in range(epochs)]


@pytest.mark.parametrize(
    ("since", "epoch_seconds", "due"), [(1, 2, False), (20, 9, False), (20, 11, True), (1, 400, True)]
)
def test_a_checkpoint_is_written_before_the_next_epoch_would_cost_too_much(
    monkeypatch, tmp_path, since, epoch_seconds, due
):
    worker = TrialTrainable(replace(trial_config(tmp_path), checkpoint_seconds=30).to_tune())
    monkeypatch.setattr("time.monotonic", lambda: worker.saved_at + since)
    assert worker.is_checkpoint_due(epoch_seconds) == due


@pytest.mark.usefixtures("checkpoint_every_epoch")
@pytest.mark.parametrize(("damaged", "from_epoch"), [(0, 2), (1, 1), (2, 0)])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_notice(tmp_path, damaged, from_epoch):
    train = {"epochs": 4, "ema_decay": 0.9}
    undisturbed = curve(TrialTrainable(config(tmp_path / "whole", **train)), 4)
    curve(TrialTrainable(config(tmp_path, **train)), 2)
    assert len(files(tmp_path)) == 2
    for path in files(tmp_path)[:damaged]:
        path.write_bytes(path.read_bytes()[:300])
    worker = TrialTrainable(config(tmp_path, **train))
    folder = tmp_path / TRIALS_FOLDER / worker.trial.trial_id
    assert len(list(folder.glob("*.unusable"))) == damaged
    first = worker.step()
    assert first["attempt"]["from_epoch"] == from_epoch
    assert [epoch["train_loss"] for epoch in first["history"]] == undisturbed[:from_epoch]
    assert first["metrics"]["train_loss"] == undisturbed[from_epoch]
    assert curve(worker, 3 - from_epoch) == undisturbed[from_epoch + 1 :]
    assert len(first["notices"]) == damaged
    assert all("is not usable, the trial goes on from what was before it" in text for text in first["notices"])
    assert list(folder.glob("*.unusable")) == []  # the trial has ended: nobody goes back to them


@pytest.mark.usefixtures("checkpoint_every_epoch")
def test_a_checkpoint_that_this_code_cannot_load_stays_and_one_that_can_not_be_read_too(tmp_path, monkeypatch):
    curve(TrialTrainable(config(tmp_path, epochs=4)), 2)
    before = [path.read_bytes() for path in files(tmp_path)]
    with monkeypatch.context() as changed:
        raising(changed, RuntimeError("Error(s) in loading state_dict\nmore"), "load_state")
        first = TrialTrainable(config(tmp_path, epochs=4)).step()
    assert first["attempt"]["from_epoch"] == 0
    folder = files(tmp_path)[0].parent
    unusable = [folder / f"{name}.unusable" for name in (CHECKPOINT_FILE, "checkpoint.1.safetensors")]
    assert [path.read_bytes() for path in unusable] == before
    assert "Error(s) in loading state_dict; the file is now checkpoint.safetensors.unusable" in first["notices"][0]
    assert not any("damaged" in text for text in first["notices"])
    for path in unusable:  # as a user would do it who goes back to the older code
        path.replace(folder / path.name.removesuffix(".unusable"))
    assert TrialTrainable(config(tmp_path, epochs=4)).step()["attempt"]["from_epoch"] == 2

    real = trainable_module.load_tensors
    newest = files(tmp_path)[0]

    def load(path, device):
        if path == newest:
            raise PermissionError("the file cannot be read")
        return real(path, device)

    monkeypatch.setattr(trainable_module, "load_tensors", load)
    first = TrialTrainable(config(tmp_path, epochs=4)).step()
    assert first["attempt"]["from_epoch"] == 2
    assert len(first["notices"]) == 1


@pytest.mark.usefixtures("checkpoint_every_epoch")
def test_a_changed_digit_beside_the_tensors_counts_as_damage(tmp_path):
    curve(TrialTrainable(config(tmp_path, epochs=4)), 2)
    newest = files(tmp_path)[0]
    content, mark = newest.read_bytes(), b'val_error\\": '
    digit = content.index(mark) + len(mark)
    newest.write_bytes(content[:digit] + (b"1" if content[digit : digit + 1] != b"1" else b"2") + content[digit + 1 :])
    first = TrialTrainable(config(tmp_path, epochs=4)).step()
    assert first["attempt"]["from_epoch"] == 1
    assert "is damaged: its metadata do not have their checksum" in first["notices"][0]


@pytest.mark.usefixtures("checkpoint_every_epoch")
def test_a_finished_trial_has_one_file_with_the_weights_that_were_evaluated(tmp_path):
    worker = TrialTrainable(config(tmp_path, epochs=2, ema_decay=0.9))
    last = [worker.step() for _ in range(2)][-1]
    assert last["outcome"] == "completed"
    (path,) = files(tmp_path)
    state, metadata = load_tensors(path)
    assert metadata["trial_id"] == "t"
    assert {name.partition(".")[0] for name in state} == {"network", "epoch"}
    wrong = decode_wrong_images(last["wrong_images"])
    assert len(wrong) == len(worker.data.val)
    assert 100 * wrong.mean() == pytest.approx(last["metrics"]["val_error"])
    assert worker.trainer.step.ema is not None
    average = worker.trainer.step.ema.tensors["classifier.weight"]
    assert torch.equal(state["network.classifier.weight"], average)
    again = TrialTrainable(config(tmp_path, epochs=2, ema_decay=0.9)).step()
    names = ("outcome", "metrics", "wrong_images")  # also where the driver was killed before it recorded the end
    assert [again[name] for name in names] == [last[name] for name in names]


def test_wrong_images_of_earlier_epochs_are_reported_where_the_study_may_stop_the_trial(tmp_path):
    for may_stop in (False, True):
        worker = TrialTrainable(
            replace(trial_config(tmp_path, epochs=2), may_stop=may_stop, trial_id=f"t{may_stop}").to_tune()
        )
        reports = [worker.step() for _ in range(2)]
        assert [bool(report["wrong_images"]) for report in reports] == [may_stop, True]
        for report in reports[not may_stop :]:
            wrong = decode_wrong_images(report["wrong_images"])
            assert 100 * wrong.mean() == pytest.approx(report["metrics"]["val_error"])


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("checkpoint_every_epoch")
def test_a_full_disk_costs_an_intermediate_checkpoint_but_not_the_trial(tiny_disk):
    worker = TrialTrainable(config(tiny_disk))
    (tiny_disk / "other").write_bytes(bytes(40_000))
    assert worker.step()["notices"] == []
    (notice,) = worker.step()["notices"]
    assert "no checkpoint after epoch 1, the trial goes on" in notice
    assert "No space left" in notice
    assert files(tiny_disk) == []
    assert not list(tiny_disk.rglob("*.tmp"))
    with pytest.raises(OSError, match="could not be written"):  # a trial without its weights is not complete
        worker.step()


def test_a_trial_that_shares_a_card_uses_the_sharing_mode_of_the_study(monkeypatch, tmp_path):
    """The mode is set before the card is used, and recorded; a trial on a CPU has none."""
    environments: list[str | None] = []

    def assign_device(gpus: float, cards: Any = ()) -> str:
        environments.append(os.environ.get("A_SERVICE"))
        return "cpu"

    monkeypatch.delenv("A_SERVICE", raising=False)
    monkeypatch.setattr(trainable_module, "assigned_device", assign_device)
    monkeypatch.setattr(trainable_module, "assigned_resources", lambda trainable: (1.0, 0.5))
    shared = replace(trial_config(tmp_path), sharing=("mps", {"A_SERVICE": "here"})).to_tune()
    try:
        assert TrialTrainable(shared).step()["attempt"]["sharing"] == "mps"
    finally:
        os.environ.pop("A_SERVICE", None)
    assert environments == ["here"]
    monkeypatch.setattr(trainable_module, "assigned_resources", lambda trainable: (1.0, 0.0))
    assert "sharing" not in TrialTrainable(config(tmp_path / "other")).step()["attempt"]


def test_the_time_between_two_epochs_is_a_metric(tmp_path):
    worker = TrialTrainable(config(tmp_path, epochs=2))
    first = worker.step()["metrics"]
    worker.epoch_ended_at -= 100.0
    second = worker.step()["metrics"]
    assert 0 <= first["report_seconds"] < 100 <= second["report_seconds"]
    assert first["epoch_seconds"] >= first["input_seconds"] + first["eval_seconds"] > 0


def started_config(folder: Path, fingerprint: str | None = None, **train: Any) -> dict[str, Any]:
    """A trial that starts from the trained network of tests/data."""
    plain = trial_config(folder, **train)
    start = {"from": str(WEIGHTS), "fingerprint": fingerprint or weights_fingerprint(WEIGHTS)}
    content = plain.specification.to_json() | {
        "network": {"width": 0.0625},
        "method": {"name": "dense"},
        "start": start,
    }
    return replace(plain, specification=TrialSpec.parse(content)).to_tune()


def test_the_error_before_any_training_comes_with_the_first_result_and_survives_a_resume(tmp_path):
    trial = TrialTrainable(started_config(tmp_path, epochs=2))
    first = trial.step()
    assert 0 < first["initial"]["val_error"] < 60
    assert first["initial"]["layers"] == []  # no layer was replaced
    assert first["epoch"] == 1
    trial.save_if_possible()
    resumed = TrialTrainable(started_config(tmp_path, epochs=2))
    assert resumed.step()["initial"] == first["initial"]


def test_a_trial_of_no_epochs_is_only_evaluated(tmp_path):
    trial = TrialTrainable(started_config(tmp_path, epochs=0))
    result = trial.step()
    assert (result["outcome"], result["epoch"], result["done"]) == ("completed", 0, True)
    assert result["val_error"] == result["initial"]["val_error"]
    assert "metrics" not in result
    assert len(decode_wrong_images(result["wrong_images"])) > 0
    assert (tmp_path / TRIALS_FOLDER / "t" / CHECKPOINT_FILE).is_file()


def test_a_start_from_another_file_than_the_study_began_with_fails_in_one_line(tmp_path):
    changed = started_config(tmp_path, "0" * 16)
    with pytest.raises(InputError, match="the weights to start from have changed"):
        TrialTrainable(changed).step()
