"""ONNX files, the manifests inside and beside models, weights with their metadata, pretrained weights."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile

from tests.fuzz.cage import World
from tests.fuzz.mutate import NASTY_NAMES, VALUES, Raw, byte_mutants, documents, json_bytes, to_json
from tests.fuzz.readers import (
    Action,
    Case,
    Cases,
    Maker,
    bundle,
    evaluate,
    file_case,
    library,
    predict,
    profile,
    put,
    run_like,
)
from tests.fuzz.seeds import Seeds, manifest, onnx_bytes, safetensors

KITS = ("deepstream", "triton", "gstreamer", "python")


def acts_on(seeds: Seeds, number: int, file: str) -> object:
    """One of the commands that open a model."""

    def act(world: World) -> Action:
        path = world.inputs / file
        choice = number % 5
        if choice == 0:
            return predict(world, path, seeds.image, "--top-k", "3")
        if choice == 1:
            return bundle(world, path, KITS[number // 5 % 4])
        if choice == 2:
            return evaluate(path, seeds.tree)
        if choice == 3:
            return profile(path)
        return predict(
            world, path, seeds.tree, "--drift", "--save", world.out / "saved", "--collect", world.out / "kept"
        )

    return act


def onnx_boundaries(data: bytes) -> tuple[int, ...]:
    """Where the fields of the model begin."""
    at, found = 0, []
    while at < len(data) and len(found) < 100:
        found.append(at)
        key, at = _varint(data, at)
        length, after = _varint(data, at)
        at = after + (length if key & 7 == 2 else 0)
    return tuple(found)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _external(location: str, offset: str = "0", length: str = "128", key: str = "location") -> bytes:
    """The seed's model with a weight that lies in another file."""
    import onnx

    model = onnx.ModelProto.FromString(onnx_bytes())
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for name, value in ((key, location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=name, value=value)
    return model.SerializeToString()


def _odd_models() -> list[tuple[str, bytes]]:
    import onnx
    from onnx import TensorProto, helper

    places = (
        "../secret.bin",
        "/etc/passwd",
        "./../secret.bin",
        "sub/../../secret.bin",
        "..\\secret.bin",
        "/dev/zero",
        "",
        ".",
        "missing.bin",
        "link.bin",
        "\0",
        "x" * 5000,
        "model.onnx",
        "fifo.bin",
        "/proc/self/mem",
    )
    found = [(f"external {place[:20]!r}", _external(place)) for place in places]
    found += [
        (f"external at {offset}, {length}", _external("weights.bin", offset, length))
        for offset, length in (
            ("-1", "128"),
            ("0", "-1"),
            ("99999999999999999999", "1"),
            ("0", "99999999999999"),
            ("x", "y"),
            ("0", "0"),
        )
    ]
    found.append(("external without a place", _external("x", key="nowhere")))
    good = onnx.ModelProto.FromString(onnx_bytes())

    def changed(name: str, change: object) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(good)
        change(model)
        found.append((name, model.SerializeToString()))

    def dims(index: int, *sizes: int) -> object:
        def change(model: onnx.ModelProto) -> None:
            model.graph.initializer[index].dims[:] = sizes

        return change

    for sizes in ((2**40, 8), (-1, 8), (0, 8), (2**62, 2**62), (4, 2**31)):
        changed(f"weights of {sizes}", dims(2, *sizes))
    for value in (0, -1, 2**40, 1):
        changed(
            f"input of {value}",
            lambda model, v=value: setattr(model.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", v),
        )
    changed("no graph", lambda model: model.ClearField("graph"))
    changed("no output", lambda model: model.graph.ClearField("output"))
    changed("no input", lambda model: model.graph.ClearField("input"))
    changed("two inputs", lambda model: model.graph.input.append(model.graph.input[0]))
    changed("opset 999", lambda model: setattr(model.opset_import[0], "version", 999))
    changed("ir 999", lambda model: setattr(model, "ir_version", 999))
    changed("strange domain", lambda model: setattr(model.graph.node[0], "domain", "evil"))
    changed("custom operator", lambda model: setattr(model.graph.node[0], "op_type", "RunShell"))
    changed("cycle", lambda model: model.graph.node[0].input.__setitem__(0, "logits"))
    changed("float16 input", lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 10))
    changed("string input", lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 8))
    changed("names", lambda model: setattr(model.graph.output[0], "name", "../<b>\n"))
    changed("strides of 0", lambda model: model.graph.node[0].attribute[1].ints.__setitem__(0, 0))
    changed("padding of 2^40", lambda model: model.graph.node[0].attribute[0].ints.__setitem__(0, 2**40))
    changed("NaN weights", lambda model: setattr(model.graph.initializer[3], "raw_data", b"\xff\xff\xff\x7f" * 4))
    changed("weights too short", lambda model: setattr(model.graph.initializer[2], "raw_data", b"\0" * 5))
    changed("key twice", lambda model: model.metadata_props.add(key="edgeda", value="{}"))
    changed("1000 entries", lambda model: [model.metadata_props.add(key=str(n), value="x" * 1000) for n in range(1000)])
    fill = helper.make_node("ConstantOfShape", ["shape"], ["huge"])

    def huge(model: onnx.ModelProto) -> None:
        model.graph.node.insert(0, fill)
        model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [3], [2**20, 2**20, 64]))
        model.graph.node.append(helper.make_node("ReduceMax", ["huge"], ["top"]))
        model.graph.output.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, None))

    changed("2^46 values", huge)

    def deep(model: onnx.ModelProto) -> None:
        inner = helper.make_graph([], "g", [], [])
        for _ in range(15):
            inner = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "g", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner))

    changed("15 graphs in each other", deep)
    nothing = b"\x0a\x00" * 5_000_000
    found.append(("five million nodes", b"\x08\x08\x3a" + _as_varint(len(nothing)) + nothing))
    found.append(("five million fields", b"\x08\x08" + nothing))
    found.append(("protobuf in protobuf", b"\x3a\xff\xff\xff\xff\x0f" * 1000))
    found += [
        (f"{name} as ONNX", content)
        for name, content in (
            ("zip", b"PK\3\4" + b"\0" * 100),
            ("zeros", b"\0" * 1000),
            ("text", b"hello"),
            ("pickle", pickle.dumps([1])),
        )
    ]
    return found


def onnx_files(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """ONNX files."""
    data = onnx_bytes()
    made = _odd_models()
    made += list(byte_mutants(data, chance, max(0, count - len(made)), onnx_boundaries(data), header=len(data)))

    def place(world: World, content: bytes) -> None:
        import os

        put(world, "m/model.onnx", content)
        put(world, "secret.bin", b"\0" * 4096)
        put(world, "m/weights.bin", b"\0" * 4096)
        os.symlink("../secret.bin", world.inputs / "m/link.bin")
        os.mkfifo(world.inputs / "m/fifo.bin")

    for number, (name, content) in enumerate(made[:count]):
        yield Case(
            "ONNX file", name, content, lambda world, c=content: place(world, c), acts_on(seeds, number, "m/model.onnx")
        )


def manifests(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """The manifest inside an ONNX file."""
    texts = [(f"names {n}", to_json(manifest([*NASTY_NAMES[n : n + 4]]))) for n in range(len(NASTY_NAMES) - 3)]
    texts += [
        ("deep", "[" * 100_000),
        ("not JSON", "{"),
        ("empty", ""),
        ("a number", "5"),
        ("huge number", '{"format": ' + "9" * 5000 + "}"),
        ("a million classes", to_json({**manifest(), "classes": ["x"] * 1_000_000})),
    ]
    texts += [(name, to_json(changed)) for name, changed in documents(manifest(), chance, max(0, count - len(texts)))]
    for number, (name, text) in enumerate(texts[:count]):
        content = onnx_bytes({"edgeda": text.encode("utf-8", "replace").decode()})
        yield file_case("manifest in ONNX", name, "model.onnx", content, acts_on(seeds, number, "model.onnx"))


def sidecars(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """`manifest.json` beside an OpenVINO model, NAME.engine.json beside an engine, `manifest.json` beside exports."""
    folder = seeds.run / "exports" / "openvino-fp32"
    good = json.loads((folder / "manifest.json").read_text())
    engine = {
        **good,
        "sha256": None,
        "engine": {
            "package": "tensorrt",
            "version": "10.3.0",
            "gpu": {"name": "Orin", "compute_capability": "8.7"},
            "onnx": "student.onnx",
            "version_compatible": False,
        },
    }
    changes = [("openvino", item) for item in json_bytes(good, chance, count // 2)]
    changes += [("engine", item) for item in json_bytes(engine, chance, count - count // 2)]

    def place(world: World, kind: str, content: bytes) -> None:
        if kind == "engine":
            put(world, "m/student.engine", b"ftrt" + b"\0" * 100)
            put(world, "m/student.engine.json", content)
            return
        for name in ("student.xml", "student.bin"):
            put(world, f"m/{name}", (folder / name).read_bytes())
        put(world, "m/manifest.json", content)

    def act(world: World, kind: str, number: int) -> Action:
        from tests.fuzz.cage import command

        path = str(world.inputs / ("m/student.engine" if kind == "engine" else "m/student.xml"))
        return (
            command("predict", path, "--source", str(seeds.image)),
            bundle(world, path, KITS[number % 4]),
            command("evaluate", path, "--data", str(seeds.tree)),
        )[number % 3]

    for number, (kind, (name, content)) in enumerate(changes[:count]):
        yield Case(
            "manifest beside a model",
            f"{kind}: {name}",
            kind.encode() + content,
            lambda world, k=kind, c=content: place(world, k, c),
            lambda world, k=kind, n=number: act(world, k, n),
        )


def weights(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """safetensors of a run: header, metadata, tensors."""
    data = (seeds.run / "student.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    card = json.loads(header["__metadata__"]["edgeda"])

    def with_card(text: str) -> bytes:
        return safetensors(to_json({**header, "__metadata__": {"edgeda": text}}).encode("utf-8", "surrogatepass"), body)

    made: list[tuple[str, bytes]] = [
        ("length lies", safetensors(header, body, -1)),
        ("length 2^40", safetensors(header, body, 2**40)),
        ("length 0", safetensors(header, body, 0)),
        ("length 100 MB", safetensors(b" " * 200, b"", 100_000_001)),
        ("no tensors", safetensors({}, b"")),
        ("a list", safetensors([], b"")),
        ("deep", safetensors(b"[" * 100_000, b"")),
        ("metadata of numbers", safetensors({**header, "__metadata__": {"edgeda": 5}}, body)),
        ("no metadata", safetensors({k: v for k, v in header.items() if k != "__metadata__"}, body)),
        ("pickle", pickle.dumps({"a": 1})),
        (
            "tensors overlap",
            safetensors({**header, "head.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}, body),
        ),
        ("tensor of 2^60", safetensors({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}, b"")),
        (
            "tensor shape overflow",
            safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}, b""),
        ),
        ("backbone 5", with_card(to_json({**card, "architecture": {**card["architecture"], "backbone": 5}}))),
        ("size 8192", with_card(to_json({**card, "preprocessing": {**card["preprocessing"], "size": 8192}}))),
        ("a billion classes", with_card(to_json({**card, "architecture": {**card["architecture"], "classes": 10**9}}))),
        (
            "ten million classes",
            with_card(to_json({**card, "architecture": {**card["architecture"], "classes": 10**7}})),
        ),
        (
            "a giant",
            with_card(to_json({**card, "architecture": {**card["architecture"], "backbone": "eva_giant_patch14_224"}})),
        ),
        (
            "a bottleneck",
            with_card(to_json({**card, "architecture": {**card["architecture"], "bottleneck": 8_000_000}})),
        ),
        (
            "hub name",
            with_card(to_json({**card, "architecture": {**card["architecture"], "backbone": "hf-hub:evil/model"}})),
        ),
        ("path name", with_card(to_json({**card, "architecture": {**card["architecture"], "backbone": "../../x"}}))),
    ]
    made += [
        (f"names {n}", with_card(to_json({**card, "classes": [*NASTY_NAMES[n : n + 4]]})))
        for n in range(0, len(NASTY_NAMES) - 3, 3)
    ]
    for value in (*VALUES[:12], "x", Raw("NaN"), "r18", "resnet18d"):
        for key in ("backbone", "classes", "bottleneck", "channels"):
            made.append(
                (
                    f"{key} = {value!r:.20}",
                    with_card(to_json({**card, "architecture": {**card["architecture"], key: value}})),
                )
            )
    left = max(0, count - len(made))
    made += [(name, with_card(to_json(changed))) for name, changed in documents(card, chance, left // 2)]
    made += list(byte_mutants(data, chance, left - left // 2, (8, 8 + size), header=8 + size))
    chance.shuffle(made)

    def act(world: World, number: int) -> Action:
        from tests.fuzz.readers import export, report

        run = world.inputs / "run"
        if number % 6 == 0:
            return report(world, run)
        return export(world, run) if number % 6 == 3 else evaluate(run, seeds.tree)

    for number, (name, content) in enumerate(made[:count]):
        yield Case(
            "weights of a run",
            name,
            content,
            lambda world, c=content: run_like(world, seeds, {"student.safetensors": c}),
            lambda world, n=number: act(world, n),
        )


class _Touch:
    """What a hostile pickle does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


def pretrained(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Weights given as `teacher.pretrained`: .pth read without pickle's programs, .safetensors."""
    import torch

    written = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2, 2)}}, written)
    good = written.getvalue()
    evil = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(evil, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, pickle.dumps(_Touch()) if entry.filename.endswith("data.pkl") else old.read(entry))
    made = [
        ("x.pth", "pickle that runs", pickle.dumps(_Touch())),
        ("x.pth", "zip with such a pickle", evil.getvalue()),
        ("x.pth", "old pickle", b"cos\nsystem\n(S'touch pwned'\ntR."),
        ("x.pth", "empty", b""),
        ("x.pth", "good", good),
        ("x.pth", "no tensors", _saved({"state_dict": {"a": 5}})),
        ("x.pth", "a list", _saved([1, 2])),
        ("x.pth", "keys of numbers", _saved({1: torch.zeros(1)})),
    ]
    made += [("x.pth", name, content) for name, content in byte_mutants(good, chance, count // 2, (0, 4, 30, 64))]
    tiny = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8)
    made += [("x.safetensors", name, content) for name, content in byte_mutants(tiny, chance, count, (8,))]

    def act(world: World, file: str) -> Action:
        def read() -> None:
            from edgeda.models import Architecture, build_network

            build_network(Architecture("test_resnet", 4), str(world.inputs / file))

        return library(read)

    for file, name, content in made[:count]:
        yield file_case("pretrained weights", name, file, content, lambda world, f=file: act(world, f))


def _saved(value: object) -> bytes:
    import torch

    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


MAKERS: dict[str, Maker] = {
    "ONNX file": onnx_files,
    "manifest in ONNX": manifests,
    "manifest beside a model": sidecars,
    "weights of a run": weights,
    "pretrained weights": pretrained,
}
