"""Inputs that people and machines get wrong, as hypothesis strategies: texts, settings, recipes,
command lines, and the damage that files suffer."""

import math
import sqlite3

from hypothesis import strategies as st

from fastfood.experiments import recipes
from fastfood.experiments.settings.measurement import METHODS, Settings
from fastfood.experiments.settings.options import kinds
from fastfood.experiments.settings.pretraining import Pretraining
from fastfood.experiments.settings.task import TASKS

TEXTS = ["", " ", "\0", "a\0b", "\udcff", "ü\u202e\u200b", "x" * 300, "x/" * 3000, "9" * 5000]
TEXTS += ["[/red]", "[bold", "$x_{$", "{name}", "%s%n", "-", "--", ",", ",,1,", "a,b", "a:b:c"]
TEXTS += ["nan", "-inf", "1e999", "1_000", "٣", "0x10", "\n", "a\nb", "\x1b[31mred", "None", "~"]
TEXTS += ["1:2:3", "2:1:3", "1:9:999999999", "1:" + "9" * 400 + ":5", "pretrained/vit/*", "cuda:٣"]
PATHS = [".", "..", "/", "/proc/nothing/here", "/dev/null", "file", "file/below", "mine", "new/a/b"]
PATHS += ["x" * 300, "a\0b", "\udcff", "[/b]", "$a$b_", "study", "link", "broken"]
URLS = ["", "://", "x://y", "trials.db", "sqlite:///", "sqlite:////proc/x/y.db", "sqlite:///file"]
URLS += ["postgresql://me:pass{word@127.0.0.1:1/db", "mysql://a@b/c", "http://[::1", "sqlite://\0"]
URLS += ["postgresql://a:b@127.0.0.1:99999999/x", "oracle+x://[/red]", "sqlite:///mine"]
INTEGERS = [-(10**400), -(2**63), -1, 0, 1, 2, 7, 2**31, 2**63, 10**9, 10**30, 10**400]
FLOATS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-320, 0.5, 1.0, 1e300]
GOOD = {
    "task": TASKS,
    "methods": METHODS,
    "search": ("grid", "bisect"),
    "head": ("inside", "outside"),
    "metric": ("accuracy", "f1"),
    "normalization": ("global", "tensor"),
    "device": ("cpu",),
    "bracket": (10, 100),
    "checkpoints": (0, 3),
    "batch_size": (4, 8),
    "max_length": (8, 16),
    "warmup": (0, 1),
}

texts = st.sampled_from(TEXTS) | st.text(max_size=8)
paths = st.sampled_from(PATHS) | texts
scalars = st.sampled_from(INTEGERS) | st.sampled_from(FLOATS) | st.booleans() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


def good(cls, name):
    """Values of an option of the right type, most of them also in its range."""
    kind, several = kinds(cls)[name]
    plain = {int: st.integers(1, 40), float: st.floats(0.01, 0.9), str: st.just("a")}
    one = plain.get(kind, st.booleans())
    if name in GOOD:
        one = st.sampled_from(GOOD[name])
    return st.lists(one, min_size=1, max_size=2) if several else one


def one_in(n, odd, usual):
    """A strategy that draws from `odd` once in n times."""
    return st.integers(1, n).flatmap(lambda i: odd if i == n else usual)


@st.composite
def tables(draw, cls, names, oddity=8):
    """A table of settings of which one in `oddity` is odd."""
    chosen = draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
    table = {name: draw(one_in(oddity, values, good(cls, name))) for name in chosen}
    return table | draw(one_in(20, st.dictionaries(texts, values, max_size=1), st.just({})))


SETTINGS = [name for name in kinds(Settings) if name not in ("out", "storage", "ray", "name")]
PRETRAININGS = [name for name in kinds(Pretraining) if name != "out"]


@st.composite
def recipe_tables(draw, oddity=8):
    """A recipe, most of whose entries are as they should be."""
    odd = lambda usual, often=oddity: one_in(3 * often, values, usual)  # noqa: E731
    entry = tables(Settings, SETTINGS, oddity)
    varied = st.dictionaries(
        st.sampled_from(SETTINGS),
        odd(st.lists(one_in(oddity, values, st.integers(1, 9) | entry), min_size=1, max_size=2)),
        max_size=2,
    )
    names = one_in(oddity, texts, st.sampled_from(["vit", "a b", "x/y", "../up", "/tmp/abs"]))
    pretrained = tables(Pretraining, PRETRAININGS, oddity)
    many = st.lists(st.tuples(names, pretrained), max_size=2)
    keys = {
        "title": odd(texts),
        "kind": odd(st.sampled_from(recipes.KINDS), 2 * oddity),
        "note": odd(texts),
        "settings": odd(entry),
        "vary": odd(varied),
        "pretrain": odd(many.map(lambda found: [t | {"name": name} for name, t in found])),
    }
    recipe = draw(st.fixed_dictionaries({"kind": keys.pop("kind")}, optional=keys))
    small = st.fixed_dictionaries({}, optional=keys)
    return recipe | draw(one_in(4, st.fixed_dictionaries({"small": odd(small)}), st.just({})))


def toml(value):
    """A value as TOML, or as text that is no TOML if TOML has no form for it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return repr(value) if math.isfinite(value) else f"{value}"
        case str():
            inner = "".join(
                c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in value
            )
            return f'"{inner}"'
        case list() | tuple():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value)


@st.composite
def recipe_files(draw, oddity=8):
    """The bytes of a recipe's file: whole, cut, with a line twice, or no TOML at all."""
    recipe = draw(recipe_tables(oddity))
    lines = [f"{toml(key)} = {toml(value)}" for key, value in recipe.items()]
    damage = draw(st.sampled_from([None] * 24 + ["twice", "cut", "bytes", "deep", "long"]))
    if damage == "twice":
        lines.append(draw(st.sampled_from(lines)))
    whole = "\n".join(lines).encode("utf-8", "surrogatepass")
    if damage == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if damage == "bytes":
        return draw(st.binary(max_size=40)) + whole * draw(st.booleans())
    if damage == "deep":
        return b"kind = " + draw(st.sampled_from([b"[", b"{a = "])) * 3000
    return whole + b"\nx = " + b"9" * 9000 if damage == "long" else whole


def spelled(value):
    """A value as an argument of the command line, without the zero byte, which none can hold."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("\0", "\x01")


@st.composite
def option_lists(draw, cls, names, oddity=10):
    """Options of a command, in any order, some unknown, doubled, or without their value."""
    arguments = []
    for name in draw(st.lists(st.sampled_from(names), max_size=6)):
        flag = "--method" if name == "methods" else "--" + name.replace("_", "-")
        if kinds(cls)[name][0] is bool:
            arguments.append(draw(st.sampled_from([flag, "--no-" + flag[2:]])))
            continue
        value = spelled(draw(one_in(oddity, scalars, good(cls, name))))
        arguments += draw(one_in(40, st.just([flag]), st.just([flag, value])))
    return arguments + draw(
        one_in(30, texts.map(lambda text: [text.replace("\0", "")]), st.just([]))
    )


@st.composite
def damages(draw):
    """A function from a file's bytes to damaged ones."""
    kind = draw(st.sampled_from(["cut", "byte", "text", "empty", "noise", "sqlite", "null"]))
    share, byte = draw(st.floats(0, 1)), draw(st.integers(0, 255))
    noise = draw(st.binary(min_size=1, max_size=30))
    other = draw(st.sampled_from([b"null", b"[]", b"{}", b"-1e999", b'"x"', b"[{}]", b"true"]))

    def damage(whole):
        place = int(share * (len(whole) - 1))
        if kind == "cut":
            return whole[:place]
        if kind == "byte":
            return whole[:place] + bytes([byte]) + whole[place + 1 :]
        if kind == "text":
            return whole[:place] + noise + whole[place:]
        if kind == "sqlite":
            with sqlite3.connect(":memory:") as connection:
                connection.execute("create table recipes (title text, trials int)")
                return connection.serialize()
        return {"empty": b"", "noise": noise * 9, "null": other}[kind]

    return damage


@st.composite
def json_changes(draw):
    """A function that replaces, drops or doubles one part of what was read from JSON, in place."""
    turns = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
    new = draw(values)
    drop = draw(st.integers(0, 3)) == 0

    def change(content):
        for turn in turns:
            keys = list(content) if isinstance(content, dict) else range(len(content))
            if not keys:
                return
            key = keys[turn % len(keys)]
            inner = content[key]
            if not isinstance(inner, dict | list) or turn == turns[-1]:
                break
            content = inner
        if drop:
            del content[key]
        else:
            content[key] = new

    return change
