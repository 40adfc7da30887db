from __future__ import annotations

import csv
import io
import itertools
import warnings

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from analysis.__main__ import main
from analysis.reporting.front_data import front_plot
from analysis.reporting.front_figure import write_front_picture
from analysis.reporting.label_placement import LEADER_DISTANCE, Box, Label, distance, place_labels
from analysis.reporting.summary_table import (
    count_statuses,
    make_console,
    print_summary,
    summary_rows,
    write_summary_csv,
)
from analysis.stats.front import collect_points, pareto_front
from analysis.utils.styles import METHOD_STYLES
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from sweeps.records.load import find_study, list_studies, load_study
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, RESULTS_FILE
from sweeps.records.tables import epochs_to_table, results_to_table
from tests.support import synthetic_data as made
from tests.support.synthetic_data import study as made_study
from tests.support.synthetic_data import trial as one
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path, Plan(trials=24)))


class TestLoad:
    def test_the_tables_alone_tell_the_same_trials(self, tmp_path):
        study = load_study(write_study(tmp_path / "a"))
        (tmp_path / "b").mkdir()
        pq.write_table(results_to_table(study), tmp_path / "b" / RESULTS_FILE)
        without_epochs = load_study(tmp_path / "b")
        assert collect_points(without_epochs) == collect_points(study)
        pq.write_table(epochs_to_table(study), tmp_path / "b" / EPOCHS_FILE)
        again = load_study(tmp_path / "b")
        assert collect_points(again) == collect_points(study)
        assert again.name == study.name
        assert again == study

    def test_found_by_name_or_folder(self, tmp_path):
        write_study(tmp_path / "mine")
        (tmp_path / "no study").mkdir()
        assert list_studies(tmp_path) == ["mine"]
        assert find_study("mine", tmp_path) == find_study(str(tmp_path / "mine")) == tmp_path / "mine"
        with pytest.raises(InputError, match="unknown study 'yours'; choose from: mine"):
            find_study("yours", tmp_path)
        assert list_studies(tmp_path / "nowhere") == []

    @pytest.mark.parametrize(("content", "message"), [("", "has none yet"), ("{]\n", "is damaged")])
    def test_a_journal_that_tells_nothing(self, tmp_path, content, message):
        (tmp_path / JOURNAL_FILE).write_text(content)
        with pytest.raises(InputError, match=message):
            load_study(tmp_path)


class TestTable:
    def printed(self, study, width=100):
        stream = io.StringIO()
        print_summary(study, collect_points(study), "the answer", Console(file=stream, width=width, highlight=False))
        return stream.getvalue()

    def test_one_line_a_trial_within_100_columns(self, study):
        lines = self.printed(study).splitlines()
        assert max(map(len, lines)) <= 100
        body = lines[next(i for i, line in enumerate(lines) if "───" in line) + 1 :]
        body = list(itertools.takewhile(str.strip, body))
        assert len(body) == len(collect_points(study))
        assert not any("…" in line for line in body)  # nothing is cut off
        assert [line.startswith(" *") or line.startswith("*") for line in body] == [
            row.on_front for row in summary_rows(collect_points(study))
        ]

    def test_several_seeds_say_mean_spread_and_number(self):
        seeds = [one("a", error=4.0), one("b", error=6.0, seed=1, role=Role.REPEAT), one("c", 50, 9.0)]
        lines = self.printed(made_study(*seeds)).splitlines()
        (mean,) = [line for line in lines if "5.00±1.41 (2)" in line]
        assert mean.startswith("*")
        assert max(map(len, lines)) <= 100

    def test_long_endings_do_not_cut_the_table(self, tmp_path):
        study = load_study(write_study(tmp_path, Plan(trials=16)))
        for trial in study.trials.values():
            trial.test_error = 12.34
            trial.counts = {name: 1000 * count for name, count in trial.counts.items()}
        assert "…" not in self.printed(study)
        assert "test %" in self.printed(study)

    def test_every_ending_is_counted_and_explained(self, study):
        text = self.printed(study)
        total = sum(ending.count for ending in count_statuses(study))
        assert total == len(study.trials)
        assert "1 out of memory: CUDA out of memory (1)" in text
        assert "2 infeasible: bottleneck of rank 0: needs at least 72,130 parameters (2)" in text
        assert count_statuses(study)[0].status is Status.COMPLETED

    def test_many_reasons_are_summed_up(self, study):
        failed = list(study.trials.values())[:5]
        for number, trial in enumerate(failed):
            trial.status, trial.reason = Status.FAILED, f"reason {number}"
        found = next(ending for ending in count_statuses(study) if ending.status is Status.FAILED)
        assert found.text().endswith(f"others ({found.count - 3})")

    def test_early_stops_are_counted_without_their_reasons(self, study):
        found = next(ending for ending in count_statuses(study) if ending.status is Status.STOPPED)
        assert found.text() == f"{found.count} stopped early"

    def test_piped_output_has_no_colours_and_100_columns(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        console = make_console(io.StringIO())
        assert console.width == 100
        assert console.color_system is None

    def test_the_csv_has_full_numbers(self, study, tmp_path):
        write_summary_csv(collect_points(study), tmp_path / "summary.csv")
        with (tmp_path / "summary.csv").open() as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(collect_points(study))
        for line, row in zip(found, summary_rows(collect_points(study)), strict=True):
            assert line["trial_id"] == row.point.trial_id
            assert int(line["params"]) == row.point.params
            assert float(line["val_error"]) == row.point.val_error
            assert line["on_front"] == str(row.on_front)


class TestPlot:
    def test_the_record_shows_every_completed_and_stopped_trial(self, study):
        plot = front_plot(study, collect_points(study))
        points = [p for p in collect_points(study) if p.role is Role.SEARCH]
        assert sum(len(line.points) for line in plot.series) == sum(p.finished for p in points)
        assert len(plot.stopped) == sum(p.status is Status.STOPPED for p in points)
        assert plot.front == tuple((p.params, p.error) for p in pareto_front(collect_points(study)))
        assert [name for name, _, _ in plot.references] == ["separable", "dense"]
        assert plot.budgets == (60_480, 151_000, 302_000)
        assert len(plot.labels) == len(plot.front)

    def test_front_and_references_are_within_the_axes(self, study):
        plot = front_plot(study, collect_points(study))
        for x, y in [*plot.front, *((x, y) for _, x, y in plot.references)]:
            assert plot.x_limits[0] < x < plot.x_limits[1]
            assert plot.y_limits[0] < y < plot.y_limits[1]

    def test_words(self, study):
        plot = front_plot(study, collect_points(study))
        assert plot.title.startswith("How many dimensions should a tensor-train")
        assert max(map(len, plot.title.splitlines())) <= 78
        for part in ("digits", "resnet9", "24 trials", "seed 0", "360 validation images", "2026-09-21"):
            assert part in plot.subtitle

    def test_a_method_looks_the_same_in_every_picture(self, tmp_path):
        few = load_study(write_study(tmp_path / "few", Plan(trials=8, methods=("hashed", "tucker"), endings=False)))
        looks = {line.label: (line.colour, line.marker) for line in front_plot(few, collect_points(few)).series}
        assert looks == {"hashed": METHOD_STYLES["hashed"], "Tucker": METHOD_STYLES["tucker"]}
        assert (
            len({colour for colour, _ in METHOD_STYLES.values()})
            == len({marker for _, marker in METHOD_STYLES.values()})
            == 7
        )

    def test_methods_nobody_foresaw_get_looks_of_their_own(self, tmp_path):
        plan = Plan(trials=12, methods=("new_one", "another", "tucker"), endings=False)
        plot = front_plot(made := load_study(write_study(tmp_path, plan)), collect_points(made))
        assert len({(line.colour, line.marker) for line in plot.series}) == 3

    @pytest.mark.parametrize(
        "plan",
        [
            Plan(trials=1, endings=False, references=False), Plan(trials=0), Plan(trials=60, images=20),
            Plan(trials=129, methods=("tensor_train", "tucker")), Plan(trials=8, name="x" * 200, level=0, images=10**6),
        ],
        ids=["one", "references only", "ties", "many", "odd"],
    )  # fmt: skip
    def test_draws_without_a_warning(self, tmp_path, plan):
        study = load_study(write_study(tmp_path, plan))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_front_picture(study, collect_points(study), tmp_path / "front.png", dpi=50)
        assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
        assert not list(tmp_path.glob("*.tmp"))

    def test_nothing_completed_no_picture(self, tmp_path):
        study = load_study(write_study(tmp_path, Plan(trials=0, references=False)))
        with pytest.raises(ValueError, match="a picture needs a completed trial, but tt_dims has none"):
            front_plot(study, collect_points(study))


places = st.builds(Label, st.floats(0, 500), st.floats(0, 300), st.floats(5, 80), st.floats(5, 20))


class TestPlacement:
    @given(st.lists(places, max_size=12))
    @settings(max_examples=40, deadline=None)
    def test_labels_never_cover_each_other_nor_leave_the_frame(self, labels):
        frame = Box(0, 0, 500, 300)
        boxes = [box for box in place_labels(labels, [], frame) if box is not None]
        assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
        assert all(box.overlap(frame) == pytest.approx(box.overlap(box)) for box in boxes)

    def test_a_lone_label_sits_beside_its_point(self):
        label = Label(100, 100, 40, 10)
        (box,) = place_labels([label], [], Box(0, 0, 200, 200))
        assert 0 < distance(label, box) < LEADER_DISTANCE

    def test_obstacles_are_avoided(self):
        label, wall = Label(100, 100, 40, 10), Box(101, 0, 200, 200)
        (box,) = place_labels([label], [wall], Box(0, 0, 200, 200))
        assert box.overlap(wall) == 0

    def test_without_room_a_label_is_left_out(self):
        assert place_labels([Label(5, 5, 40, 10)], [], Box(0, 0, 10, 10)) == [None]

    def test_no_two_of_60_labels_of_a_front_overlap(self):
        labels = [Label(15 + 14 * n, 20 + 440 * 0.95**n, 40 + 17 * (n % 3), 12) for n in range(60)]
        markers = [Box(label.x - 7, label.y - 7, label.x + 7, label.y + 7) for label in labels]
        boxes = [box for box in place_labels(labels, markers, Box(0, 0, 860, 500)) if box is not None]
        assert len(boxes) >= 40
        assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))

    def test_the_first_label_has_the_best_place(self):
        label = Label(100, 100, 40, 10)
        frame = Box(0, 0, 200, 200)
        assert place_labels([label] * 5, [], frame)[0] == place_labels([label], [], frame)[0]


class TestCommand:
    def test_summary_prints_and_writes(self, tmp_path, capsys):
        write_study(tmp_path / "mine", Plan(trials=12))
        assert main(["summary", "mine", "--studies", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "At up to 60,480 parameters" in out
        assert out.endswith(f"written into {tmp_path / 'mine'}: front.png, summary.csv\n")
        assert (tmp_path / "mine" / "front.png").exists()
        assert (tmp_path / "mine" / "summary.csv").exists()

    def test_an_unknown_study_is_one_line_and_exit_code_2(self, tmp_path, capsys):
        write_study(tmp_path / "mine", Plan(trials=1))
        assert main(["summary", "yours", "--studies", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: unknown study 'yours'; choose from: mine\n"

    def test_a_study_without_an_end_has_a_table_but_no_picture(self, tmp_path, capsys):
        write_study(tmp_path / "mine", Plan(trials=0, references=False, closed=None))
        assert main(["summary", str(tmp_path / "mine")]) == 0
        assert "no trial was completed" in capsys.readouterr().out
        assert not (tmp_path / "mine" / "front.png").exists()


def test_what_cannot_be_is_one_line_for_each_method():
    trials = [
        made.trial(f"{method}{limit}", status=Status.INFEASIBLE, reason=f"{method}: over the budget of {limit}",
              method__name=method, budget__params=limit)
        for method in ("cp", "shuffle") for limit in (0.4, 0.8, 0.2)
    ]  # fmt: skip
    (found,) = count_statuses(made.study(*trials))
    assert found.text().splitlines() == [
        "6 infeasible, at the largest budget that each method cannot meet:", "  cp: over the budget of 0.8 (3)",
        "  shuffle: over the budget of 0.8 (3)",
    ]  # fmt: skip
