"""Shares a budget out among layers by what their ranks cost the trained network that trials start from.

The costs are measured once for each method on calibration images, on the driver's machine. A file beside the journal
keeps them, so that a resumed study proposes the same ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lowrank.compression import (
    Allocation,
    Budget,
    Candidate,
    Choice,
    FileSizeCalculator,
    NetworkPlan,
    allocate,
    least_costs,
)
from lowrank.data import ImageData, draw_training_images
from lowrank.deployment import Compressor
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Dense, Method, WholeKernelMethod, make_method
from lowrank.utils import write_text
from sweeps.records import RANK_COSTS_FILE, read_rank_costs
from sweeps.space import ALLOCATIONS_BY_ERROR, Space
from sweeps.trials.trained_network import load_initial_network

BYTE_STEPS = 30  # attempts to meet a limit on bytes by a smaller limit on parameters
_DENSE = Dense()


@dataclass(frozen=True)
class RankCost:
    """One form of a layer.

    Attributes:
        candidate: its factors with parameters, mult-adds and expected error.
        missed: share of the outputs' variance that it misses, with the layers before it unchanged.
    """

    candidate: Candidate
    missed: float


RankCosts = dict[str, list[RankCost]]  # by name of the layer, from cheap to expensive


class RankAllocator:
    """Allocates ranks for one space, whose trials start from the weights of a file.

    Args:
        space: the space.
        data: its data set.
        plan: of the space's network.
        fingerprint: of the weights to start from.
        notify: called with one line before each measurement, and at most every other second with how far it is.
    """

    def __init__(
        self, space: Space, data: ImageData, plan: NetworkPlan, fingerprint: str,
        notify: Callable[[str], None] = print,
    ):  # fmt: skip
        self.space, self.data, self.layer_plan, self.notify = space, data, plan, notify
        self._fingerprint = fingerprint
        self._tables: dict[str, RankCosts] = {}
        self._path: Path | None = None
        self._compressor: Compressor | None = None

    def use_folder(self, folder: Path) -> None:
        """Keep the measured costs in a study's folder, and take over those that it has.

        Args:
            folder: of the study; it may be missing yet.

        Raises:
            InputError: the file of costs is damaged.
        """
        self._path = folder / RANK_COSTS_FILE
        if self._path.exists():
            stored = read_rank_costs(self._path)
            self._tables |= {key: _table_from_json(table) for key, table in stored.items()}
        self._write()

    def solve(
        self, method: WholeKernelMethod, allocation: str, budget: Budget, weights: Mapping[str, float],
        file_size: FileSizeCalculator | None,
    ) -> Allocation:  # fmt: skip
        """Find the ranks with the least expected error within a budget.

        Args:
            method: the kind of factors.
            allocation: `energy` or `sensitivity`.
            budget: the limits.
            weights: by which the expected errors of layers are multiplied; 1 for a layer that is not named.
            file_size: measures bytes; needed if there is a limit on them.

        Returns:
            A method for each layer; where factors do not pay, the layer stays dense.

        Raises:
            InfeasibleError: the network cannot be that small, or does not reach the budget's minimum.
        """
        plan, least = self.layer_plan, self._least_costs(method)
        limits = [self._inside(budget.params, "params"), self._inside(budget.mult_adds, "mult_adds")]
        if any(limit is not None and size > limit for size, limit in zip(least, limits, strict=True)):
            raise self._too_small(method, least, budget)  # before anything is measured
        weighted = {
            name: [replace(cost.candidate, error=cost.candidate.error * weights.get(name, 1.0)) for cost in costs]
            for name, costs in self.costs(method.name, allocation).items()
        }
        if budget.bytes is not None and limits[0] is None:
            limits[0] = float(plan.params(_DENSE))
        for _ in range(BYTE_STEPS):
            picked = allocate(weighted, limits)
            if picked is None:
                raise self._too_small(method, least, budget)
            sized = self._allocation(picked, allocation)
            excess = budget.exceeded(plan, sized, file_size)
            if excess is None:
                break
            assert limits[0] is not None
            bytes_over = (
                0 if budget.bytes is None or file_size is None else file_size.measure(sized).bytes - budget.bytes
            )
            limits[0] = min(limits[0], sum(one.costs[0] for one in picked.values())) - max(1, bytes_over / 4)
        else:
            raise InfeasibleError(f"{method.name} has no ranks within the budget in {plan.name}: {excess}")
        shortfall = budget.missed(plan, sized, file_size)
        if shortfall is not None:
            raise InfeasibleError(
                f"{method.name} has no ranks that reach the budget in {plan.name}: the nearest has {shortfall}"
            )
        return sized

    def _inside(self, limit: int | None, quantity: str) -> float | None:
        """The part of a limit on the whole network that is for the substituted layers."""
        if limit is None:
            return None
        fixed = self.layer_plan.fixed_params if quantity == "params" else self.layer_plan.fixed_mult_adds
        return float(limit - fixed)

    def _allocation(self, picked: Mapping[str, Candidate], allocation: str) -> Allocation:
        methods: list[Method] = []
        for group in self.layer_plan.layers:
            choice = picked[group.name].choice
            methods.append(_DENSE if choice is None else choice.method)
        return Allocation(self.layer_plan.layers, tuple(methods), allocation)

    def _least_costs(self, method: WholeKernelMethod) -> tuple[int, int]:
        """The least parameters and mult-adds of the substituted layers together: rank 1 everywhere."""
        fitted = method.model_copy(update={"bias": True})  # as layers are fitted
        costs = [
            [times * cost for cost in least_costs(shape, fitted)]
            for group in self.layer_plan.layers for shape, times in group.shapes
        ]  # fmt: skip
        return sum(params for params, _ in costs), sum(mult_adds for _, mult_adds in costs)

    def _too_small(self, method: Method, least: tuple[int, int], budget: Budget) -> InfeasibleError:
        plan, params = self.layer_plan, self.layer_plan.fixed_params + least[0]
        limits, sizes, fixed = [], [f"{params:,} parameters"], [f"{plan.fixed_params:,}"]
        if budget.params is not None:
            limits.append(f"{budget.params:,} parameters")
        if budget.mult_adds is not None:
            limits.append(f"{budget.mult_adds:,} mult-adds")
            sizes.append(f"{plan.fixed_mult_adds + least[1]:,} mult-adds")
            fixed.append(f"{plan.fixed_mult_adds:,}")
        return InfeasibleError(
            f"{method.name} has no ranks within {' and '.join(limits) or 'the budget'} in {plan.name}: the least size "
            f"is {' and '.join(sizes)}, of which {' and '.join(fixed)} are never substituted",
            smallest=params,
        )

    def output_errors(self, method: str, allocation: Allocation) -> dict[str, float]:
        """Look up how far the output of each layer would be from the trained one, the layers before it unchanged.

        Args:
            method: name of the kind of factors.
            allocation: as `solve` gives it.

        Returns:
            By name of the layer, the root of the share of the outputs' variance that is missed; 0 where it stays
            dense.
        """
        table, errors = self.costs(method, allocation.by_error), {}
        for group, sized in zip(allocation.groups, allocation.methods, strict=True):
            choice = None if isinstance(sized, Dense) else sized
            missed = [cost.missed for cost in table[group.name] if _method_of(cost.candidate) == choice]
            errors[group.name] = missed[0] ** 0.5
        return errors

    def costs(self, method: str, allocation: str) -> RankCosts:
        """Return the forms of every layer with their expected errors, measured at the first call.

        Args:
            method: name of the kind of factors.
            allocation: `energy` or `sensitivity`.

        Returns:
            The forms by layer, from cheap to expensive.
        """
        key = json.dumps(
            [method, allocation, self._fingerprint, self.space.start.calibration, self.space.search.seed,
             self.space.network.model_dump(mode="json")]
        )  # fmt: skip
        if key not in self._tables:
            self._tables[key] = self._measure(method, allocation)
            self._write()
        return self._tables[key]

    def _measure(self, method: str, allocation: str) -> RankCosts:
        what = "the variance of outputs" if allocation == "energy" else "the loss"
        self.notify(f"measuring what ranks of {method} cost in {what}, layer by layer")
        compressor = self._make_compressor()
        missed = {
            name: {_method_of(one): one.error for one in candidates}
            for name, candidates in compressor.tables(method, ALLOCATIONS_BY_ERROR[0]).items()
        }
        tables = compressor.tables(method, allocation)
        return {
            name: [RankCost(one, missed[name][_method_of(one)]) for one in candidates]
            for name, candidates in tables.items()
        }

    def _make_compressor(self) -> Compressor:
        """The measuring object, made once: it holds statistics of every layer's inputs."""
        if self._compressor is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            dense = load_initial_network(
                self.space.network, str(self.space.start.weights), self.data, seed=self.space.search.seed
            )
            images, _ = draw_training_images(self.data, self.space.start.calibration, self.space.search.seed, device)
            names = [site.name for site in self.layer_plan.substituted]
            self._compressor = Compressor(
                dense.to(device), [images], only=names, calibration=len(images), progress=self.notify
            )
            listed = [layer.name for layer in self._compressor.layer_list.layers]
            if sorted(listed) != sorted(names):
                other = sorted(set(names) ^ set(listed))[0]
                reason = self._compressor.layer_list.reasons.get(other, "it is not run as one layer")
                raise InputError(f"`budget.allocation`: ranks of `{other}` cannot be fitted: {reason}")
        return self._compressor

    def close(self) -> None:
        """Free what measuring needs; it is made again if more has to be measured."""
        self._compressor = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(self) -> None:
        if self._path is not None and self._path.parent.is_dir() and self._tables:
            content = {key: _table_to_json(table) for key, table in self._tables.items()}
            write_text(self._path, json.dumps(content, indent=1))


def _method_of(candidate: Candidate) -> Method | None:
    return None if candidate.choice is None else candidate.choice.method


def _table_to_json(table: RankCosts) -> dict[str, object]:
    def entry(cost: RankCost) -> dict[str, object]:
        method = _method_of(cost.candidate)
        return {
            "method": None if method is None else method.model_dump(mode="json"),
            "costs": list(cost.candidate.costs), "error": cost.candidate.error, "missed": cost.missed,
        }  # fmt: skip

    return {name: [entry(cost) for cost in costs] for name, costs in table.items()}


def _table_from_json(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> RankCosts:
    def cost(entry: Mapping[str, Any]) -> RankCost:
        choice = None
        if entry["method"] is not None:
            method = make_method(entry["method"])
            assert isinstance(method, WholeKernelMethod)
            assert method.ranks is not None
            choice = Choice(method, method.ranks)
        params, mult_adds = entry["costs"]
        return RankCost(Candidate(choice, (params, mult_adds), entry["error"]), entry["missed"])

    return {name: [cost(entry) for entry in entries] for name, entries in content.items()}
