"""The pointwise maps joined with their norms on a GPU: right, how fast, and what they do for ResNet-9's compiled step.

    python -m tests.benchmarks.gpu_kernels [--tune]

Each shape of ResNet-9 at batch 512, bfloat16: the relative distance (Frobenius norm) of every result from float64's,
joined and apart (a library's products around lowrank.kernels.norm), which may not be larger; then the time of both, as
replays of a CUDA graph. Meanwhile two processes compile the whole step, one without the joined kernels, and are timed
one after the other. `--tune` times other ways to cut each kernel's work instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench_cudagraph

from lowrank.kernels import pointwise, rewrite
from lowrank.kernels.norm import norm, norm_backward
from lowrank.kernels.pointwise import Form, backward_form, forward_form, pointwise_norm, pointwise_norm_backward
from tests.benchmarks.bench_engine import difference
from tests.benchmarks.engine_processes import Bench, Case

BATCH, EPS = 512, 1e-5
REPLAYS = 40
CASE = Case(network="resnet9", device="cuda", batch=BATCH, images=20_480, seconds=1.5, way="compiled")
WORSE = 1.2  # a joined result may be so much farther from float64's than the other form's, and 1e-4 more
RESULTS = ("result", "to input", "to matrix", "to weight", "to bias")


@dataclass(frozen=True)
class Layer:
    """A map of ResNet-9 and what follows it."""

    channels: int
    outs: int
    size: int
    pool: bool
    adds: bool

    def __str__(self) -> str:
        return f"{self.channels:>3} to {self.outs:>3} at {self.size:>2}{', pooled' if self.pool else ''}" + (
            ", residual" if self.adds else ""
        )


LAYERS = (
    Layer(64, 128, 32, True, False), Layer(128, 128, 16, False, False), Layer(128, 128, 16, False, True),
    Layer(128, 256, 16, True, False),
)  # fmt: skip


class Inputs:
    """What one layer works on, drawn from a fixed seed; means and scales as if trained, some scales negative."""

    def __init__(self, layer: Layer, batch: int = BATCH, device: str = "cuda", dtype: torch.dtype = torch.bfloat16):
        torch.manual_seed(0)
        self.layer = layer
        size = layer.size // 2 if layer.pool else layer.size

        def images(channels: int, size: int) -> Tensor:
            x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
            return x.contiguous(memory_format=torch.channels_last)

        self.x, self.gradient = images(layer.channels, layer.size) + 0.5, images(layer.outs, size)
        self.residual = images(layer.outs, size) if layer.adds else None
        self.matrix = (torch.randn(layer.outs, layer.channels, device=device) / layer.channels**0.5).to(dtype)
        self.weight, self.bias = torch.randn(2, layer.outs, device=device)

    def exact(self) -> list[Tensor]:
        """The result and its gradients in float64."""
        given = [each.double().requires_grad_() for each in (self.x, self.matrix, self.weight, self.bias)]
        x, matrix, weight, bias = given
        y = functional.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
        y = functional.relu(functional.batch_norm(y, None, None, weight, bias, training=True, eps=EPS))
        y = functional.max_pool2d(y, 2) if self.layer.pool else y
        y = y if self.residual is None else y + self.residual.double()
        return [y.detach(), *torch.autograd.grad(y, given, self.gradient.double())]

    def apart(self) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
        """Forward and backward pass as they are without the joined kernels."""
        rows = self.x.permute(0, 2, 3, 1)
        norms = (self.weight, self.bias, self.residual, EPS, True, self.layer.pool)

        def forward() -> tuple[Tensor, ...]:
            product = functional.linear(rows, self.matrix).permute(0, 3, 1, 2)
            return (*norm(product, *norms), product)

        _, mean, variance, product = forward()

        def backward() -> list[Tensor]:
            back, to_weight, to_bias = norm_backward(
                self.gradient, product, self.weight, self.bias, mean, variance, EPS, True, self.layer.pool
            )
            flat = back.permute(0, 2, 3, 1).flatten(0, 2)
            to_x = (flat @ self.matrix).view(rows.shape).permute(0, 3, 1, 2)
            return [to_x, flat.mT @ rows.flatten(0, 2), to_weight, to_bias]

        return forward, backward

    def joined(self) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
        """Likewise as they are with them."""
        norms = (self.weight, self.bias, self.residual, EPS, True, self.layer.pool)

        def forward() -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = pointwise_norm(self.x, self.matrix, *norms)
            return found

        _, mean, variance, product, picked = forward()

        def backward() -> list[Tensor]:
            return list(pointwise_norm_backward(
                self.gradient, self.x, self.matrix, product, picked, self.weight, self.bias, mean, variance, EPS, True,
                self.layer.pool,
            ))  # fmt: skip

        return forward, backward


def distances(
    layer: Layer, batch: int = BATCH, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> tuple[list[float], list[float]]:
    """How far the results of both forms, joined and apart, are from float64's."""
    with torch.no_grad():
        inputs = Inputs(layer, batch, device, dtype)
        with torch.enable_grad():
            wanted = inputs.exact()
        found = []
        for forward, backward in (inputs.joined(), inputs.apart()):
            results = zip([forward()[0], *backward()], wanted, strict=True)
            found.append([float((ours.double() - exact).norm() / exact.norm()) for ours, exact in results])
    return found[0], found[1]


def microseconds(work: Callable[[], Any]) -> float:
    """Of one call among many in a CUDA graph."""
    return 1e3 * float(do_bench_cudagraph(work, rep=20, return_mode="median"))


def timed(layer: Layer) -> list[float]:
    """Forward and backward, apart and joined."""
    with torch.no_grad():
        inputs = Inputs(layer)
        apart, joined = inputs.apart(), inputs.joined()
        return [microseconds(work) for work in (apart[0], joined[0], apart[1], joined[1])]


def _whole_step(joined: bool, folder: str, asked: Any, answers: Any) -> None:
    """A process that compiles the step, then says how fast it is when it is asked."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # of its own, so that the two need not wait for each other
    if not joined:
        rewrite.FUSED = ()
    try:
        bench = Bench("cuda")
        seconds = bench.prepare(CASE)
        losses = bench.losses(CASE)
        plain = bench.losses(replace(CASE, way="plain")) if joined else losses
        answers.put((seconds, losses, plain))
        asked.get()
        answers.put((graph_ms(bench), bench.train(CASE)[0]))
        asked.get()
    except Exception as error:
        answers.put(error)


def graph_ms(bench: Bench) -> float:
    """Milliseconds of one replay of the recorded step, the median of many."""
    graph = bench.trainer.captured._graph  # type: ignore[union-attr]
    assert graph is not None
    found = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


class Steps:
    """Two processes, with and without the joined kernels."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self._queues = [(context.Queue(), context.Queue()) for _ in range(2)]
        self._folders = [tempfile.TemporaryDirectory() for _ in range(2)]
        self._workers = [
            context.Process(target=_whole_step, args=(joined, folder.name, *pair), daemon=True)
            for joined, folder, pair in zip((True, False), self._folders, self._queues, strict=True)
        ]
        for worker in self._workers:
            worker.start()

    def answer(self, which: int, *, ask: bool) -> Any:
        """The next answer of the process with (0) or without (1) them; raises what it raised."""
        if ask:
            self._queues[which][0].put(True)
        found = self._queues[which][1].get(timeout=240)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End them."""
        for (asked, _), worker, folder in zip(self._queues, self._workers, self._folders, strict=True):
            asked.put(True)
            worker.join(5)
            worker.kill()
            worker.join()
            folder.cleanup()


def check(layer: Layer) -> str:
    """One layer's distances in words; raises AssertionError where the joined ones are larger."""
    joined, apart = distances(layer)
    for name, ours, theirs in zip(RESULTS, joined, apart, strict=True):
        assert ours <= WORSE * theirs + 1e-4, f"{layer}: {name} is {ours:.3g} from float64's, but {theirs:.3g} apart"
    pairs = zip(RESULTS, joined, apart, strict=True)
    return f"{layer!s:<28} " + "  ".join(f"{name} {ours:.1e} ({theirs:.1e})" for name, ours, theirs in pairs)


def other_forms(layer: Layer) -> dict[str, list[Form]]:
    """Ways to cut the work of a layer's kernels, the present ones first, by the name of the choice."""
    own = forward_form(layer.channels, layer.outs)
    ahead = [
        own,
        *(replace(own, rows=64, warps=4, stages=stages, at_once=count) for stages in (3, 4) for count in (2, 3)),
    ]
    ahead += [replace(own, warps=4, at_once=2), replace(own, warps=8, at_once=1), replace(own, stages=2, at_once=2)]
    own = backward_form(layer.channels, layer.outs, layer.pool)
    half, less = max(16, own.rows // 2), own.part // 2
    back = [own, replace(own, stages=own.stages - 1), replace(own, rows=half), replace(own, part=less),
            replace(own, rows=half, stages=own.stages + 1), replace(own, rows=half, stages=1, at_once=2),
            replace(own, rows=half, warps=4, part=less, stages=2, at_once=2)]  # fmt: skip
    return {"forward_form": list(dict.fromkeys(ahead)), "backward_form": list(dict.fromkeys(back))}


def tune() -> None:
    """Print the time of every way, of each shape."""
    for layer in (LAYERS[0], LAYERS[1], LAYERS[3]):
        inputs = Inputs(layer)
        for name, forms in other_forms(layer).items():
            plain = getattr(pointwise, name)
            for form in forms:
                setattr(pointwise, name, lambda *_, form=form: form)
                try:
                    with torch.no_grad():
                        found = f"{microseconds(inputs.joined()[name == 'backward_form']):8.1f} us"
                except (OutOfResources, RuntimeError) as error:  # no room, or no code: one of the answers
                    found = str(error).splitlines()[0]
                print(f"{layer!s:<28} {name:<13} {found}  {form}", flush=True)
            setattr(pointwise, name, plain)


def main() -> None:
    """Check, time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="time other ways to cut the kernels' work")
    if parser.parse_args().tune:
        tune()
        return
    steps, wrong = Steps(), []
    try:
        for layer in LAYERS:
            try:
                print(check(layer), flush=True)
            except AssertionError as error:
                wrong.append(str(error))
        torch.cuda.empty_cache()
        ready = [steps.answer(which, ask=False) for which in range(2)]
        rows = [(layer, timed(layer)) for layer in LAYERS]
        torch.cuda.empty_cache()
        whole = [steps.answer(which, ask=True) for which in range(2)]
    finally:
        steps.close()
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; batch {BATCH}, bfloat16; above: distances "
          "from float64, joined (apart)")  # fmt: skip
    print(f"{'microseconds':<28}  forward apart  joined   backward apart  joined")
    for layer, (a, b, c, d) in rows:
        print(f"{layer!s:<28} {a:>14.1f} {b:>7.1f} {c:>16.1f} {d:>7.1f}")
    for name, (milliseconds, speed), (seconds, _, _) in zip(("joined", "apart"), whole, ready, strict=True):
        print(f"ResNet-9's step, {name}: the graph alone {milliseconds:.3f} ms ({BATCH / milliseconds * 1e3:,.0f} "
              f"images/s), training {speed:,.0f} images/s; first two steps {seconds:.0f} s")  # fmt: skip
    print(difference(ready[0][1], ready[0][2], "joined"))
    print(difference(ready[1][1], ready[0][2], "apart"))
    print("\n".join(wrong) or "every result is as near to float64's as the other form's")


if __name__ == "__main__":
    main()
