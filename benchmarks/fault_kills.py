"""Processes that are killed or told to stop, at random moments and at changes of files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fault_trials import NO_TRACE, SHORT, Trials, copy_run, export_is_whole, predictions

from tests.faults.driver import left_over


def adapt_kill(t: Trials) -> None:
    """Kill -9 at random moments, three or four times in a run."""
    kills, runs, lost, same = 0, 0, [], 0
    while kills < t.kills:
        runs += 1
        with t.fresh() as out:
            steps = here = 0
            for _ in range(t.random.randint(2, 4)):
                moment = t.random.uniform(0.0, t.times["adapt"] * 0.9)
                ended = t.again(out, after=moment)
                steps += ended.steps
                if ended.code == 0:
                    break
                t.expect(ended.code == -signal.SIGKILL, "adapt killed", ended)
                kills += 1
                here += 1
            ended = t.again(out)
            t.expect(ended.code == 0, "adapt resumed", ended)
            again = max(0, steps + ended.steps - 24)
            t.expect(again <= here, f"{again} steps were lost in {here} kills")
            lost.append(again)
            same += t.finished_as(out, t.whole, "adapt killed at random moments")
    t.row("`adapt` killed (kill -9) at random moments, resumed", kills,
          f"{same} of {runs} runs end bit for bit as the undisturbed one; {sum(lost)} steps trained twice")  # fmt: skip


def adapt_each(t: Trials) -> None:
    """Kill -9 at every change of a file."""
    same = 0
    for at in t.changes(t.short_events):
        with t.fresh() as out:
            ended = t.driver.run(*t.adapt(out, *SHORT), below=out, at=at)
            t.expect(ended.code == -signal.SIGKILL, f"adapt killed at change {at}", ended)
            ended = t.again(out, *SHORT)
            t.expect(ended.code == 0, f"adapt resumed after change {at}", ended)
            same += t.finished_as(out, t.short, f"adapt killed at change {at}")
    t.row("`adapt` killed at every single change of a file below RUN, resumed", len(t.changes(t.short_events)),
          f"{same} end bit for bit as the undisturbed run, with nothing left over")  # fmt: skip


def export_kill(t: Trials) -> None:
    """Kill -9 at random moments; every tenth is exported to its end."""
    whole = 0
    with t.fresh() as out:
        for number in range(t.kills):
            if number % 10 == 0:
                shutil.rmtree(out, ignore_errors=True)
                copy_run(t, out, exported=number % 20 == 0)
            ended = t.driver.run(*t.export(out), after=t.random.uniform(0.0, t.times["export"]))
            t.expect(ended.code in (0, -signal.SIGKILL), "export killed", ended)
            export_is_whole(t, out, "export killed")
            if number % 10 == 9:
                ended = t.driver.run(*t.export(out))
                t.expect(ended.code == 0, "export after kills", ended)
                export_is_whole(t, out, "export after kills")
                t.expect(not left_over(out), f"export after kills: left over {left_over(out)}")
                whole += ended.code == 0
    t.row("`export` killed at random moments, begun again", t.kills,
          f"never half a file under a final name; each of {whole} exports after ten kills is bit for bit the "
          "undisturbed one and removes what the killed ones left")  # fmt: skip


def predict_kill(t: Trials) -> None:
    """Kill -9 at random moments, and at changes of files."""
    wanted, kept = predictions(t.saved), []
    for number in range(2 * t.kills):
        with t.fresh("saved") as out:
            if number % 2:
                options: dict[str, Any] = {"after": t.random.uniform(0.0, t.times["predict"])}
            else:
                options = {"below": out, "at": t.random.randint(1, t.predict_events)}
            ended = t.driver.run(*t.predict(out), **options)
            t.expect(ended.code in (0, -signal.SIGKILL), "predict killed", ended)
            found = predictions(out) if out.is_dir() else {}
            t.expect(found.items() <= wanted.items(), "predict killed: half an image under a final name")
            kept.append(len(found))
            if number % 10 == 9:
                t.expect(t.driver.run(*t.predict(out), "--overwrite").code == 0, "predict --overwrite after a kill")
    t.row("`predict --save` killed, half at random moments and half at a change of a file", 2 * t.kills,
          f"every saved image is whole ({min(kept)} to {max(kept)} of {len(wanted)} were there); one that was being "
          "written is hidden and named .part")  # fmt: skip


def signals(t: Trials) -> None:
    """SIGTERM and SIGINT at random moments of every command."""
    for name in ("int", "term"):
        codes: Counter[int] = Counter()
        for number in range(max(10, t.kills * 3 // 10)):
            kind = ("adapt", "adapt", "export", "predict")[number % 4]
            with t.fresh() as out:
                if kind == "export":
                    copy_run(t, out, exported=False)
                command = {"adapt": t.adapt, "export": t.export, "predict": t.predict}[kind](out)
                ended = t.driver.run(*command, after=t.random.uniform(0.0, t.times[kind]), strike=name)
                codes[ended.code] += 1
                t.expect(ended.code in (0, 2, -signal.SIGINT, -signal.SIGTERM), f"{kind} and SIG{name.upper()}", ended)
                t.expect(NO_TRACE not in ended.err, f"{kind} and SIG{name.upper()}: a traceback", ended)
                said = ended.line.startswith(("error: interrupted", "stopped"))
                t.expect(ended.code != 2 or said, f"{kind} and SIG{name.upper()}: not one line", ended)
                t.expect(not left_over(out.parent), f"{kind} and SIG{name.upper()}: left over {left_over(out.parent)}")
                if kind == "adapt" and ended.code:
                    ended = t.again(out)
                    t.expect(ended.code == 0, f"adapt resumed after SIG{name.upper()}", ended)
                    t.finished_as(out, t.whole, f"adapt after SIG{name.upper()}")
        found = ", ".join(f"exit code {code}: {count}" for code, count in sorted(codes.items()))
        t.row(f"SIG{name.upper()} at random moments of adapt, export, predict", sum(codes.values()),
              f"{found}; one line, no traceback, nothing left; adapt resumes to the undisturbed outcome")  # fmt: skip
    early: Counter[int] = Counter()
    for number in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeda", "evaluate", str(t.whole), "--data", str(t.images["test"])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=t.environment,
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        time.sleep(0.1 + number * 0.15)
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        _, said = process.communicate()
        early[process.returncode] += 1
        t.expect(
            process.returncode in (0, 2, -2, -15) and NO_TRACE not in said, f"early signal {number}: {said[-300:]}"
        )
    found = ", ".join(f"exit code {code}: {count}" for code, count in sorted(early.items()))
    t.row("SIGINT or SIGTERM while a command starts (0.1 to 3 s, modules are still being loaded)", 20,
          f"{found} (negative: ended by the signal itself); no traceback")  # fmt: skip
