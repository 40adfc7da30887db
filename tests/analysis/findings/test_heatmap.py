from __future__ import annotations

from analysis.findings.heatmap import BINS, heat_maps
from sweeps.records.events import Role, Status
from tests.support.synthetic_data import study, trial


class TestHeat:
    def grid(self):
        cells = [(2, 0.1, 9.0), (2, 0.2, 7.0), (3, 0.1, 5.0)]
        trials = [
            trial(f"{dims}{scale}", error=error, method="tucker", dims=dims, scale=scale)
            for dims, scale, error in cells
        ]
        trials[0].aliases = [{"method.dims": 4, "method.rank_scale": 0.2}]
        stopped = trial("x", error=50.0, method="tucker", dims=3, scale=0.2, status=Status.STOPPED)
        return study(*trials, stopped)

    def test_few_rank_scales_are_columns(self):
        (heat,) = heat_maps(self.grid())
        assert (heat.method, heat.column_quantity) == ("Tucker", "rank scale")
        assert (heat.rows, heat.columns) == ((2, 3, 4), ("0.1", "0.2"))
        errors = [[cell and (cell.error, cell.completed, cell.stopped) for cell in row] for row in heat.cells]
        assert errors == [[(9.0, 1, 0), (7.0, 1, 0)], [(5.0, 1, 0), (None, 0, 1)], [None, (9.0, 1, 0)]]

    def test_many_rank_scales_are_binned_and_shown_by_budget(self):
        trials = [
            trial(f"t{n}", error=5.0 + n, dims=2 + n % 2, scale=0.01 * 1.3**n, stratum=f"params <= {n // 6}",
                  budget__params=n // 6)
            for n in range(12)
        ]  # fmt: skip
        labels = [{"label": f"params <= {n}", "params": n} for n in (0, 1)]
        binned, by_budget = heat_maps(study(*trials, strata=labels))
        assert (binned.column_quantity, len(binned.columns)) == ("rank scale (bins)", BINS)
        assert sum(cell.completed for row in binned.cells for cell in row if cell) == 12
        assert (by_budget.columns, by_budget.column_quantity) == (("≤ 0", "≤ 1"), "budget")
        assert [[cell.error for cell in row] for row in by_budget.cells] == [[5.0, 11.0], [6.0, 12.0]]

    def test_a_setting_of_several_seeds_counts_by_its_mean(self):
        shape = {"method": "tucker", "scale": 0.1}
        trials = [
            trial("lucky", error=1.0, dims=2, **shape),
            trial("not", error=9.0, dims=2, seed=1, role=Role.REPEAT, **shape),
            trial("steady", error=4.0, dims=3, **shape),
        ]  # fmt: skip
        (heat,) = heat_maps(study(*trials))
        assert [[(c.error, c.seeds, c.completed) for c in row] for row in heat.cells] == [[(5.0, 2, 1)], [(4.0, 1, 1)]]
        assert heat.seeds == (1, 2)

    def test_a_cell_says_how_many_settings_its_lowest_error_is_of(self):
        shape = {"method": "tucker", "scale": 0.1}
        trials = [trial(f"t{n}", error=5.0 + n, dims=2, train__lr=0.1 * (n + 1), **shape) for n in range(3)]
        (heat,) = heat_maps(study(*trials, trial("one", error=6.0, dims=3, **shape)))
        assert [[(cell.error, cell.completed) for cell in row] for row in heat.cells] == [[(5.0, 3)], [(6.0, 1)]]

    def test_methods_without_dimensions_have_none(self):
        assert heat_maps(study(trial("a", dims=None), trial("b", dims=None))) == []

    def test_with_many_stopped_trials_a_second_map_shows_the_last_common_epoch(self):
        stopped = [
            trial(f"s{dims}", error=30.0 + dims, method="tucker", dims=dims, scale=0.1, status=Status.STOPPED, epochs=2)
            for dims in (2, 3)
        ]
        full = trial("w", error=9.0, method="tucker", dims=4, scale=0.1, epochs=5)
        full.epochs[2] = {"val_error": 28.0}
        diverged = trial("d", error=90.0, method="tucker", dims=5, scale=0.1, status=Status.DIVERGED, epochs=1)
        end, early = heat_maps(study(*stopped, full, diverged))
        assert (end.epoch, early.epoch) == (None, 2)
        assert [[cell and cell.error for cell in row] for row in end.cells] == [[None], [None], [9.0], [None]]
        assert [[cell and cell.error for cell in row] for row in early.cells] == [[32.0], [33.0], [28.0], [None]]
        assert [[cell.completed for cell in row if cell] for row in early.cells] == [[1], [1], [1], [0]]
        many = [trial(f"m{dims}", error=8.0, method="tucker", dims=dims, scale=0.2, epochs=5) for dims in range(2, 9)]
        assert [heat.epoch for heat in heat_maps(study(*stopped, *many))] == [None]
