"""Networks as people bring them, each with one trait that once was changed silently, or failed late."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


def sequence(
    inside: list[nn.Module], classes: int, *, stem: nn.Module | None = None, head: nn.Module | None = None
) -> nn.Sequential:
    """Put layers of 16 -> 32 channels between a stem and a head, for images of one channel."""
    return nn.Sequential(
        stem or nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *inside, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        head or nn.Linear(32, classes),
    )  # fmt: skip


class LinearNetwork(nn.Module):
    """A linear map of 64 pixels, which pass through `last`: what a test overrides."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def last(self, x: Tensor) -> Tensor:
        """Return the features (B, 64) unchanged."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(x.flatten(1)))


class ConvolutionalNetwork(nn.Module):
    """A small network of one channel with dropout, whose features pass through `last`: what a test overrides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 10)

    def last(self, x: Tensor) -> Tensor:
        """Return the features (B, 8) unchanged."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(self.last(x)))


class TwoInputs(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.body = sequence([nn.Conv2d(16, 32, 3, padding=1)], classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.body(x * mask)


def two_inputs(num_classes: int) -> nn.Module:
    return TwoInputs(num_classes)


def lazy(num_classes: int) -> nn.Module:
    """Layers whose sizes only the first image tells."""
    return sequence([nn.LazyConv2d(32, 3, padding=1), nn.ReLU()], num_classes, head=nn.LazyLinear(num_classes))


class SamePaddedConv(nn.Conv2d):
    """Pads by the size of the image, while its attribute `padding` stays 0."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [
            max((-(-side // step) - 1) * step + kernel - side, 0)
            for side, step, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        x = functional.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return functional.conv2d(x, self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """Standardises its weight before each use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class ScaledLinear(nn.Linear):
    """Scales its weight, as equalised learning rates do."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * 0.5, self.bias)


class Residual(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def same_padded(num_classes: int) -> nn.Module:
    return sequence([Residual(SamePaddedConv(16, 16, 3)), nn.Conv2d(16, 32, 1)], num_classes)


def weight_norm(num_classes: int) -> nn.Module:
    """The form that torch recommends, a parametrization."""
    return sequence([parametrizations.weight_norm(nn.Conv2d(16, 32, 3, padding=1))], num_classes)


def weight_norm_by_hook(num_classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates it, but trained networks have it
        stem = torch.nn.utils.weight_norm(nn.Conv2d(1, 16, 3, padding=1))
    return sequence([nn.Conv2d(16, 32, 3, padding=1)], num_classes, stem=stem)


class HardSigmoid(nn.Module):
    """A leaf without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(x + 3) / 6


class LayerScale(nn.Module):
    """A leaf with one parameter, which is no matrix."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def own_activation(num_classes: int) -> nn.Module:
    return sequence([nn.Conv2d(16, 32, 3), HardSigmoid()], num_classes)


def layer_scale(num_classes: int) -> nn.Module:
    return sequence([nn.Conv2d(16, 32, 3), LayerScale(32)], num_classes)


def too_many_outputs(**kwargs: Any) -> nn.Module:
    """Never sees the number of classes."""
    return sequence([nn.Conv2d(16, 32, 3)], 1000)


def too_few_outputs() -> nn.Module:
    return sequence([nn.Conv2d(16, 32, 3)], 5)


@dataclass
class Output:
    logits: Tensor


class Boxed(nn.Module):
    """Returns an object, as the classifiers of transformers do."""

    def __init__(self, classes: int):
        super().__init__()
        self.body = sequence([nn.Conv2d(16, 32, 3)], classes)

    def forward(self, x: Tensor) -> Any:
        return Output(self.body(x))


class Dictionary(Boxed):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.body(x), "features": x}


class TupleOfOne(Boxed):
    def forward(self, x: Tensor) -> Any:
        return (self.body(x),)


class TupleOfTwo(Boxed):
    def forward(self, x: Tensor) -> Any:
        return self.body(x), x


class Detector(Boxed):
    def forward(self, x: Tensor) -> Any:
        return [{"boxes": x, "scores": x}]


def boxed(num_classes: int) -> nn.Module:
    return Boxed(num_classes)


def dictionary(num_classes: int) -> nn.Module:
    return Dictionary(num_classes)


def tuple_of_one(num_classes: int) -> nn.Module:
    return TupleOfOne(num_classes)


def tuple_of_two(num_classes: int) -> nn.Module:
    return TupleOfTwo(num_classes)


def detector(num_classes: int) -> nn.Module:
    return Detector(num_classes)


def segmenter(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, num_classes, 1))


def regression() -> nn.Module:
    return sequence([nn.Conv2d(16, 32, 3)], 1)


class Encoder(nn.Module):
    """Torch's transformer layer, whose fused kernel reads the weights of its linear maps."""

    def __init__(self, classes: int):
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def encoder(num_classes: int) -> nn.Module:
    return Encoder(num_classes)


class ClassToken(Encoder):
    """A vision transformer that holds parameters of its own."""

    def __init__(self, classes: int):
        super().__init__(classes)
        self.cls_token, self.positions = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.layer(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))[:, 0])


def class_token(num_classes: int) -> nn.Module:
    return ClassToken(num_classes)


def tied_parameter(num_classes: int) -> nn.Module:
    """Two layers with one parameter."""
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, num_classes))
    head[2].weight = head[0].weight
    return sequence([nn.Conv2d(16, 32, 3)], num_classes, head=head)


def tied_layer(num_classes: int) -> nn.Module:
    """One layer in two places."""
    conv = nn.Conv2d(16, 16, 3, padding=1)
    return sequence([conv, nn.ReLU(), conv, nn.Conv2d(16, 32, 1)], num_classes)


class Branch(nn.Module):
    """Decides by the values of the data."""

    def __init__(self, classes: int):
        super().__init__()
        self.body = sequence([nn.Conv2d(16, 32, 3)], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * 2 if float(x.mean()) > 0 else x)


def branch(num_classes: int) -> nn.Module:
    return Branch(num_classes)


def frozen(num_classes: int) -> nn.Module:
    network = sequence([nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1)], num_classes)
    network[2].requires_grad_(False)
    return network


class Embedded(nn.Module):
    """Adds a row of a table to each column of an image."""

    def __init__(self, columns: int, channels: int):
        super().__init__()
        self.table = nn.Embedding(columns, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(x.shape[-1], device=x.device))
        return x + rows.T[:, None, :]


def embedding(num_classes: int) -> nn.Module:
    return sequence([Embedded(12, 16), nn.Conv2d(16, 32, 3)], num_classes)


def rms_norm(num_classes: int) -> nn.Module:
    return sequence([nn.RMSNorm(12), nn.Conv2d(16, 32, 3)], num_classes)


@torch.library.custom_op("own_networks::deform_conv2d", mutates_args=())
def deform_conv2d(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Stand in for torchvision's operator, which torch on a CPU alone does not always have."""
    return functional.conv2d(x + offsets.mean(1, keepdim=True), weight, padding=1)


class Deformable(nn.Module):
    """Bends its kernel by offsets that a plain convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.weight = nn.Conv2d(16, 18, 3, padding=1), nn.Parameter(torch.randn(32, 16, 3, 3) / 12)

    def forward(self, x: Tensor) -> Tensor:
        return deform_conv2d(x, self.weight, self.offsets(x))


def deformable(num_classes: int) -> nn.Module:
    return sequence([Deformable()], num_classes)


def trained(num_classes: int) -> nn.Module:
    """Returns the same weights at every call, as a builder that reads a file does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        return sequence([nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)], num_classes)


def half(num_classes: int) -> nn.Module:
    return sequence([nn.Conv2d(16, 32, 3)], num_classes).half()


def no_parameters(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def failing_builder(num_classes: int) -> nn.Module:
    raise KeyError("checkpoint")


class Probabilities(Boxed):
    def forward(self, x: Tensor) -> Any:
        return self.body(x).softmax(1)


class LogProbabilities(Boxed):
    """Cross-entropy and softmax take these like the logits that they were made from."""

    def forward(self, x: Tensor) -> Any:
        return self.body(x).log_softmax(1)


class InPlace(Boxed):
    """Writes to the images that it is given."""

    def forward(self, x: Tensor) -> Any:
        return self.body(x.mul_(0.5))


class Stateful(Boxed):
    """Keeps a dictionary beside its tensors."""

    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def probabilities(num_classes: int) -> nn.Module:
    return Probabilities(num_classes)


def log_probabilities(num_classes: int) -> nn.Module:
    return LogProbabilities(num_classes)


def in_place(num_classes: int) -> nn.Module:
    return InPlace(num_classes)


def stateful(num_classes: int) -> nn.Module:
    return Stateful(num_classes)


def traced(num_classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(sequence([nn.Conv2d(16, 32, 3)], num_classes), torch.zeros(2, 1, 12, 12))


def batch_of_one(num_classes: int) -> nn.Module:
    """Writes out the number of images."""
    network = sequence([nn.Conv2d(16, 32, 3)], num_classes)
    return nn.Sequential(*network[:4], nn.Flatten(0), nn.Unflatten(0, (1, 32)), network[5])


class WithoutGradients(Boxed):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.body(x)


class LossInTraining(Boxed):
    """Returns its loss in training mode, as detectors do."""

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        return {"loss": logits.sum()} if self.training else logits


class Auxiliary(Boxed):
    """Returns a list with the outputs of a second head in training mode."""

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        return [logits, 2 * logits] if self.training else logits


def without_gradients(num_classes: int) -> nn.Module:
    return WithoutGradients(num_classes)


def loss_in_training(num_classes: int) -> nn.Module:
    return LossInTraining(num_classes)


def auxiliary(num_classes: int) -> nn.Module:
    return Auxiliary(num_classes)


def parallel(num_classes: int) -> nn.Module:
    return nn.DataParallel(sequence([nn.Conv2d(16, 32, 3)], num_classes))


class Phases(Boxed):
    """Turns its features by complex numbers."""

    def __init__(self, classes: int):
        super().__init__(classes)
        self.register_buffer("phases", torch.exp(1j * torch.linspace(0, 3, classes)))

    def forward(self, x: Tensor) -> Any:
        return (self.body(x) * self.phases).real


def phases(num_classes: int) -> nn.Module:
    return Phases(num_classes)


class FailingForward(Boxed):
    def forward(self, x: Tensor) -> Any:
        raise IndexError("no such stage")


def failing_forward(num_classes: int) -> nn.Module:
    return FailingForward(num_classes)
