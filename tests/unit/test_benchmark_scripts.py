"""What lies under benchmarks/ at least starts: what it imports is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALL = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.path[0] = script.rpartition("/")[0]
    said, sys.argv = io.StringIO(), [script, "--help"]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        ended = None
    except SystemExit as error:
        ended = error.code
    except BaseException as error:
        ended = repr(error)
    is_script = "__main__" in open(script).read()  # else others import it
    if ended or said.getvalue().startswith("usage: ") != is_script:
        print(script, ended)
"""


def test_every_script_says_how_it_is_used() -> None:
    """All in one process: most of the time goes into importing torch."""
    scripts = sorted(str(path) for path in (ROOT / "benchmarks").glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", ALL, *scripts], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
