"""Replayed validation has the numbers of the plain loop; where it cannot be recorded, it is plain after a notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.training import trainer as trainer_module
from lowrank.training.divergence import DivergedError
from lowrank.training.engine import captured_evaluation, compiled_forward
from lowrank.training.metrics import EvalMeter
from lowrank.training.trainer import Trainer
from lowrank.utils import hold_lock
from tests.support.own_networks import ConvolutionalNetwork
from tests.support.recorder import OperationRecorder, recording_on_cpu
from tests.support.traced_graphs import graphs_without_compiler
from tests.support.training import copied_state, small_recipe, small_trainer, tensor_train

CLASSES = 10
Seen = tuple[dict[str, float], Tensor]  # of an evaluation: metrics, and which images are wrong


class ReadsValue(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        return x if self.training or float(x.mean()) > 0 else 2 * x


class KeepsForEvaluation(ConvolutionalNetwork):
    """Computes a tensor from a weight once for all batches of an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.tables = {}
        return super().train(mode)

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            return x * self.norm.weight.exp()
        if not self.tables:
            self.tables["scale"] = self.norm.weight.detach().exp()
        return x * self.tables["scale"]


class CentresBatch(ConvolutionalNetwork):
    """Images of a batch have an influence on each other, so fewer images have other logits."""

    def last(self, x: Tensor) -> Tensor:
        return x if self.training else 10 * (x - x.mean(0))


class CountsOnDevice(ConvolutionalNetwork):
    """A buffer that evaluations change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("evaluated", torch.zeros(()))

    def last(self, x: Tensor) -> Tensor:
        self.evaluated += not self.training
        return x


class DropsByRate(ConvolutionalNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def set_drop_path(self, rate: float) -> None:
        self.rate = rate

    def last(self, x: Tensor) -> Tensor:
        return x * (1 - self.rate)


class CallingRecorder(OperationRecorder):
    """Calls what it was given again, as compiled code needs where there is no CUDA graph.

    Args:
        evaluation: changes the replay of a forward pass in evaluation mode.
    """

    def __init__(self, evaluation: Callable[[Callable[[], None]], Callable[[], None]] | None = None) -> None:
        self._evaluation = evaluation

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Give back what it was given."""
        changed = self._evaluation is not None and "_run_forward" in getattr(run, "__qualname__", "")
        return self._evaluation(run) if changed and self._evaluation is not None else run


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five batches of the 200 images of validation."""
    monkeypatch.setattr(trainer_module, "MIN_EVAL_BATCH", 40)


def trained(
    engine: str = "captured", make: Callable[[], nn.Module] = ConvolutionalNetwork, **options: Any
) -> tuple[Trainer, list[Any]]:
    """Train two epochs of three; the trainer and its notices."""
    torch.manual_seed(0)
    notices: list[str] = []
    fields = options.pop("fields", {})
    network = {} if "method" in options else {"network": make()}
    run = small_trainer(small_recipe(engine=engine, **fields), notify=notices.append, **network, **options)
    for _ in range(2):
        run.train_epoch()
    return run, notices


def both(run: Trainer) -> tuple[Seen, Seen]:
    """Evaluate as the trainer does, and by the plain loop."""
    seen = []
    captured, epoch = run.captured_evaluation, run.captured_epoch
    for evaluation in (captured, None):
        run.captured_evaluation = evaluation
        seen.append((run.evaluate("val"), run.wrong_images["val"]))
    run.captured_evaluation, run.captured_epoch = captured, epoch
    return seen[0], seen[1]


def is_recorded(run: Trainer) -> bool:
    return run.captured_evaluation is not None and run.captured_evaluation.replay is not None


def assert_equal(left: Seen, right: Seen) -> None:
    """Equal to the bit."""
    assert left[0] == right[0]
    assert torch.equal(left[1], right[1])


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}], ids=["plain", "moving average"])
def test_replayed_batches_have_the_metrics_of_the_plain_loop(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_on_cpu(monkeypatch):
        run, notices = trained(fields=fields)
    assert is_recorded(run)
    assert notices == []
    assert_equal(*both(run))
    with torch.no_grad():
        run.network.head.bias[3] += 5  # replays read the weights as they are now
    replayed, plain = both(run)
    assert_equal(replayed, plain)
    assert replayed[0]["error"] > 50


@pytest.mark.parametrize(
    ("make", "pads"),
    [(ConvolutionalNetwork, True), (CentresBatch, False)],
    ids=["alone", "with an influence on each other"],
)
def test_images_of_an_incomplete_batch_are_counted_once(
    make: type[ConvolutionalNetwork], pads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "MIN_EVAL_BATCH", 64)  # three batches, and one of eight images
    with recording_on_cpu(monkeypatch):
        run, _ = trained(make=make)
    assert is_recorded(run)
    assert run.captured_evaluation is not None
    assert run.captured_evaluation.pads == pads
    (replayed, wrong), (plain, plain_wrong) = both(run)
    assert replayed == pytest.approx(plain, rel=1e-6)  # fewer images may be summed in another order
    assert torch.equal(wrong, plain_wrong)
    assert len(wrong) == 200


def test_images_behind_an_incomplete_batch_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        run, _ = trained()
    assert run.captured_evaluation is not None
    images, labels = torch.rand(100, 1, 8, 8), torch.arange(100) % CLASSES
    batches = list(zip(images.split([40, 20, 40]), labels.split([40, 20, 40]), strict=True))
    replayed, plain = (EvalMeter(CLASSES, torch.device("cpu"), 100) for _ in range(2))
    run.network.eval()
    with torch.no_grad():
        run.captured_evaluation.run(iter(batches), replayed)  # type: ignore[arg-type]
        for part, classes in batches:
            plain.add(run.network(part), classes)
    assert replayed.count == 100
    assert replayed.read() == pytest.approx(plain.read(), rel=1e-5)
    assert torch.equal(replayed.wrong_images, plain.wrong_images)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_are_rebuilt_from_their_factors_for_each_evaluation(
    ema_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    with recording_on_cpu(monkeypatch):
        recipe = small_recipe(engine="captured", ema_decay=ema_decay)
        run = small_trainer(recipe, method=tensor_train(), notify=pytest.fail)
        run.step.objective.rebuild = BatchedRebuild(run.network)  # as on a GPU
        for _ in range(2):
            run.train_epoch()
            assert is_recorded(run)
            assert_equal(*both(run))


def test_recording_leaves_no_trace_in_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = trained("plain", CountsOnDevice)
    with recording_on_cpu(monkeypatch):
        run, _ = trained(make=CountsOnDevice)
    assert is_recorded(run)
    assert run.network.evaluated.item() == plain.network.evaluated.item() == 10  # two evaluations of five batches
    for name, tensor in plain.state().items():
        torch.testing.assert_close(run.state()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_neither_the_last_evaluation_alone_nor_another_split_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        short = small_trainer(small_recipe(engine="captured", epochs=1), network=ConvolutionalNetwork())
        short.train_epoch()
        assert not is_recorded(short)
        run, _ = trained()
    assert run.captured_evaluation is not None
    monkeypatch.setattr(run.captured_evaluation, "run", lambda *_: pytest.fail("the test split was replayed"))
    assert run.evaluate("test")["error"] > 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ReadsValue, "the network reads the value of a tensor in `forward` (aten._local_scalar_dense.default)"),
        (KeepsForEvaluation, "the network makes a tensor in evaluation that it gives up in training"),
    ],
)
def test_a_network_whose_evaluation_would_freeze_is_evaluated_plain_after_one_notice(
    make: type[nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_on_cpu(monkeypatch):
        run, notices = trained(make=make)
    assert notices == [f"validation is not recorded, and so is slower: {reason}"]
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is not None
    assert not is_recorded(run)
    assert_equal(*both(run))


def fails(run: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def does_nothing(run: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        (fails, "operation not permitted when stream is capturing"),
        (does_nothing, "a replay differs from the plain network: its logits are off by "),
    ],
)
def test_an_evaluation_that_cannot_be_recorded_is_plain_after_one_notice(
    evaluation: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_on_cpu(monkeypatch, CallingRecorder(evaluation)):
        run, (notice,) = trained()
    assert notice.startswith(f"validation is not recorded, and so is slower: {reason}")
    assert not is_recorded(run)
    assert_equal(*both(run))


def test_memory_that_runs_out_halves_the_batch_of_a_recorded_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def full(run: Callable[[], None]) -> Callable[[], None]:
        sizes.append(len(run.__self__._images))  # type: ignore[attr-defined]
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return run

    with recording_on_cpu(monkeypatch, CallingRecorder(full)):
        run, notices = trained()
    assert (sizes, notices) == ([40, 20], [])
    assert is_recorded(run)


def test_an_attribute_that_changes_between_epochs_ends_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        run, _ = trained(make=DropsByRate, fields={"drop_path": 0.5})
    assert not is_recorded(run)
    assert_equal(*both(run))


def test_another_state_is_evaluated_plain_until_its_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        run, _ = trained()
        run.load_state(copied_state(run))
        assert not is_recorded(run)
        assert_equal(*both(run))
        run.epoch -= 1
        run.train_epoch()
        assert is_recorded(run)
        assert_equal(*both(run))


def test_a_replayed_validation_that_diverges_is_traced_to_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        run, _ = trained()
        assert is_recorded(run)
        with torch.no_grad():
            run.network.norm.running_var.fill_(float("nan"))  # training does not read it
        monkeypatch.setattr(run, "train_steps", lambda: run._new_meter(1))
        monkeypatch.setattr(trainer_module.TrainMeter, "read", lambda self: {})
        monkeypatch.setattr(trainer_module.TrainMeter, "images", 1)
        run.epoch = 1
        with pytest.raises(DivergedError, match="validation loss nan after epoch 2; first in the output of `norm`"):
            run.train_epoch()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is traced; it runs without a compiler."""
    monkeypatch.setattr(captured_evaluation, "LONG_EVALUATION_BATCHES", 0)
    with graphs_without_compiler(monkeypatch) as traced:
        yield traced


def test_networks_that_differ_in_their_factors_share_one_compiled_evaluation(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_on_cpu(monkeypatch, CallingRecorder()):
        for params in (4500, 6000):
            run, notices = trained("compiled", method=tensor_train(params))
            assert is_recorded(run)
            assert run.captured_evaluation is not None
            assert run.captured_evaluation.compiled
            assert notices == []
            (replayed, wrong), (plain, plain_wrong) = both(run)
            assert replayed == pytest.approx(plain, rel=1e-5)
            assert torch.equal(wrong, plain_wrong)
    assert len(graphs) == 2  # one for the steps, one for evaluations


def test_an_evaluation_that_another_process_compiles_is_plain_until_then(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_forward.CompiledLogits, "digest", lambda *_: "abcd")
    folder = tmp_path / compiled_forward.COMPILED_FOLDER
    folder.mkdir()
    with recording_on_cpu(monkeypatch, CallingRecorder()):
        with hold_lock(folder / "abcd.lock"):
            run, notices = trained("compiled")
            assert (is_recorded(run), notices) == (False, [])
        run.evaluate("val")
    assert is_recorded(run)
    assert len(graphs) == 2


def test_an_evaluation_that_cannot_be_compiled_is_recorded_after_one_notice(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise compiled_forward.NotCompilableError("its module `head` has hooks")

    monkeypatch.setattr(captured_evaluation, "CompiledNetwork", refuse)
    with recording_on_cpu(monkeypatch, CallingRecorder()):
        run, notices = trained("compiled")
    assert notices == ["validation is not compiled, and so is slower: its module `head` has hooks"]
    assert is_recorded(run)
    assert run.captured_evaluation is not None
    assert not run.captured_evaluation.compiled
    assert_equal(*both(run))
    assert len(graphs) == 1


def test_a_compiler_that_fails_leaves_no_weights_to_be_rebuilt(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a batched rebuild each forward pass makes its own: the graph that fills them would be empty."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled_forward.CompiledLogits, "__call__", fail)
    with recording_on_cpu(monkeypatch, CallingRecorder()):
        run, notices = trained("compiled", method=tensor_train())
    assert notices == ["validation is not compiled, and so is slower: no compiler"]
    assert is_recorded(run)
    assert run.captured_evaluation is not None
    assert run.captured_evaluation._rebuild_weights is None
    assert_equal(*both(run))
    assert len(graphs) == 1


def test_the_time_of_recording_is_no_time_of_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording_on_cpu(monkeypatch):
        run = small_trainer(small_recipe(engine="captured"), network=ConvolutionalNetwork())
        first, second = run.train_epoch(), run.train_epoch()
    assert first["eval_compile_seconds"] > 0
    assert "eval_compile_seconds" not in second
    assert first["eval_seconds"] + first["eval_compile_seconds"] + first["compile_seconds"] < first["epoch_seconds"]
