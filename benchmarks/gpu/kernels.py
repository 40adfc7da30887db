"""The maps joined with their norms on a GPU: right, how fast, and what they do for ResNet-9's compiled step.

    python -m benchmarks.gpu.kernels

For each shape of ResNet-9 at batch 512 in bfloat16, at its width and at 0.75 of it: the relative distance (Frobenius
norm) of every result from that in float64, with the fused kernels and without (a library's products around
lowrank.kernels.batch_norm). The fused kernels may not be further off. Then the time of both, as replays of a CUDA
graph. Meanwhile two processes compile the whole step, one of them without the fused kernels, and are timed one after
the other.
"""

from __future__ import annotations

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
from triton.testing import do_bench_cudagraph

from benchmarks.training.engine import difference
from benchmarks.training.engine_processes import Bench, Case
from lowrank.kernels import fx_rewrite as rewrite
from lowrank.kernels.batch_norm import norm, norm_backward
from lowrank.kernels.pointwise_batch_norm import pointwise_norm, pointwise_norm_backward
from lowrank.kernels.stem_batch_norm import stem_norm, stem_norm_backward

BATCH, EPS = 512, 1e-5
REPLAYS = 40
CASE = Case(network="resnet9", device="cuda", batch=BATCH, images=20_480, seconds=1.5, way="compiled")
WORSE = 1.2  # a joined result may be so much farther from float64's than the other form's, and 1e-4 more


@dataclass(frozen=True)
class Stem:
    """The first convolution of ResNet-9, and its norm and ReLU."""

    channels: int
    outs: int
    size: int

    def __str__(self) -> str:
        return f"{self.channels:>3} to {self.outs:>3} at {self.size:>2}, stem"


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


LAYERS: tuple[Layer | Stem, ...] = (
    Stem(3, 64, 32), Layer(64, 128, 32, True, False), Layer(128, 128, 16, False, False),
    Layer(128, 128, 16, False, True), Layer(128, 256, 16, True, False),
)  # fmt: skip
NARROW_LAYERS = (  # at 0.75 of the width, where channels are no powers of 2
    Layer(48, 96, 32, True, False), Layer(96, 96, 16, False, False), Layer(96, 96, 16, False, True),
    Layer(96, 192, 16, True, False),
)  # fmt: skip

Works = tuple[Callable[[], Any], Callable[[], list[Tensor]]]  # a forward and a backward pass


class StemInputs:
    """As `Inputs`, of the stem; apart, the images are filled up with channels of zeros, as the step does it."""

    names = ("result", "to matrix", "to weight", "to bias")

    def __init__(self, layer: Stem, batch: int = BATCH, device: str = "cuda", dtype: torch.dtype = torch.bfloat16):
        torch.manual_seed(0)
        shapes = [(batch, channels, layer.size, layer.size) for channels in (layer.channels, layer.outs)]
        self.x, gradient = (
            torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last) for shape in shapes
        )  # fmt: skip
        self.gradient, self.dtype = gradient.to(dtype), dtype
        kernel = torch.randn(layer.outs, layer.channels, 3, 3, device=device) / (9 * layer.channels) ** 0.5
        self.kernel = kernel.to(dtype, memory_format=torch.channels_last)
        self.weight, self.bias = torch.randn(2, layer.outs, device=device)

    def exact(self) -> list[Tensor]:
        """The result and its gradients in float64."""
        given = [each.double().requires_grad_() for each in (self.kernel, self.weight, self.bias)]
        y = functional.conv2d(self.x.to(self.dtype).double(), given[0], padding=1)
        y = functional.relu(functional.batch_norm(y, None, None, given[1], given[2], training=True, eps=EPS))
        found = list(torch.autograd.grad(y, given, self.gradient.double()))
        return [y.detach(), found[0].permute(0, 2, 3, 1).flatten(1), *found[1:]]

    def apart(self) -> Works:
        """Forward and backward pass as they are without the joined kernels."""
        room = (0, 0, 0, 0, 0, rewrite.MIN_CONV_CHANNELS - self.x.shape[1])
        norms = (self.weight, self.bias, None, EPS, True, False)

        def forward() -> tuple[Tensor, ...]:
            x, kernel = functional.pad(self.x.to(self.dtype), room), functional.pad(self.kernel, room)
            product = functional.conv2d(x, kernel, padding=1)
            return (*norm(product, *norms), product, x, kernel)

        _, mean, variance, product, x, kernel = forward()

        def backward() -> list[Tensor]:
            back, to_weight, to_bias = norm_backward(
                self.gradient, product, self.weight, self.bias, mean, variance, EPS, True, False
            )
            found = torch.ops.aten.convolution_backward(
                back, x, kernel, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
            )[1]
            return [found[:, : self.x.shape[1]].permute(0, 2, 3, 1).flatten(1), to_weight, to_bias]

        return forward, backward

    def joined(self) -> Works:
        """Likewise as they are with them."""
        matrix = self.kernel.permute(0, 2, 3, 1).flatten(1)

        def forward() -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = stem_norm(self.x, matrix, self.weight, self.bias, EPS, True)
            return found

        _, mean, variance, edged = forward()

        def backward() -> list[Tensor]:
            return list(stem_norm_backward(
                self.gradient, edged, matrix, self.weight, self.bias, mean, variance, EPS, True
            ))  # fmt: skip

        return forward, backward


class Inputs:
    """What one layer works on, drawn from a fixed seed; means and scales as if trained, some scales negative."""

    names = ("result", "to input", "to matrix", "to weight", "to bias")

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

    def apart(self) -> Works:
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

    def joined(self) -> Works:
        """Likewise as they are with them."""
        norms = (self.weight, self.bias, self.residual, EPS, True, self.layer.pool)

        def forward() -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = pointwise_norm(self.x, self.matrix, *norms)
            return found

        _, mean, variance, goes = forward()

        def backward() -> list[Tensor]:
            given = (self.gradient, self.x, self.matrix, goes, self.weight, self.bias, mean, variance)
            return list(pointwise_norm_backward(*given, EPS, True, self.layer.pool))

        return forward, backward


def inputs_of(layer: Layer | Stem, *others: Any) -> Inputs | StemInputs:
    """What a layer works on; `others` as Inputs and StemInputs have them."""
    return StemInputs(layer, *others) if isinstance(layer, Stem) else Inputs(layer, *others)


def distances(
    layer: Layer | Stem, batch: int = BATCH, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> list[tuple[str, float, float]]:
    """The results by name, and how far those of both forms, joined and apart, are from float64's."""
    with torch.no_grad():
        inputs = inputs_of(layer, batch, device, dtype)
        with torch.enable_grad():
            wanted = inputs.exact()
        found = []
        for forward, backward in (inputs.joined(), inputs.apart()):
            results = zip([forward()[0], *backward()], wanted, strict=True)
            found.append([float((ours.double() - exact).norm() / exact.norm()) for ours, exact in results])
    return list(zip(inputs.names, found[0], found[1], strict=True))


def microseconds(work: Callable[[], Any]) -> float:
    """Of one call among many in a CUDA graph."""
    return 1e3 * float(do_bench_cudagraph(work, rep=20, return_mode="median"))


def timed(layer: Layer | Stem) -> list[float]:
    """Forward and backward, apart and joined."""
    with torch.no_grad():
        inputs = inputs_of(layer)
        apart, joined = inputs.apart(), inputs.joined()
        return [microseconds(work) for work in (apart[0], joined[0], apart[1], joined[1])]


def _whole_step(joined: bool, folder: str, asked: Any, answers: Any) -> None:
    """A process that compiles the step, then says how fast it is when it is asked."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # of its own, so that the two need not wait for each other
    if not joined:
        rewrite.FUSED_DTYPES = ()
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
    replay = bench.trainer.captured_epoch.replay  # type: ignore[union-attr]
    assert replay is not None
    found = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
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


def check(layer: Layer | Stem) -> str:
    """One layer's distances in words; raises AssertionError where the joined ones are larger."""
    found = distances(layer)
    for name, ours, theirs in found:
        assert ours <= WORSE * theirs + 1e-4, f"{layer}: {name} is {ours:.3g} from float64's, but {theirs:.3g} apart"
    return f"{layer!s:<28} " + "  ".join(f"{name} {ours:.1e} ({theirs:.1e})" for name, ours, theirs in found)


def main() -> None:
    """Check, time and print."""
    steps, wrong = Steps(), []
    try:
        for layer in (*LAYERS, *NARROW_LAYERS):
            try:
                print(check(layer), flush=True)
            except AssertionError as error:
                wrong.append(str(error))
        torch.cuda.empty_cache()
        ready = [steps.answer(which, ask=False) for which in range(2)]
        rows = [(layer, timed(layer)) for layer in (*LAYERS, *NARROW_LAYERS)]
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
