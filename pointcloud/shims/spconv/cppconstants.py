"""spconv.cppconstants: what was compiled. Nothing was; layers run on every device that torch has."""

from __future__ import annotations

from pointcloud.shims.spconv.refusal import refuse

BUILD_CUMM_VERSION = ""
BUILD_PCCM_VERSION = ""
COMPILED_CUDA_ARCHS: set[tuple[int, int]] = set()
COMPILED_CUDA_GEMM_ARCHS: set[tuple[int, int]] = set()
CPU_ONLY_BUILD = False
HAS_BOOST = False

refuse(globals(), "BoxOps CompileInfo SpconvOps", "it is compiled C++ of spconv")
