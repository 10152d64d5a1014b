"""Options of a command or of a recipe: a dataclass declares them, and a YAML file, flags and dotted
overrides set them.

jsonargparse converts, checks and prints. What it lacks is here: flags as people write them
(`--widths 1,2,4`, `--task-options digits=2`), the nearest right name in an error, errors of one
line, and YAML that is read strictly.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import docstring_parser
import jsonargparse
import yaml

from interlace.errors import ConfigError, nearest, shown

FRAME = {"config": str, "print_config": bool}  # every command's, and in no file
MODE = "interlace"  # jsonargparse's name for how texts are read here
MOST_CHARACTERS, MOST_NODES, DEEPEST, MOST_DIGITS = 2**20, 50_000, 64, 40
_TOO_DEEP = "it is nested too deeply, or in itself"
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
}


def wanted(hint: Any) -> str:
    """A type in words.

    >>> wanted(int | list[int]), wanted(Literal["row", "group"])
    ('a whole number or a list with commas (each a whole number)', "one of 'row', 'group'")
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        left_out = (types.NoneType, int) if float in inner else (types.NoneType,)
        words = (wanted(option) for option in inner if option not in left_out)
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if list in (hint, origin) or tuple in (hint, origin):
        return f"a list with commas (each {wanted(inner[0])})" if inner else "a list"
    if dict in (hint, origin):
        return "a mapping" if not inner or inner[1] is Any else f"a mapping ({wanted(inner[1])})"
    return _WORDS.get(hint, "a value")


class _Loader(yaml.SafeLoader):
    """PyYAML's, with `1e-6` as a number and dates as texts; keys that stand twice, huge numbers and
    aliases that grow without bound are refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":float"))]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key.value)} stands twice", key.start_mark
                )
            found.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # Here, since the scanner's time grows with the square of the depth.
        if self.flow_level > DEEPEST:
            raise yaml.YAMLError(_TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Whole numbers as such, also if they are written as 1e3."""
        if len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number has more than {MOST_DIGITS} digits", node.start_mark
            )
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        value = self.construct_yaml_float(node)
        return int(value) if value.is_integer() and "." not in node.value else value


_FLOAT = r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+.0123456789"))
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number)


def _size(node: yaml.Node | None, sizes: dict[int, int | None], depth: int = 0) -> int:
    """Number of nodes below one; an alias counts at each of its places."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    known = sizes.get(id(node), 0)
    if known is None or depth > DEEPEST:
        raise yaml.YAMLError(_TOO_DEEP)
    if not known:
        sizes[id(node)] = None
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known = 1 + sum(_size(part, sizes, depth + 1) for part in parts)
        sizes[id(node)] = known
    if known > MOST_NODES:
        raise yaml.YAMLError(f"it holds more than {MOST_NODES:,} values")
    return known


def load_text(text: str) -> Any:
    """What YAML makes of a text.

    Raises:
        yaml.YAMLError: if it is none, or beyond the bounds.

    >>> load_text("1e-6"), load_text("[1, 2]"), load_text("2024-01-01"), load_text("{a}")
    (1e-06, [1, 2], '2024-01-01', '{a}')
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MOST_CHARACTERS:,} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _size(node, {})
        value = None if node is None else loader.construct_document(node)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise yaml.YAMLError(f"it holds what cannot be read ({type(error).__name__})") from error
    finally:
        loader.dispose()
    if isinstance(value, dict) and text.lstrip().startswith("{") and set(value.values()) == {None}:
        return text  # a template, such as {question}
    return value


jsonargparse.set_loader(MODE, load_text, exceptions=(yaml.YAMLError,))


def read_yaml(path: str | os.PathLike[str], example: str = "width: 8") -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if it cannot be read, or holds something else.
    """
    try:
        content = load_text(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {_in_line(error)}.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"A configuration holds options by name, such as `{example}`; {path} holds "
            f"{type(content).__name__}."
        )
    return content


def _in_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or error}"
    return " ".join(str(error).split())[:300]


class Parser(jsonargparse.ArgumentParser):
    """The options of one command.

    Args:
        prog: Name of the command.
        usage: Lines of usage, without the command's name.
        description: Sentence that says what the command does.
        examples: Commands to try, shown last in the help.
        config: Line that a file of --config may have; without one there is no such flag.
    """

    def __init__(
        self, prog: str, usage: str, description: str, examples: str = "", config: str = ""
    ) -> None:
        super().__init__(
            prog=prog,
            usage="\n       ".join(f"{prog} {line}" for line in usage.splitlines()),
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parser_mode=MODE,
            print_config=None,
            add_help=False,
        )
        self.config = config
        self.hints: dict[str, Any] = {}  # option -> its type
        self.aliases: dict[str, str] = {}  # further flag -> option
        self.dashed = True  # errors name options as flags
        self.words: list[str] = []  # options that may be given without their names
        # What is being read, for errors: its place, and options as they were written.
        self.place, self.given = "", dict[str, Any]()

    def add_options(
        self,
        options: type[Any],
        words: Sequence[str] = (),
        under: str = "",
        silent: type[Any] = object,
    ) -> None:
        """Declare the fields of a dataclass, under the name of their section, if any. Each class in
        its line is a group of the help, with the fields that its docstring explains.

        Fields named in `words` may be given without their names, in this order. From the class
        `silent` on, fields are options, but not in the help unless a class before explains them.
        """
        self.words += words
        left = defaults_of(options)
        hints = {
            name: _readable(hint, as_written=silent is not object)
            for name, hint in typing.get_type_hints(options).items()
        }
        for title, texts in explained(options, silent):
            title = title[0].lower() + title[1:]
            group = (self.groups or {}).get(title) or self.add_argument_group(title, name=title)
            for name in [name for name in texts if name in left]:
                dest = f"{under}.{name}" if under else name
                self.hints[dest] = hints[name]
                self._add(group, dest, left.pop(name), texts[name])
        if silent is not object:
            for name, default in left.items():
                dest = f"{under}.{name}"
                self.hints[dest] = hints[name]
                self._add(self, dest, default, argparse.SUPPRESS)
            return
        assert not left, f"{options.__name__} explains no {', '.join(left)}"

    def _add(self, group: Any, dest: str, default: Any, text: str) -> None:
        hint, text = self.hints[dest], " ".join(text.split()).replace("%", "%%")
        silent = text == argparse.SUPPRESS or default is None or default is False
        if not silent and default not in ((), "", {}, []):
            value = ",".join(map(str, default)) if isinstance(default, tuple) else default
            value = "true" if value is True else value
            text = f"{text.rstrip('.')} (default: {value})"
        flags = [f"--{flag}" for flag, name in self.aliases.items() if name == dest]
        action = group.add_argument(
            _flag(dest), *flags, type=hint, default=default, help=text, metavar=_metavar(dest, hint)
        )
        if dest in self.words:
            action.option_strings, action.metavar = [], dest.upper()
        action.option_strings = [flag for flag in action.option_strings if flag[-1] != "+"]

    def parse(self, argv: Sequence[str]) -> jsonargparse.Namespace:
        """Options as the command line has them, else as the file of its --config has them, else by
        default.

        Raises:
            ConfigError: for an option that does not exist, or a value that does not fit.
        """
        self._add_frame()
        if {"-h", "--help"} & set(argv[: argv.index("--")] if "--" in argv else argv):
            self.print_help()
            raise SystemExit(0)
        self._split(argv)
        file, printed = self.given.get("config"), "print_config" in self.given
        found = self.read({} if file is None else read_yaml(file), str(file))
        found = self.override(found, argv, defaults=True)
        if printed:
            print(self.printed(found), end="")
            raise SystemExit(0)
        return found

    def _add_frame(self) -> None:
        """What every command has; last, so that it is last in the help, too."""
        group = self.add_argument_group("help and configuration")
        group.add_argument(
            "-h", "--help", action="help", help="Show this help and do nothing else."
        )
        texts = {"print_config": "Print all options as a YAML file and do nothing else."}
        if self.config:
            texts["config"] = f"YAML file of these options, such as '{self.config}'; flags win."
        for name, text in texts.items():
            self.hints[name] = FRAME[name]
            metavar = "" if name == "print_config" else "FILE"
            group.add_argument(f"--{name}", metavar=metavar, help=text, default=argparse.SUPPRESS)

    def override(
        self, found: jsonargparse.Namespace, argv: Sequence[str], defaults: bool = False
    ) -> jsonargparse.Namespace:
        """Options of a file, and those of a command line in their place."""
        self.place = ""
        lists, words = self._split(argv)
        found = self.parse_object(lists, namespace=found, defaults=False)
        found = self.parse_args(words, namespace=found, defaults=defaults)
        self._check(found)
        return found

    def printed(self, found: jsonargparse.Namespace) -> str:
        """Options as a file that has the same."""
        return str(self.dump(found))

    def read(self, values: Mapping[str, Any], place: str) -> jsonargparse.Namespace:
        """Options that a file holds, without defaults."""
        self.place = f"{place}: "
        self.given = self._known(values, "")
        found = self.parse_object(self.given, defaults=False)
        self._check(found)
        return found

    def unknown(self, name: str) -> str:
        """The message for a name that is no option."""
        if self.place:
            known = [known for known in self.hints if known not in FRAME]
            return f"there is no option {shown(name)}." + (
                nearest(name.replace("-", "_"), known) or " --help lists the options."
            )
        flags = [flag for action in self._actions for flag in action.option_strings]
        return f"{self.prog} has no option {shown(name)}." + (
            nearest(name, flags) or f" `{self.prog} --help` explains the options."
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found, in one line."""
        found = re.search(r'Parser key "(.+?)"', message)
        if found is None or found[1] not in self.hints:
            raise ConfigError(f"{self.place}{' '.join(message.split())[:300]}.") from None
        self._refuse(found[1], self.given.get(found[1]))

    def _refuse(self, name: str, value: Any) -> NoReturn:
        hint = self.hints[name]
        choices = [v for part in _parts(hint) for v in typing.get_args(part) if isinstance(v, str)]
        bare = isinstance(value, bool) and (choices or _is(hint, str))
        hint_at = (
            " YAML reads bare yes, no, on and off as true and false: write the word in quotes."
            if bare
            else nearest(str(value), choices)
        )
        spelled = (
            name
            if self.place or not self.dashed
            else name.upper()
            if name in self.words
            else _flag(name)
        )
        raise ConfigError(
            f"{self.place}{spelled} takes {wanted(hint)}; got {shown(value)}.{hint_at}"
        ) from None

    def _check(self, found: jsonargparse.Namespace) -> None:
        """What jsonargparse lets pass: null where there has to be a value, infinity, and texts
        with NUL, which no path may hold."""
        for name, value in found.items():
            for text in value if isinstance(value, list | tuple) else [value]:
                if isinstance(text, str) and "\0" in text:
                    raise ConfigError(f"{self.place}{name} holds NUL; got {shown(value)}. Drop it.")
            hint = self.hints.get(name, Any)
            endless = isinstance(value, float) and not math.isfinite(value)
            if endless or (value is None and hint is not Any and not _is(hint, types.NoneType)):
                self._refuse(name, value)

    def _known(self, values: Mapping[Any, Any], under: str) -> dict[str, Any]:
        """The values of a file under the names of options."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = under + str(key).replace("-", "_")
            if name in self.hints and name not in FRAME:
                found[name] = _as_list(self.hints[name], value)
            elif any(known.startswith(f"{name}.") for known in self.hints):
                if not isinstance(value, Mapping):
                    raise ConfigError(
                        f"{self.place}{name} holds options by name; got {shown(value)}."
                    )
                found |= self._known(value, f"{name}.")
            else:
                raise ConfigError(f"{self.place}{self.unknown(under + str(key))}")
        return found

    def _split(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """A command line as lists, which jsonargparse takes as objects, and as --name=value."""
        lists: dict[str, Any] = {}
        options: list[str] = []
        left, words, self.given = list(argv), list(self.words), {}
        plain = False  # from a "--" on
        while left:
            word = left.pop(0)
            if word == "--" and not plain:
                plain = True
                continue
            flag, sign, value = word.partition("=")
            if plain or not word.startswith("--"):
                flag, sign, value = self._place_of(word, words), "=", word
            name, key = self._named(flag)
            hint = self.hints[name]
            if not sign and _is(hint, bool):
                value = "true"
            elif not sign:
                if not left or left[0].startswith("--"):
                    raise ConfigError(f"{flag} takes {wanted(hint)}; got none.")
                value = left.pop(0)
            self.given[name] = value
            if _is(hint, tuple):
                lists[name] = [*lists.get(name, ()), *_as_list(hint, value)]
            elif _origin(hint) is dict and not key and not value.startswith("{"):
                pairs = [value]
                while left and not left[0].startswith("-") and "=" in left[0]:
                    pairs.append(left.pop(0))
                options += [self._pair(flag, name, pair) for pair in pairs]
            elif name not in FRAME:
                if _is(hint, int) and re.fullmatch(r"\d+e\d{1,2}", value):
                    value = str(int(float(value)))
                listed = _is(hint, list) and "," in value and not value.startswith("[")
                options.append(f"{_flag(name)}{key}={f'[{value}]' if listed else value}")
        return lists, options

    def _place_of(self, word: str, words: list[str]) -> str:
        """The flag that a word without one stands for."""
        if not words:
            raise ConfigError(f"{self.prog} takes no further words; got {shown(word)}.")
        return _flag(words[0] if _is(self.hints[words[0]], tuple) else words.pop(0))

    def _pair(self, flag: str, name: str, pair: str) -> str:
        key, sign, _ = pair.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"{flag} takes NAME=VALUE, such as digits=2; got {shown(pair)}.")
        return f"{_flag(name)}.{pair.strip()}"

    def _named(self, flag: str) -> tuple[str, str]:
        """The option of a flag, and what follows it as `.key`."""
        written, key = flag.removeprefix("--"), ""
        while True:
            name = self.aliases.get(written, written.replace("-", "_"))
            if name in self.hints and (not key or _is(self.hints[name], dict)):
                return name, key
            written, dot, last = written.rpartition(".")
            if not dot:
                raise ConfigError(self.unknown(flag))
            key = f".{last}{key}"


def explained(options: type[Any], silent: type[Any]) -> Iterable[tuple[str, dict[str, str]]]:
    """Classes in a dataclass's line, by the first line of their docstring, with the texts of their
    fields."""
    for kind in options.__mro__:
        if kind is silent:
            return
        doc = docstring_parser.google.parse(inspect.cleandoc(kind.__doc__ or ""))
        texts = {param.arg_name: param.description or "" for param in doc.params}
        if texts and dataclasses.is_dataclass(kind):
            yield (doc.short_description or "options").split(". ")[0].rstrip(". "), texts


def defaults_of(options: type[Any]) -> dict[str, Any]:
    """Field of a dataclass -> its default."""
    return {
        option.name: option.default
        if option.default_factory is dataclasses.MISSING
        else option.default_factory()
        for option in dataclasses.fields(options)
        if option.init
    }


def _readable(hint: Any, as_written: bool) -> Any:
    """A type as a file can hold it: enumerations by their words, other classes as anything; and a
    whole number stays one where a number is wanted, if it is to be kept as it was written."""
    parts = []
    for part in _parts(hint):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return Literal[tuple(member.value for member in part)]
        if isinstance(part, type) and part.__module__ != "builtins":
            return Any
        part = {dict: dict[str, Any], list: list[Any]}.get(part, part)
        parts += [int, float] if part is float and as_written else [part]
    return typing.Union[tuple(parts)]  # noqa: UP007 - of a list


def _flag(name: str) -> str:
    # The options of a section keep the spelling that they have in a file.
    return f"--{name}" if name == "print_config" or "." in name else f"--{name.replace('_', '-')}"


def _metavar(name: str, hint: Any) -> str:
    """The value's place in the help: N, X, {a,b}, N,N,... or the last word of the name."""
    for part in sorted(_parts(hint), key=lambda part: part is not float):
        kind, inner = _origin(part), typing.get_args(part)
        if kind in (tuple, list) and inner:
            one = _metavar("text", inner[0])
            return one if inner[0] is str else f"{one},..." if len(one) > 1 else f"{one},{one},..."
        if kind is Literal and len(inner) < 9 and not _is(hint, int):
            return "{" + ",".join(map(str, inner)) + "}"
        if kind is bool:
            return "{true,false}" if "." in name else ""
        if kind in (dict, int, float):
            return {dict: "NAME=VALUE", int: "N", float: "X"}[kind]
    return name.rsplit("_", 1)[-1].rsplit(".", 1)[-1].upper()


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if _origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _is(hint: Any, kind: type) -> bool:
    """Whether a type is of a kind, or a union that holds one."""
    return any(_origin(part) is kind for part in _parts(hint))


def _as_list(hint: Any, value: Any) -> Any:
    """A value for a list in each of its spellings: `1,2,4`, `[1, 2, 4]`, `none`; or one text."""
    if _is(hint, tuple) and value in ("none", ["none"]) and str not in typing.get_args(hint):
        return []
    if not _is(hint, tuple) or not isinstance(value, (str, int, float)):
        return value
    if str in typing.get_args(hint):
        return [value]
    text = str(value)
    try:
        return load_text(text) if text.startswith("[") else [*map(load_text, text.split(","))]
    except yaml.YAMLError:
        return [text]
