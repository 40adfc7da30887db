"""Forward pass and loss of a network as one compiled function that all settings of its structured maps share.

Rebuilt weights have one shape whatever the setting. So a network is copied without its factors, as a shell whose maps
take their weight as an input; networks that differ in their factors alone have equal shells, and what is compiled for
one serves them all: in this process by `compiled_forward_of`, in others by the compiler's own cache on disk.
"""

from __future__ import annotations

import copy
import hashlib
import platform
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank.distillation.teacher import Signals, Taps
from lowrank.kernels.dispatch import compile_obstacle
from lowrank.kernels.fx_rewrite import compile_graph
from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.training.objective import Loss
from lowrank.utils.locks import hold_lock

MAX_COMPILED = 16  # compiled functions that a process keeps: one for each network, batch size and recipe's losses
COMPILED_FOLDER = "lowrank_compiled"  # in the compiler's cache: what some process has compiled
_KERNELS = Path(__file__).parents[2] / "kernels"

_COMPILED: OrderedDict[object, CompiledForward] = OrderedDict()
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotCompilableError(Exception):
    """Why a network has no trunk, in words."""


class WeightInput(StructuredMap):
    """Stands in the shell where a rebuilt map stood; its weight is an input of the trunk."""

    def __init__(self, like: StructuredMap):
        super().__init__(
            like.in_channels, like.out_channels, kernel=like.kernel, stride=like.stride, padding=like.padding,
            dilation=like.dilation, groups=like.groups, bias=like.bias is not None,
        )  # fmt: skip
        self.ready = nn.Parameter(torch.empty(self.weight_shape))

    def weight(self) -> Tensor:
        return self.ready

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        raise NotImplementedError("the weight is an input")

    def fit_factors(self, dense: Tensor) -> None:
        raise NotImplementedError("the weight is an input")


class CompiledForward:
    """One shell with its loss, compiled when it first runs.

    It keeps no tensor of the network that it was made from.
    """

    def __init__(self, shell: nn.Module, loss: Loss, taps: Sequence[str], autocast: tuple[str, torch.dtype] | None):
        self.shell, self._loss, self._like = shell, loss, (type(shell).__name__, loss, tuple(taps), autocast)
        self.names = [name for name, _ in _tensors(shell)]
        self._taps = Taps(shell, taps)
        self._taps.__enter__()  # the shell is this trunk's own, so its taps listen for good
        self._autocast: Callable[[], Any] = (lambda: torch.autocast(*autocast)) if autocast else nullcontext
        self._run = torch.compile(self._losses, fullgraph=True, dynamic=False, backend=compile_graph)

    def digest(self, images: Tensor) -> str:
        """Names what is compiled for batches like `images`: equal for what other processes find on disk, as a hint."""
        kernels = [path.read_bytes() for path in sorted(_KERNELS.glob("*.py"))]
        card = torch.cuda.get_device_name(images.device) if images.is_cuda else platform.machine()
        tensors = [(name, each.shape, each.dtype, each.requires_grad) for name, each in _tensors(self.shell)]
        about = (torch.__version__, card, tensors, images.shape, images.dtype, self._like, kernels)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:32]

    def _losses(
        self, tensors: list[Tensor], images: Tensor, labels: Tensor, said: list[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        with self._autocast():
            output = functional_call(self.shell, dict(zip(self.names, tensors, strict=True)), (images,))
        signals = Signals(said[0], tuple(said[1:])) if said else None
        return self._loss(output, labels, signals, self._taps.take())

    def __call__(
        self, tensors: list[Tensor], images: Tensor, labels: Tensor, signals: Signals | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits, the loss and its parts, as `Loss` says; statistics among `tensors` are updated in place.

        Args:
            tensors: the shell's parameters and buffers, in the order of `names`.
            images: views (B, C, H, W).
            labels: int64 (B,).
            signals: what the teacher says about them.
        """
        limits = torch._dynamo.config.patch(recompile_limit=MAX_COMPILED, fail_on_recompile_limit_hit=True)
        with limits, warnings.catch_warnings():
            # Tracing looks whether inputs have gradients; handed weights have none of their own
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            return self._run(tensors, images, labels, [] if signals is None else signals.tensors)


class PassWeights(torch.autograd.Function):
    """Weights as plain tensors of their own, neither views nor of some stream's making: compiled once for all."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


class CompiledObjective:
    """One network's forward pass and loss by way of a trunk: its weights rebuilt together, then handed over."""

    def __init__(self, network: nn.Module, loss: Loss, taps: Sequence[str], autocast: tuple[str, torch.dtype] | None):
        """Raises NotCompilableError for a network that has no trunk, and where the machine cannot compile."""
        missing = compile_obstacle(next(network.parameters()).device)
        if missing is not None:
            raise NotCompilableError(missing)
        self._rebuild = BatchedRebuild(network, include_all=True)
        self.trunk = compiled_forward_of(network, self._rebuild, loss, taps, autocast)
        own = dict(_tensors(network))
        places = {id(each): place for place, each in enumerate(self._rebuild.maps)}
        ready = {f"{name}.ready": places[id(module)] for name, module in network.named_modules()
                 if id(module) in places}  # fmt: skip
        self._sources: list[Tensor | int] = [
            ready[name] if name in ready else own[name] for name in self.trunk.names
        ]  # fmt: skip

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], Any] = nullcontext,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """As `Objective` does, of which this is the compiled form."""
        with autocast():
            weights = self._rebuild.weights()
        handed = PassWeights.apply(*weights) if weights else ()
        tensors = [handed[source] if isinstance(source, int) else source for source in self._sources]
        return self.trunk(tensors, images, labels, signals)


def compiled_forward_of(
    network: nn.Module,
    rebuild: BatchedRebuild,
    loss: Loss,
    taps: Sequence[str],
    autocast: tuple[str, torch.dtype] | None,
) -> CompiledForward:
    """The trunk for this network's shell, made once a process for shells that are equal."""
    shell = make_template(network, rebuild)
    about = description(shell)
    key = (about, loss, tuple(taps), autocast, next(network.parameters()).device)
    if about is None:
        return CompiledForward(shell, loss, taps, autocast)
    if key not in _COMPILED:
        _COMPILED[key] = CompiledForward(shell, loss, taps, autocast)
    _COMPILED.move_to_end(key)
    while len(_COMPILED) > MAX_COMPILED:
        _COMPILED.popitem(last=False)
    return _COMPILED[key]


def make_template(network: nn.Module, rebuild: BatchedRebuild) -> nn.Module:
    """A copy of `network` without memory, its rebuilt maps replaced; raises NotCompilableError where hooks listen."""
    hooked = next((name for name, module in network.named_modules() if any(getattr(module, h) for h in _HOOKS)), None)
    if hooked is not None:
        raise NotCompilableError(f"something listens to its module `{hooked}`")
    memo: dict[int, Any] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = buffer.to("meta")
    with torch.device("meta"):
        memo.update({id(each): WeightInput(each).train(each.training) for each in rebuild.maps})
    shell: nn.Module = copy.deepcopy(network, memo)
    return shell


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def description(shell: nn.Module) -> object | None:
    """All that two shells which are compiled alike have in common; None where that cannot be told."""
    found: list[object] = []
    for name, module in shell.named_modules(remove_duplicate=False):
        found.append((name, type(module)))
        for key, value in sorted(vars(module).items()):
            if key in _INTERNAL:
                continue
            known, plain = _plain(value)
            if not known:
                return None
            found.append((key, plain))
    found += [(name, each.shape, each.stride(), each.dtype, each.requires_grad) for name, each in _tensors(shell)]
    return tuple(found)


def _plain(value: Any) -> tuple[bool, object]:
    """Whether a module's attribute can be compared, and as what."""
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | type) or _is_function(value):
        return True, (type(value), value)
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        parts = [_plain(part) for part in value]
        return all(known for known, _ in parts), (type(value), tuple(part for _, part in parts))
    return False, None


def _is_function(value: Any) -> bool:
    """A function without state of its own."""
    return isinstance(value, types.BuiltinFunctionType) or (
        isinstance(value, types.FunctionType) and value.__closure__ is None
    )


@contextmanager
def compile_once(what: str) -> Iterator[None]:
    """Within, no other process of this machine compiles `what`: the first one works, the others find its code on disk.

    Once it has been compiled there is nothing to wait for: all read its code side by side. See CompiledForward.digest.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # only paid for where something is compiled

    folder = Path(cache_dir()) / COMPILED_FOLDER
    done = folder / what
    if done.exists():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / f"{what}.lock") as lock:
        if done.exists():
            lock.release()
        yield
        done.touch()
