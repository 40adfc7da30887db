"""What no parser takes ends every command in one clear line and exit code 2."""

from __future__ import annotations

import pytest

from analysis import __main__ as analysis
from analysis import report
from lowrank import count
from sweeps import run, spot, teacher
from sweeps.storage import __main__ as storage
from sweeps.tracking import follower as tracking


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (run.main, "--space tt_dims --gpu-sharing mpz", "argument --gpu-sharing: invalid choice: 'mpz' (choose from "),
        (run.main, "--space tt_dims --nonsense", "unrecognized arguments: --nonsense"),
        (teacher.main, "--nonsense", "unrecognized arguments: --nonsense"),
        (spot.main, "", "the following arguments are required: --accelerator"),
        (storage.main, "", "the following arguments are required: uri, name"),
        (tracking.main, "", "the following arguments are required: study_dir"),
        (count.main, "--method cp", "the following arguments are required: --network"),
        (count.main, "--network resnet9 --budget many", "argument --budget: invalid float value: 'many'"),
        (count.main, "--network resnet9 --convention other", "argument --convention: invalid choice: 'other'"),
        (report.main, "", "the following arguments are required: --study"),
        (analysis.main, "nonsense", "argument COMMAND: invalid choice: 'nonsense'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.endswith("; see --help\n")
    assert said.err.count("\n") == 1
