"""A progress bar shows names as they are, and draws nothing where nobody looks."""

from __future__ import annotations

from analysis.utils.progress import steps


def test_a_name_is_no_markup(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with steps("report", 2) as step:
        step("reading [/x] of [bold]tt[/bold]")
        step.detail("run 3 of 400")
    shown = capsys.readouterr().err
    assert "report: reading [/x] of [bold]tt[/bold], run 3 of 400" in shown


def test_without_a_terminal_nothing_is_drawn(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with steps("report", 2) as step:
        step("reading")
    assert capsys.readouterr().err == ""
