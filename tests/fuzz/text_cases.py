"""Recipes, `--set`, FLEET.yaml and image lists."""

from __future__ import annotations

import random
from collections.abc import Iterator

import yaml

from tests.fuzz.cage import World, command
from tests.fuzz.mutate import NASTY_NAMES, Raw, byte_mutants, documents, to_json
from tests.fuzz.readers import Action, Case, Cases, Maker, evaluate, file_case, library, predict
from tests.fuzz.seeds import Seeds

YAML_TEXTS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "benchmark:\n  scenarios: {s: {source: a, target: b}}\n  methods:\n    m: {adapt.alignment: &a [x, x]}\n"
    + "".join(
        f"    m{n}: {{adapt.alignment: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]}}\n" for n in range(9)
    ),
    "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
    "a: &a [*a]",
    "a: &a {b: *a}",
    "&a {<<: *a}",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "1: 2",
    "null: 1",
    "true: 1",
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "x: !!python/tuple [1]",
    "data: !!binary aGVsbG8=",
    "data: !!binary '***'",
    "data: !!set {a, b}",
    "data: !!omap [a: 1]",
    "data: {source: 2001-01-01, target: 2001-99-99}",
    "train: {seed: 2001-01-01T00:00:00Z}",
    "name: !!null x",
    "train: {seed: 0x" + "F" * 4000 + "}",
    "train: {seed: " + "1:" * 5000 + "1}",
    "train: {seed: " + "9" * 5000 + "}",
    "train: {seed: 0b" + "1" * 20000 + "}",
    "distill: {tau: .nan}",
    "distill: {tau: -.inf}",
    "distill: {tau: 1e400}",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000 + "x",
    "a:\n" + "".join(" " * n + "a:\n" for n in range(1, 400)),
    "--- a\n--- b",
    "%YAML 9.9\n---\na: 1",
    "%TAG ! tag:x,2000:\n---\n!a b",
    "\t",
    "a:\tb",
    "a: b: c",
    "'",
    '"\\ud800"',
    'name: "\\0"',
    'name: "\\e]0;x\\a"',
    "@",
    "*missing",
    "&a",
    "!<",
    "|",
    ">-\n",
    "name: [",
    "\ufeffname: x",
    "name: \x00",
    "name: \x1b[31m",
    "data:\n  source: x\ndata:\n  source: y\n",
    "benchmark: {scenarios: {}, methods: {}}",
    "benchmark: 5",
    "data: []",
    "benchmark: {scenarios: {'..': {source: a, target: b}}, methods: {'../../x': {}}}",
    "name: ../../../tmp/x",
    "# " + "x" * 300_000,
    "a" * 300_000,
    "x: [" + "1, " * 60_000 + "]",
    "start_from: /etc/passwd",
    "train: {track: [tensorboard, tensorboard]}",
    "adapt: {alignment: [" + "mmd, " * 5000 + "mmd]}",
)
"""YAML that is a bomb, a program, a riddle or no YAML."""

FLEET = {
    "name": "site",
    "recipe": "default",
    "set": {"train.epochs": 1},
    "source": "tree",
    "export": True,
    "retries": 2,
    "cameras": {"gate": "gate.mp4", "door": {"target": "door", "target_test": "labelled"}},
}


def yaml_mutants(document: object, chance: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Texts, wrong values, and broken bytes of a document."""
    texts = [(f"text {number}", text.encode("utf-8", "surrogatepass")) for number, text in enumerate(YAML_TEXTS)]
    yield from texts[: count // 2]
    left = count - len(texts[: count // 2])
    for name, changed in documents(document, chance, left * 2 // 3):
        yield name, to_json(changed).encode("utf-8", "surrogatepass")
    yield from byte_mutants(yaml.safe_dump(document).encode(), chance, left - left * 2 // 3)


def recipes(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Recipe files."""

    def act(world: World) -> Action:
        def read() -> None:
            from edgeda.recipe_file import load_recipe

            load_recipe(load_recipe(str(world.inputs / "r.yaml")).name and str(world.inputs / "r.yaml")).to_yaml()

        return library(read)

    good = yaml.safe_load((seeds.run / "recipe.yaml").read_text())
    for name, content in yaml_mutants(good, chance, count):
        yield file_case("recipe", name, "r.yaml", content, act)


def settings(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """`--set key=value` of `edgeda adapt`."""
    keys = (
        "train.seed",
        "distill.tau",
        "data.mean",
        "adapt.alignment",
        "data.augment.scale",
        "name",
        "teacher",
        "no.such",
        "teacher.pretrained",
        "prune.run",
        "start_from",
        "teacher.backbone",
        "train.track",
    )
    values = (
        *YAML_TEXTS,
        *NASTY_NAMES,
        "$(touch pwned)",
        "`touch pwned`; touch pwned",
        "[1, 2",
        "{",
        "1e999",
        "9" * 5000,
    )

    def case(pair: str) -> Case:
        act = lambda world: command("adapt", "--source", "nowhere", "--target", "nowhere", "--set", pair)  # noqa: E731
        return Case("--set", pair[:40], pair.encode("utf-8", "surrogatepass"), lambda world: None, act)

    for _ in range(count):
        pair = f"{chance.choice(keys)}{chance.choice(('=', '=', '=', '==', ''))}{chance.choice(values)}"
        if len(pair) < 100_000 and "\0" not in pair:  # an argument of a process holds neither more nor NUL
            yield case(pair)


def fleets(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """FLEET.yaml."""

    def act(world: World) -> Action:
        def read() -> None:
            from edgeda.fleet.recipe import load_fleet

            fleet = load_fleet(str(world.inputs / "FLEET.yaml"))
            for camera in list(fleet.cameras.values())[:5]:
                fleet.run_recipe(camera, world.out / "frames").to_yaml()

        return library(read)

    for name, content in yaml_mutants(FLEET, chance, count):
        yield file_case("FLEET.yaml", name, "FLEET.yaml", content, act)
    named = {**FLEET, "cameras": dict.fromkeys(NASTY_NAMES, "x")}
    yield file_case("FLEET.yaml", "names", "FLEET.yaml", to_json(named).encode("utf-8", "surrogatepass"), act)


def lists(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Image lists, with and without labels."""
    good = "\n".join(f"{path} {path.parent.name}" for path in sorted(seeds.tree.rglob("*.png"))).encode()
    lines = [
        b"../../../etc/passwd 1",
        b"/etc/passwd 1",
        b"/dev/zero 1",
        b"/proc/self/mem 1",
        b"/dev/stdin 0",
        b". 0",
        b"/ 0",
        b"\xff\xfe\x00 1",
        b"nul\x00byte.png 1",
        b"x" * 5000 + b".png 1",
        b"a.png " + b"9" * 5000,
        b"a.png -1",
        b"a.png 99999999999",
        "a.png \u202e1".encode(),
        b"a.png <b>x</b>",
        b"\xef\xbb\xbfa.png 1",
        b"~root/x.png 1",
        b"$(touch pwned).png 1",
        b"a.png\t\t,,, 1",
        b",",
        b" , ",
        b"a.png",
        b"# only a comment",
        b"\r",
        b"\x1b[2J.png 1",
        b"a/" * 3000 + b"b.png 1",
        b"file:///etc/passwd 1",
        b"http://127.0.0.1/x.png 1",
        b"-rf.png 1",
        b"*.png 1",
        b"x\x0b1",
    ]
    contents = [(line[:20].decode("latin-1"), good + b"\n" + line + b"\n") for line in lines]
    contents += [(f"only {line[:20]!r}", line) for line in lines]
    contents += [
        ("a very long line", b"x" * 3_000_000),
        ("many labels", b"".join(b"a%d.png %d\n" % (n, n) for n in range(3000))),
    ]
    contents += list(byte_mutants(good, chance, max(0, count - len(contents)), header=len(good)))
    for number, (name, content) in enumerate(contents[:count]):
        suffix = ("txt", "csv", "lst")[number % 3]

        def act(world: World, number: int = number, suffix: str = suffix) -> Action:
            path = world.inputs / f"list.{suffix}"
            return evaluate(seeds.model, path) if number % 2 else predict(world, seeds.model, path)

        yield file_case("image list", name, f"list.{suffix}", content, act)


MAKERS: dict[str, Maker] = {"recipe": recipes, "--set": settings, "FLEET.yaml": fleets, "image list": lists}

__all__ = ["FLEET", "MAKERS", "YAML_TEXTS", "Raw", "yaml_mutants"]
