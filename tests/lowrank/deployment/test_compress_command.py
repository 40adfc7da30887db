"""`python -m lowrank.compress`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.research_log.other_entries import compress_entry
from lowrank.compress import main, parse_budget, parse_config
from lowrank.data import DataSettings, load_data
from lowrank.deployment import compress_run, formats
from lowrank.deployment.compress_run import folder_names, reorder_outputs
from lowrank.deployment.formats import Export, ExportedFile, onnx_forward
from lowrank.deployment.latency import measure_latency
from lowrank.errors import InputError
from lowrank.io import load_merged, load_model, published_preprocessing
from lowrank.networks import NetworkSettings
from tests.support import own_networks

WEIGHTS = Path(__file__).parents[2] / "data" / "digits_resnet9.safetensors"
BASE = ["--network", "resnet9", "--width", "0.0625", "--weights", str(WEIGHTS), "--data", "digits"]
QUICK = ["--method", "svd", "--allocation", "energy", "--calibration", "256"]


def run_quickly(out: Path, *options: str) -> tuple[str, str]:
    """Run the command; returns its standard output and standard error."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert main([*BASE, *QUICK, "--out", str(out), *options]) == 0
    return stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module", autouse=True)
def short_latencies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress_run, "measure_latency", partial(measure_latency, seconds=0.0))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one run wrote a network of a quarter of the size, in all forms."""
    out = tmp_path_factory.mktemp("compress") / "out"
    run_quickly(out, "--budget", "0.25", "--finetune", "1", "--opset", "20")
    return out


@pytest.fixture
def without_programs(monkeypatch) -> None:
    """Leave out the exported programs, which take seconds."""
    every = formats._forms

    def only_tensors(*arguments: Any) -> Any:
        forms, failures = every(*arguments)
        return [form for form in forms if form.kind == formats.SAFETENSORS], failures

    monkeypatch.setattr(formats, "_forms", only_tensors)


def test_json_is_one_object_for_each_budget_and_nothing_else(tmp_path, without_programs) -> None:
    out = tmp_path / "out"
    stdout, stderr = run_quickly(out, "--budget", "0.5", "0.25", "--finetune", "1", "--json")
    reports = json.loads(stdout)
    assert len(reports) == len(list(out.glob("*/report.json"))) == 2
    assert [path.name for path in out.iterdir() if path.is_file()] == [compress_run.RUN_FILE]
    for report, share in zip(reports, (0.5, 0.25), strict=True):
        assert report["params"] <= share * report["dense_params"]
        assert report["method"] == "svd"
        assert report["allocation"] == "energy"
        assert report["error_before"] < 15
        assert report["error_finetuned"] is not None
        assert (Path(report["folder"]) / "report.json").is_file()
        assert report["folder"].startswith(f"{out}/")
        assert list(report) == [
            "folder", "params", "dense_params", "mult_adds", "dense_mult_adds", "error_before", "error_after",
            "error_finetuned", "method", "allocation", "seconds", "layers",
        ]  # fmt: skip
        for layer in report["layers"]:
            assert (layer["weight_error"] is None) == (layer["output_error"] is None)
    assert "the given network:" in stderr
    assert stderr.count("calibrating") == 1, "both budgets share one calibration"


def test_every_file_gives_the_same_network(folder) -> None:
    images = torch.randn(5, 1, 8, 8)
    factorised, merged = load_model(folder / "factorised.safetensors"), load_merged(folder / "merged.safetensors")
    with torch.no_grad():
        expected = factorised(images)
        torch.testing.assert_close(merged(images), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(onnx_forward(folder / "factorised.onnx")(images), expected, rtol=1e-3, atol=1e-3)
    report = json.loads((folder / "report.json").read_text())
    assert sum(value.numel() for value in factorised.parameters()) == report["params"]
    card = (folder / "README.md").read_text()
    assert card.splitlines()[2].startswith("Error of these files: ")
    for part in ("| parameters", "opset 20 and IR version 9", "then the mean is subtracted", '["0", "1", "2"'):
        assert part in card
    row = next(line for line in card.splitlines() if line.startswith("| compressed | "))
    size, mult_adds = (int(cell.replace(",", "")) for cell in row.split(" | ")[1:3])
    metadata = (folder / "factorised.safetensors").stat().st_size - size
    assert 0 < metadata < 8_000  # of the specification, beside the tensors
    assert mult_adds == report["mult_adds"]


def test_the_run_leaves_a_record_for_the_log(folder) -> None:
    record = json.loads((folder / compress_run.RUN_FILE).read_text())
    assert record["command"].startswith("python -m lowrank.compress --network resnet9 --width 0.0625 --weights ")
    assert record["ended"] > record["began"]
    assert record["data"]["name"] == "digits"
    report = json.loads((folder / "report.json").read_text())
    assert record["networks"] == [{"folder": "", **{name: report[name] for name in report if name != "layers"}}]
    entry = compress_entry(folder)
    assert entry.title == f"compressed network {folder.name}"
    assert f"{report['params']:,} of {report['dense_params']:,} parameters" in entry.answer[0]
    assert entry.commands == (("the run", record["command"]),)


def test_a_damaged_record_of_a_run_is_one_line(tmp_path) -> None:
    (tmp_path / compress_run.RUN_FILE).write_text('{"networks": []}')
    with pytest.raises(InputError, match=r"compress.json is damaged: IndexError"):
        compress_entry(tmp_path)


def test_a_file_that_names_no_layer_is_refused(folder, tmp_path) -> None:
    from lowrank.io import load_tensors, save_tensors

    tensors, metadata = load_tensors(folder / "factorised.safetensors")
    content = json.loads(metadata["lowrank_model"])
    content["layers"]["nowhere"] = next(iter(content["layers"].values()))
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors, {"lowrank_model": json.dumps(content)})
    with pytest.raises(InputError, match="`nowhere` must be a convolution or linear map of ResNet9"):
        load_model(path)


def test_the_printed_table_names_sizes_errors_times_and_layers(
    tmp_path, capsys, monkeypatch, without_programs
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*BASE, *QUICK, "--out", "out", "--max-loss", "30", "--report-on", "test"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "| parameters",
        "| mult-adds",
        "| test error, %",
        "| on the images that chose, %",
        " points, at most 30 |",
        "| ms for 1 image",
        "| ms for 64 images",
        "| weight error | output error |",
        f"{torch.get_num_threads()} thread",
        f"torch {torch.__version__}",
        "Times: float32; ",
        "stage3.1.first.0",
        "\nwritten to out\n",  # as it was typed
    ):
        assert word in printed
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(("epochs", "label"), [(1, "after 1 epoch, %"), (5, "after 5 epochs, %")])
def test_the_table_says_after_how_many_epochs_an_error_was_measured(epochs, label) -> None:
    small = SimpleNamespace(
        dense_params=100, params=50, dense_mult_adds=100, mult_adds=50, method="svd", allocation="energy", layers=()
    )
    outcome: Any = SimpleNamespace(
        compressed=small, error_before=1.0, error_after=2.0, error_finetuned=1.5, rates=(0.1,), latencies=()
    )
    config: Any = SimpleNamespace(
        finetune=epochs, max_loss=None, report_on="val", network=SimpleNamespace(name="resnet9")
    )
    lines = compress_run.summary_lines(outcome, config)
    assert f"| {label} " in "\n".join(lines)
    (row,) = [line for line in lines if "validation error, %" in line]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["1.00", "2.00", "+1.00 points"]


@pytest.mark.parametrize(("after", "is_over"), [(2.5, False), (2.6, True)])
def test_the_table_says_where_a_limit_on_the_loss_holds_on_the_choosing_images_alone(after, is_over) -> None:
    small = SimpleNamespace(
        dense_params=100, params=50, dense_mult_adds=100, mult_adds=50, method="svd", allocation="energy", layers=(),
        error_before=1.0, error_after=2.0,
    )  # fmt: skip
    outcome: Any = SimpleNamespace(
        compressed=small, error_before=1.0, error_after=after, error_finetuned=None, rates=None, latencies=()
    )
    config: Any = SimpleNamespace(max_loss=1.5, report_on="val", network=SimpleNamespace(name="resnet9"))
    line = (
        "The limit of 1.5 points is met on the images that choose, but on those that choose nothing the error rises by "
        f"{after - 1:.2f} points before any training."
    )
    assert (line in compress_run.summary_lines(outcome, config)) == is_over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1.5"], "--budget must be a share in (0, 1] such as 0.5"),
        (["--budget", "params=0.5,params=0.6"], "--budget must be a share"),
        (["--budget", "0.001"], "the network cannot be that small: its least size is"),
        (["--budget", "0.5", "0.50"], "--budget must name each size once, but got '0.50' twice"),
        (["--method", "tucker"], "unknown method 'tucker'"),
        (["--opset", "16"], "unknown opset '16'; choose from: 17, 18"),
        (["--calibration", "2"], "--calibration must be at least 8, but got 2"),
        (["--max-loss", "-1"], "--max-loss must be a number of points"),
        (["--keep", "nothing"], "no layer is called 'nothing'"),
        (["--network", "resnet10"], "resnet10"),
        (["--width", "0.125"], "its tensors do not fit ResNet9"),
        (["--mean", "0.5", "--std", "0.0"], "std"),
        (
            ["--set", "stem=small"],
            "--set must be network.FIELD=VALUE or data.FIELD=VALUE, such as network.stem=small, but got 'stem=small'",
        ),
        (["--set", "network.stem=tall"], "network.stem"),
        (["--weights", "absent"], "--weights must be a file, DEFAULT or network, but there is no file absent"),
        (["--weights", "DEFAULT"], "`weights` are those of torchvision, timm, hf networks: resnet9 has none"),
        (["--weights", "network"], "needs a network that is built with trained weights, but resnet9 draws its weights"),
        (["--set", "data.channels=2"], "`data.channels`"),
        (["--set", "data.label=kind"], "`data.label` names a column of parquet:DIR and csv:DIR"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(options, message, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main([*BASE, *QUICK, "--out", str(out), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert not out.exists()


def earlier_output(parent: Path) -> Path:
    """A folder such as an earlier run leaves."""
    out = parent / "out"
    out.mkdir()
    (out / compress_run.RUN_FILE).write_text("{}")
    (out / "older.txt").write_text("of an earlier run")
    return out


def test_an_existing_folder_is_refused(tmp_path, capsys) -> None:
    assert main([*BASE, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} exists already; give another --out or --overwrite" in capsys.readouterr().err


def test_an_interruption_leaves_the_old_folder_and_nothing_half(tmp_path, capsys, monkeypatch) -> None:
    out = earlier_output(tmp_path)

    def interrupt(network, specification, images, folder, *arguments, **options):
        (folder / "factorised.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_run, "export_formats", interrupt)
    assert main([*BASE, *QUICK, "--out", str(out), "--overwrite"]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "older.txt").read_text() == "of an earlier run"


def exported(*files: ExportedFile) -> Export:
    return Export(files=files, failures=(), images=1, error=0.7, opset=18)


def test_overwriting_replaces_the_folder(tmp_path, capsys, monkeypatch) -> None:
    out = earlier_output(tmp_path)
    monkeypatch.setattr(compress_run, "export_formats", lambda *arguments, **options: exported())
    assert main([*BASE, *QUICK, "--out", str(out), "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "compress.json", "preprocessing.json", "report.json",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_an_earlier_output_is_replaced(tmp_path, capsys) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("of somebody")
    for out, message in (
        (mine, "must be a new folder or one of an earlier run, but"),
        (mine / "notes.txt", "must be a folder, but"),
        (mine / "notes.txt" / "deeper", "notes.txt is a file"),
    ):
        assert main([*BASE, *QUICK, "--out", str(out), "--overwrite"]) == 2
        assert message in capsys.readouterr().err
    assert (mine / "notes.txt").read_text() == "of somebody"


def test_weights_that_the_new_folder_would_replace_are_refused(tmp_path, capsys) -> None:
    out = earlier_output(tmp_path)
    weights = shutil.copy(WEIGHTS, out / "factorised.safetensors")
    assert main([*BASE, *QUICK, "--weights", str(weights), "--out", str(out), "--overwrite"]) == 2
    assert "which --overwrite would remove" in capsys.readouterr().err
    assert weights.is_file()


def test_folders_above_the_output_are_made_and_a_dot_is_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compress_run, "export_formats", lambda *arguments, **options: exported())
    run_quickly(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert parse_config([*BASE, "--out", ".", "--overwrite"]).out == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    ("params", "folders"),
    [
        ([13_020], [""]),
        ([13_020, 6_500], ["13.0k_parameters", "6.50k_parameters"]),
        ([13_020, 13_019], ["13020_parameters", "13019_parameters"]),
        ([13_020, 13_020], ["1_13020_parameters", "2_13020_parameters"]),
    ],
)
def test_each_network_has_a_folder_of_its_own(params, folders) -> None:
    outcomes: Any = [SimpleNamespace(compressed=SimpleNamespace(params=count)) for count in params]
    assert folder_names(outcomes) == folders


def test_a_budget_that_cannot_be_met_is_refused_before_the_others_are(tmp_path, capsys) -> None:
    assert main([*BASE, *QUICK, "--out", str(tmp_path / "out"), "--budget", "0.5", "0.001"]) == 2
    printed = capsys.readouterr().err
    assert "its least size is" in printed
    assert "calibrating" not in printed


def test_a_form_that_gives_other_outputs_is_named_and_the_exit_code_is_1(tmp_path, capsys, monkeypatch) -> None:
    wrong = ExportedFile(
        network="factorised", kind="ONNX", file="factorised.onnx", bytes=1, difference=5.0, largest_logit=1.0,
        agreement=0.5, widest_change=1.0, error=None, mult_adds=1,
    )  # fmt: skip
    monkeypatch.setattr(compress_run, "export_formats", lambda *arguments, **options: exported(wrong))
    assert main([*BASE, *QUICK, "--out", str(tmp_path / "out"), "--json"]) == 1
    captured = capsys.readouterr()
    assert "error: factorised.onnx: its outputs differ from the network's" in captured.err
    assert isinstance(json.loads(captured.out), dict), "one budget gives one object"


def test_weights_that_do_not_belong_to_the_images_are_refused(tmp_path, capsys) -> None:
    network = load_model(WEIGHTS)
    torch.manual_seed(0)
    for value in network.parameters():
        torch.nn.init.normal_(value)
    torch.save(network.state_dict(), tmp_path / "random.pt")
    options = [*BASE, *QUICK, "--out", str(tmp_path / "out"), "--weights", str(tmp_path / "random.pt")]
    assert main(options) == 2
    assert "that of chance is 90.0 %" in capsys.readouterr().err


def test_budgets_as_typed() -> None:
    assert parse_budget("0.5") == {"params": 0.5}
    assert parse_budget("params=0.5,mult_adds=0.6") == {"params": 0.5, "mult_adds": 0.6}
    with pytest.raises(InputError, match="but got 'half'"):
        parse_budget("half")


def test_outputs_are_put_into_the_order_of_the_classes() -> None:
    network = load_model(WEIGHTS)
    images = torch.randn(3, 1, 8, 8)
    order = tuple(reversed(range(10)))
    with torch.no_grad():
        before = network(images)
        reorder_outputs(network, order, images[:1])
        torch.testing.assert_close(network(images), before[:, list(order)])
    with pytest.raises(InputError, match="`classifier` must have 3 outputs"):
        reorder_outputs(network, (0, 1, 2), images[:1])


def test_a_network_is_named_with_the_options_of_counting(tmp_path) -> None:
    options = ["--network", "resnet18", "--width", "0.25", "--stem", "small", "--weights", str(WEIGHTS)]
    network = parse_config([*options, "--data", "digits", "--out", str(tmp_path / "out")]).network
    assert (network.name, network.width, network.stem) == ("resnet18", 0.25, "small")
    with pytest.raises(InputError, match="patch"):
        parse_config([*options, "--data", "digits", "--out", str(tmp_path / "out"), "--patch", "0"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tuple_of_two", "must be a classifier, which returns logits (1, 10) for one image, but returned a tuple of 2"),
        ("too_few_outputs", "must give one output for each of 10 classes, but gives 5"),
        ("failing_forward", "the network cannot take images of (1, 8, 8): IndexError: no such stage"),
    ],
)
def test_a_network_that_is_no_such_classifier_is_refused_before_its_weights_are_read(
    name, message, tmp_path, capsys
) -> None:
    network = f"{Path(own_networks.__file__)}:{name}"
    out = ["--out", str(tmp_path / "out")]
    assert main(["--network", network, "--weights", str(WEIGHTS), "--data", "digits", *out]) == 2
    _, line = capsys.readouterr().err.splitlines()  # the first says how images are normalised
    assert message in line


def test_weights_that_a_function_returns_need_no_file(tmp_path, capsys, without_programs) -> None:
    code = f"from lowrank.io import load_model\n\n\ndef make():\n    return load_model({str(WEIGHTS)!r}).train()\n"
    (tmp_path / "mine.py").write_text(code)
    network = ["--network", f"{tmp_path / 'mine.py'}:make", "--weights", "network", "--data", "digits"]
    assert main([*network, *QUICK, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert f"weights: those that {tmp_path / 'mine.py'}:make is built with" in printed.err
    assert "since no file beside the weights says what they expect; --mean and --std set others" in printed.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "made from its own weights by python -m lowrank.compress" in card
    assert "\npython -m lowrank.predict factorised.safetensors PATH --allow-code\n" in card


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ([], "data set digits; mean and deviation are those of the training images, since no file beside the weights "
         "says what they expect"),
        (["--crop", "1"], "the command line; mean and deviation are those of the training images, since no file "
         "beside the weights says what they expect"),
        (["--mean", "0.3", "--std", "0.4"], "the command line"),
    ],
)  # fmt: skip
def test_the_files_say_where_a_normalisation_that_nobody_named_is_from(
    options, source, tmp_path, without_programs
) -> None:
    run_quickly(tmp_path / "out", "--budget", "0.25", *options)
    stored = json.loads((tmp_path / "out" / "preprocessing.json").read_text())["source"]
    assert stored == source
    assert f"\nAn image becomes an input so ({source}):\n" in (tmp_path / "out" / "README.md").read_text()


def test_published_weights_say_what_they_expect_of_an_image() -> None:
    resnet = NetworkSettings(name="torchvision:resnet18", weights="DEFAULT")
    published = published_preprocessing(resnet)
    assert published is not None
    assert (published.image_size, published.mean) == (224, (0.485, 0.456, 0.406))
    assert published_preprocessing(NetworkSettings(name="torchvision:resnet18")) is None


def test_published_weights_for_other_classes_are_refused() -> None:
    network = NetworkSettings(name="torchvision:resnet18", weights="DEFAULT")
    with pytest.raises(InputError, match="are for 1,000 classes, but digits has 10: train it on these first"):
        compress_run._check_own_weights(network, load_data(DataSettings()))


def test_only_the_named_layers_are_compressed(tmp_path, without_programs) -> None:
    printed, _ = run_quickly(tmp_path / "small", "--only", "stage3.*", "--budget", "0.9", "--json")
    methods = {layer["name"]: layer["method"] for layer in json.loads(printed)["layers"]}
    changed = [name for name, method in methods.items() if method != "dense"]
    assert changed
    assert all(name.startswith("stage3.") for name in changed)
