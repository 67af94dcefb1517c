"""The published benchmark data sets: domains, counts, classes in their fixed order, where they are published.

Office-31, Office-Home and VisDA-2017 order their classes by name. ImageCLEF-DA's list files number them: the names
stand at those numbers (they are sorted, too). Digits are in the order of their value.
"""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Part:
    """A domain of a data set: `name` after the colon of a spec, images as published."""

    name: str
    images: int
    aliases: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()
    """Of a data set of digit files: the published file names, one tuple for each format."""

    @property
    def names(self) -> frozenset[str]:
        """Every name of this domain, as `plain` writes it."""
        return frozenset(map(plain, (self.name, *self.aliases)))


@dataclass(frozen=True)
class Benchmark:
    """A published data set, expected in the folder `folder` below the root of all data sets."""

    name: str
    title: str
    folder: str
    parts: tuple[Part, ...]
    classes: tuple[str, ...]
    published: str
    layout: str
    listed: bool = False
    """Whether list files say which image is of which class."""

    @property
    def images(self) -> int:
        """Images published, over all domains."""
        return sum(part.images for part in self.parts)

    @property
    def of_files(self) -> bool:
        """Whether a domain is a file of arrays rather than a folder of images."""
        return bool(self.parts[0].files)


def plain(name: str) -> str:
    """A name without case, spaces, hyphens and underscores: `Real World` and `real_world` are one."""
    return "".join(letter for letter in name.casefold() if letter not in " _-")


def _idx(stem: str) -> tuple[tuple[str, ...], ...]:
    files = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    return (tuple(f"{file}.gz" for file in files), files)


_OFFICE31 = (
    "back_pack bike bike_helmet bookcase bottle calculator desk_chair desk_lamp desktop_computer file_cabinet "
    "headphones keyboard laptop_computer letter_tray mobile_phone monitor mouse mug paper_notebook pen phone printer "
    "projector punchers ring_binder ruler scissors speaker stapler tape_dispenser trash_can"
)
_OFFICE_HOME = (
    "Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch "
    "Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet "
    "Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil "
    "Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker "
    "Spoon TV Table Telephone ToothBrush Toys Trash_Can Webcam"
)
_IMAGECLEF = "aeroplane bike bird boat bottle bus car dog horse monitor motorbike people"
_VISDA = "aeroplane bicycle bus car horse knife motorcycle person plant skateboard train truck"

_ALL = (
    Benchmark(
        "office31", "Office-31", "office31",
        (Part("amazon", 2817, ("A",)), Part("dslr", 498, ("D",)), Part("webcam", 795, ("W",))),
        tuple(_OFFICE31.split()),
        "Saenko et al., ECCV 2010, https://faculty.cc.gatech.edu/~judy/domainadapt/",
        "office31/amazon/images/<class>/*.jpg (or without images/)",
    ),
    Benchmark(
        "officehome", "Office-Home", "officehome",
        (Part("Art", 2427, ("Ar",)), Part("Clipart", 4365, ("Cl",)), Part("Product", 4439, ("Pr",)),
         Part("Real World", 4357, ("Rw",))),
        tuple(_OFFICE_HOME.split()),
        "Venkateswara et al., CVPR 2017, https://www.hemanthdv.org/officeHomeDataset.html",
        "officehome/Art/<class>/*.jpg (domains Art, Clipart, Product, Real World)",
    ),
    Benchmark(
        "imageclef", "ImageCLEF-DA", "imageclef",
        (Part("c", 600, ("Caltech",)), Part("i", 600, ("ImageNet",)), Part("p", 600, ("Pascal",)),
         Part("b", 600, ("Bing",))),
        tuple(_IMAGECLEF.split()),
        "ImageCLEF 2014, https://www.imageclef.org/2014/adaptation, prepared by Long et al., ICML 2017 (JAN)",
        "imageclef/list/cList.txt with lines 'c/<image>.jpg 0', and imageclef/c/<image>.jpg",
        listed=True,
    ),
    Benchmark(
        "visda2017", "VisDA-2017", "visda2017",
        (Part("train", 152_397, ("synthetic",)), Part("validation", 55_388, ("real",))),
        tuple(_VISDA.split()),
        "Peng et al., 2017, https://ai.bu.edu/visda-2017/ (classification: train.tar, validation.tar)",
        "visda2017/train/<class>/*.png and visda2017/validation/<class>/*.jpg",
    ),
    Benchmark(
        "mnist-full", "MNIST", "mnist",
        (Part("train", 60_000, (), _idx("train")), Part("test", 10_000, (), _idx("t10k"))),
        DIGITS,
        "LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/",
        "mnist/train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same for t10k (unpacked files, too)",
    ),
    Benchmark(
        "usps", "USPS", "usps",
        (Part("train", 7291, (), (("zip.train.gz",), ("usps.bz2",))),
         Part("test", 2007, (), (("zip.test.gz",), ("usps.t.bz2",)))),
        DIGITS,
        "https://hastie.su.domains/ElemStatLearn/data.html (zip.*.gz) "
        "or https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/ (usps*.bz2)",
        "usps/zip.train.gz and zip.test.gz, or usps/usps.bz2 and usps.t.bz2",
    ),
    Benchmark(
        "svhn", "SVHN", "svhn",
        (Part("train", 73_257, (), (("train_32x32.mat",),)), Part("test", 26_032, (), (("test_32x32.mat",),))),
        DIGITS,
        "Netzer et al., 2011, http://ufldl.stanford.edu/housenumbers/ (format 2: cropped digits)",
        "svhn/train_32x32.mat and svhn/test_32x32.mat",
    ),
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
