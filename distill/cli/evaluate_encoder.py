"""`fieldsight-distill evaluate` on an encoder: probes, quality, robustness, a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.cli.app import parse_size
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.terminal import console, flat, table_of


def is_encoder(model: str) -> bool:
    """Whether an argument means an encoder: not a bundle, and no run but one of pretrain."""
    path = Path(model)
    if path.suffix == ".bundle" or (path / "manifest.json").is_file():
        return False
    if "@" in model or not path.exists():
        return True
    try:
        command = json.loads((path / "config.json").read_text()).get("command")
    except (OSError, ValueError, AttributeError):
        return False
    return bool(command == "pretrain")


@dataclass(frozen=True)
class EncoderRequest:
    """What the command line asked for; see its ``--help``."""

    test: str | None
    limit: int | None
    test_limit: int | None
    views: int
    size: str | None
    report: Path | None
    checkpoints: bool
    robustness: bool
    baseline: str | None
    epsilon: float
    robustness_images: int
    per_image: Path | None
    seed: int
    accelerator: str


def evaluate_encoder(
    model: str, data: str, asked: EncoderRequest
) -> tuple[dict[str, Any], list[Path]]:
    """Judges an encoder, prints what was found, writes what was asked for.

    Returns:
        All figures, and the files written.
    """
    from distill.data.class_folders import open_classified
    from distill.evaluation.judging import JudgeOptions, judge_encoder
    from distill.evaluation.opening import open_encoder
    from distill.evaluation.per_image import FILE_NAME

    device = _device(asked.accelerator)
    opened = _prepared(open_encoder(model, asked.seed), asked.size, device)
    options = JudgeOptions(
        limit=asked.limit, test_limit=asked.test_limit, views=asked.views, seed=asked.seed
    )
    test = open_classified(asked.test, "val") if asked.test else None
    data_source = open_classified(data)
    judged = judge_encoder(opened, data_source, test, options)
    figures = judged.figures
    if asked.robustness:
        figures["robustness"] = _robustness(opened, judged, asked, device)
    if asked.checkpoints:
        from distill.evaluation.tracking import track

        figures["checkpoints"] = track(opened, data_source, test, options)
    show(figures, f"Encoder {opened.title}")
    if judged.probe is None:
        console.print(
            "no classes in the data: k-NN, linear probe and separability need folders with one "
            "subfolder a class, or shards with .cls",
            style="yellow",
        )
    written = []
    per_image = asked.per_image or (opened.run / FILE_NAME if opened.run else None)
    if per_image is not None and judged.probe is not None:
        _write_per_image(per_image, judged, asked.test or data)
        written.append(per_image)
    if asked.report is not None:
        from distill.evaluation.encoder_page import encoder_page

        atomic_write_text(asked.report, encoder_page(opened, judged, asked.seed))
        written.append(asked.report)
    return figures, written


def _robustness(
    opened: Any, judged: Any, asked: EncoderRequest, device: torch.device
) -> dict[str, Any]:
    """Of encoder and linear probe; the baseline is an encoder, probed alike, or a classifier."""
    from distill.evaluation.features import drawn
    from distill.evaluation.image_classifiers import probed_encoder, probed_on, tuned_run
    from distill.evaluation.image_robustness import Chosen, image_robustness
    from distill.evaluation.opening import open_encoder

    if judged.probe is None:
        raise InputError(
            "robustness needs classes: give --data (and --test) folders with one subfolder a "
            "class, or shards with .cls"
        )
    baseline = None
    if asked.baseline and is_encoder(asked.baseline):
        other = _prepared(open_encoder(asked.baseline, asked.seed), asked.size, device)
        seen = Chosen(judged.train_source, judged.train.indices)
        baseline = probed_on(other, seen, asked.seed)
    elif asked.baseline:
        baseline = tuned_run(Path(asked.baseline), device)
    chosen = drawn(len(judged.test.indices), asked.robustness_images, asked.seed)
    return image_robustness(
        probed_encoder(opened, judged.probe),
        judged.test_source,
        judged.test.indices[chosen],
        baseline,
        asked.epsilon / 255,
        asked.seed,
    )


def _device(accelerator: str) -> torch.device:
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(accelerator)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"accelerator {accelerator!r} cannot be used ({error}); take auto, cpu or cuda"
        ) from error
    return device


def _prepared(opened: Any, size: str | None, device: torch.device) -> Any:
    """The encoder on its device, at the size asked for."""
    opened.encoder.to(device)
    return replace(opened, size=parse_size(size)) if size else opened


def show(figures: dict[str, Any], title: str) -> None:
    """Prints figures as tables; robustness as one of its own, a corruption a row."""
    plain = {k: v for k, v in figures.items() if k not in ("robustness", "checkpoints")}
    table = table_of(title)
    for name, value in flat(plain):
        table.add_row(name, value)
    console.print(table)
    if "checkpoints" in figures:
        show_correlations(figures["checkpoints"]["correlation"])
    if "robustness" in figures:
        show_robustness(figures["robustness"])


def show_correlations(found: dict[str, dict[str, float]]) -> None:
    """Prints the rank correlation of figures with the probe's error, one a row."""
    table = table_of("Rank correlation with the probe's error", "figure", "r", "95%", "tau", "p")
    for name, r in found.items():
        interval = f"{r['low']:+.2f} to {r['high']:+.2f}"
        row = f"{r['spearman']:+.2f}", interval, f"{r['kendall']:+.2f}", f"{r['p']:.2g}"
        table.add_row(name, *row)
    console.print(table)


def show_robustness(found: dict[str, Any]) -> None:
    """Prints errors by corruption and severity, and what they come to."""
    table = table_of(
        f"Error under corruption, on {found['images']} images", "corruption", *"12345", "mean"
    )
    for name, errors in found["error"].items():
        mean = sum(errors) / len(errors)
        table.add_row(name, *(f"{e:.3f}" for e in errors), f"{mean:.3f}")
    console.print(table)
    table = table_of("Robustness")
    kept = {k: v for k, v in found.items() if k not in ("error", "baseline")}
    if "baseline" in found:
        kept["baseline"] = {k: v for k, v in found["baseline"].items() if k != "error"}
    for name, value in flat(kept):
        table.add_row(name, value)
    console.print(table)


def _write_per_image(path: Path, judged: Any, name: str) -> None:
    """The linear probe's classes image by image, as ``compare`` reads them."""
    from distill.evaluation.encoder_page import class_names
    from distill.evaluation.per_image import PerImage, write_per_image

    test, names = judged.test, class_names(judged.test_source)
    found = judged.probe.logits(test.pooled).argmax(1)
    count = len(judged.probe.bias)
    results = PerImage({"name": name, "split": "test", "digest": judged.test_source.digest()})
    results.images["classification"] = [judged.test_source.name(int(i)) for i in test.indices]
    results.classes["classification"] = [names.get(i, str(i)) for i in range(count)]
    results.arrays["classification"] = {
        "label": test.labels.numpy().astype("int32"),
        "predicted": found.numpy().astype("int32"),
    }
    write_per_image(path, results)
