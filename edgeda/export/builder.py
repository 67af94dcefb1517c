"""Make one artifact after another from a network, each judged on the same target images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, require
from edgeda.export import calibration, qdq
from edgeda.export.budget import Reference, Sensitivity, sensitivity, within
from edgeda.export.calibration import Range
from edgeda.export.consumers import RAW, Request
from edgeda.export.fp16 import to_fp16
from edgeda.export.graph import finish, fix_batch
from edgeda.export.onnx import to_model
from edgeda.export.openvino import write_openvino
from edgeda.export.parity import Parity, accuracy, compare, logits_of
from edgeda.export.qat import distil_quantized
from edgeda.models import Network
from edgeda.onnx_pixels import embed_preprocessing
from edgeda.profiling.latency import measure_latency
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.backends import Backend, OnnxRuntimeBackend, OpenVinoBackend
from edgeda.runtime.manifest import PROBABILITIES, Manifest
from edgeda.runtime.preprocessing import Pixels, model_input, network_input

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_CALIBRATION = 16
"""Fewer images do not show what activations do."""
SENSITIVITY_IMAGES = 64
_BATCH = 8
PLAIN = "plain"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Unlabelled target images as stored squares `(N, S, S, 3)`, and where they come from in words."""

    squares: Pixels
    origin: str


@dataclass(frozen=True, eq=False)
class Teaching:
    """What quantization-aware distillation needs: who teaches, for how long, and on what."""

    teacher: Network
    squares: Pixels
    epochs: int
    tau: float
    augment: AugmentRecipe


@dataclass(frozen=True)
class Options:
    """How int8 is made and judged. `max_drop` is in points, `latency_s` seconds of measuring an artifact."""

    calibrator: str = "percentile"
    max_drop: float = 1.0
    latency_s: float = 0.5


@dataclass(frozen=True, eq=False)
class Built:
    """A written artifact: its files, the manifest without the table, and its row of the table."""

    files: tuple[Path, ...]
    manifest: Manifest
    parity: Parity
    row: dict[str, Any]


@dataclass(eq=False)
class Builder:
    """Holds what several artifacts share: graphs by opset, ranges by scheme, the trained student of `--qat`."""

    network: Network
    manifest: Manifest
    reference: Reference
    calibration: Calibration | None = None
    teaching: Teaching | None = None
    options: Options = Options()
    threads: int | None = None
    baseline_ms: float | None = None
    _networks: dict[str, Network] = field(default_factory=dict)
    _graphs: dict[tuple[str, int], ModelProto] = field(default_factory=dict)
    _ranges: dict[tuple[str, str, int], dict[str, Range]] = field(default_factory=dict)

    def build(self, request: Request, folder: Path, role: str) -> Built:
        """Write ROLE.onnx or ROLE.xml into `folder` and judge it.

        Raises InputError when it loses more than the budget, or a plain conversion is not the network.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{role}.{'xml' if request.format == 'openvino' else 'onnx'}"
        manifest = replace(
            self.manifest,
            precision=request.precision,
            batch=request.batch,
            consumer=None if request.consumer == "any" else request.consumer,
            opset=request.opset,
            layout=RAW[request.raw] if request.raw else self.manifest.layout,
            output_name=PROBABILITIES if request.raw else self.manifest.output_name,
            output=PROBABILITIES if request.raw else self.manifest.output,
        )
        if request.format == "openvino":
            version = str(require("openvino", "openvino", "exporting to OpenVINO").__version__)
            manifest = replace(manifest, tools={**manifest.tools, "openvino": version})
        if request.precision == "int8":
            backend, quantization, drop = self._int8(request, manifest, path)
            manifest = replace(manifest, quantization=quantization)
        else:
            backend = self._write(request, manifest, path, self._graph(PLAIN, request.opset))
            drop = self.reference.drop(self._answers(backend, request, manifest))
            if drop > self.options.max_drop:
                raise InputError(
                    f"{request.name} loses {drop:.2f} points of {self.reference.measure} "
                    f"(--max-drop {self.options.max_drop:g}); nothing was written"
                )
        return self._judged(request, manifest, path, backend, drop)

    def _judged(self, request: Request, manifest: Manifest, path: Path, backend: Backend, drop: float) -> Built:
        low, high = request.batch
        batches = tuple(sorted({low, max(low, min(high or 7, 7))}))
        inputs = self.reference.inputs(manifest.layout)
        parity = compare(self.reference.logits, backend, inputs, batches)
        one = inputs[np.arange(low) % len(inputs)]
        speed = measure_latency(lambda: backend(one), budget_s=self.options.latency_s, min_runs=5)
        if self.baseline_ms is None:
            self.baseline_ms = speed.median_ms
        files = (path,) if request.format == "onnx" else (path, path.with_suffix(".bin"))
        written = b"".join(file.read_bytes() for file in files)
        labels = self.reference.labels
        kept = (manifest.quantization or {}).get("kept")
        row: dict[str, Any] = {
            "artifact": request.name, "precision": manifest.precision,
            "executed": f"{backend.precision}, {backend.name}",
            "opset": manifest.opset if request.format == "onnx" else None, "size_mb": len(written) / 1e6,
            "errors_of": parity.of, "max_abs_error": parity.max_abs_error, "mean_abs_error": parity.mean_abs_error,
            "agreement": parity.agreement, "drop": drop, "measure": self.reference.measure,
            "accuracy": None if labels is None else accuracy(parity.candidate_logits, labels),
            "kept": None if kept is None else len(kept), "latency_ms": speed.median_ms, "batch": low,
            "speedup": low * self.baseline_ms / speed.median_ms, "clean": speed.clean,
        }  # fmt: skip
        manifest = replace(
            manifest,
            opset=manifest.opset if request.format == "onnx" else None,
            sha256=hashlib.sha256(written).hexdigest(),
            size_mb=len(written) / 1e6,
        )
        return Built(files, manifest, parity, row)

    def _write(
        self, request: Request, manifest: Manifest, path: Path, graph: ModelProto, kept: Collection[str] = ()
    ) -> Backend:
        """Write a graph as the request says, and open it."""
        model = copy.deepcopy(graph)
        if request.precision == "fp16" and request.format == "onnx":
            model = to_fp16(model)
        if request.raw:
            ends = self.manifest.input_name, self.manifest.output_name
            embed_preprocessing(model, manifest.preprocessing, ends, manifest.input_name, manifest.layout)
        fix_batch(model, request.batch)
        content = finish(model, manifest)
        if request.format == "onnx":
            path.write_bytes(content)
            return OnnxRuntimeBackend(path, self.threads)
        del model.metadata_props[:]
        inputs = None
        if request.precision == "int8":
            size = request.batch[0]
            whole = model_input(self._calibration().squares, manifest.preprocessing, manifest.layout)
            inputs = [whole[np.arange(at, at + size) % len(whole)] for at in range(0, len(whole), size)]
        write_openvino(model.SerializeToString(), path, request.precision, inputs, kept)
        path.with_name("manifest.json").write_text(manifest.embedded(), encoding="utf-8")
        return OpenVinoBackend(path, self.threads)

    def _int8(self, request: Request, manifest: Manifest, path: Path) -> tuple[Backend, dict[str, Any], float]:
        images, teaching = self._calibration(), self.teaching
        scheme = qdq.SCHEMES[request.scheme or "x86"]
        opened: list[Backend] = []

        def drop_of(kept: Collection[str], variant: str) -> float:
            graph = self._graph(variant, request.opset)
            if request.scheme is not None:
                graph = qdq.quantize(graph, self._ranges_of(scheme, variant, request.opset), scheme, kept)
            opened.clear()  # OpenVINO maps the file that is about to be replaced
            opened.append(self._write(request, manifest, path, graph, kept))
            return self.reference.drop(self._answers(opened[0], request, manifest))

        variant = PLAIN
        plain_drop = None
        if teaching is not None:
            plain_drop = drop_of((), PLAIN)
            variant = self._train(scheme, teaching, request.opset)
        kept, drop = within(
            lambda nodes: drop_of(nodes, variant),
            lambda: self._ranking(scheme, variant, request.opset),
            self.options.max_drop,
            self.reference.measure,
            request.name,
        )
        quantization = {
            "scheme": scheme.words if request.scheme else "NNCF, mixed preset",
            "calibrator": self.options.calibrator if request.scheme else "NNCF's own",
            "images": len(images.squares),
            "images_from": images.origin,
            "kept": [one.layer for one in kept],
            "measure": self.reference.measure,
            "drop": drop,
            "max_drop": self.options.max_drop,
            "qat": None,
        }
        if teaching is not None:
            quantization["qat"] = {
                "epochs": teaching.epochs, "images": len(teaching.squares), "drop_without": plain_drop,
            }  # fmt: skip
        return opened[0], quantization, drop

    def _answers(self, backend: Backend, request: Request, manifest: Manifest) -> NDArray[np.float32]:
        low, high = request.batch
        return logits_of(backend, self.reference.inputs(manifest.layout), max(low, min(_BATCH, high or _BATCH)))

    def _calibration(self) -> Calibration:
        if self.calibration is None:
            raise InputError("int8 needs calibration images; name unlabelled target images with --calibration")
        return self.calibration

    def _graph(self, variant: str, opset: int) -> ModelProto:
        """The fp32 graph of the network, or of one that `_train` made, in exactly `opset`."""
        if (variant, opset) not in self._graphs:
            network = self.network if variant == PLAIN else self._networks[variant]
            self._graphs[variant, opset] = to_model(network, self.manifest, opset)
        return self._graphs[variant, opset]

    def _ranges_of(self, scheme: qdq.Scheme, variant: str, opset: int) -> dict[str, Range]:
        """Calibrated ranges of every activation of a scheme; those that training learned were put there by it."""
        known = self._ranges.setdefault((scheme.name, variant, opset), {})
        graph = self._graph(variant, opset)
        missing = qdq.activations(graph, scheme) - set(known)
        if missing:
            inputs = network_input(self._calibration().squares, self.manifest.preprocessing)
            known.update(calibration.calibrate(graph, inputs, missing, self.options.calibrator))
        return known

    def _train(self, scheme: qdq.Scheme, teaching: Teaching, opset: int) -> str:
        """Quantization-aware distillation for a scheme, once; the name of its variant."""
        variant = f"{scheme.name} {opset}"
        if variant not in self._networks:
            graph = self._graph(PLAIN, opset)
            network, learned = distil_quantized(
                self.network, teaching.teacher, teaching.squares, self.manifest.preprocessing, qdq.quantizable(graph),
                self._ranges_of(scheme, PLAIN, opset), scheme, epochs=teaching.epochs, tau=teaching.tau,
                augment=teaching.augment,
            )  # fmt: skip
            self._networks[variant] = network
            self._ranges[scheme.name, variant, opset] = dict(learned)
        return variant

    def _ranking(self, scheme: qdq.Scheme, variant: str, opset: int) -> list[Sensitivity]:
        """What int8 does to each layer alone, on some of the images."""
        graph, ranges = self._graph(variant, opset), self._ranges_of(scheme, variant, opset)
        chosen = np.unique(np.linspace(0, len(self.reference.logits) - 1, SENSITIVITY_IMAGES).astype(int))
        few = self.reference.take(chosen)
        inputs = few.inputs(self.manifest.layout)
        layers = qdq.quantizable(graph)
        base = calibration.run_graph(graph, inputs)
        found = []
        for layer in layers:
            others = [other.node for other in layers if other is not layer]
            logits = calibration.run_graph(qdq.quantize(graph, ranges, scheme, others), inputs)
            found.append(sensitivity(layer.node, layer.name, base, logits, few.drop(logits)))
        return found
