"""`fieldsight-run info` and `verify`: what a bundle is, and whether it is whole."""

from __future__ import annotations

from typing import Any

from edge_runtime import terminal
from edge_runtime.bundle import open_bundle
from edge_runtime.cli.app import Backend, Precision, app
from edge_runtime.perception import Perception
from edge_runtime.record import read_record
from edge_runtime.terminal import BundlePath, JsonFile


@app.command(epilog="Example: `fieldsight-run info my.bundle`")
def info(bundle: BundlePath, json_file: JsonFile = None) -> None:
    """Show what a bundle is: tasks, classes, network, origin, metrics."""
    opened = open_bundle(bundle, verify=False)
    manifest = opened.manifest
    spec = manifest.input
    table = terminal.table_of(manifest.name)
    table.add_row("created", manifest.created)
    table.add_row("input", f"{spec.width}x{spec.height} {spec.color} {spec.dtype}, {spec.resize}")
    if (camera := manifest.camera) is not None:
        table.add_row("camera", f"{camera.model}, calibrated at {camera.width}x{camera.height}")
    for task in manifest.tasks:
        names = [entry.name for entry in manifest.classes.get(task, [])]
        table.add_row(task, f"{len(names)} classes: {', '.join(names)}")
    table.add_row("student", manifest.student.trunk)
    table.add_row("adapter", f"{manifest.adapter_size} values")
    table.add_row("teachers", ", ".join(manifest.provenance.teachers) or "none")
    for name, value in terminal.flat(manifest.metrics):
        table.add_row(name, value)
    for name, section in sorted(read_record(opened).items()):
        verdict = "kept" if section.get("accepted") else "refused"
        table.add_row(name, f"{verdict}: {section.get('reason', 'no reason was written')}")
    for name, file in sorted(manifest.files.items()):
        table.add_row(name, f"{file.bytes / 1e6:.2f} MB")
    terminal.console.print(table)
    terminal.write_json(json_file, manifest.model_dump(mode="json"))
    terminal.next_command("fieldsight-run", "verify", bundle)


@app.command(epilog="Example: `fieldsight-run verify my.bundle --json verify.json`")
def verify(
    bundle: BundlePath,
    backend: Backend = "auto",
    precision: Precision = "auto",
    json_file: JsonFile = None,
) -> None:
    """Check every file's SHA-256, then the network against its canary frames."""
    opened = open_bundle(bundle)
    terminal.console.print(f"{len(opened.manifest.files)} files are whole and unaltered")
    report: dict[str, Any] = {"files": len(opened.manifest.files), "self_test": None}
    perception = Perception(opened, backend, precision)
    report["engine"] = perception.engine.name
    if opened.has("canary.npz"):
        report["self_test"] = perception.self_test()
        for name, value in terminal.flat(report["self_test"]):
            terminal.console.print(f"self-test {name}: {value}")
    else:
        terminal.console.print("no canary.npz in this bundle, so no self-test")
    terminal.write_json(json_file, report)
    terminal.next_command("fieldsight-run", "predict", bundle, "IMAGES", "--out", "out/predict")
