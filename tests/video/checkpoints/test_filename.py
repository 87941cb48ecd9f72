"""What the published file names say."""

from __future__ import annotations

import pytest

from video.checkpoints.filename import Said, read_name

KINETICS = Said(8, 8, "blockres", True, "both", "kinetics")
MM = "tsm_imagenet-pretrained-"
MM_KINETICS = Said(8, None, None, True, "both", "kinetics400-rgb")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TSM_kinetics_RGB_resnet50_avg_segment5_e50.pth", Said(5, None, None, False, None, "kinetics")),
        ("TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth", KINETICS),
        (
            "TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment16_e50.pth",
            Said(16, 8, "blockres", True, "both", "kinetics"),
        ),
        ("TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e100_dense_nl.pth", KINETICS),
        ("TSM_kinetics_RGB_mobilenetv2_shift8_blockres_avg_segment8_e100_dense.pth", KINETICS),
        ("TSM_kinetics_Flow_resnet50_shift8_blockres_avg_segment8_e50.pth", KINETICS),
        (
            "TSM_somethingv2_RGB_resnet101_shift8_blockres_avg_segment8_e45.pth",
            Said(8, 8, "blockres", True, "both", "somethingv2"),
        ),
        (
            "TSM_something_RGB_resnet50_shift4_block_avg_segment16_e45.pth",
            Said(16, 4, "block", True, "both", "something"),
        ),
        (f"{MM}r50_8xb16-1x1x8-50e_kinetics400-rgb_20220831-64d69186.pth", MM_KINETICS),
        (
            f"{MM}r50_8xb16-1x1x16-50e_kinetics400-rgb_20220831-042b1748.pth",
            Said(16, None, None, True, "both", "kinetics400-rgb"),
        ),
        (f"{MM}r50_8xb16-dense-1x1x8-100e_kinetics400-rgb_20220831-f55d3c2b.pth", MM_KINETICS),
        (f"{MM}mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb_20230414-401127fd.pth", MM_KINETICS),
        (f"{MM}r101_8xb16-1x1x8-50e_sthv2-rgb_20230320-efcc0d1b.pth", Said(8, None, None, True, "both", "sthv2-rgb")),
        (
            "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb_20220906-cd10898e.pth",
            Said(3, None, None, False, None, "kinetics400-rgb"),
        ),
        ("mobilenetv2_jester_online.pth.tar", Said(direction="past")),
        ("resnet50-0676ba61.pth", Said()),
        ("", Said()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_names(name: str, said: Said) -> None:
    assert read_name(name) == said
