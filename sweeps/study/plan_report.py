"""`--plan`: what a study would train, of which sizes, with how much work, and what is infeasible; trains nothing."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrank.compression import (
    NetworkPlan,
    find_builder_weights,
    make_variational,
    network_to_count,
)
from lowrank.data import ImageData, default_shift_share, load_data, steps_per_epoch
from lowrank.errors import InfeasibleError
from lowrank.layers import Bayesian
from lowrank.training import (
    RECIPE_FIELD,
    SGD_NOTICE,
    augmentation_for,
    default_recipe,
)
from lowrank.utils import format_counted, print_progress, print_result, usable_cores
from sweeps.records import Trial, decidable_difference, reasons_by_method
from sweeps.resources import Cluster, share_for
from sweeps.space import (
    NETWORK_WEIGHTS,
    RunOptions,
    Space,
    Stratum,
    Value,
    alternative_names,
    teacher_space,
)
from sweeps.study.initial_errors import InitialErrors
from sweeps.study.speed_probe import Form, probe_speed, training_work
from sweeps.trials import (
    UNTRAINED,
    Resolver,
    check_start,
    describe_teacher,
    reachable_strata,
    variational_settings,
)
from sweeps.utils import format_duration

SAMPLES = 300  # points drawn to see the sizes of a space that is not a grid
MEASURED_SECONDS = 5.0  # after which no more points are looked at where the step of each is measured
_LISTED_CLASSES = 10
_FEW_STEPS = 10  # of an epoch
_SMALLEST_BATCH = 8  # that is proposed
_UNEVEN = 3  # times as many images in the largest class as in the smallest
PLAN_ERRORS = (2.0, 5.0, 20.0)  # percent


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    Sizes are in parameters, work in mult-adds for all training, time in seconds.
    """

    name: str
    question: str
    trials: int
    distinct_points: int | None
    smallest: int | None
    largest: int | None
    strata: dict[str, tuple[int, int, int]]  # label -> points sampled, fewest and most parameters
    infeasible: dict[str, int]  # reason, one for each method -> sampled points that it stands for
    unreachable: list[str]
    reached: dict[str, dict[str, tuple[int, int]]]  # label -> method -> its most parameters, and how many are unused
    most_work: float
    most_seconds: float
    slots: int
    # label -> method -> layer -> expected relative error of its output, where ranks are shared out by error: after the
    # fit, before any training, with the layers before it unchanged
    output_errors: dict[str, dict[str, dict[str, float]]]
    # label -> method -> validation error (percent) after the start and before any training
    initial_errors: dict[str, dict[str, float]]
    initial_unmeasured: int  # methods, counted once for each stratum, that there was no time to measure
    unseen: int  # points whose sizes were not looked at, because the step of each is measured
    class_counts: list[tuple[str, int]]  # name of each class, and its training images
    augmentation: str  # of training images, in words
    notes: list[str]  # on the data: what is not used, what is done to images
    layers: list[dict[str, str]]  # name, shape and `kept` (why it is not replaced, or "") of each layer
    finetune_epochs: list[int]  # after a removal of groups, each number that occurs; empty where no groups are removed
    posteriors_by_sgd: bool  # whether a network with variational layers is trained by SGD

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain data, for --json."""
        return dict(vars(self))


def make_plan(space: Space, resolver: Resolver, slots: int) -> Plan:
    """Work out sizes and cost of a study without early stopping.

    The whole grid is resolved, or a sample of the space.

    Args:
        space: the space.
        resolver: makes its trials.
        slots: how many trials run at a time.

    Returns:
        The plan.

    Raises:
        InputError: no method can meet any budget of the space.
    """
    reachable, unreachable = reachable_strata(space, resolver)
    distinct: dict[str, Trial] = {}
    reached: dict[str, dict[str, tuple[int, int]]] = {}
    strata: dict[str, list[int]] = {}
    infeasible: list[tuple[dict[str, Value], str]] = []
    output_errors: dict[str, dict[str, dict[str, float]]] = {}
    initial_errors = InitialErrors(resolver.data, progress=print_progress)
    points, unseen, start = _points(space, resolver, reachable), 0, time.monotonic()
    for index, point in enumerate(points):
        if index and _is_measured(space) and time.monotonic() - start > MEASURED_SECONDS:
            unseen = len(points) - index
            break
        try:
            trial = resolver.resolve(point)
        except InfeasibleError as error:
            infeasible.append((point, str(error)))
            continue
        distinct[trial.trial_id] = trial
        strata.setdefault(trial.stratum, []).append(trial.counts["params"])
        _reach(reached.setdefault(trial.stratum, {}), trial)
        name = _method_and_allocation(trial)
        initial_errors.add(name, trial)
        if (expected := resolver.expected_output_errors(trial)) is not None:
            output_errors.setdefault(trial.stratum, {})[name] = expected
    sizes = [trial.counts["params"] for trial in distinct.values()]
    references, impossible = resolver.references()
    grid, repeats = space.search.sampler == "grid", space.search.repeats
    trials = min(space.search.trials, (len(distinct) + unseen) * repeats) if grid else space.search.trials
    references *= repeats if grid else 1
    work = _work_by_form(trials, distinct, references, len(resolver.data.train))
    seconds = sum(amount / probe_speed(space, resolver, form) for form, amount in work.items() if amount)
    return Plan(
        space.name, space.question, trials + len(references), resolver.points.size(), min(sizes, default=None),
        max(sizes, default=None), {label: (len(seen), min(seen), max(seen)) for label, seen in strata.items()},
        reasons_by_method(infeasible),
        [*(f"{label}: {reason}" for label, reason in unreachable.items()), *impossible], reached, sum(work.values()),
        seconds / slots, slots, output_errors, initial_errors.measured,
        initial_errors.unmeasured, unseen,
        list(zip(resolver.data.classes, resolver.data.class_counts("train"), strict=True)),
        _augmentation_words(space, resolver), list(resolver.data.notes), _replaced_layers(space, resolver),
        sorted({method.finetune_epochs for trial in distinct.values() if (method := _bayesian(trial)) is not None}),
        any(_bayesian(trial) and trial.specification.train.optimizer == "sgd" for trial in distinct.values()),
    )  # fmt: skip


def _work_by_form(
    trials: int, distinct: Mapping[str, Trial], references: Sequence[Trial], images: int
) -> dict[Form, float]:  # fmt: skip
    """Mult-adds of all training: so many trials that are on average like the distinct ones, and the references."""
    searched: Counter[Form] = Counter()
    for trial in distinct.values():
        searched += training_work(trial, images, is_shared=trial.same_training in distinct)
    once: Counter[Form] = Counter()
    for trial in references:
        once += training_work(trial, images, is_shared=False)
    return {form: searched[form] * trials / max(1, len(distinct)) + once[form] for form in Form}


def _bayesian(trial: Trial) -> Bayesian | None:
    settings = variational_settings(trial.specification)
    return None if settings is None else settings.method


def _method_and_allocation(trial: Trial) -> str:
    method, allocation = _method_name(trial), trial.specification.allocation
    return f"{method} by {allocation.by}" if allocation else method


def _replaced_layers(space: Space, resolver: Resolver) -> list[dict[str, str]]:
    """List the layers; where all trials are Bayesian, also the stem and the one that gives the classes are replaced."""
    layers = list_layers(resolver.plan(space.network))
    if {str(name) for alternative in space.alternatives for name in alternative_names(alternative)} != {"bayesian"}:
        return layers
    reasons = make_variational(
        network_to_count(space.network, resolver.image_shape, resolver.classes), Bayesian()
    )  # fmt: skip
    return [{**layer, "kept": reasons.get(layer["name"], "") if layer["shape"] else layer["kept"]} for layer in layers]


def list_layers(plan: NetworkPlan) -> list[dict[str, str]]:
    """List the layers of a network: which are replaced, and why the others are not.

    Args:
        plan: of the network.

    Returns:
        Name, shape in words, and the reason ("" for a layer that is replaced).
    """
    sites = [
        {
            "name": site.name,
            "shape": f"{'linear' if site.linear else '{} x {}'.format(*site.shape.kernel)} "
            f"{site.shape.in_channels}-{site.shape.out_channels}",
            "kept": site.keep_reason,
        }
        for site in plan.sites
    ]
    return [*sites, *({"name": name, "shape": "", "kept": reason} for name, reason in plan.other_modules)]


def _why(reason: str) -> str:
    return f"kept: {reason.removeprefix('kept ')}" if reason else "replaced"


def layer_lines(layers: Sequence[dict[str, str]]) -> list[str]:
    """Write the layers as lines.

    Args:
        layers: as `list_layers` gives them.

    Returns:
        The lines to print: how many are replaced, then one for each layer.
    """
    replaced = sum(not layer["kept"] for layer in layers)
    widths = [max((len(layer[key]) for layer in layers), default=0) for key in ("name", "shape")]
    return [
        f"layers: {replaced} of {len(layers)} are replaced",
        *(f"  {layer['name']:{widths[0]}}  {layer['shape']:{widths[1]}}  {_why(layer['kept'])}" for layer in layers),
    ]


def _reach(methods: dict[str, tuple[int, int]], trial: Trial) -> None:
    """Take the trial's size if it is its method's largest so far."""
    name = _method_name(trial)
    size = trial.counts["params"], trial.counts.get("budget_gap", 0)
    methods[name] = max(methods.get(name, size), size)


def _method_name(trial: Trial) -> str:
    return str(trial.point.get("method.name", trial.specification.method.name))


def _points(space: Space, resolver: Resolver, strata: Sequence[Stratum]) -> list[dict[str, Value]]:
    if space.search.sampler == "grid":
        return resolver.points.grid()
    import optuna  # takes long, and a grid does without

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [resolver.points.suggest(strata[index % len(strata)], study.ask()) for index in range(SAMPLES)]


def _is_measured(space: Space) -> bool:
    """Whether the step of every network is measured, which takes time."""
    return "budget.step_ms" in space.domains or space.budget.step_ms is not None


def _recipe_line(space: Space) -> str:
    """Which recipe, with its figures; what is searched says so."""
    searched = {key.removeprefix("train.") for key in space.domains}
    if RECIPE_FIELD in searched:
        return "recipe: searched"
    recipe = space.recipe({})
    name = space.train.get(RECIPE_FIELD, default_recipe(space.data.name, space.network.name))
    figures = {"schedule": recipe.schedule, "batch_size": f"{recipe.batch_size}", "lr": f"{recipe.lr:g}",
               "weight_decay": f"{recipe.weight_decay:g}"}  # fmt: skip
    shown = (f"{key} {'searched' if key in searched else value}" for key, value in figures.items())
    return f"recipe: {name}, {', '.join(shown)}"


def _augmentation_words(space: Space, resolver: Resolver) -> str:
    """What is done to each training image; fields that are searched say so."""
    searched = [field for field in ("shift", "flip", "cutout") if f"train.{field}" in space.domains]
    views = augmentation_for(space.recipe({}), resolver.data.name, resolver.image_shape, space.search.seed)
    words = {
        "shift": f"shifted by up to {format_counted(views.shift, 'pixel')}{_pixel_rule(space, 'shift')}"
        if views.shift
        else "",
        "flip": "mirrored left to right (train.flip: false for letters, digits or signs)" if views.flip else "",
        "cutout": f"a square of {format_counted(views.cutout, 'pixel')} cut out{_pixel_rule(space, 'cutout')}"
        if views.cutout
        else "",
    }
    parts = [f"train.{field} is searched" if field in searched else text for field, text in words.items()]
    return ", ".join(filter(None, parts)) or "none"


def _pixel_rule(space: Space, field: str) -> str:
    """Say which rule gave a number of pixels, where the user did not name it."""
    if field in space.train:
        return ""
    if getattr(space.recipe({}), field) is not None:
        return f" (the recipe's, at every size; train.{field} sets another)"
    share = default_shift_share(space.data.name) if field == "shift" else None
    return "" if share is None else f" ({share[0]} of {share[1]} at every size; train.shift sets another)"


def _class_line(data: ImageData) -> str:
    """How many training images the classes have: all of a few classes, of many the smallest and the largest."""
    sizes = sorted(zip(data.class_counts("train"), data.classes, strict=True), key=lambda size: (-size[0], size[1]))
    (most, largest), (least, smallest) = sizes[0], sizes[-1]
    if len(sizes) <= _LISTED_CLASSES:
        line = f"{len(sizes)}; training images of class {', '.join(f'{name}: {count:,}' for count, name in sizes)}"
    elif least == most:
        line = f"{len(sizes)}, with {most:,} training images each"
    else:
        line = f"{len(sizes)}, with {least:,} ({smallest}) to {most:,} ({largest}) training images"
    if most >= _UNEVEN * max(1, least):
        line += "; uneven: see the balanced error, and train.class_weights or train.sampler: balanced"
    return f"classes: {line}"


def _resizing_words(data: ImageData) -> str:
    """How images were brought to their size, if the settings ask for it."""
    settings = data.settings
    if settings.image_size is None or ":" not in settings.name:  # the built-in sets have one size
        return ""
    words = {"crop": "the middle square of each", "squash": "squashed to a square", "pad": "padded with black bars"}
    return f", resized ({words[settings.resize]})"


def _few_steps_line(space: Space, data: ImageData, steps: int) -> list[str]:
    """Say that a network can hardly learn in so few steps, and which smaller batch gives more of them."""
    recipe = space.recipe({})
    smaller = 2 ** int(math.log2(max(_SMALLEST_BATCH, len(data.train) / _FEW_STEPS)))
    if steps >= _FEW_STEPS or smaller >= recipe.batch_size or "train.batch_size" in space.domains:
        return []
    rate = "" if "train.lr" in space.domains else f" --set train.lr={recipe.lr * smaller / recipe.batch_size:.2g}"
    return [f"  few steps an epoch for so few images: with --set train.batch_size={smaller}{rate} an epoch has "
            f"{steps_per_epoch(data, smaller)}"]  # fmt: skip


def _teacher_line(space: Space, data: ImageData, resolver: Resolver) -> list[str]:
    """Which teacher the space names, whether it is trained first, and whether its classes have other names."""
    if resolver.teacher is None:
        return []
    record, name = resolver.teacher.weights, resolver.teacher.name
    first = f"; not there yet, trained first for {format_counted(teacher_space(space).epochs, 'epoch')}"
    classes = record.differing_classes(data)
    line = f"teacher: {name}, {record.network.name}{first if record.sha256 == UNTRAINED else ''}"
    return [line if classes is None else f"{line}; {classes}"]


def _initial_weights_lines(space: Space, resolver: Resolver) -> list[str]:
    """Say which trials begin with trained weights of the network's builder; empty where it returns none."""
    builder = find_builder_weights(space.network, resolver.image_shape, resolver.classes)
    if not builder.modules and space.network.weights is None and space.start.weights != NETWORK_WEIGHTS:
        return []
    starts = [kind for kind in space.start_kinds if kind != "scratch"]
    source = "the trained dense network" if space.start.weights is None else str(space.start.weights)
    source = "these too" if source == NETWORK_WEIGHTS else source
    if not starts:
        students = "all others draw all weights anew (`start: dense` would begin with trained ones)"
    elif "scratch" in space.start_kinds:
        students = (
            f"of the others, those with `start: {starts[0]}` start from {source}, and the rest draw all weights anew"
        )
    else:
        students = f"all others start from {source}"
    lines = [f"weights: the dense network begins with those that {space.network.name} gives; {students}"]
    if builder.others and "scratch" in space.start_kinds:
        lines.append(f"  not drawn anew, because they have no `reset_parameters`: {', '.join(builder.others)}")
    return lines


def plan_lines(plan: Plan, space: Space, resolver: Resolver) -> list[str]:
    """Write the plan as lines.

    Args:
        plan: the plan.
        space: its space.
        resolver: the space's.

    Returns:
        The lines to print.
    """
    recipe, data = space.recipe({}), resolver.data
    steps = steps_per_epoch(data, recipe.batch_size)
    points = "drawn from ranges" if plan.distinct_points is None else f"of {plan.distinct_points:,} points"
    lines = [
        f"{plan.name}: {plan.question}",
        f"data: {data.name}, {len(data.train):,} training, {len(data.val):,} validation, "
        f"{len(data.test):,} test images",
        *(f"  note: {note}" for note in plan.notes),
        _class_line(data),
        f"images: {'x'.join(map(str, data.image_shape))}{_resizing_words(data)}"
        f"{'' if data.resident else ', streamed from disk'}",
        f"augmentation: {plan.augmentation}",
        _network_line(space, resolver),
        _recipe_line(space),
        f"trials: {plan.trials} at most, references included, {points}; "
        f"{format_counted(recipe.epochs, 'epoch')} of {format_counted(steps, 'step')} each, {plan.slots} at a time",
        *_few_steps_line(space, data, steps),
    ]
    if plan.finetune_epochs:
        *others, last = plan.finetune_epochs
        numbers = " or ".join((*map(str, others), format_counted(last, "epoch")))
        trained = f"fine-tuned for {numbers}" if any(plan.finetune_epochs) else "not fine-tuned"
        lines.append(f"after the removal of groups: {trained} (`method.finetune_epochs`)")
    if plan.posteriors_by_sgd:
        lines.append(f"  note: {SGD_NOTICE}")
    lines += _teacher_line(space, data, resolver) + _initial_weights_lines(space, resolver)
    if plan.smallest is not None and plan.largest is not None:
        lines.append(f"sizes: from {plan.smallest:,} to {plan.largest:,} parameters")
    if plan.unseen:
        lines.append(f"  ({plan.unseen} more points were not looked at: the step of each is measured)")
    for label, (_, low, high) in sorted(plan.strata.items(), key=lambda stratum: stratum[1][1:]):
        lines.append(f"  {label}: {low:,} to {high:,}")
        if space.has_budget and len(plan.reached[label]) > 1:
            lines.append(f"    largest setting of each method (parameters left unused): {_sizes(plan.reached[label])}")
        lines += [f"    {line}" for line in _output_error_lines(plan.output_errors.get(label, {}))]
        if label in plan.initial_errors:
            lines.append(f"    {_initial_error_line(plan.initial_errors[label])}")
    if plan.initial_unmeasured:
        lines.append(
            f"  (the error before any training was not measured for {plan.initial_unmeasured} more: time was up)"
        )
    if plan.output_errors:
        lines.append("  (relative errors of layers' outputs after the fit, the layers before them unchanged)")
    if space.search.repeats > 1:
        points = "every point" if space.search.sampler == "grid" else "each point of the final front, afterwards,"
        lines.append(f"repeats: {points} with {space.search.repeats} seeds, the same for all")
    lines.append(_decidable_line(len(data.val), space.search.repeats))
    lines += [f"  cannot be met: {reason}" for reason in plan.unreachable]
    for reason, times in plan.infeasible.items():
        lines.append(f"  infeasible ({format_counted(times, 'point')}): {reason}")
    lines.append(
        f"work: {plan.most_work:.2g} mult-adds; about {format_duration(plan.most_seconds)} without early stopping "
        "(from three probe steps on this machine)"
    )
    return [*lines, *layer_lines(plan.layers)]


def _network_line(space: Space, resolver: Resolver) -> str:
    """The network's name and size, and that of its separable form where it has one."""
    dense, separable = resolver.dense_params, resolver.separable_params
    form = "" if separable == dense else f", {separable:,} in its separable form"
    return f"network: {space.network.name}, {dense:,} parameters{form}"


def _output_error_lines(methods: dict[str, dict[str, float]]) -> list[str]:
    """A line for each method: how far the outputs of layers will be off before any training, and which most."""
    lines = []
    for name, errors in methods.items():
        replaced = {layer: error for layer, error in errors.items() if error > 0}
        if not replaced:
            lines.append(f"{name}: every layer stays dense")
            continue
        worst = max(replaced, key=replaced.__getitem__)
        middle = statistics.median(replaced.values())
        lines.append(
            f"{name}: {len(replaced)} of {len(errors)} layers replaced, relative error of outputs {middle:.2f} in the "
            f"median, largest in {worst} ({replaced[worst]:.2f})"
        )
    return lines


def _initial_error_line(errors: dict[str, float]) -> str:
    """With which error the students of a stratum begin, the smallest first."""
    ordered = sorted(errors.items(), key=lambda entry: entry[1])
    return f"validation error before any training: {', '.join(f'{name} {error:.2f} %' for name, error in ordered)}"


def _decidable_line(images: int, seeds: int) -> str:
    """Which differences the study can decide, at three errors, if seeds differ by nothing."""
    differences = ", ".join(
        f"{decidable_difference(images, seeds, error):.1f} points at an error of {error:g} %" for error in PLAN_ERRORS
    )
    with_seeds = f"{seeds} seeds" if seeds > 1 else "one seed"
    return (
        "differences that can be told from chance (in 4 of 5 studies; less often where seeds differ), "
        f"{images:,} images, {with_seeds}: {differences}"
    )


def _sizes(methods: dict[str, tuple[int, int]]) -> str:
    """Each method's largest size within the budget, the method that comes nearest to it first."""
    by_gap = sorted(methods.items(), key=lambda method: (method[1][1], method[0]))
    return ", ".join(f"{name} {params:,} ({gap:,})" for name, (params, gap) in by_gap)


def print_plan(space: Space, options: RunOptions) -> int:
    """Print the plan of a space, as lines or as JSON.

    Args:
        space: the space.
        options: the command line.

    Returns:
        The exit code.

    Raises:
        InputError: data, teacher or the weights to start from cannot be used, or no layer can be replaced.
    """
    data: Any = load_data(space.data, options.data_dir)
    start = check_start(space, data)
    resolver = Resolver(space, data, describe_teacher(space, data, options.teachers or Path("teachers")))
    network = resolver.plan(space.network)
    if network.nothing_replaced and not options.json:
        print("\n".join(layer_lines(list_layers(network))))  # for the error that follows, if a method needs layers
    plan = make_plan(space, resolver, _local_slots(space))
    lines = [*start, *plan_lines(plan, space, resolver)]
    print_result(json.dumps(plan.to_json(), indent=2) if options.json else "\n".join(lines))
    return 0


def _local_slots(space: Space) -> int:
    """How many trials this machine can train at a time."""
    cpus, gpus = float(usable_cores()), float(torch.cuda.device_count())
    return share_for(space.resources, Cluster(cpus, gpus, cpus, gpus), space.search.trials, False).concurrent
