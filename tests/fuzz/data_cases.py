"""Images, folders, archives, files of digits and videos."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import socket
import stat
import struct
import tarfile
import zlib
from functools import lru_cache

from tests.fuzz.cage import World
from tests.fuzz.mutate import NASTY_NAMES, byte_mutants
from tests.fuzz.readers import Action, Case, Cases, Maker, evaluate, file_case, library, predict, prepare, put
from tests.fuzz.seeds import (
    FORMATS,
    Seeds,
    chunk,
    flat_png,
    idx,
    image_bytes,
    png,
    png_boundaries,
    tar_bytes,
    zip_bytes,
)

HUGE = (
    (60_000, 60_000),
    (2**31 - 1, 1),
    (1, 2**31 - 1),
    (2**32 - 1, 2**32 - 1),
    (0, 0),
    (0, 5),
    (100_000, 900),
    (9000, 10_000),
)


@lru_cache
def odd_images() -> dict[str, bytes]:
    """Images made by hand, by file name."""
    big = zlib.compress(b"\0" * 50_000_000)
    found = {f"png-{width}x{height}.png": png(width, height) for width, height in HUGE}
    found |= {
        f"bmp-{width}x{height}.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
        for width, height in HUGE
    }
    found |= {
        f"gif-{side}.gif": b"GIF89a"
        + struct.pack("<HH", side, side)
        + b"\xf0\0\0"
        + b"\0" * 6
        + b","
        + struct.pack("<HHHH", 0, 0, side, side)
        + b"\0\x02\x16"
        + b"\x8c" * 22
        + b"\0;"
        for side in (0, 1, 65535, 20000)
    }
    found |= {
        f"ppm-{n}.ppm": text
        for n, text in enumerate(
            (
                b"P6 99999 99999 255\n",
                b"P6 -1 5 255\n",
                b"P6 5 5 0\n",
                b"P6 5 5 99999999\n",
                b"P3 2 2 255\n" + b"9" * 100_000,
                b"P6 #" + b"x" * 1_000_000 + b"\n5 5 255\n",
                b"P1 50000 50000\n" + b"1 " * 100,
                b"P6 99999999999999999999 1 255\n",
                b"P6 5 5",
                b"Pf 5 5 -1.0\n" + b"\xff" * 100,
                b"P7\nWIDTH 5\n",
                b"Py 5 5 255\n",
            )
        )
    }
    jpeg = image_bytes("jpg")
    at = jpeg.index(b"\xff\xc0") + 5
    found |= {
        f"jpeg-{h}x{w}.jpg": jpeg[:at] + struct.pack(">HH", h, w) + jpeg[at + 4 :]
        for h, w in ((65500, 65500), (0, 0), (0, 24), (65535, 1), (9000, 9000))
    }
    found |= {
        "icc-bomb.png": png(4, 4, chunk(b"iCCP", b"x\0\0" + big)),
        "ztxt-bomb.png": png(4, 4, chunk(b"zTXt", b"x\0\0" + big)),
        "itxt-bomb.png": png(4, 4, chunk(b"iTXt", b"x\0\1\0\0\0" + big)),
        "texts.png": png(4, 4, *(chunk(b"tEXt", b"k%d\0" % n + b"v" * 900) for n in range(3000))),
        "many-chunks.png": png(4, 4, *(chunk(b"IDAT", b"") for _ in range(50_000))),
        "bomb.png": flat_png(9400, 9400),
        "wide.png": flat_png(80_000, 1100),
        "palette.png": png(4, 4, colour=3),
        "16bit.png": png(4, 4, depth=16, pixels=zlib.compress(b"\0" * 200)),
        "exif.png": png(4, 4, chunk(b"eXIf", b"MM\0*" + b"\xff" * 60_000)),
        "exif-huge.jpg": b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 65_500 + jpeg[2:],
        "icc-huge.jpg": b"\xff\xd8"
        + b"".join(b"\xff\xe2\xff\xffICC_PROFILE\0%c\xff" % n + b"\0" * 65_519 for n in range(1, 200))
        + jpeg[2:],
        "orientation.jpg": image_bytes(
            "jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\xff\xff\0\0\0\0\0\0"
        ),
        "tiff-loop.tiff": b"II*\0\x08\0\0\0\x01\0\0\1\3\0\1\0\0\0\1\0\0\0\x08\0\0\0",
        "tiff-tags.tiff": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 5000,
        "tiff-huge.tiff": b"II*\0\x08\0\0\0\x03\0"
        + struct.pack("<HHIIHHIIHHII", 256, 4, 1, 2**31, 257, 4, 1, 2**31, 273, 4, 2**30, 8)
        + b"\0" * 4,
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n",
        "eps.jpg": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<IIIIIIH", 32, 100, 0, 0, 0, 0, 0xFFFF)
        + b"\0\0%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pickle.png": b"cos\nsystem\n(S'touch pwned'\ntR.",
        "elf.jpg": b"\x7fELF" + b"\0" * 500,
        "html.png": b"<html><script>alert(1)</script>",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "zip.png": zip_bytes({"a": b"b"}),
        "psd.png": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + b"\0" * 100,
        "empty.png": b"",
        "zeros.jpg": b"\0" * 1000,
        "fli.gif": b"\x00\x01\x00\x00\x11\xaf" + b"\xff" * 200,
        "ico.bmp": b"\0\0\1\0\xff\xff" + b"\xff" * 500,
        "pcx.png": b"\x0a\5\1\x08" + b"\xff" * 200,
        "webp-huge.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6 + b"VP8L\0\0\0\0",
        "pdf.jpg": b"%PDF-1.7\n" + b"\0" * 100,
        "jp2-huge.jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
        + b"\x7f\xff\xff\xff" * 2
        + b"\0\3\7\7\0\0",
    }
    return found


def images(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Image files, each classified and saved with its label."""

    def case(name: str, file: str, content: bytes) -> Case:
        return file_case(
            "image",
            name,
            file,
            content,
            lambda world: predict(world, seeds.model, world.inputs / file, "--save", world.out / "saved"),
        )

    made = list(odd_images().items())
    for file, content in made[:count]:
        yield case(file, file, content)
    left = max(0, count - len(made))
    for number, suffix in enumerate(FORMATS):
        data = image_bytes(suffix)
        share = left // len(FORMATS) + (number < left % len(FORMATS))
        edges = png_boundaries(data) if suffix == "png" else tuple(at for at in range(len(data)) if data[at] == 0xFF)
        for name, content in byte_mutants(data, chance, share, edges):
            yield case(f"{suffix}: {name}", f"x.{suffix}", content)


def hostile_tree(world: World, kind: str) -> None:
    """A folder of class folders of which something is wrong."""
    good = image_bytes("png")
    root = os.fsencode(world.inputs / "tree")
    for label in (b"0", b"1", b"2", b"3"):
        os.makedirs(os.path.join(root, label))
        for number in range(2):
            with open(os.path.join(root, label, b"%d.png" % number), "wb") as file:
                file.write(good)
    at = os.path.join(root, b"0")
    name = kind.partition(":")[2].encode("utf-8", "surrogateescape")
    if kind.startswith("class:"):
        os.rename(at, os.path.join(root, name))
    elif kind.startswith("file:"):
        os.rename(os.path.join(at, b"0.png"), os.path.join(at, name))
    elif kind == "loop":
        os.symlink(root, os.path.join(at, b"up"))
        os.symlink(b".", os.path.join(at, b"same"))
        os.symlink(b"b", os.path.join(at, b"a"))
        os.symlink(b"a", os.path.join(at, b"b"))
        os.symlink(b"c.png", os.path.join(at, b"c.png"))
    elif kind == "links":
        for number, target in enumerate(
            (b"/dev/zero", b"/dev/urandom", b"/etc/passwd", b"/proc/self/mem", b"/nowhere", b"/", b"/dev/stdin")
        ):
            os.symlink(target, os.path.join(at, b"link%d.png" % number))
    elif kind == "special":
        os.mkfifo(os.path.join(at, b"fifo.png"))
        os.mkfifo(os.path.join(root, b"fifo"))
        listener = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(at)
        listener.bind("socket.png")
        os.chdir(here)
        listener.close()
        os.makedirs(os.path.join(at, b"folder.png"))
        os.mknod(os.path.join(at, b"null.png"), stat.S_IFREG | 0o000)
    elif kind == "deep":
        here = os.getcwd()
        os.chdir(at)
        for _ in range(150):
            os.mkdir(b"d" * 20)
            os.chdir(b"d" * 20)
        os.chdir(here)
    elif kind == "many":
        for number in range(1500):
            os.makedirs(os.path.join(root, b"c%d" % number))
            os.link(os.path.join(at, b"0.png"), os.path.join(root, b"c%d" % number, b"x.png"))
    elif kind == "broken":
        for number, content in enumerate(list(odd_images().values())[::3]):
            with open(os.path.join(at, b"bad%d.png" % number), "wb") as file:
                file.write(content)
    elif kind == "archive":
        put(world, "tree/0/pickle.png", b"cos\nsystem\n(S'touch pwned'\ntR.")
    elif kind == "empty":
        for label in (b"0", b"1"):
            for number in range(2):
                os.remove(os.path.join(root, label, b"%d.png" % number))


def trees(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Folders: names of classes and files, links, pipes, devices, depth, breadth."""
    names = [
        name
        for name in NASTY_NAMES
        if name.strip(". ")
        and "/" not in name
        and "\0" not in name
        and len(name.encode("utf-8", "surrogatepass")) < 250
    ]
    names += ["\udcff\udcfe", "x" * 250, "\udc80 caf\udce9", "a\tb", "error: x", "\x7f", "\x9b31m"]
    kinds = [f"class:{name}" for name in names] + [f"file:{name}.png" for name in names]
    kinds += ["loop", "links", "special", "deep", "many", "broken", "archive", "empty"]
    kinds = [kind.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for kind in kinds]

    def domains(world: World, root: object) -> Action:
        def read() -> None:
            from edgeda.data import load_domains
            from edgeda.recipe import Recipe

            data = {"source": str(root), "target": str(root), "target_test": str(root), "input_size": 32}
            loaded = load_domains(Recipe.model_validate({"data": data}).data)
            from edgeda.console import out

            out(f"{loaded.classes} {loaded.skipped}")
            loaded.target.digest()

        return library(read)

    acts = (
        (lambda world, root: evaluate(seeds.model, root)),
        domains,
        (lambda world, root: predict(world, seeds.model, root, "--save", world.out / "saved")),
    )
    chosen = [(kind, number) for kind in kinds for number in range(3)]
    chance.shuffle(chosen)
    for kind, number in chosen[:count]:
        yield Case(
            "folder",
            kind[:40],
            f"{number} {kind}".encode("utf-8", "surrogateescape"),
            lambda world, kind=kind: hostile_tree(world, kind),
            lambda world, number=number: acts[number](world, world.inputs / "tree"),
        )


def archives(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """.zip and .tar files given to `datasets prepare`."""
    good = image_bytes("jpg")
    tree = {f"Office/amazon/images/{name}/{n}.jpg": good for name in ("back_pack", "mug", "bike") for n in range(2)}
    clef = {f"image_CLEF/{part}/{n}.jpg": good for part in "ci" for n in range(3)}
    lists = {
        f"image_CLEF/list/{part}List.txt": "".join(f"{part}/{n}.jpg {n}\n" for n in range(3)).encode() for part in "ci"
    }
    escapes = (
        "../evil.jpg",
        "/abs/evil.jpg",
        "a/../../evil.jpg",
        "..\\..\\evil.jpg",
        "C:\\evil.jpg",
        "\\\\host\\x.jpg",
        "a/\0.jpg",
        "x" * 300 + ".jpg",
        "a/" * 2000 + "x.jpg",
        ".hidden/x.jpg",
        "con.jpg",
        "\ud800.jpg".encode("utf-8", "replace").decode(),
        "Office/amazon/images/mug",
        "Office/amazon/images/mug/0.jpg/x.jpg",
        "Office",
    )
    zeros = b"\0" * 120_000_000
    made: list[tuple[str, str, str, bytes]] = []
    for name in escapes:
        made.append(("office31", f"zip {name[:20]!r}", "a.zip", zip_bytes({**tree, name: good})))
        made.append(
            ("office31", f"tar {name[:20]!r}", "a.tar.gz", tar_bytes({**tree, name.replace(chr(0), "?"): good}))
        )
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"):
        for link in ("/etc/passwd", "../../../../etc"):
            made.append(
                (
                    "office31",
                    f"tar type {kind!r}",
                    "a.tar.gz",
                    tar_bytes({**tree, "Office/l": b""}, {"Office/l": kind}, link),
                )
            )
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
        made.append(
            (
                "office31",
                f"zip mode {mode:o}",
                "a.zip",
                zip_bytes({**tree, "Office/l": b"/etc/passwd"}, {"Office/l": mode}),
            )
        )
    made += [
        ("office31", "zip bomb", "a.zip", zip_bytes({**tree, "Office/amazon/images/mug/z.jpg": zeros})),
        ("office31", "tar bomb", "a.tar.gz", tar_bytes({**tree, "Office/amazon/images/mug/z.jpg": zeros})),
        ("office31", "tar.xz bomb", "a.tar.xz", _repacked(tar_bytes({**tree, "z.jpg": zeros}))),
        ("office31", "many files", "a.zip", zip_bytes({**tree, **{f"x{n}": b"" for n in range(20_000)}})),
        ("office31", "zip in zip", "a.zip", zip_bytes({"a.zip": zip_bytes(tree)})),
        ("office31", "empty zip", "a.zip", zip_bytes({})),
        ("mnist", "zip as digits", "train-images-idx3-ubyte.gz", zip_bytes(tree)),
    ]
    for line in (
        b"c/../../../evil.jpg 0",
        b"c/../../c/0.jpg 0",
        b"/etc/passwd 0",
        b"c/c/../../../x.jpg 1",
        b"c/0.jpg 99",
        b"c/0.jpg x",
        b"\xff 0",
        b"c/0.jpg -1",
        b"../c/../i/0.jpg 0",
        b"c/nul\0.jpg 0",
        b"c/" + b"a/" * 2000 + b"x.jpg 0",
        b"c/.. 0",
        "c/0.jpg ²".encode(),
    ):
        changed = {
            **clef,
            **lists,
            "image_CLEF/list/cList.txt": lists["image_CLEF/list/cList.txt"] + line + b"\n",
            "evil.jpg": good,
            "image_CLEF/evil.jpg": good,
        }
        made.append(("imageclef", f"list {line[:20]!r}", "a.zip", zip_bytes(changed)))
    random.Random(0).shuffle(made)
    left = max(0, count - len(made))
    small = {name: content[:200] for name, content in list(tree.items())[:3]}
    for file, data in (
        ("a.zip", zip_bytes(small)),
        ("a.tar.gz", tar_bytes(small)),
        ("a.tar", gzip.decompress(tar_bytes(small))),
    ):
        edges = tuple(at for at in range(len(data)) if data[at : at + 2] == b"PK" or at % 512 == 0)
        made += [
            ("office31", name, file, content) for name, content in byte_mutants(data, chance, left // 3 + 1, edges)
        ]
    for benchmark, name, file, content in made[:count]:
        yield file_case(
            "archive", name, file, content, lambda world, b=benchmark, f=file: prepare(world, b, world.inputs / f)
        )


def _repacked(content: bytes) -> bytes:
    import lzma

    return lzma.compress(gzip.decompress(content), preset=0)


def digits(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Files of digits: idx, USPS's two texts, SVHN's .mat."""
    labels = idx((3,), b"\0\1\2")
    made: list[tuple[str, str, str, bytes]] = []
    for shape, body, magic in (
        ((3, 4, 4), b"\0" * 48, None),
        ((2**31, 28, 28), b"", None),
        ((3, 2**16, 2**16), b"\0", None),
        ((0, 28, 28), b"", None),
        ((3, 28, 28), b"\0" * 10, None),
        ((3, 0, 0), b"", None),
        ((3, 28, 28), b"\0" * 2352, 0x0D03),
        ((3, 28, 28), b"\0" * 2352, 0),
        ((2**32 - 1,) * 3, b"\0" * 9, None),
        ((3, 1, 1), b"\0\0\0", None),
    ):
        made.append(("mnist", f"idx {shape}", "train-images-idx3-ubyte.gz", idx(shape, body, magic)))
    bomb = _bomb("gz")
    made.append(("mnist", "gzip bomb", "train-images-idx3-ubyte.gz", bomb))
    row = b"5 " + b"-1.0 " * 256
    for text in (
        b"",
        b"\n\n",
        row,
        row * 2,
        b"x " * 257,
        b"nan " * 257,
        b"1e999 " * 257,
        b"99 " + b"0 " * 256,
        b"-1 " + b"0 " * 256,
        b"\xff\xfe",
        b"5",
        row + b"\n" + b"1 2 3",
        b"0 " * 300_000,
        b"# " + row,
        b"1e300 " + b"0 " * 256,
        b"5\0" + row,
    ):
        made.append(("usps", f"text {text[:12]!r}", "zip.train.gz", gzip.compress(text)))
    for text in (
        b"",
        b"1 1:1",
        b"1 0:1",
        b"1 257:1",
        b"1 -1:1",
        b"1 x:1",
        b"1 1:x",
        b"1 1",
        b"nan 1:1",
        b"inf 1:1",
        b"1e300 1:1",
        b"1 1:1e999",
        b"11 1:0",
        b"1 1:nan",
        b"1 999999999999:1",
        b"1 :",
        b"\xff",
        b"1 1:1:1",
        b"0 1:1",
    ):
        made.append(("usps", f"sparse {text[:12]!r}", "usps.bz2", bz2.compress(text)))
    made.append(("usps", "bzip2 bomb", "usps.bz2", _bomb("bz2")))
    made += [
        ("svhn", "not a mat", "train_32x32.mat", b"MATLAB 5.0 MAT-file" + b" " * 97 + b"\0\1IM" + chance.randbytes(500))
    ]
    mat = _mat()
    made += [
        ("svhn", f"mat {name}", "train_32x32.mat", content)
        for name, content in byte_mutants(mat, chance, 20, (128, 136, 144), header=600)
    ]
    for file, data in (
        ("train-images-idx3-ubyte.gz", idx((3, 28, 28), b"\1" * 2352)),
        ("zip.train.gz", gzip.compress(row)),
        ("usps.bz2", bz2.compress(b"1 1:1\n")),
    ):
        benchmark = "mnist" if "idx" in file else "usps"
        made += [
            (benchmark, name, file, content)
            for name, content in byte_mutants(data, chance, max(3, (count - len(made)) // 3))
        ]

    def place(world: World, file: str, content: bytes) -> None:
        put(world, f"d/{file}", content)
        if "idx3" in file:
            put(world, "d/train-labels-idx1-ubyte.gz", labels)

    for benchmark, name, file, content in made[:count]:
        yield Case(
            "digits",
            name,
            file.encode() + content,
            lambda world, f=file, c=content: place(world, f, c),
            lambda world, b=benchmark: prepare(world, b, world.inputs / "d"),
        )


@lru_cache
def _bomb(kind: str) -> bytes:
    """Little that unpacks to more than any published file of digits; streams in a row are one file to both formats."""
    if kind == "gz":
        return gzip.compress(b"\0" * 10_000_000, 1) * 30
    return bz2.compress(b"1 1:1\n" * 200_000, 1) * 120


@lru_cache
def _mat() -> bytes:
    import numpy as np
    from scipy.io import savemat

    written = io.BytesIO()
    savemat(written, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)})
    return written.getvalue()


def videos(seeds: Seeds, chance: random.Random, count: int) -> Cases:
    """Video files; a playlist that names other files is no video."""
    import cv2
    import numpy as np

    path = seeds.image.with_name("video.avi")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for n in range(4):
        writer.write(np.full((32, 32, 3), n * 60, np.uint8))
    writer.release()
    data = path.read_bytes()
    made = [
        (f"{suffix} {name}", f"v.{suffix}", content)
        for suffix, name, content in (
            ("mp4", "playlist", b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
            ("avi", "concat", b"ffconcat version 1.0\nfile /etc/passwd\n"),
            ("mkv", "empty", b""),
            ("mov", "text", b"hello"),
            ("ts", "playlist", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"),
            ("mp4", "sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n"),
        )
    ]
    edges = tuple(at for at in range(0, min(len(data), 4000), 4) if data[at : at + 4].isalpha())
    made += [(name, "v.avi", content) for name, content in byte_mutants(data, chance, max(0, count - len(made)), edges)]
    for name, file, content in made[:count]:
        yield file_case(
            "video", name, file, content, lambda world, f=file: predict(world, seeds.model, world.inputs / f)
        )


MAKERS: dict[str, Maker] = {"image": images, "folder": trees, "archive": archives, "digits": digits, "video": videos}
