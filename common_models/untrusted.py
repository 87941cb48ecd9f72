"""Files of tensors that others wrote, which are taken for hostile: nothing in them is executed."""

from __future__ import annotations

import errno
import hashlib
import io
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from common_kernels.checks import describe

# Publishers' tools append the digest's first eight digits: resnet50-0676ba61.pth.
NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")
MIN_DIGEST = 8
# What frameworks of training keep beside the weights. It is not read: an `Inert` stands in its place.
FRAMEWORKS = {
    "addict", "easydict", "lightning", "lightning_fabric", "mmcv", "mmdet", "mmdet3d", "mmengine", "mmseg", "numpy",
    "omegaconf", "pcdet", "pointcept", "pytorch_lightning", "yacs",
}  # fmt: skip
HARMLESS = {
    "_codecs.encode", "argparse.Namespace", "collections.deque", "copy_reg._reconstructor", "datetime.date",
    "datetime.datetime", "datetime.timedelta", "datetime.timezone", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.PurePosixPath", "pathlib.WindowsPath", "__builtin__.object", "builtins.object",
}  # fmt: skip
STREAMS = 5  # pickles one after another in a file of torch before 1.6


class Inert:
    """Stands for an object of a class that is not loaded; it ignores whatever it is made of."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def check_digest(path: Path, sha256: str | None) -> None:
    """Raise ValueError unless the file's SHA-256 begins with these digits.

    Args:
        sha256: the digits, eight at least; by default those at the end of its name (`resnet50-0676ba61.pth`), if any.
    """
    if sha256 is None:
        named = NAMED_DIGEST.search(path.name)
        if named is None:
            return
        sha256 = named[1]
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST},64}}", sha256.lower()):
        raise ValueError(f"sha256 must be {MIN_DIGEST} to 64 hexadecimal digits, got {sha256!r}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(sha256.lower()):
        raise ValueError(f"{path}: its SHA-256 must begin with {sha256.lower()}, got {digest.hexdigest()[:16]}…")


def read_untrusted(path: Path) -> object:
    """What a safetensors file holds, or one that torch.save wrote; tensors on the CPU.

    Objects of the frameworks that train networks are replaced by `Inert`, their code is neither loaded nor run.

    Raises:
        ValueError: a file of another kind, or one that names other code; the message lists the names.
        OSError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    named: list[str] = []
    try:
        _check_archive(path)
        named = sorted(set(_globals_in(path)))
        stand_ins: list[Any] = [(type(name, (Inert,), {}), name) for name in named if _is_inert(name)]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _RefusedError as error:
        raise ValueError(f"{path} is {error}") from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no file of tensors alone, and nothing else is loaded: {_why(error, named)}"
        ) from None
    except Exception as error:  # whatever the parsers raise on a file that is none
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek to a place that is none
            raise
        raise ValueError(f"{path} is not a checkpoint: {type(error).__name__}: {error}") from None


class _RefusedError(Exception):
    """What a file is instead of a checkpoint."""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("weights files need safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _check_archive(path: Path) -> None:
    """torch.save stores; an archive that is compressed could hold more than the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(info.filename.endswith("/constants.pkl") for info in entries):
            raise _RefusedError("a TorchScript archive, which holds code: a state dict was expected")
        packed = [info.filename for info in entries if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise _RefusedError(f"not a checkpoint: {packed[0]!r} in it is compressed, torch.save stores")
    elif tarfile.is_tarfile(path):
        raise _RefusedError(
            "a tar archive, of the first versions of torch or another: torch cannot read it without running what it "
            "says. Expected a state dict saved by a newer torch"
        )


def _is_inert(name: str) -> bool:
    return name.split(".")[0] in FRAMEWORKS or name in HARMLESS


def _why(error: pickle.UnpicklingError, named: list[str]) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused is None:
        return "it is not in the format of torch.save"
    others = {name for name in named if not _is_inert(name) and name.split(".")[0] not in ("torch", "collections")}
    return f"it names the code GLOBAL {', '.join(sorted({refused[1], *others}))}"


def _globals_in(path: Path) -> Iterator[str]:
    """Names of functions and classes in the pickles of a file, found without running them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith("data.pkl"):
                    yield from _globals_of(io.BytesIO(archive.read(entry)))
        return
    with open(path, "rb") as file:
        for _ in range(STREAMS):
            yield from _globals_of(file)


def _globals_of(stream: BinaryIO) -> Iterator[str]:
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # what is no pickle; torch.load says so
        return


def check_tensors(state: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    """The same as a dict, if it is one of dense tensors by name.

    Raises:
        ValueError: there is something else in it, or a tensor that claims more than is stored. `name` says where.
    """
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{name}: its state dict must hold tensors, got {type(value).__name__} for {key!r}")
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name}: {key} must be a dense tensor, got {value.layout}")
        # A view of one number may claim any shape.
        if value.device.type != "meta" and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name}: {key} claims {describe(value)}, more than is stored")
    return dict(state)
