"""A training step of KD-UDA: the published one written plainly, and edgeda's, in one run.

    python benchmarks/train_step.py [--teacher r50 --student r34 --batch-size 16 --size 224 --threads 0]
    python benchmarks/train_step.py --teacher r101 --batch-size 32 --only edgeda --steps 1      # does it fit?
    python benchmarks/train_step.py --teacher r18 --student r18 --size 112 --batch-size 8 --only edgeda --follow 300

The published step is fp32 in torch's own memory format and allocator settings: the teacher is forwarded twice with
gradients, is not detached, and both networks are in both optimizers. edgeda's is `KdUda.step` of the recipe `paper`
with the teacher's logits recomputed (Algorithm 1), in bf16. Each runs in a process of its own; images are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

CLASSES = 31
FOLLOWED = 15
"""How often memory is looked at in a long run."""


def published_step(arguments: argparse.Namespace) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    from edgeda.losses.mmd import mmd
    from edgeda.models import Architecture, build_network

    teacher = build_network(Architecture(arguments.teacher, CLASSES))[0].train()
    student = build_network(Architecture(arguments.student, CLASSES))[0].train()
    both = [*teacher.parameters(), *student.parameters()]
    adapting, distilling = (torch.optim.SGD(both, lr=1e-3, momentum=0.9, weight_decay=5e-4) for _ in range(2))
    source, target = (torch.randn(arguments.batch_size, 3, arguments.size, arguments.size) for _ in range(2))
    labels = torch.arange(arguments.batch_size) % CLASSES
    beta, gamma, tau, alpha = 0.5, 0.5, 20.0, 0.8

    def softened(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        ours, theirs = F.log_softmax(student_logits / tau, 1), F.softmax(teacher_logits / tau, 1)
        return F.kl_div(ours, theirs, reduction="batchmean") * tau**2

    def step() -> object:
        adapting.zero_grad()
        on_source, on_target = teacher(source), teacher(target)
        adaptation = gamma * mmd(on_source.features, on_target.features) + F.cross_entropy(on_source.logits, labels)
        ((1 - beta) * adaptation).backward()
        adapting.step()
        distilling.zero_grad()
        on_source, on_target = teacher(source), teacher(target)
        student_source, student_target = student(source), student(target)
        distillation = softened(student_target.logits, on_target.logits)
        distillation = distillation + softened(student_source.logits, on_source.logits)
        distillation = distillation + alpha * F.cross_entropy(student_source.logits, labels)
        (beta * distillation).backward()
        distilling.step()
        return distillation.item()

    return step


def edgeda_step(arguments: argparse.Namespace) -> Callable[[], object]:
    from edgeda.memory import keep_freed_memory

    keep_freed_memory()
    import torch

    from edgeda.adapt import make_workshop
    from edgeda.data.batches import Batch
    from edgeda.methods.kd_uda import KdUda
    from edgeda.models import Architecture, build_network
    from edgeda.recipe_file import load_recipe

    options = {
        "data.source": "random", "data.target": "random", "data.input_size": arguments.size, "train.device": "cpu",
        "teacher.backbone": arguments.teacher, "student.backbone": arguments.student,
        "train.batch_size": arguments.batch_size, "train.precision": arguments.precision,
    }  # fmt: skip
    recipe = load_recipe("paper", options)
    assert recipe.distill.recompute_teacher
    networks = {
        role: build_network(Architecture(part.backbone, CLASSES))[0].to(memory_format=torch.channels_last).train()
        for role, part in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    workshop = make_workshop(recipe, networks)
    method = KdUda(workshop)
    images = [torch.randn(arguments.batch_size, 3, arguments.size, arguments.size) for _ in range(2)]
    source, target = (part.to(memory_format=torch.channels_last) for part in images)
    batch = Batch(source, torch.arange(arguments.batch_size) % CLASSES, target)

    def step() -> object:
        return [float(term) for term in method.step(batch, 0.5).values()]

    return step


def matmul_peak(precision: str) -> float:
    """TFLOP/s of a matrix product of 4096 in the step's precision, the fastest of ten."""
    import torch

    size, kind = 4096, torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = torch.randn(2, size, size).to(kind)
    result = torch.empty(size, size, dtype=kind)
    fastest = min(_seconds(lambda: torch.mm(first, second, out=result)) for _ in range(10))
    return 2 * size**3 / fastest / 1e12


def gflop_per_pair(arguments: argparse.Namespace) -> float:
    """Of Algorithm 1: forward and backward (three forwards' worth) of both, and the teacher once more."""
    from edgeda.models import Architecture, build_network
    from edgeda.profiling.complexity import torch_complexity

    teacher, student = (
        torch_complexity(build_network(Architecture(name, CLASSES))[0], arguments.size).gmacs
        for name in (arguments.teacher, arguments.student)
    )
    return 2 * 2 * (4 * teacher + 3 * student)


def measure(arguments: argparse.Namespace) -> None:
    """One side, in this process: prints a line of JSON."""
    made = edgeda_step(arguments) if arguments.side == "edgeda" else published_step(arguments)
    import torch

    from edgeda.memory import peak_memory_mb, resident_memory_mb

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warm_up, steps = (1, arguments.steps or 3) if arguments.side == "published" else (6, arguments.steps or 9)
    for _ in range(warm_up if steps > 1 else 0):
        made()
    resident = {}
    for number in range(1, arguments.follow + 1):
        made()
        if number % max(1, arguments.follow // FOLLOWED) == 0 or number == 1:
            resident[number] = resident_memory_mb()
    seconds = sorted(_seconds(made) for _ in range(steps))
    found = {"step_s": statistics.median(seconds), "fastest_s": seconds[0], "steps": steps,
             "peak_memory_mb": peak_memory_mb(), "threads": torch.get_num_threads(),
             "resident_mb": resident}  # fmt: skip
    if arguments.side == "edgeda":
        del made
        found |= {"matmul_tflops": matmul_peak(arguments.precision), "gflop_per_pair": gflop_per_pair(arguments)}
    print(json.dumps(found))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="r50")
    parser.add_argument("--student", default="r34")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="timed steps; 0: 3 of the published, 9 of edgeda's")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of edgeda's step")
    parser.add_argument(
        "--follow", type=int, default=0, help="first so many steps, with the memory resident after them"
    )
    parser.add_argument("--only", choices=("published", "edgeda"))
    parser.add_argument("--side", choices=("published", "edgeda"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments)
        return
    found = {}
    print(f"{arguments.teacher} -> {arguments.student}, batch {arguments.batch_size} + {arguments.batch_size}, "
          f"{arguments.size} px")  # fmt: skip
    for side in ("published", "edgeda"):
        if arguments.only in (None, side):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[side] = result = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{side:9}  {arguments.batch_size / result['step_s']:6.2f} pairs/s  "
                f"(median step {result['step_s']:.2f} s of {result['steps']}, fastest {result['fastest_s']:.2f} s, "
                f"{result['threads']} threads)  peak memory {result['peak_memory_mb']:,.0f} MB",
                flush=True,
            )
            if result["resident_mb"]:
                print(
                    "resident after step: " + ", ".join(f"{k}: {v:,.0f} MB" for k, v in result["resident_mb"].items())
                )
    if len(found) == 2:
        print(f"edgeda is {found['published']['step_s'] / found['edgeda']['step_s']:.1f} times as fast")
    if "edgeda" in found:
        ours = found["edgeda"]
        reached = ours["gflop_per_pair"] * arguments.batch_size / ours["step_s"] / 1e3
        print(
            f"{ours['gflop_per_pair']:.0f} GFLOP a pair: {reached:.2f} TFLOP/s, "
            f"{reached / ours['matmul_tflops']:.0%} of the {ours['matmul_tflops']:.2f} TFLOP/s of a matrix product"
        )


if __name__ == "__main__":
    main()
