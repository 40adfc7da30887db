"""Read and write YAML of plain values, within limits that hold whoever wrote it.

A space file, a value after `--set` and a study's space.yaml may come from anybody. So every limit stands here: the
size of the text, the depth and number of values (those that an alias repeats count each time), the length of texts, the
range of numbers. Nothing but mappings, lists, texts, numbers, true, false and null comes out; a key is the text as it
is written, and a date is a text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from yaml.composer import Composer
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.resolver import Resolver

if TYPE_CHECKING:
    _Parser: Any = object
elif yaml.__with_libyaml__:
    from yaml.cyaml import CParser as _Parser  # ten times as fast
else:

    class _Parser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
        def __init__(self, text: str):
            yaml.reader.Reader.__init__(self, text)
            yaml.scanner.Scanner.__init__(self)
            yaml.parser.Parser.__init__(self)


MAX_BYTES = 1_000_000
MAX_DEPTH = 24
MAX_VALUES = 10_000
MAX_TEXT = 4000  # characters of a text; about as many as a path may have
MAX_KEY = 200
MAX_NUMBER = 1e30  # beyond it, and nearer to 0 than its inverse, products and quotients of two leave what floats hold
_NUMBER_CHARACTERS = 60

_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
# YAML 1.1 wants a point in 5e-4; YAML 1.2 and everybody who writes it does not
_FLOAT_1_2 = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")
_BAD_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ODD_RESOLVERS = (_PREFIX + "timestamp", _PREFIX + "value")  # a date is a text, and so is `=`


class YamlError(ValueError):
    """The text is not YAML of plain values within the limits.

    The message is one short line without the source.
    """


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document.

    Returns:
        Mappings with keys of text, lists, texts, numbers, true, false and null. No two places share an object, and the
        depth is at most MAX_DEPTH.

    Raises:
        YamlError: the text is not YAML, or has something else, or is beyond a limit.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise YamlError("it has characters that are not Unicode") from error
    if size > MAX_BYTES:
        raise YamlError(f"it must have at most {MAX_BYTES:,} bytes, but has {size:,}")
    try:
        loader = _Loader(text)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise YamlError(_describe(error)) from error
    except yaml.YAMLError as error:  # of the reader: a character that YAML forbids
        raise YamlError(str(error).partition("\n")[0][:120]) from error
    return json.loads(json.dumps(content))  # what an alias repeats becomes an object of its own


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Write plain values so that `load_yaml` reads the same ones.

    Args:
        content: plain values.

    Returns:
        The document.
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def check_number(value: float) -> str:
    """Check the size of a number.

    Args:
        value: the number.

    Returns:
        What is wrong with it; empty for one within the limits.
    """
    if not (isinstance(value, int) or math.isfinite(value)):
        return "a number must be finite"
    if value and not 1 / MAX_NUMBER <= abs(value) <= MAX_NUMBER:
        return f"a number must be 0 or have a size from {1 / MAX_NUMBER:g} to {MAX_NUMBER:g}"
    return ""


class _PlainResolver(Resolver):
    """Tells of what kind a value without a tag is."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]  # of the class in PyYAML too, but not in its stubs
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _ODD_RESOLVERS]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }


_PlainResolver.add_implicit_resolver(_PREFIX + "float", _FLOAT_1_2, list("-+.0123456789"))


class _Loader(Composer, _Parser, SafeConstructor, _PlainResolver):
    """Composes and constructs plain values within the limits."""

    def __init__(self, text: str):
        _Parser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        _PlainResolver.__init__(self)
        self._depth = self._deepest = self._values = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # by id of a node: the values in it, and how deep it is

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a value, counting it and those in it; an alias counts as what it repeats."""
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        values, deepest = self._values, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._check(mark, self._depth)
        node = super().compose_node(parent, index)
        assert node is not None
        if is_alias:
            if id(node) not in self._sizes:
                raise ConstructorError(None, None, "a mapping or list contains itself", mark)
            size, height = self._sizes[id(node)]
            self._values += size
            self._deepest = self._depth + height
            self._check(mark, self._deepest)
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - values, self._deepest - self._depth
        self._deepest = max(deepest, self._deepest)
        self._depth -= 1
        return node

    def _check(self, mark: yaml.Mark, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"values must be nested at most {MAX_DEPTH} deep", mark)
        if self._values >= MAX_VALUES:
            raise ConstructorError(None, None, f"there must be at most {MAX_VALUES:,} values", mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; a key is a text and stands in it once."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be a text, not a mapping or list", key.start_mark)
            if key.tag == _PREFIX + "merge":
                continue
            if len(key.value) > MAX_KEY:
                raise ConstructorError(None, None, f"a key must have at most {MAX_KEY} characters", key.start_mark)
            if key.value in keys:
                raise ConstructorError(None, None, f"the key {key.value[:60]!r} stands there twice", key.start_mark)
            keys.add(key.value)
            key.tag = _PREFIX + "str"
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value whose tag is one of plain values."""
        if node.tag not in _TAGS:
            raise ConstructorError(None, None, f"the tag {node.tag[:60]!r} is not one of plain values", node.start_mark)
        return super().construct_object(node, deep)

    def construct_plain_scalar(self, node: yaml.ScalarNode) -> Any:
        """Construct a text, number, true, false or null."""
        name = node.tag.removeprefix(_PREFIX)
        if not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(None, None, f"a mapping or list is no {name}", node.start_mark)
        if name == "str":
            return self._text(node)
        if len(node.value) > _NUMBER_CHARACTERS:
            raise ConstructorError(
                None, None, f"a number must have at most {_NUMBER_CHARACTERS} digits", node.start_mark
            )
        try:
            value = {
                "null": self.construct_yaml_null, "bool": self.construct_yaml_bool, "int": self.construct_yaml_int,
                "float": self.construct_yaml_float,
            }[name](node)  # fmt: skip
        except (ValueError, KeyError, IndexError) as error:  # `!!int x`
            raise ConstructorError(None, None, f"{node.value[:60]!r} is no {name}", node.start_mark) from error
        if isinstance(value, int | float) and (fault := check_number(value)):
            raise ConstructorError(None, None, f"{fault}, but got {node.value}", node.start_mark)
        return value

    def _text(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        if len(text) > MAX_TEXT:
            problem = f"a text must have at most {MAX_TEXT:,} characters, but has {len(text):,}"
            raise ConstructorError(None, None, problem, node.start_mark)
        if bad := _BAD_CHARACTERS.search(text):
            raise ConstructorError(None, None, f"a text has the control character {bad[0]!r}", node.start_mark)
        return text


for _name in ("null", "bool", "int", "float", "str"):
    _Loader.add_constructor(_PREFIX + _name, _Loader.construct_plain_scalar)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `load_yaml` would read as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what stands in two places twice."""
        return True


_Dumper.add_implicit_resolver(_PREFIX + "float", _FLOAT_1_2, list("-+.0123456789"))


def _describe(error: yaml.MarkedYAMLError) -> str:
    """The problem and its place, without the source that yaml repeats."""
    mark = error.problem_mark or error.context_mark
    position = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    context = f" {error.context}" if error.context and error.problem else ""
    return f"{(error.problem or error.context or 'not YAML')[:160]}{position}{context[:80]}"
