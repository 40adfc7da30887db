"""Forward pass and loss of a network as one compiled function that all settings of its structured maps share.

A rebuilt weight has the same shape whatever the factors are. So a network is copied without its factors, as a template
whose maps take their weight as an input. Networks that differ in their factors alone have equal templates, and what is
compiled for one serves them all: in this process through `compiled_forward_of`, in others through the compiler's own
cache on disk.
"""

from __future__ import annotations

import copy
import hashlib
import platform
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank.distillation import Signals, Taps
from lowrank.kernels import compile_graph, compile_obstacle, kernel_digest
from lowrank.layers import BatchedRebuild, StructuredMap
from lowrank.networks import take_logits
from lowrank.training.engine.compiler_import import wait_for_compiler_import
from lowrank.training.engine.data_parallel import GlobalBatchNorm
from lowrank.training.engine.host_state import INTERNAL_ATTRIBUTES, plain_value
from lowrank.training.engine.recording import hooks_of
from lowrank.training.objective import Loss
from lowrank.utils import LockedError, hold_lock

MAX_WAIT_SECONDS = 900.0  # for another process that compiles the same function: a large network takes minutes
MAX_COMPILED = 16  # compiled functions that a process keeps: for each network and batch size one by loss, one without
COMPILED_FOLDER = "lowrank_compiled"  # in the compiler's cache: a file for each function that some process has compiled

_COMPILED: OrderedDict[object, _CompiledTemplate] = OrderedDict()
C = TypeVar("C", bound="_CompiledTemplate")


class NotCompilableError(Exception):
    """A network cannot be compiled; the message says why."""


class WeightInput(StructuredMap):
    """Replaces a rebuilt map in the template by one whose weight is an input.

    Args:
        replaced: the map whose channels and geometry it takes.
    """

    def __init__(self, replaced: StructuredMap):
        super().__init__(
            replaced.in_channels, replaced.out_channels, kernel=replaced.kernel, stride=replaced.stride,
            padding=replaced.padding, dilation=replaced.dilation, groups=replaced.groups,
            bias=replaced.bias is not None,
        )  # fmt: skip
        self.input_weight = nn.Parameter(torch.empty(self.weight_shape))

    def compute_weight(self) -> Tensor:
        """Return the weight that was passed in."""
        return self.input_weight

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Refuse: the map has no factors."""
        raise NotImplementedError("the weight is an input")

    def fit_factors(self, dense: Tensor) -> None:
        """Refuse: the map has no factors."""
        raise NotImplementedError("the weight is an input")


class _CompiledTemplate:
    """A function of a template and a batch, compiled when it first runs.

    It holds no tensor of the network that the template was made from.

    Attributes:
        template: runs with the tensors that a call passes.
        names: the template's parameters and buffers, in the order in which a call takes them.
    """

    def __init__(
        self, template: nn.Module, function: Callable[..., Any], key: tuple[object, ...],
        autocast: tuple[str, torch.dtype] | None, processes: int = 1,
    ):  # fmt: skip
        self.template = template
        self._key = (type(template).__name__, *key, autocast, processes)
        self.names = [name for name, _ in _tensors(template)]
        self._other_names = _other_names(template)
        self._autocast: Callable[[], Any] = (lambda: torch.autocast(*autocast)) if autocast else nullcontext
        backend = compile_graph if processes == 1 else partial(compile_graph, processes=processes)
        self._run = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def digest(self, images: Tensor) -> str:
        """Name what is compiled for batches like `images`.

        Equal digests mean that the compiler's cache on disk very likely holds the code already.

        Args:
            images: (B, C, H, W).

        Returns:
            32 hexadecimal digits.
        """
        machine = torch.cuda.get_device_name(images.device) if images.is_cuda else platform.machine()
        tensors = [(name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in _tensors(self.template)]
        parts = (torch.__version__, machine, tensors, images.shape, images.dtype, self._key, kernel_digest())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _output(self, tensors: list[Tensor], images: Tensor) -> Any:
        """Run the template with these tensors."""
        named = dict(zip(self.names, tensors, strict=True))
        named |= {other: named[name] for other, name in self._other_names.items()}
        with self._autocast():
            # Torch's own ties name a module's tensor twice where the module stands in two places, and leave it there
            return functional_call(self.template, named, (images,), tie_weights=False)

    def _call(self, *arguments: Any) -> Any:
        """Run the compiled function."""
        limits = torch._dynamo.config.patch(recompile_limit=MAX_COMPILED, fail_on_recompile_limit_hit=True)
        with limits, warnings.catch_warnings():
            # Tracing reads `.grad` of the inputs; weights that were passed in are no leaves and have none
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            return self._run(*arguments)


class CompiledForward(_CompiledTemplate):
    """A template's forward pass with its loss, compiled when it first runs.

    Args:
        template: from `make_template`.
        loss: of the recipe.
        taps: names of the modules whose attention maps the loss compares with a teacher's.
        autocast: device type and format in which the network runs; None: float32.
        processes: that share each batch; batch norms then take its statistics from all of them.
    """

    def __init__(
        self, template: nn.Module, loss: Loss, taps: Sequence[str], autocast: tuple[str, torch.dtype] | None,
        processes: int = 1,
    ):  # fmt: skip
        super().__init__(template, self._losses, (loss, tuple(taps)), autocast, processes)
        self._loss = loss
        self._taps = Taps(template, taps)
        self._taps.__enter__()  # never left: nothing else uses the template

    def _losses(
        self, tensors: list[Tensor], images: Tensor, labels: Tensor, signal_tensors: list[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        output = self._output(tensors, images)
        signals = Signals(signal_tensors[0], tuple(signal_tensors[1:])) if signal_tensors else None
        logits, loss, parts = self._loss(output, labels, signals, self._taps.take())
        # Of any other result the backward pass would have to take a gradient too, and fill it with zeros
        return logits.detach(), loss, tuple(part.detach() for part in parts)

    def __call__(
        self, tensors: list[Tensor], images: Tensor, labels: Tensor, signals: Signals | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Run the forward pass and the loss; statistics of norms among `tensors` are updated in place.

        Args:
            tensors: the template's parameters and buffers, in the order of `names`.
            images: (B, C, H, W).
            labels: int64 (B,).
            signals: the teacher's, for these images.

        Returns:
            Logits (B, K), the loss to minimise, and its parts: see Loss.__call__.
        """
        losses: tuple[Tensor, Tensor, tuple[Tensor, ...]] = self._call(
            tensors, images, labels, [] if signals is None else signals.tensors
        )
        return losses


class CompiledLogits(_CompiledTemplate):
    """A template's forward pass without a loss, for a network that is evaluated.

    Args:
        template: from `make_template`, of a network in evaluation mode.
        autocast: device type and format in which the network runs; None: float32.
    """

    def __init__(self, template: nn.Module, autocast: tuple[str, torch.dtype] | None):
        super().__init__(template, self._output, ("evaluation",), autocast)

    def __call__(self, tensors: list[Tensor], images: Tensor) -> Tensor:
        """Run the forward pass.

        Args:
            tensors: the template's parameters and buffers, in the order of `names`.
            images: (B, C, H, W).

        Returns:
            Logits (B, K).
        """
        logits: Tensor = self._call(tensors, images)
        return logits


class PassWeights(torch.autograd.Function):
    """The identity, without view and CUDA-stream metadata.

    So `torch.compile` does not specialise (and compile again) on how a weight was made.
    """

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the same values as plain tensors."""
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients unchanged."""
        return gradients


class CompiledObjective:
    """The compiled form of one network's `Objective`.

    Weights are rebuilt together, then passed to the compiled template.
    """

    def __init__(
        self, network: nn.Module, loss: Loss, taps: Sequence[str], autocast: tuple[str, torch.dtype] | None,
        processes: int = 1,
    ):  # fmt: skip
        """Find or make the compiled function; nothing is compiled before the first call.

        Args:
            network: on its device.
            loss: of the recipe.
            taps: names of the modules whose attention maps the loss compares with a teacher's.
            autocast: device type and format in which the network runs; None: float32.
            processes: that share each batch.

        Raises:
            NotCompilableError: this machine cannot compile, or a module of the network has hooks.
        """
        _check_compilable(network)
        self._rebuild = BatchedRebuild(network, include_all=True)
        self.compiled = compiled_forward_of(network, self._rebuild, loss, taps, autocast, processes)
        self._inputs = _TemplateInputs(network, self._rebuild, self.compiled.names)

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], Any] = nullcontext,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Give what `Objective.__call__` gives.

        Args:
            images: (B, C, H, W).
            labels: int64 (B,).
            signals: the teacher's, for these images.
            autocast: the precision in which weights are rebuilt.

        Returns:
            Logits (B, K), the loss to minimise, and its parts.
        """
        with autocast():
            weights = self._rebuild.weights()
        passed = PassWeights.apply(*weights) if weights else ()
        return self.compiled(self._inputs.with_weights(passed), images, labels, signals)


class CompiledNetwork:
    """The compiled form of one network in evaluation mode.

    Attributes:
        rebuild: gives the weights that a call takes.
        compiled: the function that networks with equal templates share.
    """

    def __init__(self, network: nn.Module, autocast: tuple[str, torch.dtype] | None):
        """Find or make the compiled function; nothing is compiled before the first call.

        Args:
            network: on its device, in evaluation mode.
            autocast: device type and format in which the network runs; None: float32.

        Raises:
            NotCompilableError: this machine cannot compile, or a module of the network has hooks.
        """
        _check_compilable(network)
        self.rebuild = BatchedRebuild(network, include_all=True)
        template = make_template(network, self.rebuild)
        key = ("evaluation", autocast, next(network.parameters()).device)
        self.compiled = _shared(template, key, lambda: CompiledLogits(template, autocast))
        self._inputs = _TemplateInputs(network, self.rebuild, self.compiled.names)

    def __call__(self, weights: Sequence[Tensor], images: Tensor) -> Tensor:
        """Run the forward pass.

        Args:
            weights: of the maps of `rebuild`, each of its `weight_shape`.
            images: (B, C, H, W).

        Returns:
            Logits (B, K).
        """
        return self.compiled(self._inputs.with_weights(weights), images)


class _TemplateInputs:
    """Says which tensors a template of a network takes.

    Args:
        network: its parameters and buffers are inputs, but for the factors of rebuilt maps.
        rebuild: of the maps whose weight is an input.
        names: the template's parameters and buffers.
    """

    def __init__(self, network: nn.Module, rebuild: BatchedRebuild, names: Sequence[str]):
        tensors = dict(_tensors(network))
        indices = {id(module): index for index, module in enumerate(rebuild.maps)}
        rebuilt = {
            f"{name}.input_weight": indices[id(module)]
            for name, module in network.named_modules()
            if id(module) in indices
        }
        self._sources: list[Tensor | int] = [rebuilt[name] if name in rebuilt else tensors[name] for name in names]

    def with_weights(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """List the inputs, with these weights for the rebuilt maps."""
        return [weights[source] if isinstance(source, int) else source for source in self._sources]


def _check_compilable(network: nn.Module) -> None:
    """Raise NotCompilableError where this machine cannot compile."""
    wait_for_compiler_import()
    obstacle = compile_obstacle(next(network.parameters()).device)
    if obstacle is not None:
        raise NotCompilableError(obstacle)


def compiled_forward_of(
    network: nn.Module, rebuild: BatchedRebuild, loss: Loss, taps: Sequence[str],
    autocast: tuple[str, torch.dtype] | None, processes: int = 1,
) -> CompiledForward:  # fmt: skip
    """Make the compiled function of a network, or reuse that of an equal template.

    Args:
        network: on its device.
        rebuild: of all maps of `network`.
        loss: of the recipe.
        taps: names of the modules whose attention maps the loss compares with a teacher's.
        autocast: device type and format in which the network runs; None: float32.
        processes: that share each batch.

    Returns:
        The function; the last MAX_COMPILED are kept. A template that cannot be compared gets one of its own.

    Raises:
        NotCompilableError: a module of the network has hooks.
    """
    template = make_template(network, rebuild)
    key = (loss, tuple(taps), autocast, processes, next(network.parameters()).device)
    return _shared(template, key, lambda: CompiledForward(template, loss, taps, autocast, processes))


def _shared(template: nn.Module, key: tuple[object, ...], make: Callable[[], C]) -> C:
    """Make the compiled function of a template, or find that of an equal template and key."""
    described = describe(template)
    if described is None:
        return make()
    template_key = (described, *key)
    if template_key not in _COMPILED:
        _COMPILED[template_key] = make()
    _COMPILED.move_to_end(template_key)
    while len(_COMPILED) > MAX_COMPILED:
        _COMPILED.popitem(last=False)
    return cast(C, _COMPILED[template_key])


def make_template(network: nn.Module, rebuild: BatchedRebuild) -> nn.Module:
    """Copy a network without its data, with a `WeightInput` for each rebuilt map.

    Args:
        network: is not changed.
        rebuild: its maps are replaced.

    Returns:
        The copy; its tensors are on the device "meta".

    Raises:
        NotCompilableError: a module of the network has hooks.
    """
    hooked = next((name for name, module in network.named_modules() if set(hooks_of(module)) - {take_logits}), None)
    if hooked is not None:
        raise NotCompilableError(f"its module `{hooked}` has hooks")
    memo: dict[int, Any] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = buffer.to("meta")
    with torch.device("meta"):
        memo.update({id(module): WeightInput(module).train(module.training) for module in rebuild.maps})
    template: nn.Module = copy.deepcopy(network, memo)
    for module in template.modules():
        if isinstance(module, GlobalBatchNorm):
            module.in_template = True
    return template


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _other_names(network: nn.Module) -> dict[str, str]:
    """Name the tensors that several modules share, by each further name; the value is the first one."""
    first_names = {id(tensor): name for name, tensor in _tensors(network)}
    return {
        name: first_names[id(tensor)]
        for prefix, module in network.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and (name := f"{prefix}.{key}".removeprefix(".")) != first_names[id(tensor)]
    }


def describe(template: nn.Module) -> object | None:
    """Collect all that decides how a template is compiled.

    Args:
        template: from `make_template`.

    Returns:
        A value that is equal for templates that are compiled alike; None if an attribute cannot be compared.
    """
    parts: list[object] = []
    for name, module in template.named_modules(remove_duplicate=False):
        parts.append((name, type(module), *hooks_of(module)))
        for attribute, value in sorted(vars(module).items()):
            if attribute in INTERNAL_ATTRIBUTES:
                continue
            comparable, plain = plain_value(value)
            if not comparable:
                return None
            parts.append((attribute, plain))
    parts += [
        (name, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for name, tensor in _tensors(template)
    ]
    return tuple(parts)


@contextmanager
def compile_once(
    digest: str, notify: Callable[[str], None] = warnings.warn, *, wait: bool = True
) -> Iterator[bool]:  # fmt: skip
    """Let one process of this machine at a time compile a function inside `with`.

    The first process compiles, the others then find its code on disk. A function that has been compiled before is not
    locked: all processes read its code side by side. They start none of the compiler's own processes, of which there
    would be one for each core, in each of them.

    Args:
        digest: of the compiled function.
        notify: is called with a line when another process compiles it, and this one waits.
        wait: whether to wait for another process.

    Yields:
        Whether the code is on disk.

    Raises:
        NotCompilableError: another process has compiled it for longer than `MAX_WAIT_SECONDS`.
        LockedError: without `wait`, another process compiles it.
        OSError: the compiler's cache cannot be written.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # imports the compiler, which most runs do not need

    folder = Path(cache_dir()) / COMPILED_FOLDER
    done = folder / digest
    if done.exists():
        with _without_compiler_processes():
            yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.lock"
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(hold_lock(
                path, timeout=MAX_WAIT_SECONDS if wait else 0,
                on_wait=lambda: notify("another process compiles the same network; waiting for it"),
            ))  # fmt: skip
        except LockedError as error:
            if not wait:
                raise
            raise NotCompilableError(
                f"the process that compiles the same network has held {path} for {MAX_WAIT_SECONDS:.0f} s"
            ) from error
        on_disk = done.exists()
        if on_disk:
            lock.release()
            stack.enter_context(_without_compiler_processes())
        yield on_disk
        done.touch()


def _without_compiler_processes() -> AbstractContextManager[None]:
    """Let the compiler do inside `with` what is left to do in this process alone."""
    from torch._inductor import config  # imports the compiler, which most runs do not need

    without: AbstractContextManager[None] = config.patch(compile_threads=1)
    return without
