"""Where the time of a compiled step goes on a GPU, and other ways to cut each kernel's work.

    python -m benchmarks.gpu.kernel_variants [KERNEL ...]    # stem, depthwise, norm, forward, backward; default: all
    python -m benchmarks.gpu.kernel_variants profile [NETWORK]     # of benchmarks.gpu.engine_table; default: resnet9

Each way is timed as replays of a CUDA graph, the present one first, at ResNet-9's shapes with batch 512 in bfloat16;
processes on all cores compile them beforehand. The profile lists every kernel of a recorded step by its time, over some
replays, and what runs between two replays.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.engine_table import table_cases
from benchmarks.gpu.kernels import BATCH, LAYERS, Inputs, Layer, StemInputs, microseconds
from benchmarks.training.engine_processes import Bench
from lowrank.kernels import batch_norm as norm, depthwise, pointwise_batch_norm as pointwise, stem_batch_norm as stem
from lowrank.kernels.fused_common import LaunchConfig

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and size of ResNet-9's depthwise maps
PROFILED = 5  # replays
COMPILERS = 12  # processes


@dataclass(frozen=True)
class Way:
    """One launch configuration of a kernel, set as an attribute of its module, and the work that is timed."""

    what: str
    module: Any
    attribute: str
    form: Any
    work: Callable[[], Any]

    def run(self, measure: Callable[[Callable[[], Any]], Any]) -> Any:
        """Measure the work in this form; gives the reason if it cannot run."""
        plain = getattr(self.module, self.attribute)
        setattr(self.module, self.attribute, (lambda *_: self.form) if callable(plain) else self.form)
        try:
            return measure(self.work)
        except (OutOfResources, RuntimeError) as error:  # too much shared memory, or it does not compile
            return str(error).splitlines()[0]
        finally:
            setattr(self.module, self.attribute, plain)


def stem_ways() -> Iterator[Way]:
    """Both passes, by the forms of their kernels."""
    inputs = StemInputs(LAYERS[0])  # type: ignore[arg-type]
    for attribute, pass_ in (("STATISTICS", 0), ("RESULT", 0), ("BACKWARD", 1)):
        current = getattr(stem, attribute)
        forms = [current, *(replace(current, rows=rows, warps=warps, programs_per_processor=count)
                        for rows, warps in ((32, 4), (64, 4), (64, 2), (128, 4))
                        for count in (2, 3, 4, 6))]  # fmt: skip
        for form in dict.fromkeys(forms):
            yield Way(f"stem, {attribute.lower()}", stem, attribute, form, inputs.joined()[pass_])


def depthwise_ways() -> Iterator[Way]:
    """Both passes at each shape."""
    for channels, size in SHAPES:
        x, gradient = (
            torch.randn(BATCH, channels, size, size, device="cuda", dtype=torch.bfloat16)
            .contiguous(memory_format=torch.channels_last) for _ in range(2)
        )  # fmt: skip
        weight = torch.randn(channels, 1, 3, 3, device="cuda")
        forward = partial(depthwise.depthwise, x, weight)
        backward = partial(depthwise.depthwise_backward, gradient, x, weight)
        others = {  # of so many registers a thread, which leave room for so many programs
            "forward_config": [(512, 4, 5, None), (512, 4, 6, 80), (512, 4, 8, 64), (256, 2, 10, None),
                             (256, 2, 14, 72), (1024, 8, 2, None), (1024, 8, 3, 80), (256, 4, 6, None),
                              (512, 8, 3, None)],
            "backward_config": [(512, 4, 3, None), (512, 4, 4, 128), (512, 4, 5, 96), (256, 2, 6, None),
                              (256, 2, 8, 128), (256, 4, 4, None), (256, 4, 5, 96), (256, 4, 6, 80),
                              (1024, 8, 2, 128), (512, 8, 2, None)],
        }  # fmt: skip
        for attribute, work in (("forward_config", forward), ("backward_config", backward)):
            forms = [
                getattr(depthwise, attribute)(size),
                *(depthwise.LaunchConfig(*each) for each in others[attribute]),
            ]
            what = f"depthwise {channels} at {size}, {attribute.removesuffix('_config')}"
            for form in dict.fromkeys(forms):
                yield Way(what, depthwise, attribute, form, work)


Sizes = tuple[tuple[int, int, int, int], ...]  # rows, warps, stages and programs of a processor

STATISTICS: Sizes = (
    (64, 4, 3, 2), (64, 4, 4, 3), (64, 4, 3, 4), (128, 4, 3, 2), (128, 8, 3, 1), (128, 8, 4, 1), (128, 8, 2, 2),
    (256, 8, 2, 1),
)  # fmt: skip
POOLED: Sizes = ((16, 4, 4, 3), (32, 4, 2, 2), (32, 4, 3, 3), (32, 8, 3, 2), (64, 8, 2, 1), (64, 8, 3, 1))
RESULT: Sizes = ((64, 4, 3, 2), (64, 4, 3, 3), (64, 4, 4, 3), (64, 8, 3, 2), (128, 8, 2, 2), (128, 8, 3, 1))


def forward_ways() -> Iterator[Way]:
    """The joined maps' forward kernels; each time is that of the whole pass."""
    for layer in _maps():
        work = Inputs(layer).joined()[0]
        statistics = pointwise.statistics_config(layer.channels, layer.outs)
        yield from _of(f"{layer}, statistics", "statistics_config", statistics, STATISTICS, work)
        result = pointwise.result_config(layer.channels, layer.outs, layer.pool)
        yield from _of(f"{layer}, result", "result_config", result, POOLED if layer.pool else RESULT, work)


def backward_ways() -> Iterator[Way]:
    """The joined maps' backward kernels, likewise."""
    for layer in _maps():
        work = Inputs(layer).joined()[1]
        for name in ("sums", "input"):
            current = getattr(pointwise, f"{name}_config")(layer.channels, layer.outs, layer.pool)
            row_counts = (current.rows // 2, current.rows, 2 * current.rows)
            sizes = tuple((rows, current.warps, stages, count) for rows in row_counts
                          for stages, count in ((2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3), (4, 1)))  # fmt: skip
            halves = [replace(current, block_channels=64, programs_per_processor=count) for count in (1, 2, 3)]
            more = halves if name == "sums" else ()
            yield from _of(f"{layer}, {name}", f"{name}_config", current, sizes, work, more)


def _of(
    what: str,
    attribute: str,
    current: LaunchConfig,
    sizes: Sizes,
    work: Callable[[], Any],
    more: Iterable[LaunchConfig] = (),
) -> Iterator[Way]:
    """The present form of a joined map's kernel, others of these sizes, and more."""
    names = ("rows", "warps", "stages", "programs_per_processor")
    others = [replace(current, **dict(zip(names, each, strict=True))) for each in sizes]
    for form in dict.fromkeys((current, *others, *more)):
        if form.rows >= 16:
            yield Way(what, pointwise, attribute, form, work)


def norm_ways() -> Iterator[Way]:
    """Sums and statistics of a norm, at the shapes where they are most of its time."""
    wide, narrow = (
        torch.randn(BATCH, channels, 16, 16, device="cuda", dtype=torch.bfloat16)
        .contiguous(memory_format=torch.channels_last) for channels in (256, 128)
    )  # fmt: skip
    weight, bias, mean, variance = torch.rand(4, 128, device="cuda") + 0.5
    sums = partial(norm.reduce_gradients, narrow, narrow.clone(), weight, bias, mean, variance, 1e-5, True, False)
    for attribute, work in (("REDUCE", sums), ("STATISTICS", partial(norm.batch_statistics, wide))):
        current = getattr(norm, attribute)
        forms = [current, *(norm.TileConfig(*tile, count)
                        for tile in ((2048, 64, 4), (4096, 64, 4), (4096, 64, 8), (4096, 32, 8), (8192, 64, 8))
                        for count in (3, 4, 6, 8))]  # fmt: skip
        for form in dict.fromkeys(forms):
            yield Way(f"norm, {attribute.lower()}", norm, attribute, form, work)


def _maps() -> Iterator[Layer]:
    yield from (layer for layer in LAYERS if isinstance(layer, Layer) and not layer.adds)


WAYS: dict[str, Callable[[], Iterator[Way]]] = {
    "stem": stem_ways, "depthwise": depthwise_ways, "forward": forward_ways, "backward": backward_ways,
    "norm": norm_ways,
}  # fmt: skip


def _ways(names: list[str]) -> Iterator[Way]:
    for name in names:
        yield from WAYS[name]()


@torch.no_grad()
def _compile_some(names: list[str], first: int) -> None:
    """Run every COMPILERS-th way once, which leaves its code on disk."""
    for number, way in enumerate(_ways(names)):
        if number % COMPILERS == first:
            way.run(lambda work: work())


@torch.no_grad()
def tune(names: list[str]) -> None:
    """Print the time of every way."""
    context = mp.get_context("spawn")
    compilers = [context.Process(target=_compile_some, args=(names, first)) for first in range(COMPILERS)]
    for process in compilers:
        process.start()
    for process in compilers:
        process.join()
    for way in _ways(names):
        measured = way.run(microseconds)
        text = f"{measured:8.1f} us" if isinstance(measured, float) else measured
        print(f"{way.what:<38} {text}  {way.form}", flush=True)


def profile_step(network: str) -> None:
    """Every kernel of a step, by its time."""
    bench = Bench("cuda")
    bench.prepare(replace(table_cases(tiny=False)[network], way="compiled"))
    trainer: Any = bench.trainer
    replay = trainer.captured_epoch.replay
    for title, work, steps in (
        ("one recorded step", lambda: [replay() for _ in range(PROFILED)], PROFILED),
        ("training, a step", trainer.train_steps, trainer.steps_per_epoch),
    ):
        work()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            work()
            torch.cuda.synchronize()
        events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        span = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            times[event.name].append(event.time_range.elapsed_us())
        total = sum(map(sum, times.values()))
        print(f"\n{title}: {span / steps:,.1f} us from first to last kernel, {total / steps:,.1f} us in "
              f"{len(events) / steps:.1f} kernels")  # fmt: skip
        for name, durations in sorted(times.items(), key=lambda pair: -sum(pair[1])):
            longest = " ".join(f"{value:.0f}" for value in sorted(durations, reverse=True)[: 8 * steps : steps])
            print(f"{sum(durations) / steps:8.1f} us  {len(durations) / steps:5.1f} x  {name[:90]:<90}  {longest}")


def main(names: list[str]) -> None:
    """Tune what is named, or profile."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if names[:1] == ["profile"]:
        profile_step(*names[1:] or ["resnet9"])
        return
    tune(names or list(WAYS))


if __name__ == "__main__":
    main(sys.argv[1:])
