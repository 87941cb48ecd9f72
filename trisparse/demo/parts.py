"""The parts of the demonstration in their order, printed as they are done, and their page."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pointcloud.segment import Segmenter
from trisparse import clouds, machine, terminal
from trisparse.demo import comparison, language, scenes, videos
from trisparse.demo.report import Page, write_page

if TYPE_CHECKING:
    from trisparse.demo import Progress
    from trisparse.demo.kernels import Compilation


def write_demonstration(
    folder: Path, model: str, compare: bool, quick: bool, progress: Progress, compilation: Compilation
) -> Path:
    """Do all parts, what convinces first, and write their page to `folder`; the page's path."""
    segmenter = clouds.load_segmenter(model, "auto")
    shown, skipped = _label(segmenter, folder, quick, progress)

    progress.begin(f"Video: every frame answered, densely and by what changes ({'10' if quick else '40'} s)")
    compilation.wait("video")
    shown_videos = videos.videos(folder, progress.say, quick)
    skipped += shown_videos.skipped
    if shown_videos.clips:
        print(terminal.table(shown_videos.cells(), videos.HEADER, left=2), flush=True)
        progress.paragraphs(shown_videos.caption, shown_videos.motion)

    progress.begin(f"Language: texts of uneven length, padded, packed and pruned ({'10' if quick else '20'} s)")
    compilation.wait("texts")
    texts = language.language(folder, progress.say, quick)
    skipped += texts.skipped
    if texts.rows:
        print(terminal.table(texts.cells(), language.HEADER, left=2), flush=True)
        progress.paragraphs(texts.caption, texts.finding)

    table = None
    if compare:
        # The last is the simulated one where there is time for it: its table means the same on every machine.
        progress.begin(f"spconv and ours on one sweep, the same weights ({'5' if quick else '30'} s)")
        table = comparison.compare(shown[-1].result.cloud, whole=not quick)
        skipped += table.skipped
        print(terminal.table(table.cells(), comparison.HEADER, left=4))
        progress.paragraphs(f"{shown[-1].scene.title}. {table.caption}")
    else:
        skipped.append("the comparison with spconv: not wanted (--no-compare)")

    print("".join(f"\nskipped: {reason}" for reason in skipped), flush=True)
    page = Page(
        scenes=shown,
        comparison=table,
        videos=shown_videos,
        language=texts,
        card=segmenter.model.card,  # type: ignore[arg-type]
        model=model,
        unlabelled=clouds.why_unlabelled(segmenter),
        dtype=clouds.computes_in(segmenter),
        threads=torch.get_num_threads(),
        skipped=skipped,
        cpu=machine.cpu(),
        features=machine.cpu_features(),
        gpu=machine.gpu(),
        load=machine.load(),
        versions=machine.versions(),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )
    return write_page(page, folder / "report.html")


def _label(
    segmenter: Segmenter, folder: Path, quick: bool, progress: Progress
) -> tuple[list[scenes.Labelled], list[str]]:
    """The real sweeps first, labelled, then the simulated one; a quick demonstration has the first only."""
    found, skipped = scenes.real_scenes()
    if quick:
        found = found[:1]
    labelled = []
    for scene in found:
        labelled.append(_label_one(scene, segmenter, folder, progress))
    if quick and labelled:
        return labelled, [*skipped, "the other sweeps: not in a quick demonstration"]
    labelled.append(_label_one(scenes.simulated_scene(), segmenter, folder, progress))
    return labelled, skipped


def _label_one(scene: scenes.Scene, segmenter: Segmenter, folder: Path, progress: Progress) -> scenes.Labelled:
    progress.begin(scene.title)
    shown = scenes.label_scene(scene, segmenter, folder)
    print(clouds.describe(shown.result, segmenter), flush=True)
    if shown.mean_iou is not None:
        right = f"{shown.accuracy:.1%} of the points right, mean IoU {shown.mean_iou:.3f}"
        print(f"\n  against the true labels: {right}", flush=True)
    scenes.draw_scene(shown)
    return shown
