"""Remarks on single trials: a bad run is taken out of everything that is concluded, and nothing of it is deleted.

A mark is one more line of the study's journal, and so can be taken back. Tables and MLflow follow at once; the sampler
forgets the trial at the next `--resume`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from analysis.load import find_trial
from lowrank.errors import InputError
from sweeps.journal import BusyError, locked_journal, read_journal
from sweeps.records import (
    JOURNAL_FILE,
    LONGEST_NOTE,
    Event,
    TrialRecord,
    check_note,
    fold,
    parse_tags,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mark`, beside the study."""
    parser.add_argument("trial", help="the trial's id, or the beginning of it (summary.csv, and run names in MLflow)")
    parser.add_argument("--broken", metavar="WHY", help="its result counts for nothing, and why")
    parser.add_argument("--undo", action="store_true", help="it is sound after all")
    parser.add_argument("--note", metavar="TEXT", help="a remark")
    parser.add_argument("--tag", action="append", default=[], metavar="K=V", help="a tag of your own")


def mark(folder: Path, options: argparse.Namespace) -> None:
    """Append what was asked to the journal and bring MLflow and the tables up to it; raises InputError."""
    note, tags = check_note(options.note), parse_tags(options.tag)
    reason = _reason(options)
    if reason is None and not (options.undo or note or tags):
        raise InputError("mark needs one of --broken WHY, --undo, --note TEXT, --tag K=V")
    if not (folder / JOURNAL_FILE).is_file():
        raise InputError(f"a trial is marked in its study's journal, but {folder} has only tables")
    try:
        with locked_journal(folder) as journal:
            trial = find_trial(fold(read_journal(journal.path)), options.trial)
            if options.undo and not trial.broken:
                raise InputError(f"trial {trial.trial_id} is not marked as broken, so there is nothing to undo")
            if reason is not None or options.undo:
                journal.append(Event.MARKED, sync=True, trial=trial.trial_id, broken=reason)
            if note or tags:
                journal.append(Event.NOTED, sync=True, trial=trial.trial_id, note=note, tags=tags)
    except BusyError as error:
        raise InputError(f"{error}; stop it with Ctrl-C, mark the trial, and go on with --resume") from error
    _say(folder, trial, options, reason)


def _reason(options: argparse.Namespace) -> str | None:
    if options.broken is None:
        return None
    if options.undo:
        raise InputError("--broken and --undo contradict each other; give one of them")
    if not options.broken.strip() or len(options.broken) > LONGEST_NOTE:
        raise InputError(f"--broken must say why, in at most {LONGEST_NOTE:,} characters")
    return str(options.broken.strip())


def _say(folder: Path, trial: TrialRecord, options: argparse.Namespace, reason: str | None) -> None:
    if reason is not None:
        print(f"trial {trial.trial_id} ({trial.status}) counts for nothing from now on: {reason}")
    elif options.undo:
        print(f"trial {trial.trial_id} counts again")
    else:
        print(f"noted on trial {trial.trial_id}")
    if reason is not None or options.undo:
        print(f"tables and front: python -m analysis summary {folder}; the sampler learns of it at the next --resume")
    print("bringing it into MLflow ...", flush=True)
    subprocess.run([sys.executable, "-m", "sweeps.tracking", str(folder)], check=False)  # says itself what is missing
