"""VideoReader as a sequence: numbers, slices, batches, times, seeks, copies of it in other processes."""

from __future__ import annotations

import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips import av, texture, write_clip
from video.reader import Frame, VideoReader
from video.reader.decoder import Decoder

N = 36


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 frames with a key frame every 10 and B-frames between."""
    path = tmp_path_factory.mktemp("reader") / "clip.mp4"
    return write_clip(path, [texture(i) for i in range(N)], options={"x264-params": "scenecut=0"})


@pytest.fixture
def seeks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The key frames (rows of the index) that decoders seek to from here on."""
    made: list[int] = []
    seek = Decoder._seek

    def counted(self: Decoder, key: int) -> bool:
        made.append(key)
        return seek(self, key)

    monkeypatch.setattr(Decoder, "_seek", counted)
    return made


def test_numbers_slices_and_iteration(clip: Path) -> None:
    with VideoReader(clip) as reader:
        everything = list(reader)
        assert len(reader) == len(everything) == N
        whole = torch.stack(everything)
        assert whole.dtype == torch.uint8 and whole.shape == (N, 48, 64, 3)
        assert torch.equal(reader[:], whole)
        assert torch.equal(reader[7], whole[7]) and torch.equal(reader[-1], whole[-1])
        assert torch.equal(reader[30:3:-4], whole[list(range(30, 3, -4))])
        assert torch.equal(reader[-5:99], whole[-5:])
        assert reader[5:5].shape == (0, 48, 64, 3)


def test_frames_are_the_encoded_ones(clip: Path) -> None:
    with VideoReader(clip) as reader:
        for i in (0, 9, 10, 11, 25, N - 1):
            assert (reader[i].float() - torch.from_numpy(texture(i)).float()).abs().mean() < 12, i
            assert abs(float(reader[i][2:6, 2:6].float().mean()) - (7 * i % 200 + 20)) < 4, i


def test_batch_keeps_the_order_asked_for(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        asked = [20, 3, 3, -1, 0, 21, 20, -N]
        for indices in (asked, torch.tensor(asked), iter(asked)):
            assert torch.equal(reader.get_batch(indices), whole[asked])
        assert reader.get_batch([]).shape == (0, 48, 64, 3)
        assert reader.get_batch([], size=12).shape == (0, 12, 16, 3)
        assert reader.get_batch([1], size=(5, 7)).shape == (1, 5, 7, 3)


@pytest.mark.parametrize("index", [N, -N - 1, 10**9])
def test_index_out_of_range(clip: Path, index: int) -> None:
    with VideoReader(clip) as reader:
        for read in (reader.__getitem__, lambda i: reader.get_batch([0, i]), lambda i: next(reader.decode([i]))):
            with pytest.raises(IndexError, match=f"clip.mp4: frame index must be within -{N} and {N - 1}.*got {index}"):
                read(index)


@pytest.mark.parametrize("index", [1.5, "3", None])
def test_index_that_is_no_integer(clip: Path, index: object) -> None:
    with VideoReader(clip) as reader, pytest.raises(TypeError, match="frame index must be an integer, got"):
        reader.get_batch([index])  # type: ignore[list-item]


def test_times(clip: Path) -> None:
    with VideoReader(clip) as reader:
        assert reader.timestamps.dtype == torch.float64
        assert reader.timestamps.tolist() == pytest.approx([i / 25 for i in range(N)])
        assert reader.fps == pytest.approx(25) and reader.duration == pytest.approx(N / 25)
        assert reader.keyframes == [0, 10, 20, 30]
        assert (reader.height, reader.width, reader.rotation) == (48, 64, 0)
        assert [reader.index_at(t) for t in reader.timestamps.tolist()] == list(range(N))
        assert reader.index_at(0.05) == 1 and reader.index_at(0.079) == 1
        for wrong in (math.nan, math.inf, -0.1, 99):
            with pytest.raises(ValueError, match=f"seconds must be.*got {wrong}"):
                reader.index_at(wrong)


def test_uneven_times(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 30, 31, 32, 50]
    path = write_clip(tmp_path / "uneven.mkv", [texture(i) for i in range(9)], ticks=ticks)
    with VideoReader(path) as reader:
        assert reader.timestamps.tolist() == pytest.approx([t / 25 for t in ticks], abs=1e-3)
        assert reader.index_at(9.5 / 25) == 2 and reader.index_at(10.5 / 25) == 3


def test_packets_need_no_decoding(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "_frames", None)
    reader = VideoReader(clip)
    table = reader.packets
    assert table.size.shape == table.is_keyframe.shape == table.time.shape == (N,)
    assert table.is_keyframe.nonzero().flatten().tolist() == [0, 10, 20, 30]
    assert 0 < int(table.size.min()) and int(table.size.sum()) < clip.stat().st_size
    assert table.size[table.is_keyframe].float().mean() > 2 * table.size[~table.is_keyframe].float().mean()
    reader.close()


def test_reading_on_does_not_seek(clip: Path, seeks: list[int]) -> None:
    with VideoReader(clip) as reader:
        for i in range(N):
            reader[i]
        assert seeks == [0]
        reader[N - 1]  # the last frame is kept
        assert seeks == [0]
        reader.get_batch([31, 22, 25, 24])
        assert seeks == [0, 2, 3]
        reader[34]
        assert seeks == [0, 2, 3]


def test_a_read_that_was_given_up_leaves_nothing_behind(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        frames = reader.decode([0, 8])
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        # On the way to frame 8 unreferenced pictures may have been left out: these must not be missing now.
        for i in (1, 2, 3, 4, 5, 6, 7):
            assert torch.equal(reader[i], whole[i]), i


def test_reads_while_iterating(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        for i, (frame, image) in enumerate(zip(reader.frames(), reader)):
            assert frame.index == i and torch.equal(frame.rgb(), image) and torch.equal(image, whole[i])
            assert torch.equal(reader[(7 * i) % N], whole[(7 * i) % N])


def test_frames_in_the_order_asked_for(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        asked = [12, 30, 4, 4, 5, -1, 0]
        frames = list(reader.decode(asked))
        assert [frame.index for frame in frames] == [i % N for i in asked]
        assert all(torch.equal(frame.rgb(), whole[frame.index]) for frame in frames)


def test_skipping_by_kind(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        key = list(reader.frames(skip="nonkey"))
        assert [frame.index for frame in key] == reader.keyframes and all(frame.is_keyframe for frame in key)
        referenced = list(reader.frames(skip="nonref"))
        assert set(reader.keyframes) < {frame.index for frame in referenced} < set(range(N))
        for frame in (*key, *referenced):
            assert torch.equal(frame.rgb(), whole[frame.index])
        assert [frame.index for frame in reader.frames(5, 25, skip="nonkey")] == [10, 20]
        assert list(reader.frames(1, 9, skip="nonkey")) == []
        with pytest.raises(ValueError, match="skip must be one of 'none', 'nonref', 'nonkey', got 'all'"):
            reader.frames(skip="all")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_nothing(clip: Path, threads: int) -> None:
    with VideoReader(clip) as one, VideoReader(clip, threads=threads) as reader:
        whole = one[:]
        assert torch.equal(reader[:], whole)
        assert torch.equal(reader.get_batch([33, 5, 14, 15]), whole[[33, 5, 14, 15]])


def test_wrong_settings(clip: Path) -> None:
    for threads in (-1, 1.5, True):
        with pytest.raises(ValueError, match="threads must be an integer"):
            VideoReader(clip, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"backend must be one of 'pyav', .*got 'pyaw'; did you mean 'pyav'\?"):
        VideoReader(clip, backend="pyaw")


def test_closing(clip: Path) -> None:
    reader = VideoReader(clip)
    first = reader[3]
    frames = reader.frames()
    next(frames)
    reader.close()
    reader.close()
    assert torch.equal(reader[3], first)  # opened again
    assert next(frames).index == 1
    with reader:
        pass


def test_pickled(clip: Path) -> None:
    reader = VideoReader(clip, threads=2)
    expected = reader[11]
    copy = pickle.loads(pickle.dumps(reader))
    assert (len(copy), copy.threads, copy.backend) == (N, 2, "pyav")
    assert torch.equal(copy[11], expected) and torch.equal(reader[11], expected)


def _checksum(reader: VideoReader, i: int, results: multiprocessing.Queue) -> None:
    results.put((i, int(reader[i].long().sum())))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_in_the_middle_of_a_file(clip: Path, threads: int) -> None:
    reader = VideoReader(clip, threads=threads)
    reader[12]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_checksum, args=(reader, i, results)) for i in (13, 25, 5)]
    for child in children:
        child.start()
    mine = {i: int(reader[i].long().sum()) for i in (13, 25, 5)}
    theirs = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert mine == theirs


class _Frames(torch.utils.data.Dataset):
    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.reader[i]


def test_workers_of_a_data_loader(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole = reader[:]
        loader = torch.utils.data.DataLoader(_Frames(reader), batch_size=5, num_workers=2)
        assert torch.equal(torch.cat(list(loader)), whole)


def test_frame_says_what_its_packet_says(clip: Path) -> None:
    with VideoReader(clip) as reader:
        table = reader.packets
        for frame in reader.frames():
            assert isinstance(frame, Frame)
            assert frame.time == table.time[frame.index] and frame.packet_size == table.size[frame.index]
            assert frame.is_keyframe == bool(table.is_keyframe[frame.index])


def test_stream_without_times(tmp_path: Path) -> None:
    """Raw H.264 has no presentation times at all: frames are counted."""
    raw = write_clip(tmp_path / "raw.h264", [texture(i) for i in range(25)], format="h264")
    with av.open(str(raw)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    whole = torch.from_numpy(np.stack(images))
    with VideoReader(raw) as reader:
        assert reader.index.by_count and len(reader) == 25
        assert torch.equal(reader.get_batch([20, 3, 4, 24]), whole[[20, 3, 4, 24]])
        assert torch.equal(reader[7], whole[7])
        assert torch.equal(torch.stack(list(reader)), whole)
        assert reader.timestamps.tolist() == pytest.approx([i / 25 for i in range(25)])


def test_frames_that_share_a_time(tmp_path: Path) -> None:
    path = tmp_path / "shared.mkv"
    ticks = [0, 1, 2, 2, 3, 4, 4, 4, 5]
    write_clip(path, [texture(i) for i in range(9)], codec="ffv1", ticks=ticks)
    with VideoReader(path) as reader:
        assert len(reader) == 9
        for order in ([2], [3], [7, 6, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 3, 6]):
            for i, image in zip(order, reader.get_batch(order)):
                assert abs(float(image[2:6, 2:6].float().mean()) - (7 * i % 200 + 20)) < 4, (order, i)
        levels = [float(frame.rgb()[2:6, 2:6].float().mean()) for frame in reader.frames()]
        assert levels == pytest.approx([7 * i + 20 for i in range(9)], abs=4)
