"""`python -m analysis mark STUDY TRIAL`: leave a broken trial out of all tables and fronts, or add a note to a trial.

Nothing of the trial is deleted: a mark is one more line of the study's journal, and can be undone. Tables, front and
report that were written before, and MLflow, are brought up to date at once; the sampler ignores the trial from the next
`--resume` on.
"""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.reporting import STEPS, refresh_outputs
from analysis.sources import check_store, push_study
from analysis.utils import steps
from lowrank.errors import InputError
from sweeps.records import (
    JOURNAL_FILE,
    MAX_NOTE_LENGTH,
    BusyError,
    Event,
    TrialRecord,
    check_note,
    find_study,
    find_trial,
    fold_journal,
    load_study,
    locked_journal,
    parse_tags,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `mark`.

    Args:
        parser: receives them.
    """
    add_study(parser)
    parser.add_argument("trial", help="the trial's id, or the beginning of it (summary.csv, and run names in MLflow)")
    parser.add_argument("--broken", metavar="WHY", help="leave the trial out of all tables and fronts, for this reason")
    parser.add_argument("--undo", action="store_true", help="remove the mark")
    parser.add_argument("--note", metavar="TEXT", help="a remark")
    parser.add_argument("--tag", action="append", default=[], metavar="K=V", help="a tag of your own")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store to bring it into (default: the study's)")


def run(options: argparse.Namespace) -> int:
    """Append a mark or a note to the journal, and refresh what was made from it.

    That is: tables, pictures, and the study in MLflow.

    Args:
        options: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: nothing was asked for, two options contradict each other, there is no such study or trial, or a
            driver runs the study; nothing has been written.
    """
    folder = find_study(options.study, options.studies)
    note, tags = check_note(options.note), parse_tags(options.tag)
    reason = _reason(options)
    if reason is None and not (options.undo or note or tags):
        raise InputError("mark needs one of --broken WHY, --undo, --note TEXT, --tag K=V")
    if not (folder / JOURNAL_FILE).is_file():
        raise InputError(f"a trial is marked in its study's journal, but {folder} has only tables")
    check_store(folder, options.tracking_uri)
    try:
        with locked_journal(folder) as journal:
            trial = find_trial(fold_journal(journal.path), options.trial)
            if options.undo and not trial.broken:
                raise InputError(f"trial {trial.trial_id} is not marked as broken, so there is nothing to undo")
            if reason is not None or options.undo:
                journal.append(Event.EXCLUDED, sync=True, trial=trial.trial_id, broken=reason)
            if note or tags:
                journal.append(Event.ANNOTATED, sync=True, trial=trial.trial_id, note=note, tags=tags)
    except BusyError as error:
        raise InputError(f"{error}; stop it with Ctrl-C, mark the trial, and go on with --resume") from error
    print(_said(trial, options, reason))
    if reason is not None or options.undo:
        with steps("mark", 2 + STEPS) as step:
            step("reading")
            written = refresh_outputs(load_study(folder), folder, step)
        refreshed = f"made again: {', '.join(written)}; " if written else ""
        print(f"{refreshed}the sampler learns of it at the next --resume")
    push_study(folder, options.tracking_uri)
    return 0


def _reason(options: argparse.Namespace) -> str | None:
    if options.broken is None:
        return None
    if options.undo:
        raise InputError("--broken and --undo contradict each other; give one of them")
    if not options.broken.strip() or len(options.broken) > MAX_NOTE_LENGTH:
        raise InputError(f"--broken must say why, in at most {MAX_NOTE_LENGTH:,} characters")
    return str(options.broken.strip())


def _said(trial: TrialRecord, options: argparse.Namespace, reason: str | None) -> str:
    if reason is not None:
        return f"trial {trial.trial_id} ({trial.status}) is left out of all tables and fronts from now on: {reason}"
    return f"trial {trial.trial_id} counts again" if options.undo else f"noted on trial {trial.trial_id}"


if __name__ == "__main__":
    sys.exit(refuse_script("mark"))
