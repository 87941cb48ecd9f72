"""Frames in, answers out: decode, decide, and only where it is worth it convert, preprocess and compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from video.preprocess import Preprocess
from video.shift import TemporalShift
from video.skip.policy import COMPUTE, EXIT, REUSE, Decision, Policy, PolicyState
from video.skip.signals import FrameLike, Signals
from video.skip.trace import Trace, TraceEntry


@dataclass(frozen=True)
class FrameResult:
    """The answer for one frame.

    Attributes:
        output: what the network returned on the frame that was computed last; after an exit the mean of all outputs.
        entry: what was done with the frame.
    """

    index: int
    time: float
    output: Any
    entry: TraceEntry


def run(
    source: Any,
    network: Any,
    policy: Policy,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    *,
    skip: str = "none",
    trace: Trace | None = None,
) -> Iterator[FrameResult]:
    """Answer every frame of a video or stream, computing those that the policy asks for.

    Policies on packets know their frames before anything is decoded: only what those need is decoded. The others see
    each frame decoded, and convert to RGB what they compute. Results come as soon as they are known; where the source
    fails half-way, what came before has been given and is in the trace.

    Args:
        source: a `VideoReader`, or a live source (any iterable of frames).
        network: takes [crops, 3, size, size] and returns logits (averaged over several crops) or anything else; or has
            `step(frames, state) -> (output, state)`, as Stream and DeltaNetwork have: the state is kept from computed
            frame to computed frame and begins anew at a scene cut.
        preprocess: from uint8 [1, H, W, 3] to float [crops, 1, 3, size, size]; `Preprocess()` by default.
        skip: "nonref" does not even decode frames that no other frame refers to (many B-frames), "nonkey" decodes key
            frames only; what is not decoded reuses the answer before.
        trace: gathers the entries; without one nothing is kept, as an endless stream needs it.

    Yields:
        One result for each frame in display order. Of a policy with an order of its own (Confidence): one for each
        visited frame in that order (in that of time where the network has temporal shifts, which read the frame
        before) and a last one, of action "exit", with the answer for the whole video; the trace lists all frames that
        were left out.

    Raises:
        ValueError: the policy needs a file and the source is live, or the network is in training mode.
    """
    check_evaluating(network)
    if skip not in ("none", "nonref", "nonkey"):
        raise ValueError(f"skip must be one of none, nonref, nonkey, got {skip!r}")
    prepare = Preprocess() if preprocess is None else preprocess
    answers = Answers(network, prepare, keep_all=policy.reads == "scores")
    return _visit(source, answers, policy, skip, trace)


def check_evaluating(network: Any) -> None:
    """Raise where the network or a part of it is in training mode: its answers would depend on what it saw last."""
    if isinstance(network, nn.Module) and any(module.training for module in network.modules()):
        raise ValueError("network must be in evaluation mode, got one in training mode: call eval() first")


def _visit(source: Any, answers: Answers, policy: Policy, skip: str, trace: Trace | None) -> Iterator[FrameResult]:
    is_file = hasattr(source, "packets")
    if skip != "none" and (not is_file or policy.needs in ("packets", "scores")):
        raise ValueError(f"skip={skip!r} is for files and for policies that decode every frame, not for {policy}")
    if is_file:
        order = policy.order(len(source), source.keyframes)
        if order is not None:
            # Shifts carry the frame before into the next one: any other order than time's gives wrong answers.
            visits = sorted(order) if _remembers(answers.network) else order
            yield from _in_order(source, visits, answers, policy, trace)
            return
        if policy.needs == "packets":
            results = _planned(source, answers, policy)
        else:
            frames = source.frames(motion_vectors=policy.needs == "motion", skip=skip)
            results = _sequential(frames, answers, policy, _Packets(source) if skip != "none" else None)
    elif policy.reads == "scores":
        raise ValueError(f"{type(policy).__name__} visits a whole video in an order of its own, got a live source")
    else:
        results = _sequential(source, answers, policy, None)
    for result in results:
        if trace is not None:
            trace.entries.append(result.entry)
        yield result


def _remembers(network: Any) -> bool:
    """Whether a network, or the one behind `step`, reads the frame before."""
    model = getattr(network, "model", network)
    return isinstance(model, nn.Module) and any(isinstance(module, TemporalShift) for module in model.modules())


class Answers:
    """The network with its explicit state, and the last answer."""

    def __init__(self, network: Any, prepare: Callable[[Tensor], Tensor], keep_all: bool) -> None:
        self._step = getattr(network, "step", None)
        self.network = network
        self._prepare = prepare
        self._state: Any = None
        self._keep_all = keep_all
        self.last: Any = None
        self.best: int | None = None
        self.all: list[Any] = []

    def compute(self, frame: FrameLike, reset: bool, seconds: dict[str, float]) -> None:
        clock = time.process_time()
        rgb = frame.rgb()
        clock = _lap(seconds, "convert", clock)
        x = self._prepare(rgb[None]).flatten(0, 1)
        clock = _lap(seconds, "prepare", clock)
        with torch.no_grad():
            if self._step is not None:
                output, self._state = self._step(x, None if reset else self._state)
            else:
                output = self.network(x)
            if len(x) > 1 and isinstance(output, Tensor):
                output = output.mean(0, keepdim=True)
        _lap(seconds, "network", clock)
        self.last, self.best = output, best_class(output)
        if self._keep_all:
            self.all.append(output)

    def result(
        self, signals: Signals, decision: Decision, state: PolicyState, seconds: dict[str, float], decoded: bool
    ) -> FrameResult:
        """Compute if that was decided, and put the answer together."""
        if decision.action == COMPUTE:
            frame = signals.frame
            self.compute(frame, decision.reset, seconds)
        entry = TraceEntry(
            index=signals.index,
            time=signals.time,
            action=decision.action,
            why=decision.why,
            is_keyframe=signals.is_keyframe,
            packet_size=signals.packet_size,
            signal=decision.signal,
            reset=decision.reset,
            decoded=decoded or decision.action == COMPUTE,
            converted=decision.action == COMPUTE,
            staleness=state.staleness,
            answer=self.best,
            seconds=seconds,
        )
        return FrameResult(signals.index, signals.time, self.last, entry)


class _Packets:
    """The packet table of a file as plain numbers."""

    def __init__(self, reader: Any) -> None:
        table = reader.packets
        self.size, self.is_keyframe, self.time = (column.tolist() for column in table)

    def __len__(self) -> int:
        return len(self.size)

    def signals(self, index: int, **others: Any) -> Signals:
        return Signals(
            index,
            time=self.time[index],
            is_keyframe=self.is_keyframe[index],
            packet_size=self.size[index],
            **others,
        )


def _sequential(
    frames: Iterable[FrameLike], answers: Answers, policy: Policy, packets: _Packets | None
) -> Iterator[FrameResult]:
    """Every frame decoded in order; `packets` where the decoder leaves some out, which then reuse."""
    state = policy.start()
    iterator = iter(frames)
    position = 0
    while True:
        seconds: dict[str, float] = {}
        clock = time.process_time()
        frame = next(iterator, None)
        clock = _lap(seconds, "decode", clock)
        if packets is not None:
            stop = len(packets) if frame is None else frame.index
            for index in range(position if state.seen else stop, stop):
                yield _left_out(packets, index, answers, state)
            position = stop + 1
        if frame is None:
            return
        signals = Signals(
            frame.index,
            time=frame.time,
            is_keyframe=frame.is_keyframe,
            packet_size=frame.packet_size,
            frame=lambda frame=frame: frame,  # type: ignore[misc]
            scores=answers.last,
        )
        decision = policy.decide(signals, state)
        _lap(seconds, "signals", clock)
        yield answers.result(signals, decision, state, seconds, decoded=True)


def _left_out(packets: _Packets, index: int, answers: Answers, state: PolicyState) -> FrameResult:
    state.seen += 1
    state.staleness += 1
    return answers.result(packets.signals(index), Decision(REUSE, "not decoded"), state, {}, decoded=False)


def _planned(reader: Any, answers: Answers, policy: Policy) -> Iterator[FrameResult]:
    """All decisions first, from the packets alone; then only what the computed frames need is decoded."""
    packets = _Packets(reader)
    state = policy.start()
    chosen = [index for index in range(len(packets)) if policy.decide(packets.signals(index), state).action == COMPUTE]
    passed = _decoded_on_the_way(chosen, packets.is_keyframe)
    decoder = reader.decode(chosen)
    state = policy.start()
    for index in range(len(packets)):
        seconds: dict[str, float] = {}
        signals = packets.signals(index, frame=lambda: next(decoder))
        clock = time.process_time()
        decision = policy.decide(signals, state)
        clock = _lap(seconds, "signals", clock)
        if decision.action == COMPUTE:
            signals.frame  # noqa: B018  decodes
            _lap(seconds, "decode", clock)
        yield answers.result(signals, decision, state, seconds, index in passed)


def _in_order(
    reader: Any, order: Sequence[int], answers: Answers, policy: Policy, trace: Trace | None
) -> Iterator[FrameResult]:
    """The frames of `order` until the policy exits, then the answer of them all; the trace lists the others."""
    packets = _Packets(reader)
    state = policy.start()
    decoder = reader.decode(order)
    visited: list[FrameResult] = []
    decision = Decision(EXIT, "all visited")
    for index in order:
        seconds: dict[str, float] = {}
        signals = packets.signals(index, frame=lambda: next(decoder), scores=answers.last, outputs=answers.all)
        clock = time.process_time()
        verdict = policy.decide(signals, state)
        clock = _lap(seconds, "signals", clock)
        if verdict.action == EXIT:
            decision = verdict
            break
        signals.frame  # noqa: B018  decodes
        _lap(seconds, "decode", clock)
        visited.append(answers.result(signals, verdict, state, seconds, decoded=True))
        if trace is not None:
            trace.entries.append(visited[-1].entry)
        yield visited[-1]
    if not visited:
        return
    answers.last = torch.stack(answers.all).mean(0)
    answers.best = best_class(answers.last)
    seen = [result.index for result in visited]
    passed = _decoded_on_the_way(seen, packets.is_keyframe)
    left = [
        answers.result(packets.signals(index), decision, PolicyState(), {}, index in passed)
        for index in sorted(set(range(len(packets))) - set(seen))
    ]
    if trace is not None:
        trace.entries.extend(result.entry for result in left)
    if left:
        yield left[0]
    else:  # every frame was visited: the answer for the video belongs to the last of them
        yield answers.result(packets.signals(seen[-1]), decision, PolicyState(), {}, decoded=True)


def _decoded_on_the_way(visits: Sequence[int], is_keyframe: Sequence[bool]) -> set[int]:
    """Frames that are decoded when `visits` are, in their order: at most those from the key frame before each."""
    passed: set[int] = set()
    position = -1
    for index in visits:
        key = index
        while key > 0 and not is_keyframe[key]:
            key -= 1
        first = position + 1 if key <= position < index else key
        passed.update(range(first, index + 1))
        position = index
    return passed


def best_class(output: Any) -> int | None:
    """The best class of logits [1, classes] or [classes]; None of anything else."""
    if not isinstance(output, Tensor) or output.numel() == 0 or output.numel() != output.shape[-1:].numel():
        return None
    return int(output.argmax())


def _lap(seconds: dict[str, float], stage: str, since: float) -> float:
    now = time.process_time()
    seconds[stage] = seconds.get(stage, 0.0) + now - since
    return now
