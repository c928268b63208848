"""Published and independently counted numbers of EfficientNets, to the unit.

Parameters (batch norm included) and multiply-adds of convolutions and linear layers of one picture. Rows of `RELEASED`,
`TABLE_7` and the first three of `SMALL_INPUT` are identical in timm 1.0.31, torchvision 0.28, efficientnet-pytorch
0.7.1 and fvcore (convolution + linear operators) and in torch's FlopCounterMode / 2; the others in timm 1.0.31, fvcore
and FlopCounterMode. Activations are elements of convolution outputs, in millions; B0's 6.74 is also the published one.
Paper: Tan & Le 2019, arXiv 1905.11946v5, Tables 2 and 7. `SHARES` are exact Shapley shares of the growth of ln(MACs)
    over B0.
"""

from __future__ import annotations

from typing import NamedTuple


class Golden(NamedTuple):
    """One network: coefficients, then what it is. `blocks` and `final` (cells a side) are of the network as built."""

    name: str
    width: float
    depth: float
    resolution: int
    stem_stride: int
    classes: int
    params: int
    macs: int
    blocks: int
    final: int
    activations: float | None = None


RELEASED = (
    Golden("b0", 1.0, 1.0, 224, 2, 1000, 5_288_548, 385_814_752, 16, 7, 6.74),
    Golden("b1", 1.0, 1.1, 240, 2, 1000, 7_794_184, 686_802_832, 23, 8, 10.87),
    Golden("b2", 1.1, 1.2, 260, 2, 1000, 9_109_994, 993_561_872, 23, 9, 13.82),
    Golden("b3", 1.2, 1.4, 300, 2, 1000, 12_233_232, 1_827_141_392, 26, 10, 23.81),
    Golden("b4", 1.4, 1.8, 380, 2, 1000, 19_341_616, 4_393_771_024, 32, 12, 49.46),
    Golden("b5", 1.6, 2.2, 456, 2, 1000, 30_389_784, 10_266_384_752, 39, 15, 98.82),
    Golden("b6", 1.8, 2.6, 528, 2, 1000, 43_040_704, 19_067_593_536, 45, 17, 167.3),
    Golden("b7", 2.0, 3.1, 600, 2, 1000, 66_347_960, 37_745_884_192, 55, 19, 289.9),
)

TABLE_7 = (  # the arms of the paper's own comparison; 291 = floor(224 * 1.3)
    Golden("depth4", 1.0, 4.0, 224, 2, 1000, 20_091_856, 1_575_132_640, 64, 7, 22.74),
    Golden("width2", 2.0, 1.0, 224, 2, 1000, 18_122_720, 1_449_958_848, 16, 7, 13.48),
    Golden("resolution2", 1.0, 1.0, 448, 2, 1000, 5_288_548, 1_537_537_408, 16, 14, 26.95),
    Golden("compound", 1.2, 1.4, 291, 2, 1000, 12_233_232, 1_800_091_280, 26, 10, 22.97),
)

AROUND_TABLE_7 = (  # nearest to 1.8 G and to four times B0 on each axis, and the plateaus of the resolution staircase
    Golden("compound-288", 1.2, 1.4, 288, 2, 1000, 12_233_232, 1_589_198_096, 26, 9),
    Golden("compound-292", 1.2, 1.4, 292, 2, 1000, 12_233_232, 1_800_091_280, 26, 10),
    Golden("compound-296", 1.2, 1.4, 296, 2, 1000, 12_233_232, 1_809_892_064, 26, 10),
    Golden("depth13/3", 1.0, 13 / 3, 224, 2, 1000, 23_185_444, 1_782_167_392, 72, 7),
    Golden("depth11/3", 1.0, 11 / 3, 224, 2, 1000, 19_192_432, 1_503_182_176, 61, 7),  # 3 * 11/3 is 11 blocks
    Golden("depth3.666667", 1.0, 3.666667, 224, 2, 1000, 19_503_904, 1_551_934_816, 63, 7),  # 11.000001 is 12
    Golden("width2.225", 2.225, 1.0, 224, 2, 1000, 21_831_082, 1_818_842_096, 16, 7),
    Golden("width2.095", 2.095, 1.0, 224, 2, 1000, 19_546_508, 1_535_483_888, 16, 7),
    Golden("resolution480", 1.0, 1.0, 480, 2, 1000, 5_288_548, 1_764_748_000, 16, 15),
)

SMALL_INPUT = (  # 10 classes
    Golden("b0-32", 1.0, 1.0, 32, 2, 10, 4_020_358, 8_474_848, 16, 1),
    Golden("b0-64", 1.0, 1.0, 64, 2, 10, 4_020_358, 31_979_392, 16, 2),
    Golden("b0-224", 1.0, 1.0, 224, 2, 10, 4_020_358, 384_547_552, 16, 7),
    Golden("b0-32-stem1", 1.0, 1.0, 32, 1, 10, 4_020_358, 31_979_392, 16, 2),
    Golden("b0-64-depth2", 1.0, 2.0, 64, 2, 10, 8_954_794, 65_198_848, 32, 2),
    Golden("b0-64-width2", 2.0, 1.0, 64, 2, 10, 15_587_330, 120_484_608, 16, 2),
    Golden("b0-128", 1.0, 1.0, 128, 2, 10, 4_020_358, 125_997_568, 16, 4),
    Golden("b0-64-w1.1-d1.2-72", 1.1, 1.2, 72, 2, 10, 7_715_084, 94_372_304, 23, 3),
    Golden("b0-64-w1.1-d1.2-74", 1.1, 1.2, 74, 2, 10, 7_715_084, 97_274_192, 23, 3),
    Golden("b0-64-depth1.75", 1.0, 1.75, 64, 2, 10, 8_366_842, 63_203_584, 31, 2),
    Golden("b0-64-width1.45", 1.45, 1.0, 64, 2, 10, 8_339_490, 64_123_008, 16, 2),
    Golden("b0-82", 1.0, 1.0, 82, 2, 10, 4_020_358, 66_142_032, 16, 3),
    Golden("b0-64-depth3.75", 1.0, 3.75, 64, 2, 10, 18_235_714, 129_642_496, 63, 2),
    Golden("b0-64-width2.095", 2.095, 1.0, 64, 2, 10, 16_892_318, 127_647_728, 16, 2),
    Golden("b0-80-w1.15-d1.315", 1.15, 1.315, 80, 2, 10, 9_535_952, 127_032_256, 24, 3),
)

GOLDEN = RELEASED + TABLE_7 + AROUND_TABLE_7 + SMALL_INPUT

PAPER_TABLE_2 = {  # parameters in M, "FLOPs" (multiply-adds) in G, as printed
    "b0": (5.3, 0.39),
    "b1": (7.8, 0.70),
    "b2": (9.2, 1.0),
    "b3": (12.0, 1.8),
    "b4": (19.0, 4.2),
    "b5": (30.0, 9.9),
    "b6": (43.0, 19.0),
    "b7": (66.0, 37.0),
}

B0_SE_FROM_EXPANDED = (
    8_423_848  # parameters of a B0 whose squeeze width is a share of the *expanded* channels: a common mistake
)
