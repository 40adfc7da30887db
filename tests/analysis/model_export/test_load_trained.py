"""A trial's network comes from the study's models, and runs no code that the records name."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from analysis.__main__ import main
from analysis.model_export.select_trial import load_trained
from analysis.model_export.trial_export import PROOF_FILE
from lowrank.errors import InputError
from lowrank.utils import check_output_folder
from sweeps.records import TRIALS_FOLDER, load_study
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial

ARCHIVE = Path(__file__).resolve().parents[2] / "data" / "study_2ff6b06.tar.gz"
MODEL = "61319e638aa3"  # the archive's only trial with a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "old_study"


def test_a_model_of_the_study_needs_neither_checkpoint_nor_images(folder, tmp_path):
    record = load_study(folder)
    by_checkpoint = tmp_path / "checkpoints"
    shutil.copytree(folder / TRIALS_FOLDER, by_checkpoint / TRIALS_FOLDER)
    by_model = tmp_path / "models"
    shutil.copytree(folder / "models", by_model / "models")
    images = torch.randn(3, 1, 8, 8)
    trained = load_trained(by_model, record, record.trials[MODEL], None)
    assert trained.preprocessing is not None
    assert trained.preprocessing.classes == tuple("0123456789")
    assert trained.preprocessing.mean == pytest.approx((0.305647,), abs=1e-3)
    other = load_trained(by_checkpoint, record, record.trials[MODEL], None)
    assert other.preprocessing is None
    with torch.no_grad():
        torch.testing.assert_close(trained.network(images), other.network(images))


@pytest.mark.parametrize("name", ["os:abort", "no_such_module:go"])
def test_a_record_cannot_make_code_run(name, tmp_path):
    record = study(trial("abcd01"))
    made = record.trials["abcd01"]
    made.specification = change(made.specification, network={"name": name})
    with pytest.raises(InputError, match=f"the study names code to run, the network '{name}'; --allow-code allows it"):
        load_trained(tmp_path, record, record.trials["abcd01"], None)


def test_only_an_earlier_export_is_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(InputError, match=r"--out must be a new folder or an earlier export, but .*thesis holds other"):
        check_output_folder(tmp_path / "thesis", PROOF_FILE, "an earlier export")
    with pytest.raises(InputError, match=r"--out must be a folder, but .* is a file"):
        check_output_folder(tmp_path / "thesis" / "chapter.tex", PROOF_FILE, "an earlier export")
    (tmp_path / "thesis" / "proof.json").write_text("{}")
    check_output_folder(tmp_path / "thesis", PROOF_FILE, "an earlier export")
    check_output_folder(tmp_path / "new" / "deep", PROOF_FILE, "an earlier export")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "16"], "unknown opset '16'; choose from: 17"),
        (["--class-names", "absent"], "the class names cannot be read: absent"),
        (["--class-names", __file__], "--class-names must have 10 names, one for each output, but"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line_and_nothing_is_written(folder, tmp_path, options, message, capsys):
    assert main(["export", "--study", str(folder), "--trial", MODEL, "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
