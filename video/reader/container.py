"""Opening of a video file: every way in which it can be no video gets its own error."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from video.reader.errors import VideoError

if TYPE_CHECKING:
    import av


def import_av() -> Any:
    """The PyAV module, with an error that names the extra where it is not installed."""
    try:
        import av
        import av.logging
    except ImportError as error:
        raise ImportError("reading video needs PyAV: pip install 'trisparse[video]'") from error
    return av


def check_file(path: str) -> None:
    """Raises FileNotFoundError, IsADirectoryError, PermissionError or VideoError unless `path` is a readable file."""
    if isinstance(path, bytes):
        raise TypeError(f"path must be a str or os.PathLike[str], got {path!r}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such video file: {path!r}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"expected a video file, got a directory: {path!r}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"no permission to read the video file: {path!r}")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: expected a video file, got a pipe or device: open_live reads these")
    if os.path.getsize(path) == 0:
        raise VideoError(f"{path}: expected a video file, got an empty file (0 bytes)")


FileMark = tuple[int, int]


def file_mark(path: str) -> FileMark:
    """Size in bytes and time of the last change in ns: other ones, another file."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: str, mark: FileMark) -> None:
    """VideoError unless the file is the one whose mark was taken; FileNotFoundError where there is none."""
    now = file_mark(path)
    if now != mark:
        raise VideoError(
            f"{path}: the file changed since it was indexed ({mark[0]} bytes then, {now[0]} bytes now, or written "
            "later): make a new VideoReader"
        )


def open_file(path: str) -> av.container.InputContainer:
    """`open_container` of the file of just this name: FFmpeg might see a protocol in it (a:b), or a pattern (%d)."""
    return open_container(path, {"pattern_type": "none"}, name=f"file:{path}")


def open_container(
    source: str, options: dict[str, str] | None = None, file: Any = None, name: str | None = None, **kwargs: Any
) -> av.container.InputContainer:
    """FFmpeg's container of a file, device or URL, or what `file.read` gives; VideoError where it is not one.

    `name`: what FFmpeg is told instead of the source, which errors name.
    """
    av = import_av()
    try:
        return av.open(
            (name or source) if file is None else file,
            mode="r",
            options=options or {},
            metadata_errors="replace",
            **kwargs,
        )
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise VideoError(
            f"{source}: expected a video file, got data that FFmpeg cannot read ({error.strerror})"
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            if name is None:
                raise
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else PermissionError
            raise kind(error.errno, error.strerror, source) from error
        raise VideoError(f"{source}: could not be opened ({error.strerror or error})") from error


def video_stream(container: av.container.InputContainer, source: str) -> av.video.stream.VideoStream:
    """The first stream of moving pictures (cover art is none); VideoError where there is none."""
    av = import_av()
    attached = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & attached:
            if stream.codec_context is None:
                raise VideoError(f"{source}: FFmpeg has no decoder for its video stream")
            for other in container.streams:
                if other is not stream and hasattr(other, "discard"):
                    other.discard = av.stream.Discard.all  # packets of sound and text are not even read
            return stream
    found = ", ".join(sorted({_kind(stream) for stream in container.streams})) or "none"
    raise VideoError(f"{source}: expected a file with a video stream, got streams of type: {found}")


def _kind(stream: Any) -> str:
    return "cover art" if stream.type == "video" else str(stream.type)


def set_threads(stream: av.video.stream.VideoStream, threads: int) -> None:
    """`threads` decoding threads; 1 decodes in the calling thread, 0 takes as many as FFmpeg finds cores."""
    context = stream.codec_context
    context.thread_count = threads
    context.thread_type = "NONE" if threads == 1 else "AUTO"


def release(container: av.container.InputContainer, pid: int) -> None:
    """Close a container that process `pid` opened; in a forked child of it, keep it for ever instead.

    The threads of its decoder do not exist in the child: freeing the decoder there would wait for them without end.
    """
    if os.getpid() == pid:
        container.close()
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(container))
