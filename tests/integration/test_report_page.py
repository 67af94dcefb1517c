"""The report as a reader meets it: in a browser at desktop and phone width, of whole, half and broken runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Edgeda, Folders

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         "--virtual-time-budget=2000", "--window-size=1300,900", "--dump-dom")  # fmt: skip
PROBE = """<script>
addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, title: document.title,
  plots: [...document.querySelectorAll("figure > svg")].map(s => [
    s.getAttribute("aria-label"), s.getBoundingClientRect().width,
    s.getBoundingClientRect().height, s.querySelectorAll("path,rect,circle,polygon").length]),
  images: [...document.images].map(i => [i.naturalWidth, i.alt]), requests: performance.getEntriesByType("resource")
    .filter(e => !e.name.startsWith("data:")).map(e => e.name) }), "*"));
</script>"""


def probed(page: Path, folder: Path) -> tuple[list[dict], str]:
    """What two frames, of 1200 and 390 pixels, say of the page; and the browser's log. One launch."""
    document = page.read_text().replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</body>", PROBE)
    (folder / "probe.html").write_text(document)
    frames = "".join(
        f'<iframe src="probe.html" style="width:{width}px;height:800px"></iframe>' for width in (1200, 390)
    )
    (folder / "harness.html").write_text(
        f"<body>{frames}<script>addEventListener('message', e => {{ const p = document.createElement('pre');"
        "p.className = 'said'; p.textContent = e.data; document.body.append(p); })</script></body>"
    )
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"file://{folder / 'harness.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = re.findall(r'<pre class="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return [
        json.loads(text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")) for text in said
    ], done.stderr


class Outside(HTMLParser):
    """Everything in a page that could make a browser ask for something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")
        ]


@pytest.fixture(scope="module")
def reported(edgeda: Edgeda, run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a copy of the finished run."""
    run = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(run_directory, run)
    ran = edgeda("report", run, "--seconds", 0.02, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["missing"] == []
    assert ran.json["size_mb"] < 5
    return run


def test_the_report_asks_for_nothing_and_has_every_part(reported: Path):
    text = (reported / "report.html").read_text()
    page = Outside(text)
    assert all(address.startswith("data:image/") for address in page.found)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "default-src 'none'" in text
    for part in ("Accuracy", "Target images", "Features of both domains", "Training", "Cost of the student",
                 "Side by side on this machine", "Recipe and machine"):  # fmt: skip
        assert f"<h2>{part}</h2>" in text
    assert text.index('class="verdict') < text.index("<h2>")
    accuracy = json.loads((reported / "summary.json").read_text())["accuracy"]["student"]["target"]["selected"]
    assert f"right on {accuracy:.1f} %" in text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian package chromium)")
def test_every_plot_renders_at_both_widths_without_an_error(reported: Path, tmp_path: Path):
    frames, log = probed(reported / "report.html", tmp_path)
    assert {frame["width"] for frame in frames} == {1200, 390}, log[-2000:]
    for frame in frames:
        assert frame["scroll"] <= frame["width"], "it scrolls sideways"
        assert frame["requests"] == []
        labels = " ".join(label for label, *_ in frame["plots"])
        for plot in ("Accuracy by class", "Confusion of the adapted student", "Features of the source-only student",
                     "beta", "Losses of stage joint", "Cost of each layer", "Latency of single calls",
                     "Accuracy against latency"):  # fmt: skip
            assert plot in labels
        for label, width, height, marks in frame["plots"]:
            assert width > 200, label
            assert height > 20, label
            assert marks > 2, label
        assert frame["images"]
        assert all(width and alt for width, alt in frame["images"])
    assert not [line for line in log.splitlines() if "CONSOLE" in line]


def test_a_run_whose_images_are_gone_says_so_once(command: Edgeda, reported: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(reported, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"(?m)^  (source|target|target_test): .*$", r"  \1: /gone/\1", recipe))
    ran = command("report", run, "--seconds", 0.01)
    assert ran.code == 0, ran.err
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "/gone/target" in warnings[0]
    text = (run / "report.html").read_text()
    assert "Not shown: the run" in text
    assert "<h2>Training</h2>" in text
    assert "<h2>Target images</h2>" not in text


def test_a_half_finished_run_reports_what_is_there(command: Edgeda, reported: Path, tmp_path: Path):
    run = tmp_path / "half"
    run.mkdir()
    shutil.copy(reported / "recipe.yaml", run)
    whole = (reported / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*whole[:2], whole[2][:30]]))
    ran = command("report", run)
    assert ran.code == 0, ran.err
    stage = json.loads(whole[1])["stage"]
    assert f"not finished: stage {stage}, epoch" in ran.out
    text = (run / "report.html").read_text()
    assert f"Losses: {stage}" in text
    assert "recipe.yaml, every key" in text
    (run / "metrics.jsonl").unlink()
    assert "not finished its first epoch" in command("report", run).out


def test_class_names_with_markup_are_shown_as_text(command: Edgeda, reported: Path, folders: Folders, tmp_path: Path):
    from edgeda.models import NetworkCard, load_network, save_network

    run, hostile = tmp_path / "run", "<img src=x onerror=alert(1)>&\"'"
    shutil.copytree(reported, run)
    for role in ("student", "source_only", "teacher"):
        network, card = load_network(run / f"{role}.safetensors")
        classes = ("0", "1", "2", hostile)
        card = NetworkCard(card.architecture, classes, card.preprocessing, role)
        save_network(run / f"{role}.safetensors", network.state_dict(), card)
    data = tmp_path / "data"
    for kind in ("source", "target_test"):
        shutil.copytree(getattr(folders, kind), data / kind)
        (data / kind / "3").rename(data / kind / hostile)
    recipe = (run / "recipe.yaml").read_text()
    for kind in ("source", "target_test"):
        recipe = re.sub(rf"(?m)^  {kind}: .*$", f"  {kind}: {data / kind}", recipe)
    (run / "recipe.yaml").write_text(recipe)
    ran = command("report", run, "--seconds", 0.01)
    assert ran.code == 0, ran.err
    text = (run / "report.html").read_text()
    assert "&lt;img src=x" in text
    assert not [address for address in Outside(text).found if not address.startswith("data:image/")]


def test_bad_requests_end_in_one_line(command: Edgeda, reported: Path, tmp_path: Path):
    for arguments in (["compare", reported, "--budget", "5"], ["compare", reported, "--pruned", "45"],
                      ["compare", reported, "--train-pruned"], ["report", tmp_path],
                      ["report", reported, "--out", tmp_path]):  # fmt: skip
        ran = command(*arguments)
        assert ran.code == 2
        assert ran.error
    assert not list(tmp_path.iterdir())


def test_several_runs_are_one_table_and_one_page(command: Edgeda, reported: Path, run_directory: Path, tmp_path: Path):
    page = tmp_path / "compared.html"
    ran = command("compare", reported, run_directory, "--budget", "10s", "--html", page, "--seconds", 0.01, "--json")
    assert ran.code == 0, ran.err
    rows = ran.json["rows"]
    networks = [row for row in rows if row["engine"] == "torch"]  # other tests may have exported the second run
    assert len(networks) == 3, "the second run's networks are the first's: they are measured once"
    assert any(row["front"] for row in rows)
    best = max(row["target_accuracy"] for row in rows)
    assert rows[ran.json["ship"]["row"]]["target_accuracy"] == best
    assert "Accuracy against latency" in page.read_text()
    assert not [address for address in Outside(page.read_text()).found if not address.startswith("data:")]


@pytest.fixture
def quickly_pruned(reported: Path, tmp_path: Path) -> Path:
    """A copy of the run whose teacher is pruned in one round and an epoch."""
    shutil.copytree(reported, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(
        recipe.replace("  iterations: 5", "  iterations: 1").replace("  epochs: 2\n", "  epochs: 1\n")
    )
    return tmp_path / "run"


def test_a_pruned_teacher_is_trained_once_beside_the_run(quickly_pruned: Path):
    from edgeda.artifacts import RunDirectory
    from edgeda.console import TrainingDisplay
    from edgeda.report.pruned import Cut, Pruner, train_pruned

    pruner = Pruner(RunDirectory(quickly_pruned))
    assert pruner.trained(0.3) is None
    run = train_pruned(pruner, Cut(0.3, ""), TrainingDisplay())
    assert run.path == quickly_pruned.with_name("run-pruned-300")
    found = pruner.trained(0.3)
    assert found is not None
    summary = found.summary()
    assert summary["complexity"]["student"]["gmacs"] == pytest.approx(0.7 * pruner.gmacs, rel=0.03)
    assert summary["accuracy"]["student"]["target"]["selected"] is not None
    written = (run.path / "summary.json").stat().st_mtime_ns
    assert train_pruned(pruner, Cut(0.3, ""), TrainingDisplay()) == run
    assert (run.path / "summary.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("finished", [True, False])
def test_a_pruned_teacher_is_trained_again_after_its_run_was(
    quickly_pruned: Path, finished: bool, caplog: pytest.LogCaptureFixture
):
    from edgeda.artifacts import RunDirectory, sha256
    from edgeda.console import TrainingDisplay
    from edgeda.models import load_network, save_network
    from edgeda.report.pruned import Cut, Pruner, train_pruned

    run = RunDirectory(quickly_pruned)
    earlier = train_pruned(Pruner(run), Cut(0.3, ""), TrainingDisplay())
    if not finished:  # as after a Ctrl-C
        (earlier.path / "summary.json").unlink()
    network, card = load_network(run.weights("teacher"))
    save_network(run.weights("teacher"), {name: 1.01 * value for name, value in network.state_dict().items()}, card)
    pruner = Pruner(run)
    assert pruner.trained(0.3) is None
    caplog.clear()
    again = train_pruned(pruner, Cut(0.3, ""), TrainingDisplay())
    assert [line.getMessage().split(" was ")[0] for line in caplog.records if line.levelname == "WARNING"] == [
        str(again.path)
    ]
    assert again.path == earlier.path
    assert sha256(run.weights("teacher"))[:12] in again.summary()["weights_from"]["student"]
    assert pruner.trained(0.3) == again
