"""Weights as people have them: every usual form is read, nothing runs, and what does not fit is one line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.io.model_file import save_model
from lowrank.io.tensor_file import save_tensors
from lowrank.io.weight_files import load_weights, read_weights
from lowrank.layers import Dense
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings, make_network

torch.set_num_threads(1)
CLASSES = 4


class Small(nn.Module):
    """A convolution with a batch norm, and a classifier."""

    def __init__(self, classes: int = CLASSES, bias: bool = True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, classes, bias=bias)


class Wrapped(nn.Module):
    """A network whose own names begin with a prefix that is stripped elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Small()


def small(seed: int = 1, classes: int = CLASSES) -> Small:
    torch.manual_seed(seed)
    network = Small(classes)
    network.norm.running_mean += 2.0
    return network


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def assert_same(network: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for name, tensor in other.state_dict().items():
        assert torch.allclose(network.state_dict()[name], tensor, rtol=tolerance, atol=tolerance), name


def refused(network: nn.Module, path: Path, message: str, **options: Any) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_weights(network, path, **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.net.backbone."])
@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
def test_prefixes_are_stripped_in_every_form(tmp_path, prefix, form):
    source, network = small(), small(2)
    state = prefixed(source.state_dict(), prefix)
    if form == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    else:
        path = saved(tmp_path, state, _use_new_zipfile_serialization=form == "torch")
    report = load_weights(network, path)
    assert_same(network, source)
    assert (report.prefix, report.section, report.new_head) == (prefix, None, None)
    assert report.format == form.removeprefix("old ")
    assert set(report.keys) == source.state_dict().keys()
    assert (report.missing, report.unexpected, report.dtypes) == ((), (), ("float32",))


def test_a_prefix_of_the_networks_own_stays(tmp_path):
    source, network = Wrapped(), Wrapped()
    assert load_weights(network, saved(tmp_path, source.state_dict())).prefix == ""
    assert load_weights(network, saved(tmp_path, prefixed(source.state_dict(), "module."))).prefix == "module."
    assert_same(network, source)


def test_a_prefix_that_some_names_lack_is_not_stripped(tmp_path):
    state = prefixed(small().state_dict(), "module.")
    state["conv.weight"] = state.pop("module.conv.weight")
    refused(small(2), saved(tmp_path, state), r"6 missing \(norm.weight, norm.bias, norm.running_mean, ...\)")


@pytest.mark.parametrize("section", ["state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "generator"])
def test_a_dictionary_among_other_things_is_found(tmp_path, section):
    source, network = small(), small(2)
    beside = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(9.5), "optimizer": {"state": {}}}
    report = load_weights(network, saved(tmp_path, {**beside, section: source.state_dict()}))
    assert_same(network, source)
    assert (report.section, report.other_sections) == (section, ())


def test_of_several_dictionaries_the_one_taken_is_named(tmp_path):
    plain, average, network = small(), small(3), small(2)
    path = saved(tmp_path, {"state_dict_ema": average.state_dict(), "state_dict": plain.state_dict()})
    report = load_weights(network, path)
    assert_same(network, plain)
    assert report.lines()[0].endswith("8 tensors, from `state_dict` (not `state_dict_ema`)")
    assert load_weights(network, path, section="state_dict_ema").section == "state_dict_ema"
    assert_same(network, average)
    refused(network, path, "unknown section of .* 'mean'; choose from: state_dict, state_dict_ema", section="mean")
    refused(network, saved(tmp_path, plain.state_dict()), "has no section 'ema': it holds the weights", section="ema")
    refused(network, saved(tmp_path, {"a": plain.state_dict(), "b": plain.state_dict()}), "several dictionaries")


def test_a_dictionary_within_a_dictionary_is_found(tmp_path):
    path = saved(tmp_path, {"model": {"state_dict": small().state_dict(), "version": 2}})
    assert load_weights(small(2), path).section == "model.state_dict"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(tmp_path, dtype):
    source, network = small(), small(2)
    report = load_weights(network, saved(tmp_path, source.to(dtype).state_dict()))
    assert network.conv.weight.dtype == torch.float32
    assert_same(network, source.float())
    assert report.dtypes == (str(dtype).removeprefix("torch."),)
    assert report.lines()[0].endswith(f"stored as {report.dtypes[0]}")


def test_integers_and_infinite_values_are_refused(tmp_path):
    state = small().state_dict()
    integers = {**state, "conv.weight": torch.ones(3, 1, 3, 3, dtype=torch.int8)}
    refused(small(2), saved(tmp_path, integers), "`conv.weight` must be plain float32 or convert to it, but is int8")
    large = {**state, "fc.weight": torch.full((4, 3), 1e5)}
    refused(small(2).half(), saved(tmp_path, large), "`fc.weight` must be finite in float16, but has NaN or infinite")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_counters_that_were_halved_with_the_weights_are_read(tmp_path, dtype):
    source, network = small(), small(2)
    source.get_buffer("norm.num_batches_tracked").fill_(35)
    load_weights(network, saved(tmp_path, {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}))
    counter = network.get_buffer("norm.num_batches_tracked")
    assert (counter.dtype, int(counter)) == (torch.int64, 35)


def test_counters_may_be_missing_or_too_many(tmp_path):
    source, network = small(), small(2)
    state = source.state_dict()
    counter = state.pop("norm.num_batches_tracked")
    report = load_weights(network, saved(tmp_path, state))
    assert report.missing == ("norm.num_batches_tracked",)
    average = {"n_averaged": torch.tensor(3), **prefixed({**state, "old.num_batches_tracked": counter}, "module.")}
    report = load_weights(network, saved(tmp_path, average))
    assert (report.prefix, report.unexpected) == ("module.", ("old.num_batches_tracked",))
    assert_same(network, source)


def test_a_tied_weight_may_be_stored_once(tmp_path):
    source, network = small(), small(2)
    source.copy, network.copy = nn.Linear(3, 4), nn.Linear(3, 4)
    source.copy.weight, network.copy.weight = source.fc.weight, network.fc.weight
    state = source.state_dict()
    del state["copy.weight"]
    assert load_weights(network, saved(tmp_path, state)).missing == ("copy.weight",)
    assert_same(network, source)


def test_auxiliary_heads_that_the_network_has_not_are_left_out(tmp_path):
    state = {**small().state_dict(), "AuxLogits.fc.weight": torch.ones(2, 2)}
    assert load_weights(small(2), saved(tmp_path, state)).unexpected == ("AuxLogits.fc.weight",)


def test_a_head_of_another_size_begins_anew_only_where_that_is_allowed(tmp_path):
    path, network = saved(tmp_path, small().state_dict()), small(2, classes=1000)
    message = "last layer `fc` of Small has 1,000 outputs, but the file has 4; train it first on the classes"
    refused(network, path, message)
    before = network.fc.weight.clone()
    report = load_weights(network, path, allow_new_head=True)
    assert torch.equal(network.fc.weight, before)
    assert torch.equal(network.conv.weight, small().conv.weight)
    assert (report.missing, report.unexpected) == (("fc.weight", "fc.bias"), ("fc.weight", "fc.bias"))
    assert report.lines()[1] == ("the last layer `fc` begins anew: the file's has 4 outputs, this network's 1,000")


def test_a_head_that_is_not_in_the_file_begins_anew_only_where_that_is_allowed(tmp_path):
    state = small().state_dict()
    del state["fc.weight"], state["fc.bias"]
    path = saved(tmp_path, state)
    refused(small(2), path, "has 4 outputs, but the file has no such layer")
    report = load_weights(small(2), path, allow_new_head=True)
    assert report.new_head is not None
    assert report.lines()[1].endswith("it is not in the file")


def test_only_the_last_layer_can_begin_anew(tmp_path):
    source = small()
    source.conv = nn.Conv2d(1, 5, 3, bias=False)
    refused(small(2), saved(tmp_path, source.state_dict()), "1 of another shape", allow_new_head=True)
    source = small()
    source.fc = nn.Linear(9, CLASSES)
    message = r"1 of another shape \(fc.weight 4x9 instead of 4x3\)"
    refused(small(2), saved(tmp_path, source.state_dict()), message, allow_new_head=True)
    refused(Small(bias=False), saved(tmp_path, small().state_dict()), r"1 unexpected \(fc.bias\)")


def test_what_does_not_fit_is_named_and_counted(tmp_path):
    state = prefixed(small().state_dict(), "encoder.")
    state["conv.weight"] = torch.ones(3, 1, 5, 5)
    refused(
        small(2),
        saved(tmp_path, state),
        r"its tensors do not fit Small: 6 missing \(norm.weight, norm.bias, norm.running_mean, ...\), "
        r"7 unexpected \(encoder.conv.weight, .*, ...\), 1 of another shape \(conv.weight 3x1x5x5 instead of 3x1x3x3\)",
    )


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(tmp_path):
    path = saved(tmp_path, {"model": Malicious(tmp_path / "made")})
    refused(small(2), path, r"holds a pickled `\w+.mkdir`, and reading that would run code")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "holds a pickled `torch.nn.modules.linear.Linear`.*; save `network.state_dict\\(\\)` by"),
        ([1, 2], "must hold a dictionary of tensors, but holds a list"),
        (torch.ones(2), "must hold a dictionary of tensors, but holds a Tensor"),
        ({}, "but holds an empty one"),
        ({"epoch": 1, "fc.weight": torch.ones(2)}, "but has epoch beside tensors or instead of them"),
    ],
)
def test_other_objects_are_refused(tmp_path, content, message):
    refused(small(2), saved(tmp_path, content), message)


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04abc", b"\x05\x00\x00\x00\x00\x00\x00\x00{{{{{{"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused(small(2), path, "must be a safetensors file or a whole file|is damaged")


def test_a_file_of_text_is_called_what_it_is_not(tmp_path):
    (tmp_path / "weights.pth").write_text("hello")
    refused(small(2), tmp_path / "weights.pth", "torch.save, but it can be read as neither")


def test_folders(tmp_path):
    refused(small(2), tmp_path / "none", "there is no file of weights")
    refused(small(2), tmp_path, "must hold model.safetensors or pytorch_model.bin")
    torch.save(small().state_dict(), tmp_path / "pytorch_model.bin")
    assert load_weights(small(2), tmp_path).format == "torch"
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    assert load_weights(small(2), tmp_path).format == "safetensors"


def test_this_librarys_own_files(tmp_path):
    settings, path = NetworkSettings(width=0.0625), tmp_path / "model.safetensors"
    source, network = (make_network(settings, (1, 8, 8), 10) for _ in range(2))
    save_model(path, source, network=settings, method=Dense(), image_shape=(1, 8, 8), classes=10)
    report = load_weights(network, path)
    assert_same(network, source)
    assert report.format == "lowrank"
    specification = read_weights(path).specification
    assert specification is not None
    assert specification.method == make_method({"name": "dense"})
    refused(make_network(NetworkSettings(width=0.125), (1, 8, 8), 10), path, "holds a dense resnet9 of width 0.0625$")


def test_a_trials_checkpoint(tmp_path):
    source, network = small(), small(2)
    beside = {"epoch": torch.tensor(3), "optimizer.0": torch.ones(2)}
    save_tensors(tmp_path / "checkpoint.safetensors", {**prefixed(source.state_dict(), "network."), **beside}, {})
    assert load_weights(network, tmp_path / "checkpoint.safetensors").prefix == ""
    assert_same(network, source)
