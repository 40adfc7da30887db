"""Random input: space files with changes of their text or their structure, `--set` values, and spaces for plans.

Each function takes a random generator of its own, so that a case can be made again from its seed and number.
"""

from __future__ import annotations

import random
import string
from typing import Any

import yaml

from sweeps.space import available_spaces
from sweeps.space.files import SECTIONS

LONG = "n" * 5000
NUMBERS = (
    "0", "-0.0", "1", "-1", "2", "3", "7.5", "0.1", "-0.5", "1e308", "-1e308", "1.7e308", "5e-324", "1e-310", "1e400",
    ".inf", "-.inf", ".nan", "1" + "0" * 30, "9" * 5000, "0x7fffffffffffffffffff", "017", "0b101", "1_000", "1:30",
    "190:20:30.15", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e-9", "5e-4", "5e-5",
    "1e9", "1000000000", "4096.5",
)  # fmt: skip
PLAIN = (
    "true", "no", "null", "~", "''", '"a b"', "digits", "dense", "tucker", "resnet9", "wrn_16_64", "wrn_10_1", "mlp",
    "auto", "tpe", "grid", "[]", "{}", "[1]", "[a, b]", "{a: b}", "[null]", "[[]]", "[{}]", "- x", "even", "30m",
    "0s", "1" * 400 + "h", "2024-01-01", "2024-01-01 12:00:00", "2024-13-45", "12:30:45", "=", "<<", "%s%n{0}",
    "$HOME", "a: b: c", "`", "@", "!",
)  # fmt: skip
TAGS = (
    "!!int x", "!!int ''", "!!float x", "!!bool x", "!!bool 1", "!!timestamp ''", "!!timestamp x", "!!binary abc",
    "!!binary '?'", "!!set {a, b}", "!!omap [a: b]", "!!omap [a]", "!!pairs [a: b, a: b]", "!!null x", "!!str 1",
    "!!seq {a: b}", "!!map [a]", "!x y", "!!python/object/apply:os.getcwd []", "!!python/name:os.system",
    "!<tag:yaml.org,2002:int> x", "!!merge x", "!!value x",
)  # fmt: skip
TEXTS = (
    '"\\0"', '"a\\0b"', '"\\ud800"', '"\\U0001F600"', '"\\x07\\x1b[31m"', '"a\\nb\\nc"', LONG, "'" + LONG + "'",
    '"~nobody/x"', "~nobody", "~", "/", "..", "../" * 50, "/etc/passwd", "/dev/zero", "/proc/self/mem", "a/" * 200,
    "x" * 300 + ".py:f", "folder:~nobody/a", "folder:", "folder:/", "parquet:~nobody", '"parquet:\\0"', "hf:~nobody",
    '"hf:\\0"', "hf:", "no.py:f", "~nobody/no.py:f", '"no.py:\\0"', "torchvision:", "torchvision:" + LONG, "timm:x",
    "module:function", ":", "::", "a:b:c", '"folder:\\ud800"', "é\u2028x", "\u202etxt",
)  # fmt: skip
NESTED = (
    "&a [*a]", "&a {b: *a}", "[" * 40 + "]" * 40, "[" * 900 + "]" * 900, "[" * 5000 + "]" * 5000, "[" * 3000,
    "{a: " * 60 + "1" + "}" * 60, "{a: " * 1500 + "1" + "}" * 1500, "[" + ", ".join(["1"] * 100_000) + "]",
    "[" + ", ".join(map(str, range(3000))) + "]", "*nothing",
    "[&b [x,x,x,x,x,x,x,x,x,x], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], "
    "&e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e], &g [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f], "
    "&h [*g,*g,*g,*g,*g,*g,*g,*g,*g,*g], [*h,*h,*h,*h,*h,*h,*h,*h,*h,*h]]",
    "{? [1, 2] : x}", "{? {a: b} : x}", "{2024-01-01: x}", "{1: x}", "{null: x}", "{true: x}", "{.inf: x}",
    '{"\\0": x}', "{<<: x}", "{<<: [1]}", "{a: 1, a: 2}", "{" + LONG + ": 1}", "{!!int x: 1}",
)  # fmt: skip
DOMAINS = (
    "{int: [0, 1000000000]}", "{int: [1000000, 100000000]}", "{int: [1, 8]}", "{int: [2, 4, 1]}", "{int: [1, 2, 0]}",
    "{int: [1, 1e300]}", "{int: [1, 100000000000000000000]}", "{uniform: [0, 1, 1e-9]}",
    "{uniform: [0.1, 0.9, 0.02]}", "{uniform: [0.05, 0.9, 5e-5]}", "{uniform: [1e-320, 1e-310]}",
    "{uniform: [0, 1e308]}", "{uniform: [-1e308, 1e308]}", "{uniform: [0.1, 0.9]}", "{uniform: [0.5, 0.5]}",
    "{uniform: [0.9, 0.1]}", "{uniform: [.nan, 1]}", "{uniform: [0.1, 0.9, 1e-320]}", "{uniform: [1, 2, 1e300]}",
    "{log_uniform: [1e-320, 1]}", "{log_uniform: [1e-5, 1e-2]}", "{log_uniform: [0.5, 2]}", "{log_uniform: [0, 1]}",
    "{log_uniform: [1, 1e308]}", "{log_int: [8, 512]}", "{log_int: [1, 1000000000000]}", "{log_int: [1, 1e300]}",
    "{log_int: [0, 5]}", "{choice: []}", "{choice: [1, 1]}", "{choice: [1, true, null, a]}", "{choice: [0.2, 0.4]}",
    "{choice: [[1], 2]}", "{choice: {a: b}}", "{choice: 1}", "{choice: [1, 1.0]}", "{choice: [.nan, .nan]}",
    "{choice: ['1', 1]}", "{choice: [dense, tucker, cp]}", "{choice: [" + ", ".join(map(str, range(2000))) + "]}",
    "{int: ['1', 2]}", "{int: [1]}", "{int: [1, 2, 3, 4]}", "{int: null}", "{choice: [" + LONG + "]}",
    "{choice: [2024-01-01, 1]}",
)  # fmt: skip
VALUES = (NUMBERS, PLAIN, TAGS, TEXTS, NESTED, DOMAINS)
POSSIBLE = (NUMBERS[:9], DOMAINS)  # which a space accepts more often
FIELDS = (
    "question", "data", "data.name", "data.train_images", "data.val_fraction", "data.split_seed", "data.resident_mb",
    "data.image_size", "data.crop", "data.mean", "data.std", "data.loader_seconds", "network", "network.name",
    "network.width", "network.linear", "network.weights", "network.keep", "network.only", "network.patch",
    "network.depth", "network.heads", "teacher", "teacher.name", "teacher.weights", "teacher.train", "teacher.width",
    "teacher.network", "teacher.views", "teacher.taps", "train", "train.recipe", "train.epochs", "train.batch_size",
    "train.lr", "train.momentum", "train.milestones", "train.shift", "train.cutout", "train.accumulate",
    "train.kd_weight", "train.freeze", "train.warmup", "method", "method.name", "method.dims", "method.rank_scale",
    "method.bank_scale", "method.groups", "method.rank", "budget", "budget.params", "budget.params_min",
    "budget.mult_adds", "budget.bytes", "budget.step_ms", "budget.window", "budget.relative_to", "budget.allocation",
    "budget.shares", "start", "start.how", "start.weights", "start.calibration", "start.scratch_train", "references",
    "search", "search.trials", "search.sampler", "search.objectives", "search.stop", "search.grace",
    "search.reduction", "search.brackets", "search.repeats", "search.enqueue", "search.warm_start", "search.seed",
    "search.time", "resources", "resources.cpus_per_trial", "resources.gpus_per_trial", "resources.max_concurrent",
    "resources.processes_per_trial", "answer", "answer.margin", "by_data", "by_data.digits", "studies",
    "studies.name", "x", "", ".", "..", "a.b.c", "train.", ".lr", "train..lr", "data.name.x", "network.keep.0", LONG,
    "train." + LONG, "\0", "train.\ud800", "é", "a b", "train.lr.choice",
)  # fmt: skip
OPTIONS = (
    "--data", "--network", "--keep", "--only", "--weights", "--seed", "--trials", "--time", "--gpus-per-trial",
    "--cpus-per-trial", "--processes-per-trial", "--max-concurrent", "--data-dir", "--space", "--gpu-sharing",
)  # fmt: skip
PLAN_VALUES = {
    "network.name": ("resnet9", "wrn_10_1", "wrn_16_4", "wrn_16_64", "wrn_28_10", "mlp", "vit", "resnet18",
                     "mobilenet_v2", "vgg16"),
    "network.width": ("0.01", "0.1", "0.25", "0.5", "1", "2", "16", "{choice: [0.1, 0.2]}", "{uniform: [0.1, 0.5]}"),
    "network.linear": ("true", "false"),
    "budget.params": (*DOMAINS[:18], "0.3", "0.001", "1e-9", "50000", "1e9", "{choice: [0.2, 0.4]}",
                      "{min: 0.1, max: 0.3}", "null"),
    "budget.mult_adds": ("0.5", "1e6", "{choice: [0.5, 0.7]}", "{uniform: [0.3, 0.9]}"),
    "budget.step_ms": ("5e-5", "1", "1000", "{choice: [1, 100]}", "{uniform: [0.5, 50]}"),
    "budget.relative_to": ("separable", "dense", "null"),
    "budget.allocation": ("even", "stage", "layer", "{choice: [even, stage, layer]}"),
    "method": ("{name: dense}", "{name: separable}", "{name: tucker, dims: {int: [2, 9]}}", "{name: tensor_train}",
               "{name: cp}", "{name: hashed}", "{name: shuffle}", "{name: {choice: [bottleneck, tensor_train, acdc]}}",
               "{name: tensor_train, dims: 3, rank_scale: {uniform: [0.05, 0.95, 5e-5]}}",
               "{name: tensor_train, dims: 3, rank_scale: {uniform: [0.05, 0.95]}}",
               "{name: shuffle, groups: {int: [1, 100000]}}", "{name: thin_dense}"),
    "method.rank_scale": ("0.1", "1e-9", "1", "1000", "{uniform: [0.05, 0.95, 0.05]}", "{uniform: [0.05, 0.95, 1e-7]}"),
    "method.dims": ("2", "3", "9", "{int: [2, 4]}", "{choice: [2, 9]}"),
    "train.epochs": ("0", "1", "100000", "{int: [1, 100000]}", "{log_int: [1, 1000]}"),
    "train.batch_size": ("1", "2", "16", "1000000000", "{choice: [32, 64]}", "{int: [1, 1000000000]}"),
    "train.lr": ("0.1", "1e-9", "1e6", "{log_uniform: [1e-4, 1]}", "{uniform: [0.001, 1, 1e-6]}"),
    "train.accumulate": ("1", "2", "16"),
    "train.shift": ("0", "1", "8", "100", "1000000000"),
    "train.cutout": ("0", "8", "1000000000"),
    "search.sampler": ("tpe", "grid", "random", "qmc", "nsga2", "gp"),
    "search.trials": ("1", "24", "1000000000", "9223372036854775807"),
    "search.repeats": ("1", "3", "1000"),
    "search.objectives": ("[val_error]", "[val_error, params]", "[params, mult_adds]", "[]", "[params, params]"),
    "search.stop": ("none", "asha", "median", "hyperband"),
    "search.brackets": ("1", "16"),
    "search.reduction": ("1.000001", "3", "1e6"),
    "references": ("[]", "[dense, separable]", "[thin_dense]", "[tucker]", "[unchanged]"),
    "start": ("dense", "outputs", "{how: dense, weights: no.safetensors}", "{choice: [scratch, dense]}"),
    "resources.cpus_per_trial": ("0.1", "1", "1000"),
    "resources.max_concurrent": ("1", "1000000000"),
    "data.train_images": ("1", "2", "100", "1437", "1000000000"),
    "data.val_fraction": ("1e-9", "0.001", "0.5", "0.999999999"),
    "data.image_size": ("1", "16", "1000000"),
    "data.mean": ("[0.5]", "[0.5, 0.5, 0.5]"),
    "data.std": ("[0.5]", "[1e-300]", "[0.1, 0.1, 0.1]"),
}  # fmt: skip


def random_value(rng: random.Random) -> str:
    """Draw the YAML text of one value, each kind of value as often as every other."""
    return rng.choice(rng.choice(VALUES if rng.random() < 0.5 else POSSIBLE))


def mutate_file(rng: random.Random) -> bytes:
    """Change a space file of the repository once to four times."""
    text = rng.choice(list(available_spaces().values())).read_text()
    changes = rng.choice((1, 1, 1, 2, 4))
    if rng.random() < 0.6:
        return _mutate_structure(rng, text, changes).encode(errors="surrogatepass")
    data = text.encode()
    for _ in range(changes):
        data = _mutate_bytes(rng, data)
    return data


def _mutate_structure(rng: random.Random, text: str, changes: int) -> str:
    """Replace, add, remove or rename fields; values are put into the text as they stand."""
    content = yaml.safe_load(text)
    raw: list[str] = []
    for _ in range(changes):
        marker = f"MARK{len(raw)}END"
        kind = rng.choice(("replace", "replace", "replace", "add", "remove", "key"))
        parent, key = _random_field(rng, content)
        if kind == "replace":
            parent[key] = marker
        elif kind == "remove":
            del parent[key]
            continue
        elif isinstance(parent, list):
            parent.append(marker)
        elif kind == "add":
            parent[rng.choice((*SECTIONS, "lr", "epochs", "choice", "int", "params", "seed", "name", "set"))] = marker
        else:
            parent[marker] = parent.pop(key)
        raw.append(random_value(rng))
        if not content:
            break
    text = yaml.safe_dump(content, sort_keys=False, width=10_000)
    for index, value in enumerate(raw):
        text = text.replace(f"MARK{index}END", value)
    return text


def _random_field(rng: random.Random, content: Any) -> tuple[Any, Any]:
    """A random field at any depth: the mapping or list that holds it, and its key or index."""
    fields: list[tuple[Any, Any]] = []
    remaining = [content]
    while remaining:
        node = remaining.pop()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            fields.append((node, key))
            if isinstance(value, dict | list):
                remaining.append(value)
    return rng.choice(fields)


def _mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0:
        return data[:place] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 1, 8)))) + data[place:]
    if kind == 1:
        return data[:place] + data[place + rng.choice((1, 3, 40)) :]
    if kind == 2:
        return data[:place]
    if kind == 3:
        return data[:place] + rng.choice(string.punctuation + " \n\t\r").encode() + data[place:]
    lines = data.split(b"\n")
    line = rng.randrange(len(lines))
    if kind == 4:
        lines.insert(rng.randrange(len(lines)), lines[line])
    elif kind == 5:
        lines[line] = b" " * rng.choice((1, 2, 4, 300)) + lines[line]
    else:
        head, colon, _ = lines[line].partition(b":")
        lines[line] = head + colon + b" " + random_value(rng).encode(errors="surrogatepass")
    return b"\n".join(lines)


def random_overrides(rng: random.Random) -> list[str]:
    """Draw a command line: a space of the repository, with one to three options that change its fields."""
    arguments = ["--space", rng.choice([*available_spaces()])]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.8:
            value = random_value(rng)
            arguments += ["--set", value if rng.random() < 0.1 else f"{rng.choice(FIELDS)}={value}"]
        else:
            arguments.append(f"{rng.choice(OPTIONS)}={random_value(rng)}")
    return arguments


def random_plan(rng: random.Random) -> list[str]:
    """Draw a command line that plans a space on the digits, with one to four fields that are unusual but possible."""
    arguments = ["--space", rng.choice([*available_spaces()]), "--plan", "--data", "digits"]
    for field in rng.sample(list(PLAN_VALUES), rng.choice((1, 2, 2, 3, 4))):
        arguments += ["--set", f"{field}={rng.choice(PLAN_VALUES[field])}"]
    return arguments
