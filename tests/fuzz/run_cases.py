"""A run directory from somebody else: summary.json, metrics.jsonl, recipe.yaml, the checkpoint; a kit's listing."""

from __future__ import annotations

import json
import random
import struct

import yaml

from tests.fuzz.cage import World, command
from tests.fuzz.mutate import NASTY_NAMES, byte_mutants, documents, json_bytes, to_json
from tests.fuzz.readers import Action, Case, Cases, Maker, bundle, compare, export, file_case, library, report, run_like
from tests.fuzz.seeds import Seeds, safetensors
from tests.fuzz.text_cases import yaml_mutants


def on_run(world: World, number: int) -> Action:
    """One of the commands that read a run: mostly a report, which reads all of it."""
    run = world.inputs / "run"
    return (report, compare, export, lambda w, r: bundle(w, r, "triton"), report)[number % 5](world, run)


def _run_case(seeds: Seeds, reader: str, file: str, number: int, name: str, content: bytes) -> Case:
    return Case(
        reader,
        name,
        content,
        lambda world: run_like(world, seeds, {file: content}),
        lambda world: on_run(world, number),
    )


def summaries(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """summary.json."""
    good = json.loads((seeds.run / "summary.json").read_text())
    named = [
        (
            f"names {n}",
            to_json(
                {
                    **good,
                    "classes": [*NASTY_NAMES[n : n + 4]],
                    "method": NASTY_NAMES[n],
                    "source": NASTY_NAMES[-n],
                    "verdict": {"ship": "adapted", "reason": NASTY_NAMES[n]},
                }
            ).encode("utf-8", "surrogatepass"),
        )
        for n in range(0, 24, 4)
    ]
    odd = [
        ("{}", b"{}"),
        ("[]", b"[]"),
        ("null", b"null"),
        ("", b""),
        ("deep", b"[" * 100_000),
        ("NaN", b"NaN"),
        ("utf-16", "{}".encode("utf-16")),
    ]
    made = [*odd, *named]
    made += list(json_bytes(good, chance, max(0, count - len(made))))
    for number, (name, content) in enumerate(made[:count]):
        yield _run_case(seeds, "summary.json", "summary.json", number, name, content)


def metrics(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """metrics.jsonl, in the report."""
    lines = (seeds.run / "metrics.jsonl").read_text().splitlines()
    made = [
        (name, "\n".join([*lines[:-1], to_json(changed), lines[-1]]).encode("utf-8", "surrogatepass"))
        for name, changed in documents(json.loads(lines[-1]), chance, count * 2 // 3)
    ]
    made += list(byte_mutants("\n".join(lines).encode(), chance, count - len(made), header=2000))
    for name, content in made[:count]:
        yield _run_case(seeds, "metrics.jsonl", "metrics.jsonl", 0, name, content)


def run_recipes(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """recipe.yaml of a run that is exported, reported, compared."""
    good = yaml.safe_load((seeds.run / "recipe.yaml").read_text())
    made = list(yaml_mutants(good, chance, count * 2))
    chance.shuffle(made)
    for number, (name, content) in enumerate(made[:count]):
        yield _run_case(seeds, "recipe of a run", "recipe.yaml", number, name, content)


def sealed(header: dict[str, object], body: bytes, tree: str) -> bytes:
    """A checkpoint with another tree and the checksum that belongs to it: whoever changes one can make the other."""
    from safetensors.torch import load

    from edgeda.checkpoint import _checksum

    tensors = load(safetensors({key: value for key, value in header.items() if key != "__metadata__"}, body))
    return safetensors({**header, "__metadata__": {"tree": tree, "checksum": _checksum(tree, tensors)}}, body)


def checkpoints(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """The checkpoint, for `adapt --resume` and by itself."""
    data = (seeds.run / "checkpoint" / "state.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    tree = json.loads(header["__metadata__"]["tree"])
    made = [
        (name, sealed(header, body, text))
        for name, text in (("deep", "[" * 100_000), ("a list", "[]"), ("a stranger", '{"__tensor__": "none"}'))
    ]
    made += [(name, sealed(header, body, to_json(changed))) for name, changed in documents(tree, chance, count // 2)]
    made += list(
        byte_mutants(data[: 8 + size] + body[:100_000], chance, count - len(made), (8, 8 + size), header=8 + size)
    )

    def act(world: World, number: int) -> Action:
        if number % 4:

            def read() -> None:
                from edgeda.checkpoint import load_checkpoint

                load_checkpoint(world.inputs / "run" / "checkpoint")

            return library(read)
        return command("adapt", "--out", str(world.out / "run"), "--resume")

    def place(world: World, content: bytes) -> None:
        run = run_like(world, seeds, {"checkpoint/state.safetensors": content, "summary.json": None})
        import shutil

        shutil.copytree(run, world.out / "run")

    for number, (name, content) in enumerate(made[:count]):
        yield Case(
            "checkpoint", name, content, lambda world, c=content: place(world, c), lambda world, n=number: act(world, n)
        )


def listings(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """bundle.json of a kit that is to be replaced, and a fleet's state."""
    good = {"edgeda": "0.1.0", "kit": "triton", "name": "x", "files": ["bundle.json", "a.txt"], "parity": None}

    def place(world: World, content: bytes) -> None:
        kit = world.out / "triton"
        kit.mkdir()
        (kit / "bundle.json").write_bytes(content)
        (kit / "a.txt").write_text("mine")

    for name, content in json_bytes(good, chance, count // 2):
        yield Case(
            "kit listing",
            name,
            b"kit" + content,
            lambda world, c=content: place(world, c),
            lambda world: command(
                "bundle", str(seeds.model), "--for", "triton", "--out", str(world.out / "triton"), "--overwrite"
            ),
        )
    state = {"fleet": {"cameras": {"gate": {}}}, "state": "done", "attempts": 1}

    def act(world: World) -> Action:
        def read() -> None:
            from edgeda.fleet.state import Storage

            Storage(str(world.inputs)).read("gate")

        return library(read)

    for name, content in json_bytes(state, chance, count - count // 2):
        yield file_case("fleet state", name, "gate.json", content, act)


MAKERS: dict[str, Maker] = {
    "summary.json": summaries,
    "metrics.jsonl": metrics,
    "recipe of a run": run_recipes,
    "checkpoint": checkpoints,
    "kit listing, fleet state": listings,
}
