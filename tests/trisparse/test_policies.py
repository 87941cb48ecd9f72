"""Policies from the command line: what is made of `name:argument`, and what is said of what cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nlp import prune
from trisparse import policies
from trisparse.policies import FRAMES, TOKENS, Family, parse_policy, parse_prune
from video import skip


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("every:3", skip.EveryNth(3)),
        ("keyframes", skip.KeyFrames()),
        ("packets:400", skip.PacketSize(400)),
        ("luma", skip.LumaDifference()),
        ("luma:1.5", skip.LumaDifference(1.5)),
        ("motion:2", skip.MotionVectors(2)),
        ("exit", skip.Confidence(0.9)),
        ("exit:0.5", skip.Confidence(0.5)),
    ],
)
def test_frames(text: str, policy: skip.Policy) -> None:
    found = parse_policy(text)
    assert type(found) is type(policy) and vars(found) == vars(policy)


def test_limits_reach_the_policy() -> None:
    found = parse_policy("every:3", max_staleness=7, scene_cut=12.5)
    assert (found.max_staleness, found.scene_cut) == (7, 12.5)
    with pytest.raises(ValueError, match="states its own limits, --max-staleness and --scene-cut cannot be given"):
        parse_policy("gate:gate.safetensors", 7, 12.5)


@pytest.mark.parametrize(
    ("text", "written", "policy"),
    [
        ("cascade", "cascade:0.5", prune.Cascade(0.5)),
        ("merge:0.70", "merge:0.7", prune.Merge(0.7)),
        ("mass:0.9", "mass:0.9", prune.Mass(0.9)),
        ("threshold", "threshold:0.5", prune.Threshold(0.5)),
    ],
)
def test_tokens(text: str, written: str, policy: prune.Policy) -> None:
    assert parse_prune(text) == (written, policy)


@pytest.mark.parametrize(
    ("family", "text", "words"),
    [
        (FRAMES, "every", "--policy every must be written every:N, got 'every'"),
        (FRAMES, "luma:", "--policy luma must be written luma[:LEVELS], got 'luma:'"),
        (FRAMES, "keyframes:3", "--policy keyframes takes no argument, got 'keyframes:3'"),
        (FRAMES, "every:1.5", "--policy every:1.5: a whole number was expected after the colon, got '1.5'"),
        (FRAMES, "every:0", "--policy every:0: n must be at least 1"),
        (FRAMES, "lumma:2", "luma[:LEVELS], motion:PIXELS, gate:FILE, exit[:PROBABILITY], got 'lumma:2'; did you mean"),
        (TOKENS, "mass:inf", "--prune mass:inf: a finite number was expected after the colon, got 'inf'"),
        (TOKENS, "luma", "--prune must be one of cascade[:KEEP], merge[:KEEP], mass[:SHARE], threshold[:THETA], got"),
    ],
)
def test_texts_that_are_no_policies(family: Family, text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        family.parse(text)
    assert words in str(caught.value)


def test_every_policy_of_the_packages_can_be_asked_for() -> None:
    frames = {name for name in skip.__all__ if isinstance(getattr(skip, name), type)}
    known = {kind.policy for kind in FRAMES.kinds.values()}
    assert known == {name for name in frames if issubclass(getattr(skip, name), skip.Policy)} - {"Policy"}
    assert {kind.policy for kind in TOKENS.kinds.values()} < set(prune.__all__)


def test_names_need_no_torch() -> None:
    code = "import sys, trisparse.policies; print('torch' in sys.modules)"
    root = Path(policies.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
