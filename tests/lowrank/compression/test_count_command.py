"""`python -m lowrank.count`: what it prints, what `--json` holds, size on disk to the byte, one line for mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import _TYPES, save_file

from lowrank.compression.file_size import measure_file_size, safetensors_size
from lowrank.compression.substitution import build_student, factor_parameters
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.count import main
from lowrank.errors import UncountableError
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings, make_network

torch.set_num_threads(1)  # tiny layers


def counted(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command prints with --json."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_network_that_prints_leaves_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loud.py"
    file.write_text(
        "from torch import nn\n"
        "class Loud(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(16, 10)\n"
        "    def forward(self, x):\n        print('forward')\n        return super().forward(x.flatten(1))\n"
    )
    found = counted(capsys, "--network", f"{file}:Loud", "--image", "1x4x4", "--classes", "10")
    assert found["params"] == 170


def test_the_example_of_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    found = counted(capsys, "--network", "wrn_28_10", "--method", "tensor_train", "--dims", "3", "--rank-scale", "0.26")
    assert (found["params"], found["dense_params"], found["separable_params"]) == (664226, 36479194, 4380138)
    assert (found["mult_adds"], found["dense_mult_adds"]) == (627386624, 5243328768)
    assert sum(layer["params"] for layer in found["layers"]) + found["other_params"] == found["params"]
    assert sum(layer["mult_adds"] for layer in found["layers"]) == found["mult_adds"]
    assert sum(not layer["kept"] for layer in found["layers"]) == found["substituted"] == 24
    assert found["rebuilt_mult_adds"] == found["mult_adds"]
    assert found["contracted_mult_adds"] < found["mult_adds"] / 3
    assert found["factor_share"] == found["factor_params"] / 664226


@pytest.mark.parametrize(
    ("arguments", "params", "mult_adds"),
    [
        ("wrn_28_10 --method dense", 36479194, "5.24564E+09"),
        ("wrn_28_10 --method hashed_full --scale 0.1 --bias", 3911898, "5.24564E+09"),
        ("wrn_28_10 --method hashed --scale 0.1 --bias --share-of kernel", 3911898, "6.29697E+08"),
        ("wrn_28_10 --method shuffle --groups 4", 823674, "1.17201E+08"),
        ("wrn_28_10 --method acdc --layers 11", 555498, "1.33879E+09"),
        ("wrn_28_10 --method bottleneck --scale 0.1", 1190634, "1.71207E+08"),
        ("wrn_28_10 --method bottleneck --rank-scale 0.1", 1190634, "1.71207E+08"),
        ("darts --method separable", 3349342, "5.37400E+08"),
    ],
)
def test_the_study_convention(capsys: pytest.CaptureFixture[str], arguments: str, params: int, mult_adds: str) -> None:
    found = counted(capsys, "--convention", "study", "--network", *arguments.split())
    assert (found["params"], f"{found['mult_adds']:.5E}") == (params, mult_adds)
    extras = sum(found["study_extras"].values())
    assert sum(layer["mult_adds"] for layer in found["layers"]) + extras == found["mult_adds"]


def test_a_budget_solves_the_scale(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--network", "wrn_28_10", "--method", "tensor_train", "--dims", "3", "--budget")
    found = counted(capsys, *arguments, "7e5")
    assert 690_000 < found["params"] <= 700_000
    assert found["method"]["rank_scale"] == 0.27
    assert counted(capsys, *arguments, "664226")["params"] == 664226


def test_a_budget_solves_the_width_of_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    found = counted(capsys, "--network", "resnet9", "--method", "separable", "--budget", "2e5")
    assert 190_000 < found["params"] <= 200_000
    assert 0.3 < found["network"]["width"] < 0.7


@pytest.mark.parametrize(
    ("name", "image", "classes"), [("mobilenet_v2", [3, 224, 224], 1000), ("vgg16", [3, 32, 32], 10)]
)
def test_images_are_those_of_the_network_by_default(
    capsys: pytest.CaptureFixture[str], name: str, image: list[int], classes: int
) -> None:
    found = counted(capsys, "--network", name)
    assert (found["image"], found["classes"]) == (image, classes)
    found = counted(capsys, "--network", name, "--image", "1x64x40", "--classes", "7", "--width", "0.25")
    assert (found["image"], found["classes"], found["layers"][0]["in_channels"]) == ([1, 64, 40], 7, 1)


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ("resnet18", 11_689_512),
        ("resnet18 --stem small --image 3x32x32 --classes 10", 11_173_962),
        ("vit --patch 8 --depth 2 --heads 4", 932_170),
    ],
)
def test_fields_of_single_networks_are_options(capsys: pytest.CaptureFixture[str], arguments: str, params: int) -> None:
    assert counted(capsys, "--network", *arguments.split())["params"] == params


def test_linear_maps_are_substituted_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--network", "torchvision:resnet18", "--method", "bottleneck", "--scale", "0.1")
    without, found = counted(capsys, *arguments), counted(capsys, *arguments, "--linear")
    assert without["layers"][-1]["kept"] == "a linear map"
    assert found["layers"][-1]["kept"] == ""
    assert found["layers"][-1]["params"] == 100 * (512 + 1000) + 1000


def test_the_text_names_every_layer_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "wrn_10_1", "--method", "tucker", "--rank-scale", "0.5", "--convention", "study"]) == 0
    text = capsys.readouterr().out
    assert "wrn_10_1 with tucker (dims 3, rank_scale 0.5); images 3x32x32, 10 classes; study convention" in text
    for words in ("parameters ", "mult-adds ", "factors ", "on disk ", "rebuilt ", "contracted ", "inputs of ReLU"):
        assert f"\n{words}" in text or words in text.splitlines()[-1]
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("stem", "stage", "classifier"))}
    assert len(rows) == 1 + 6 + 2 + 1
    assert rows["stem"].endswith("the stem")
    assert rows["stage2.0.shortcut"].endswith("kept by name (*.shortcut)")
    assert all(len(line) <= 140 for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--network resnet10", "unknown network 'resnet10'; choose from: "),
        ("--network resnet99", "; did you mean resnet9?"),
        ("--network resnet9 --stem small", "resnet9 has no `stem`; resnet18 has"),
        ("--network resnet18 --stem tiny", "`network.stem`"),
        ("--network resnet9 --method tt", "unknown method 'tt'; choose from: "),
        ("--network resnet9 --method tucker --dims 12", "`method.dims`: must be less than or equal to 9, but got 12"),
        ("--network resnet9 --method acdc --dims 3", "acdc has no setting `--dims`; it has: --layers"),
        ("--network resnet9 --method shuffle --scale 0.1", "shuffle has no setting `--scale`; it has: --groups"),
        ("--network resnet9 --groups 2", "dense has no setting `--groups`; it has: none"),
        ("--network resnet9 --method cp --scale 0.1 --rank-scale 0.1", "give one of `--scale` and `--rank-scale`"),
        ("--network resnet9 --method cp --scale 0.1 --budget 1e5", "`--budget` solves the size; leave out `--scale`"),
        ("--network resnet9 --width 0.5 --budget 1e5", "`--budget` solves the width"),
        ("--network resnet9 --method cp --budget nan", "`--budget` must be a number of parameters of at least 1"),
        ("--network resnet9 --method cp --budget 1e4", "11,328 parameters and "),
        ("--network resnet9 --image 32x32", "`--image` must be channels, height and width such as 3x32x32"),
        ("--network resnet9 --image 3x0x32", "`--image` must be channels, height and width such as 3x32x32"),
        ("--network resnet9 --image 3x4x4", "resnet9 needs images of at least 8 x 8, but got 4 x 4"),
        ("--network resnet9 --classes 0", "`--classes` must be from 1 to 1,000,000, but got 0"),
        ("--network resnet9 --classes 99999999999999999999999", "`--classes` must be from 1 to 1,000,000, but got 9"),
        ("--network resnet9 --width 0", "`network.width`: must be greater than 0, but got 0.0"),
        ("--network resnet9 --method bottleneck --scale 0.001", "bottleneck: rank trunc(0.001 * 128) is 0"),
        ("--network nowhere:make", "network 'nowhere:make' cannot be imported: ModuleNotFoundError"),
        ("--network uncountable:make", "the network runs aten._fft_c2c, which has no counting rule"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    own = "import torch\nfrom torch import nn\n"
    own += "class Fourier(nn.Module):\n    def forward(self, x): return torch.fft.fft2(x).real\n"
    own += "def make(): return nn.Sequential(nn.Conv2d(3, 8, 1), Fourier())"
    (tmp_path / "uncountable.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "lowrank.count", "--network", "wrn_10_1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["params"] == json.loads(done.stdout)["dense_params"]
    command[4] = "resnet8"  # is unknown, which is seen before torch is imported
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("name", METHODS)
def test_size_on_disk_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    settings, image = NetworkSettings(name="wrn_10_1", linear=True), (3, 8, 8)
    method, plan = make_method({"name": name}), network_plan(settings, image, 10)
    student = build_student(settings, plan, method, image, 10, seed=0)
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    found = measure_file_size(network_to_count(settings, image, 10), plan, method)
    assert found.bytes == (tmp_path / "student.safetensors").stat().st_size
    assert found.factor_params == sum(factor.numel() for factor in factor_parameters(student))


@pytest.mark.parametrize("dtypes", [(), (torch.float32,), tuple(_TYPES.values())])
def test_bytes_of_a_file_of_any_types(dtypes: tuple[torch.dtype, ...], tmp_path: Path) -> None:
    tensors = {f"näme.{k}": torch.zeros(k, 3).to(dtype) for k, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "file")
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert safetensors_size(entries) == (tmp_path / "file").stat().st_size


def test_a_type_that_a_file_cannot_hold_is_an_error() -> None:
    with pytest.raises(UncountableError, match=r"`mask` is of the type torch\.complex128, which a safetensors file"):
        safetensors_size({"mask": (torch.complex128, (2,))})


def imported(*commands: str) -> set[str]:
    """Which of the slow modules the command imports, with each of these arguments in turn."""
    code = "import sys; from lowrank import count\nfor words in sys.argv[1:]:\n"
    code += " try: count.main(words.split())\n except SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    slow = {"torch", "torch._dynamo", "sympy", "torchvision", "scipy", "onnx", "pyarrow", "opt_einsum"}
    return slow & set(done.stderr.split())


@pytest.mark.parametrize("arguments", ["--help", "--network resnet8", "--network resnet9 --method tensor_tran"])
def test_help_and_an_unknown_name_do_not_import_torch(arguments: str) -> None:
    assert imported(arguments) == set()


def test_counting_imports_neither_torchs_compiler_nor_sympy() -> None:
    """An upgrade of torch that imports them again fails here; see lowrank.compression.operation_counter."""
    assert imported("--network resnet9", "--network wrn_10_1 --method tucker --budget 20000") == {"torch", "opt_einsum"}


def test_counting_builds_no_table_of_a_large_hashed_layer(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The tables of VGG-16's first linear map take gigabytes; the counts follow from shapes."""

    def fail(*_: Any) -> None:
        raise AssertionError("a table was built")

    monkeypatch.setattr("lowrank.layers.blocks.hashed.hash_table", fail)
    monkeypatch.setattr("lowrank.layers.blocks.hashed.reader_table", fail)
    assert main(["--network", "mlp", "--linear", "--method", "hashed", "--scale", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["substituted"] > 0


def test_a_network_of_ones_own_is_told_which_images_were_assumed(tmp_path, capsys):
    own = "from torch import nn\ndef make(): return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(512, 10))"
    (tmp_path / "grey.py").write_text(own)
    network = ["--network", f"{tmp_path / 'grey.py'}:make"]
    assert main(network) == 2
    assert "(images of 3x32x32 were assumed; --image CxHxW says which it takes)" in capsys.readouterr().err
    assert main([*network, "--image", "1x8x8"]) == 0


def test_a_network_without_a_layer_to_replace_is_counted_dense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "maps.py"
    path.write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))\n"
    )
    arguments = ["--network", f"{path}:make", "--method", "tensor_train"]
    assert main(arguments) == 0
    assert "add `linear: true` to `network` (lowrank.count: --linear)" in " ".join(capsys.readouterr().out.split())
    numbers = counted(capsys, *arguments)
    assert (numbers["params"], numbers["substituted"]) == (numbers["dense_params"], 0)


def test_only_the_named_layers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = counted(capsys, "--network", "vit", "--method", "svd", "--linear", "--only", "*.mlp.*")
    replaced = [layer["name"] for layer in numbers["layers"] if not layer["kept"]]
    assert replaced == [f"blocks.{block}.mlp.fc{number}" for block in range(6) for number in (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("mlp --hidden 5 4 --inputs 20 --image 1x8x8", {"name": "mlp", "hidden": (5, 4), "inputs": 20}),
        ("resnet9 --channels 3 4 2 5 6 1 --image 1x8x8", {"name": "resnet9", "channels": (3, 4, 2, 5, 6, 1)}),
    ],
)
def test_what_is_left_after_a_removal_is_counted(
    arguments: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    counts = counted(capsys, "--network", *arguments.split(), "--classes", "10")
    network = make_network(NetworkSettings(**settings), (1, 8, 8), 10)
    assert counts["params"] == counts["dense_params"] == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("size", [(), ("--budget", "100")])
def test_a_method_without_a_size_before_its_training_is_not_counted(
    size: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--network", "mlp", "--method", "bayesian", *size]) == 2
    assert "bayesian has no size before its training; count what is left" in capsys.readouterr().err
