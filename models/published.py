"""Published results for ResNet-18 on CIFAR-100, to compare with ours: data, no code, no torch.

Those networks have the full width and their own long schedules. Their values and the accuracies of a narrow
network therefore never share a column.
"""

from dataclasses import dataclass

SENET_SENSITIVITY = (
    0.057,
    *(0.185, 0.213, 0.251, 0.276),
    *(0.355, 0.488, 0.510, 0.557),
    *(0.674, 0.814, 0.828, 0.862),
    *(0.941, 0.990, 0.999, 1.0),
)
"""ReLU sensitivity of ResNet-18 on CIFAR-100 by SENet's authors (arXiv 2301.09254): the stem, then the two
ReLUs of each of the eight blocks."""


@dataclass(frozen=True)
class PublishedAccuracy:
    """Test accuracy in [0, 1] of a full-width ResNet-18 with `relus` ReLUs, from the method's paper."""

    method: str
    family: str | None  # family of the variants here that follow the method, or None
    relus: int
    accuracy: float
    source: str


_SENET = ("SENet", "senet", "arXiv 2301.09254")
_SNL = ("SNL", "snl", "ICML 2022")
_DEEPREDUCE = ("DeepReDuce", "deepreduce", "arXiv 2103.01396")
_AUTOREP = ("AutoReP", None, "ICCV 2023")
_RELUPRUNER = ("ReLUPruner", None, "AAAI 2026")

PUBLISHED = tuple(
    PublishedAccuracy(method, family, round(1000 * thousands), percent / 100, source)
    for (method, family, source), points in (
        (_SENET, ((24.6, 70.59), (49.6, 75.28))),
        (_SNL, ((12.9, 66.53), (25.0, 70.05), (49.9, 73.75), (99.9, 75.94))),
        (_DEEPREDUCE, ((12.3, 64.97), (28.7, 68.68), (49.2, 69.50), (229.4, 76.22))),
        (_AUTOREP, ((12.9, 67.73), (50.0, 74.28))),
        (_RELUPRUNER, ((12.9, 68.28), (24.9, 71.98), (50.0, 77.90))),
    )
    for thousands, percent in points
)
"""Sorted by method and rising number of ReLUs. AutoReP's abstract gives 74.92 for its 12.9 K."""

FULL_WIDTH_RELUS = 557_056
"""ReLUs of ResNet-18 on 32x32 images at width 64, the stem's included."""

ALL_RELU_ACCURACY = (0.778, 0.798)
"""The lowest and the highest accuracy that these papers give the network with all its ReLUs."""

JOINT_REDUCTION = {"relus": 1.73, "linear_operations": 1.47, "source": "arXiv 2304.13274"}
"""The factors by which joint reduction claims to reduce ReLUs and linear operations of ResNet-18 on CIFAR-100
without a significant drop; its tables are not public."""
