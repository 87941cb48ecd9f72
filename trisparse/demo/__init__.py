"""The demonstration: sweeps labelled, clips answered, texts embedded, beside what others do; one page with pictures."""

from __future__ import annotations

import textwrap
from datetime import datetime
from pathlib import Path

import torch

from trisparse import clouds, machine, terminal
from trisparse.demo import comparison, language, scenes, videos
from trisparse.demo.report import Page, write_page


def run(folder: Path, model: str, compare: bool = True) -> Path:
    """Label the sweeps, time the peers, answer the clips, embed the texts, write all to `folder`; the page's path.

    Raises:
        ValueError, OSError: an unknown model, a folder that cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = clouds.load_segmenter(model, "auto")
    found, skipped = scenes.scenes()
    shown = []
    for scene in found:
        print(f"{scene.title}", flush=True)
        result = scenes.label_scene(scene, segmenter, folder)
        print(clouds.describe(result.result, segmenter))
        if result.mean_iou is not None:
            right = f"{result.accuracy:.1%} of the points right, mean IoU {result.mean_iou:.3f}"
            print(f"\n  against the true labels: {right}")
        print()
        shown.append(result)

    table = None
    if compare:
        # The cloud that needs no data, so that the table means the same on every machine.
        print("spconv and ours, one sweep, the same weights (medians; a minute)", flush=True)
        table = comparison.compare(shown[0].result.cloud)
        skipped += table.skipped
        print(terminal.table(table.cells(), comparison.HEADER, left=4))
        print(textwrap.fill(table.caption, 110, initial_indent="  ", subsequent_indent="  "))
    else:
        skipped.append("the comparison with spconv: not wanted (--no-compare)")
    print("\nVideo: every frame answered, densely and by what changes (a minute)", flush=True)
    shown_videos = videos.videos(folder, lambda text: print(f"  {text}", flush=True))
    skipped += shown_videos.skipped
    if shown_videos.clips:
        print(terminal.table(shown_videos.cells(), videos.HEADER, left=2))
        for paragraph in filter(None, (shown_videos.caption, shown_videos.motion)):
            print(textwrap.fill(paragraph, 110, initial_indent="  ", subsequent_indent="  "))
    print("\nLanguage: texts of uneven length embedded, padded, packed and pruned (half a minute)", flush=True)
    texts = language.language(folder, lambda text: print(f"  {text}", flush=True))
    skipped += texts.skipped
    if texts.rows:
        print(terminal.table(texts.cells(), language.HEADER, left=2))
        for paragraph in (texts.caption, texts.finding):
            print(textwrap.fill(paragraph, 110, initial_indent="  ", subsequent_indent="  "))
    print("".join(f"\nskipped: {reason}" for reason in skipped))
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
