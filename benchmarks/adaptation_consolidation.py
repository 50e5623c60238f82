"""What consolidation at the dock is worth: learnt on half of a place, judged on the other half.

    python benchmarks/adaptation_consolidation.py my.bundle --data dataset.yaml:val \
        --place dusk=dataset.yaml:train@0001TP_ --place blur=dataset.yaml:val+blur:0.6

A place is `NAME=DATASET[@PREFIX][+SHIFT]`: frames, and a shift drawn over them. Both folds are run:
learn on the first half and judge on the second, and the other way round; no label of the place is
read while learning. Columns, mIoU in percent on the half that was not learnt from:

* as trained, `align` as it runs, and alignment without gate and guard, with the bundle as given;
* the same three with the consolidated bundle ("refused": it was not accepted, the old one stays).

Home is `--data`, before and after; seconds are CPU time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
from adaptation import learner_for, open_frames, open_perception
from adaptation_ceiling import Stream, Ungated
from adaptation_safety import percent
from rich.console import Console
from rich.table import Table

from edge_runtime.adaptation.consolidation import ConsolidationSettings
from edge_runtime.adaptation.consolidation.run import NotAccepted, consolidate
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.bundle import Bundle, identity_adapter, open_bundle

console = Console()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="home: dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--place", action="append", required=True, help="NAME=DATASET[+SHIFT]")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--settings", default="{}", help="JSON: fields of ConsolidationSettings")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def judged(bundle: Bundle, stream: Stream) -> list[float]:
    """mIoU in percent as trained, with `align` as it runs, and aligned without gate and guard."""
    perception = open_perception(bundle, None, 1)
    found = [percent(stream.matrices(perception))]
    found.append(percent(stream.matrices(Adapting(perception, learner_for(perception, "align")))))
    perception.adapter = identity_adapter(perception.manifest)
    first = [frame for frame, _ in stream.frames[:3]]
    found.append(percent(stream.matrices(Ungated(perception, first))))
    perception.close()
    return found


def halves(given: str) -> tuple[str, list[Stream]]:
    """A place's name and the two halves of its stream."""
    name, _, spec = given.partition("=")
    spec, _, shift = spec.partition("+")
    whole = Stream.of(name, open_frames(spec), shift or None)
    middle = len(whole.frames) // 2
    parts = whole.frames[:middle], whole.frames[middle:]
    return name, [replace(whole, frames=part) for part in parts]


def learnt(
    args: argparse.Namespace, bundle: Bundle, stream: Stream, folder: Path
) -> tuple[Bundle | None, float, str]:
    """The consolidated bundle, or None; CPU seconds; why it was refused."""
    frames = folder / "frames"
    frames.mkdir()
    for index, (frame, _) in enumerate(stream.frames):
        cv2.imwrite(str(frames / f"{index:04d}.png"), frame.image[..., ::-1])
    settings = ConsolidationSettings(**json.loads(args.settings))
    start = time.process_time()
    try:
        out = folder / "new.bundle"
        made = consolidate(bundle, frames, out, settings, minutes=args.minutes).bundle
    except NotAccepted as refused:
        return None, time.process_time() - start, "; ".join(refused.verdict.reasons)
    return made, time.process_time() - start, ""


def main() -> None:
    args = parse_arguments()
    bundle = open_bundle(args.bundle)
    home = Stream.of("home", open_frames(args.data), None)
    before_home = judged(bundle, home)[0]
    columns = ("as trained", "align", "ungated", "consolidated", "+ align", "+ ungated")
    table = Table("place", "fold", *columns, "home", "after", "CPU s", title="mIoU in percent")
    figures: list[dict[str, Any]] = []
    for given in args.place:
        name, parts = halves(given)
        for fold in (int(f) for f in args.folds.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                new, seconds, reason = learnt(args, bundle, parts[fold], Path(scratch))
                before = judged(bundle, parts[1 - fold])
                after = before if new is None else judged(new, parts[1 - fold])
                after_home = before_home if new is None else judged(new, home)[0]
            row = [*before, *after, before_home, after_home]
            shown = [f"{value:.1f}" for value in row]
            if new is None:
                shown[3] = f"refused: {reason}"
            table.add_row(name, str(fold), *shown, f"{seconds:.0f}")
            keys = (*columns, "home", "home after")
            figures.append({"place": name, "fold": fold, "seconds": seconds, "refused": reason})
            figures[-1] |= dict(zip(keys, row, strict=True))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
