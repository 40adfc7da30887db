from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.reporting.front_data import front_plot
from analysis.reporting.front_figure import Layout, draw_front, write_front_picture
from analysis.stats.front import collect_points, pareto_front
from analysis.utils.styles import METHOD_STYLES
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path, Plan(trials=24)))


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

    def test_title_and_subtitle(self, study):
        plot = front_plot(study, collect_points(study))
        assert plot.title.startswith("How many dimensions should a tensor-train")
        assert max(map(len, plot.title.splitlines())) <= 78
        for part in ("digits", "resnet9", "24 trials", "seed 0", "360 validation images", "2026-09-21"):
            assert part in plot.subtitle

    def test_the_subtitle_of_a_repeated_study_counts_settings_and_seeds(self, study):
        points = collect_points(study)
        first = next(number for number, point in enumerate(points) if point.role is Role.SEARCH and point.finished)
        points[first] = replace(points[first], seeds=3, mean_error=points[first].own_error, spread=0.4)
        subtitle = front_plot(study, points).subtitle
        assert "24 settings, " in subtitle
        assert "1 to 3 seeds each (bars: standard deviation)" in subtitle
        assert "seed 0" not in subtitle

    def test_a_method_looks_the_same_in_every_picture(self, tmp_path):
        few = load_study(write_study(tmp_path / "few", Plan(trials=8, methods=("hashed", "tucker"), endings=False)))
        styles = {line.label: (line.colour, line.marker) for line in front_plot(few, collect_points(few)).series}
        assert styles == {"hashed": METHOD_STYLES["hashed"], "Tucker": METHOD_STYLES["tucker"]}
        assert (
            len({colour for colour, _ in METHOD_STYLES.values()})
            == len({marker for _, marker in METHOD_STYLES.values()})
            == 7
        )

    def test_unknown_methods_get_styles_of_their_own(self, tmp_path):
        plan = Plan(trials=12, methods=("new_one", "another", "tucker"), endings=False)
        plot = front_plot(record := load_study(write_study(tmp_path, plan)), collect_points(record))
        assert len({(line.colour, line.marker) for line in plot.series}) == 3

    @pytest.mark.parametrize(
        "plan",
        [
            Plan(trials=1, endings=False, references=False), Plan(trials=0), Plan(trials=60, images=20),
            Plan(trials=129, methods=("tensor_train", "tucker")), Plan(trials=8, name="x" * 200, level=0, images=10**5),
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

    def test_without_a_completed_trial_there_is_no_picture(self, tmp_path):
        study = load_study(write_study(tmp_path, Plan(trials=0, references=False)))
        with pytest.raises(ValueError, match="a picture needs a completed trial, but tt_dims has none"):
            front_plot(study, collect_points(study))


def test_the_legend_lies_within_the_picture(study):
    plot = front_plot(study, collect_points(study))
    name, x, y = plot.references[0]
    many = replace(plot, references=tuple((f"{name} with a long name, number {index}", x, y) for index in range(11)))
    figure = Figure(figsize=(Layout().width, Layout().height))
    FigureCanvasAgg(figure)
    draw_front(figure, many, Layout())
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= figure.bbox.width
    axes = figure.axes[0].get_tightbbox()
    assert axes is not None
    assert axes.y0 >= legend.get_window_extent().y1 - 1


def test_references_of_one_method_share_an_entry_of_the_legend(study):
    sizes = (60_000.0, 120_000.0, 240_000.0)
    references = [(f"thin dense, width {width}", size, 9.0) for width, size in zip((0.2, 0.3, 0.4), sizes, strict=True)]
    line = ("thinner dense", tuple((size, 9.0) for size in (*sizes, 500_000.0)))
    plot = replace(
        front_plot(study, collect_points(study)),
        references=(*references, ("dense", 500_000.0, 9.0), ("separable", 90_000.0, 9.5)),
        thin=(line,),
    )
    figure = Figure(figsize=(Layout().width, Layout().height))
    FigureCanvasAgg(figure)
    draw_front(figure, plot, Layout())
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert [name for name in names if "dense" in name or "separable" in name] == ["thinner dense", "dense", "separable"]


def test_a_long_subtitle_lies_within_the_picture(study):
    plot = front_plot(study, collect_points(study))
    figure = Figure(figsize=(Layout().width, Layout().height))
    FigureCanvasAgg(figure)
    draw_front(
        figure, replace(plot, subtitle="  |  ".join(["10,000 validation images: the lowest, 18.7 %"] * 4)), Layout()
    )
    _, subtitle = figure.texts
    assert subtitle.get_window_extent().x1 <= figure.bbox.width
