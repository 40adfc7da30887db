"""Whether a network of the user's can be trained: some steps on two images, before anything starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.compression import check_unchanged
from lowrank.errors import InputError, LowrankError
from lowrank.networks import copy_network
from lowrank.training.engine.recording import set_once, unsaved_state
from lowrank.training.objective import split_output
from lowrank.utils import first_line, keep_modes

REPEAT_TOLERANCE = 1e-3  # of the largest logit: products of floats are summed in any order


def check_training_step(network: nn.Module, name: str, image_shape: tuple[int, int, int], classes: int) -> list[str]:
    """Check that a network of the user's can be trained, by three steps on two images.

    Args:
        network: as its function returns it, on the CPU; its gradients, statistics and counters change.
        name: of the network, for messages.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        Lines for the user: what of a training is lost when it is interrupted, and what is left to chance.

    Raises:
        InputError: it cannot be copied, raises an error, returns no logits, changes the images in evaluation mode,
            makes or replaces parameters while it runs, its state cannot be loaded again, or no parameter gets a
            gradient that can be used.
    """
    copy_network(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(2, *image_shape)
        copied = images.clone()
        before, weights = _named_tensors(network), {key: value.clone() for key, value in network.named_parameters()}
        try:
            network.eval()
            tensor = set_once(network, lambda: _evaluate(network, name, images, classes))
            first, second = (_run(network, name, images, classes).detach() for _ in range(2))
            check_unchanged(images, name, copied)
            network.train()
            tensor = set_once(network, lambda: _train(network, name, images, classes)) or tensor
            unsaved = unsaved_state(
                network,
                lambda: _train(network, name, images, classes),
                lambda: _evaluate(network, name, images, classes),
            )
        except LowrankError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{name} cannot be trained: a step on two images raises {reason}") from error
    _check_parameters(network, before, name)
    _check_gradients(network, name)
    _check_state(network, name)
    lines = []
    changed = [key for key, value in network.named_parameters() if not torch.equal(value, weights[key])]
    if tensor is not None and unsaved is None:
        lines.append(
            f"{name} sets its {tensor} from the first images, and only an attribute says that it is set, "
            "which no checkpoint holds: a trial that is interrupted, its test error and its export set it anew; "
            "`register_buffer` keeps a tensor"
        )
    elif changed:
        lines.append(
            f"{name} changes its parameter `{changed[0]}` while it runs: where that layer is replaced, nothing is "
            "changed; `network.keep` (--keep) lets it stay"
        )
    if unsaved is not None:
        lines.append(
            f"{name} {unsaved}, which no checkpoint holds: a trial that is interrupted, its test error "
            "and its export begin with that of a new network; `register_buffer` keeps a tensor"
        )
    if float((first - second).abs().max()) > REPEAT_TOLERANCE * float(first.abs().max()):
        lines.append(
            f"{name} gives other logits for the same images in evaluation mode: errors are left to chance; does it "
            "draw random numbers then?"
        )
    return lines


def _run(network: nn.Module, name: str, images: Tensor, classes: int) -> Tensor:
    """Return the logits of images; raises InputError where there are none."""
    logits, _ = split_output(network(images))
    shape = (len(images), classes)
    if isinstance(logits, Tensor) and tuple(logits.shape) == shape:
        return logits
    received = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise InputError(
        f"{name} must return logits {shape} for two images, alone or first in a tuple, but in "
        f"{'training' if network.training else 'evaluation'} mode it returned {received}"
    )


def _train(network: nn.Module, name: str, images: Tensor, classes: int) -> None:
    """Compute the gradients of images, in training mode."""
    network.train()
    network.zero_grad()
    logits = _run(network, name, images.clone(), classes)
    functional.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64)).backward()


def _evaluate(network: nn.Module, name: str, images: Tensor, classes: int) -> None:
    """Run images in evaluation mode, without gradients."""
    with keep_modes(network), torch.no_grad():
        _run(network.eval(), name, images, classes)


def _named_tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))


def _check_parameters(network: nn.Module, before: dict[str, Tensor], name: str) -> None:
    """Check that all that is trained and saved was there before the network ran."""
    after = _named_tensors(network)
    changed = sorted(before.keys() ^ after.keys())
    if changed:
        verb = "makes" if changed[0] in after else "removes"
        raise InputError(
            f"{name} {verb} `{changed[0]}` while it runs, so that it would not be trained or saved: make it in "
            "`__init__`, or by a lazy layer of torch such as nn.LazyLinear"
        )
    replaced = [key for key, value in network.named_parameters() if before[key] is not value]
    if replaced:
        raise InputError(
            f"{name} replaces its parameter `{replaced[0]}` while it runs, so that the optimizer would train the one "
            "before: change its values in place, under torch.no_grad()"
        )


def _check_gradients(network: nn.Module, name: str) -> None:
    gradients = {key: value.grad for key, value in network.named_parameters() if value.grad is not None}
    if not gradients:
        raise InputError(f"{name} cannot be trained: no parameter of it gets a gradient")
    sparse = [key for key, gradient in gradients.items() if gradient.layout is not torch.strided]
    if sparse:
        raise InputError(f"{name} cannot be trained: the gradient of `{sparse[0]}` is sparse; build it without sparse")


def _check_state(network: nn.Module, name: str) -> None:
    """Check that a checkpoint holds all parameters and can be loaded."""
    state = network.state_dict()
    saved = {value.data_ptr() for value in state.values()}
    missing = [key for key, value in network.named_parameters() if value.numel() and value.data_ptr() not in saved]
    if missing:
        raise InputError(f"{name} leaves its parameter `{missing[0]}` out of `state_dict`: it would not be saved")
    try:
        network.load_state_dict(state)
    except Exception as error:  # hooks of the user's may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{name} cannot load the state that its `state_dict` returns: {reason}") from error
