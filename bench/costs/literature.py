"""What other protocols would charge for a network: cost models of the literature, none measured here.

A model is a function from a `Network` (plain numbers: no torch is needed) and a `Channel` to a `Modelled`
cost. Every number is either published (its place is cited beside it), or marked *ours*. docs/literature.md
tells what was checked against which source. All costs are per image; a party of two is called client (it has
the image; its upload is `up`) or server (it has the weights; its traffic to the client is `down`).

    channel = CHANNELS["lan"]
    modelled("delphi-server-garbler", network, channel).online_s
    rank(networks, "orca", channel)                        # cheapest first
    where_layers_beat_relus("orca", network, channel)      # what one linear layer costs, in ReLUs
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil, isfinite, isnan, log2, nan, prod
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pibench.program.ir import Program

LABEL = "modelled"


# What a model is given.


@dataclass(frozen=True)
class LinearLayer:
    """A convolution or a linear layer: `inputs` and `outputs` channels, `kernel` and the maps' sizes.

    A linear layer has kernel (1, 1) and maps of one pixel. `groups` divides the channels as in torch.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    in_map: tuple[int, int]
    out_map: tuple[int, int]
    groups: int = 1

    @property
    def input_size(self) -> int:
        """Elements |x|."""
        return self.inputs * prod(self.in_map)

    @property
    def output_size(self) -> int:
        """Elements |y|."""
        return self.outputs * prod(self.out_map)

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        return self.output_size * self.inputs // self.groups * prod(self.kernel)


@dataclass(frozen=True)
class Network:
    """What the models know of a network: evaluated ReLUs, layers of them, and its linear layers in order."""

    name: str
    relus: int
    relu_layers: int
    linear: tuple[LinearLayer, ...]

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        return sum(layer.macs for layer in self.linear)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON keeps them; `network_from_dict` reads them again."""
        return asdict(self)


def network_from_dict(values: Mapping[str, Any]) -> Network:
    """Reads what `Network.as_dict` gave, from JSON too."""

    def layer(entry: Mapping[str, Any]) -> LinearLayer:
        pairs = {key: tuple(entry[key]) for key in ("kernel", "in_map", "out_map")}
        return LinearLayer(**{**entry, **pairs})

    return Network(**{**values, "linear": tuple(layer(entry) for entry in values["linear"])})


FREE = {"averagepool", "add", "scale", "concatenate", "flatten", "mean"}


def describe(name: str, program: Program) -> Network:
    """Reads a `Network` off a program; ValueError for steps that no model here prices."""
    linear, counts = [], []
    for step in program.steps:
        op = step.operator
        if step.kind == "convolution":
            outputs, _, *kernel = op.weight_shape
            (inputs, *in_map), (_, *out_map) = step.input_shapes[0], step.shape
            maps = tuple(in_map), tuple(out_map)
            linear.append(LinearLayer(step.name, step.kind, inputs, outputs, tuple(kernel), *maps, op.groups))
        elif step.kind == "linear":
            outputs, inputs = op.weight_shape
            maps = (prod(step.input_shapes[0][:-1]), 1), (prod(step.shape[:-1]), 1)
            linear.append(LinearLayer(step.name, step.kind, inputs, outputs, (1, 1), *maps))
        elif step.kind == "relu":
            counts.append(step.size if op.kept is None else len(op.kept))
        elif step.kind not in FREE:
            raise ValueError(f"the literature models price no {step.kind} (step {step.name!r} of {name})")
    return Network(name, sum(counts), sum(count > 0 for count in counts), tuple(linear))


@dataclass(frozen=True)
class Channel:
    """A link: round trip in seconds, bandwidth in bits a second from the client (up) and to it (down)."""

    name: str
    rtt_s: float
    up_bit_per_s: float
    down_bit_per_s: float

    def __post_init__(self) -> None:
        if not (isfinite(self.rtt_s) and self.rtt_s >= 0):
            raise ValueError(f"channel {self.name!r}: rtt_s must be 0 or more seconds, not {self.rtt_s}")
        for field in ("up_bit_per_s", "down_bit_per_s"):
            value = getattr(self, field)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"channel {self.name!r}: {field} must be a positive number, not {value}")

    def up_s(self, sent: float) -> float:
        """Seconds for bytes from the client."""
        return 8 * sent / self.up_bit_per_s

    def down_s(self, sent: float) -> float:
        """Seconds for bytes to the client."""
        return 8 * sent / self.down_bit_per_s

    def messages_s(self, count: int) -> float:
        """Seconds of latency of `count` messages one after the other, half a round trip each."""
        return count * self.rtt_s / 2


CHANNELS = {
    channel.name: channel
    for channel in (
        Channel("lan", 0.3e-3, 3e9, 3e9),  # OpenCheetah scripts/throttle.sh
        Channel("wan", 40e-3, 400e6, 400e6),  # the same
        Channel("wan-slow", 100e-3, 100e6, 100e6),  # MP-SPDZ's benchmarks
        Channel(
            "garimella", 0.0, 500e6, 500e6
        ),  # characterizing-private-inference artifact/generate_fig12.sh
    )
}


@dataclass(frozen=True)
class Modelled:
    """What a model says: seconds and bytes (both ways) of the offline and online phase, messages online.

    NaN stands for what a model does not say. `covers` names what the seconds hold; `verified` tells that the
    constants were read at their source. Never mix with measured or emulated rows: `label` is "modelled".
    """

    model: str
    network: str
    channel: str
    offline_s: float
    online_s: float
    offline_bytes: float
    online_bytes: float
    rounds: float
    covers: str
    source: str
    verified: bool
    label: str = LABEL

    @property
    def bytes(self) -> float:
        """Bytes of both phases; the online ones if the offline phase is unknown."""
        return self.online_bytes + (0.0 if isnan(self.offline_bytes) else self.offline_bytes)

    @property
    def total_s(self) -> float:
        """Seconds of both phases; the online ones if the offline phase is unknown."""
        return self.online_s + (0.0 if isnan(self.offline_s) else self.offline_s)


# DELPHI, as measured by Garimella et al.: "Characterizing and Optimizing End-to-End Systems for Private
# Inference" (ASPLOS 2023). Numbers of its artifact, github.com/kvgarimella/characterizing-private-inference,
# under simulator/experiments/: utils/gc_models.py, utils/he_models.py and, unless said otherwise,
# utils/cifar10_{server,client}_garbler_utils_r18.py (ResNet-18 on CIFAR, averages of ten runs of DELPHI's
# own code). The order of the sums is that of e2e_latency.py.

GARIMELLA = (
    "Garimella et al., ASPLOS 2023, artifact kvgarimella/characterizing-private-inference (DELPHI's own code)"
)
GC_COUNTS = (1, 10, 100)
# gc_models.py: (who, what) -> seconds for GC_COUNTS ReLUs; the server an EPYC 7502, the client an Atom Z8350.
GC_SECONDS = {
    ("server", "garble"): (0.00010212, 0.00102062, 0.01036614),
    ("server", "evaluate"): (5.19322887e-05, 5.22861572e-04, 5.44515682e-03),
    ("client", "garble"): (0.00056736, 0.00566518, 0.06809248),
    ("client", "evaluate"): (0.00028193, 0.00335818, 0.034515),
}
PUBLISHED_RELUS = 557_056
CIRCUIT_BYTES = 9_510_060_032 / PUBLISHED_RELUS  # off_*_write_garbled_c less 17 * 64 of framing: 17,072
OT_SETUP_BYTES = 374_341_632 / PUBLISHED_RELUS  # *_write_ext_ot_setup: 672, from the evaluator
OT_SEND_BYTES = 748_683_264 / PUBLISHED_RELUS  # *_write_ext_ot_send: 1,344, from the garbler
LABEL_BYTES = 77_594_624 / 65_536  # on_server_write_relu less 6 bytes of framing: 1,184
BASE_OT_BYTES = 4096
OFFLINE_ENCODE_S = 4.225 / PUBLISHED_RELUS  # off_*_compute_encode, not divided by threads
ONLINE_ENCODE_S = 1.9914513 / PUBLISHED_RELUS  # sum of on_*_compute_encode
EVALUATOR_STORAGE_BYTES = 18_248  # artifact/non_linear_storagecost_analysis.ipynb, a ReLU
GARBLER_STORAGE_BYTES = 3_590  # the same

KEY_BYTES = 33_180_308
KEYGEN_S = 0.340
SLOTS = 8192
CIPHERTEXT_BYTES, CIPHERTEXTS_FRAME_BYTES = 524_393, 8  # n ciphertexts: 524,393 n + 8, exact on every layer
ELEMENT_BYTES, ELEMENTS_FRAME_BYTES = 9, 41  # n ring elements in the clear: 9 n + 41, exact on every layer
ENCRYPT_S = 2.7635495 / 613  # sum of off_client_compute_he_encrypt over the 613 ciphertexts of all layers
DECRYPT_S = 0.1668283 / 90  # sum of off_client_compute_he_decrypt over the 90 ciphertexts
PUBLISHED_MACS = 549_131_264  # of the 17 convolutions and the classifier, without shortcuts
SHARE_S = 0.427691 / PUBLISHED_MACS  # sum of on_server_compute_linear; proportional to MACs: ours
PUBLISHED_PRODUCTS = 4608  # products of a stride-1 3x3 layer of each of ResNet-18's stages, see `he_products`
STAGE_S = {  # channels in a ciphertext -> mean seconds of those layers (off_server_compute_he_eval)
    8: fmean((13.5142, 13.4495, 13.4172, 13.3948)),  # 64 channels of 32 x 32
    32: fmean((14.5279, 14.5311, 14.5088)),  # 128 of 16 x 16
    128: fmean((15.8275, 15.8042, 15.8131)),  # 256 of 8 x 8
    512: fmean((17.1431, 17.1464, 17.1434)),  # 512 of 4 x 4
}
CLASSIFIER_S = (0.06, 0.0147)  # a linear layer: fixed, and for each 8192 weights; ours, see the docs


@dataclass(frozen=True)
class Threads:
    """Threads of each kind of work; the defaults are those of the artifact's artifact/generate_fig12.sh.

    `server_he` beyond 1 is layer-parallel HE: each thread takes the next layer.
    """

    client: int = 4
    server_gc: int = 32
    server_he: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"threads: {name} must be a whole number of at least 1, not {value!r}")


def garbled_s(who: str, what: str, relus: int, threads: int = 1) -> float:
    """Seconds to "garble" or "evaluate" ReLUs on a machine: gc_models.py's line of least squares."""
    x, y = fmean(GC_COUNTS), fmean(GC_SECONDS[who, what])
    points = list(zip(GC_COUNTS, GC_SECONDS[who, what], strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return max(y + slope * (relus - x), 0.0) / threads


def _pixels(layer: LinearLayer) -> int:
    """Slots of one channel: the map, rounded up to a power of two (ours beyond the published sizes)."""
    return 2 ** ceil(log2(prod(layer.in_map)))


def upload_ciphertexts(layer: LinearLayer) -> int:
    """Ciphertexts that the client encrypts: the packed input, once for each position of the kernel."""
    return prod(layer.kernel) * ceil(layer.inputs * _pixels(layer) / SLOTS)


def download_ciphertexts(layer: LinearLayer) -> int:
    """Ciphertexts of the result: a stride leaves the map as large as the input's."""
    return ceil(layer.outputs * _pixels(layer) / SLOTS)


def he_products(layer: LinearLayer) -> int:
    """Products of a ciphertext and a plaintext: one for each uploaded ciphertext and output channel.

    The count is ours; with one time a product for each packing it gives all published layers of ResNet-18
    within 2 %, and those of ResNet-32 and VGG-16 within 15 %: 3x3, strided and stem layers alike. It extends
    the table to other kernels (a merged 5x5 costs 25 / 9) and to 1x1 shortcuts, which DELPHI's networks lack.
    """
    return upload_ciphertexts(layer) * ceil(layer.outputs / layer.groups)


def he_s(layer: LinearLayer) -> float:
    """Seconds of one layer's homomorphic evaluation on one server thread.

    The time of a product is that of ResNet-18's layers with as many channels in a ciphertext, interpolated
    and continued linearly in their logarithm (ours).
    """
    if layer.kind == "linear":
        fixed, block = CLASSIFIER_S
        return fixed + block * ceil(layer.inputs * layer.outputs / SLOTS)
    position = log2(max(SLOTS // _pixels(layer), 1))
    stages = sorted((log2(packed), seconds) for packed, seconds in STAGE_S.items())
    low = max(i for i, (x, _) in enumerate(stages[:-1]) if x <= position or i == 0)
    (x0, y0), (x1, y1) = stages[low], stages[low + 1]
    stage_s = y0 + (y1 - y0) * (position - x0) / (x1 - x0)
    return he_products(layer) * stage_s / PUBLISHED_PRODUCTS


def he_total_s(layers: Iterable[LinearLayer], threads: int = 1) -> float:
    """Seconds of all layers when each thread takes the next one: -2 to -13 % of he_models.py's table."""
    busy = [0.0] * threads
    for layer in layers:
        heapq.heapreplace(busy, busy[0] + he_s(layer))
    return max(busy)


def _ciphertext_bytes(count: int) -> int:
    return CIPHERTEXT_BYTES * count + CIPHERTEXTS_FRAME_BYTES


def _element_bytes(count: int) -> int:
    return ELEMENT_BYTES * count + ELEMENTS_FRAME_BYTES


@dataclass(frozen=True)
class _Linear:
    """DELPHI's offline phase of the linear layers, the same for both roles."""

    seconds: float
    up: int
    down: int


def _delphi_linear(network: Network, threads: Threads) -> _Linear:
    up = [upload_ciphertexts(layer) for layer in network.linear]
    down = [download_ciphertexts(layer) for layer in network.linear]
    seconds = KEYGEN_S + ENCRYPT_S * sum(up) + DECRYPT_S * sum(down)
    return _Linear(
        seconds + he_total_s(network.linear, threads.server_he),
        KEY_BYTES + sum(map(_ciphertext_bytes, up)),
        sum(map(_ciphertext_bytes, down)),
    )


def _delphi(
    model: str,
    network: Network,
    channel: Channel,
    offline: tuple[float, float, float],
    online: tuple[float, float, float],
    messages: int,
) -> Modelled:
    """Adds up (seconds of work, bytes up, bytes down) of both phases."""
    return Modelled(
        model,
        network.name,
        channel.name,
        offline_s=offline[0] + channel.up_s(offline[1]) + channel.down_s(offline[2]),
        online_s=online[0]
        + channel.up_s(online[1])
        + channel.down_s(online[2])
        + channel.messages_s(messages),
        offline_bytes=offline[1] + offline[2],
        online_bytes=online[1] + online[2],
        rounds=messages,
        covers="computation and communication",
        source=GARIMELLA,
        verified=True,
    )


def _answer_bytes(network: Network) -> int:
    return _element_bytes(network.linear[-1].output_size)


def delphi_server_garbler(
    network: Network, channel: Channel, threads: Threads = Threads(), model: str = "delphi-server-garbler"
) -> Modelled:
    """DELPHI as published: the server garbles, the client evaluates (run_server_garbler_protocol).

    Offline: HE of the linear layers; the server garbles, encodes and sends the circuits; the client's labels
    by oblivious transfer. Online, a layer at a time: the client sends its masked input, the server its
    labels, the client evaluates. Latency is charged for each of those messages (ours: the artifact has no
    round-trip term; with an rtt of 0 the sums are its own).
    """
    n, he = network.relus, _delphi_linear(network, threads)
    offline = (
        he.seconds + garbled_s("server", "garble", n, threads.server_gc) + OFFLINE_ENCODE_S * n,
        he.up + BASE_OT_BYTES + OT_SETUP_BYTES * n,
        he.down + (CIRCUIT_BYTES + OT_SEND_BYTES) * n,
    )
    online = (
        SHARE_S * network.macs + ONLINE_ENCODE_S * n + garbled_s("client", "evaluate", n, threads.client),
        sum(_element_bytes(layer.input_size) for layer in network.linear),
        LABEL_BYTES * n + _answer_bytes(network),
    )
    return _delphi(model, network, channel, offline, online, len(network.linear) + network.relu_layers + 1)


def delphi_client_garbler(
    network: Network, channel: Channel, threads: Threads = Threads(), model: str = "delphi-client-garbler"
) -> Modelled:
    """Garimella's proposal: roles swapped (run_client_garbler_protocol).

    The client garbles and sends the circuits up, so that the server stores them; the oblivious transfer of
    the server's labels moves into the online phase: for each ReLU layer one message down and one up.
    """
    n, he = network.relus, _delphi_linear(network, threads)
    offline = (
        he.seconds + garbled_s("client", "garble", n, threads.client) + OFFLINE_ENCODE_S * n,
        he.up + CIRCUIT_BYTES * n,
        he.down + BASE_OT_BYTES,
    )
    online = (
        SHARE_S * network.macs + ONLINE_ENCODE_S * n + garbled_s("server", "evaluate", n, threads.server_gc),
        _element_bytes(network.linear[0].input_size) + OT_SEND_BYTES * n,
        OT_SETUP_BYTES * n + _answer_bytes(network),
    )
    return _delphi(model, network, channel, offline, online, 2 * network.relu_layers + 2)


LAYER_PARALLEL = Threads(server_he=17)
"""Layer-parallel HE with as many threads as ResNet-18 has convolutions: the artifact's last column."""


def delphi_server_garbler_lphe(network: Network, channel: Channel) -> Modelled:
    """DELPHI's roles, with the layer-parallel HE of Garimella et al."""
    return delphi_server_garbler(network, channel, LAYER_PARALLEL, "delphi-server-garbler-lphe")


def delphi_client_garbler_lphe(network: Network, channel: Channel) -> Modelled:
    """Both proposals of Garimella et al.: the client garbles, HE is layer-parallel."""
    return delphi_client_garbler(network, channel, LAYER_PARALLEL, "delphi-client-garbler-lphe")


# Latency columns of the ReLU-reduction papers: lines through published tables, estimates without a link.

COLUMN_RELU_S = 21e-6
COLUMN_FIXED_S = (0.07, 0.11)
AUTOREP_RELU_S = 2.45e-6


def _column(model: str, network: Network, channel: Channel, online_s: float, source: str) -> Modelled:
    return Modelled(
        model,
        network.name,
        channel.name,
        offline_s=nan,
        online_s=online_s,
        offline_bytes=nan,
        online_bytes=nan,
        rounds=nan,
        covers="a line through a published column; no link, no linear layers",
        source=source,
        verified=False,
    )


def relu_column(network: Network, channel: Channel) -> Modelled:
    """The latency column of SENet, SNL and others: 0.09 s (0.07 to 0.11) + 21 microseconds a ReLU."""
    seconds = fmean(COLUMN_FIXED_S) + COLUMN_RELU_S * network.relus
    source = "fit (ours) to the latency columns of SENet (ICLR 2023) and SNL (ICML 2022)"
    return _column("21us-column", network, channel, seconds, source)


def autorep_column(network: Network, channel: Channel) -> Modelled:
    """AutoReP's latency column: 2.45 microseconds a ReLU, of another protocol on another machine."""
    source = "fit (ours) to the latency column of AutoReP (ICCV 2023)"
    return _column("autorep-column", network, channel, AUTOREP_RELU_S * network.relus, source)


# Protocols of which the literature gives bits and rounds. The seconds are communication alone: bytes over the
# bandwidth and half a round trip for each round. L is the length of a ring element in bits.

SOK = "KU Leuven SoK, eprint 2025/1679, theoretical cost tables"
LAMBDA = 128
OT_BITS, RING_BITS, FRACTION_BITS = 32, 64, 16
SCI_DEGREE, SCI_MODULUS_BITS = 8192, (180, 120)
CHEETAH_DEGREE, CHEETAH_MODULUS_BITS = 4096, (60, 60)


@dataclass(frozen=True)
class Talk:
    """Bits and rounds of a protocol: for each ReLU, each output element, and each ciphertext of a layer.

    `senders` parties send equal parts at the same time; `layer_bytes` are those of a linear layer.
    """

    relu_bits: float
    relu_rounds: int
    layer_bytes: Callable[[LinearLayer], float]
    layer_rounds: int
    senders: int
    offline_relu_bits: float = 0.0


def _communication(
    model: str, network: Network, channel: Channel, talk: Talk, source: str, verified: bool
) -> Modelled:
    online = talk.relu_bits / 8 * network.relus + sum(map(talk.layer_bytes, network.linear))
    offline = talk.offline_relu_bits / 8 * network.relus
    rounds = talk.relu_rounds * network.relu_layers + talk.layer_rounds * len(network.linear) + 1

    def seconds(sent: float) -> float:
        each = sent / talk.senders / 2  # half of the bytes each way (ours)
        return channel.up_s(each) + channel.down_s(each)

    return Modelled(
        model,
        network.name,
        channel.name,
        offline_s=seconds(offline) if offline else 0.0,
        online_s=seconds(online) + channel.messages_s(rounds),
        offline_bytes=offline,
        online_bytes=online,
        rounds=rounds,
        covers="communication alone",
        source=source,
        verified=verified,
    )


def _packed_bytes(degree: int, modulus_bits: tuple[int, int]) -> Callable[[LinearLayer], float]:
    """Bytes of a layer's ciphertexts there and back, packed as tightly as their degree allows (ours)."""
    there, back = (2 * degree * bits / 8 for bits in modulus_bits)
    return lambda layer: there * ceil(layer.input_size / degree) + back * ceil(layer.output_size / degree)


def cryptflow2(network: Network, channel: Channel) -> Modelled:
    """CrypTFlow2 (CCS 2020), L = 32: 128 L + 18 L bits and log2 L + 2 rounds a ReLU.

    A linear layer: tightly packed ciphertexts of degree 8192, 180 bits there and 120 back (OpenCheetah's
    SCI/src/LinearHE; a lower bound of ours). Its faithful truncation (O(128 L) bits in the SoK) and the
    homomorphic work are left out.
    """
    talk = Talk(
        relu_bits=LAMBDA * OT_BITS + 18 * OT_BITS,
        relu_rounds=int(log2(OT_BITS)) + 2,
        layer_bytes=_packed_bytes(SCI_DEGREE, SCI_MODULUS_BITS),
        layer_rounds=2,
        senders=1,
    )
    return _communication("cryptflow2", network, channel, talk, f"{SOK}: ReLU; linear part ours", True)


def cheetah(network: Network, channel: Channel) -> Modelled:
    """Cheetah (USENIX Security 2022), L = 32, unverified: about 11 L bits and log2 L + 2 rounds a ReLU.

    A linear layer: ciphertexts as in `cryptflow2` at degree 4096 and 60 bits (OpenCheetah's cheetah-api.cpp),
    and a stochastic truncation of 13 L bits and log2 L rounds for each output (the SoK's truncation table).
    """
    packed = _packed_bytes(CHEETAH_DEGREE, CHEETAH_MODULUS_BITS)
    talk = Talk(
        relu_bits=11 * OT_BITS,
        relu_rounds=int(log2(OT_BITS)) + 2,
        layer_bytes=lambda layer: packed(layer) + 13 * OT_BITS / 8 * layer.output_size,
        layer_rounds=2 + int(log2(OT_BITS)),
        senders=1,
    )
    source = f"Huang et al., eprint 2022/207; 11 L bits unverified; {SOK}: truncation"
    return _communication("cheetah", network, channel, talk, source, False)


def orca(network: Network, channel: Channel) -> Modelled:
    """Orca (S&P 2024), function secret sharing, L = 64: 2 L + 2 bits and 2 rounds a ReLU online.

    Offline a dealer's keys: L (128 + 7) + 128 + 1 bits a ReLU; those of truncation (O(128 (L + k)) in the
    SoK) and of linear layers are left out. A linear layer opens its masked output (2 L bits, 1 round: ours)
    and truncates it by k = 16 bits (2 (L - k + 1) bits, 3 rounds).
    """
    output_bits = 2 * RING_BITS + 2 * (RING_BITS - FRACTION_BITS + 1)
    talk = Talk(
        relu_bits=2 * RING_BITS + 2,
        relu_rounds=2,
        layer_bytes=lambda layer: output_bits / 8 * layer.output_size,
        layer_rounds=1 + 3,
        senders=2,
        offline_relu_bits=RING_BITS * (LAMBDA + 7) + LAMBDA + 1,
    )
    return _communication("orca", network, channel, talk, f"{SOK}: ReLU, truncation; linear ours", True)


def aby3(network: Network, channel: Channel) -> Modelled:
    """ABY3 (CCS 2018), three parties, L = 64: 45 L bits online, 60 L offline, log2 L + 3 rounds a ReLU.

    The SoK lists these for security with abort against an active adversary. A linear layer is the
    replicated dot product with truncation of the passive protocol, 3 L bits for each output and 1 round
    (ours: the SoK's active one grows with the length of the product).
    """
    talk = Talk(
        relu_bits=45 * RING_BITS,
        relu_rounds=int(log2(RING_BITS)) + 3,
        layer_bytes=lambda layer: 3 * RING_BITS / 8 * layer.output_size,
        layer_rounds=1,
        senders=3,
        offline_relu_bits=60 * RING_BITS,
    )
    return _communication("aby3", network, channel, talk, f"{SOK}: ReLU; linear part ours", True)


MODELS: dict[str, Callable[[Network, Channel], Modelled]] = {
    "delphi-server-garbler": delphi_server_garbler,
    "delphi-client-garbler": delphi_client_garbler,
    "delphi-server-garbler-lphe": delphi_server_garbler_lphe,
    "delphi-client-garbler-lphe": delphi_client_garbler_lphe,
    "21us-column": relu_column,
    "autorep-column": autorep_column,
    "cryptflow2": cryptflow2,
    "cheetah": cheetah,
    "orca": orca,
    "aby3": aby3,
}


# What is asked of the models.


def modelled(model: str, network: Network, channel: Channel) -> Modelled:
    """The cost of a network under the model of this name; ValueError that names the known ones."""
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}: known are {', '.join(MODELS)}")
    if not network.linear:
        raise ValueError(f"network {network.name!r} has no linear layer")
    return MODELS[model](network, channel)


PHASES = ("total_s", "online_s", "offline_s")


def _seconds(cost: Modelled, phase: str) -> float:
    if phase not in PHASES:
        raise ValueError(f"unknown phase {phase!r}: known are {', '.join(PHASES)}")
    return getattr(cost, phase)


def rank(
    networks: Iterable[Network], model: str, channel: Channel, phase: str = "total_s"
) -> list[tuple[str, float]]:
    """Names and modelled seconds of the networks, cheapest first."""
    costs = [(each.name, _seconds(modelled(model, each, channel), phase)) for each in networks]
    return sorted(costs, key=lambda entry: entry[1])


@dataclass(frozen=True)
class BreakEven:
    """Prices of one ReLU and of one linear layer of a network under a model.

    `layer_s` is the median over the network's convolutions larger than 1x1 of what the network saves without
    that one (its ReLUs kept); `relu_layer_s` what an emptied ReLU layer saves beside its ReLUs (latency).
    `relus_per_layer` = layer_s / relu_s: once fewer ReLUs than this are left, dropping one more such layer
    saves more than dropping all of them.
    """

    model: str
    network: str
    channel: str
    phase: str
    relu_s: float
    relu_layer_s: float
    layer_s: float
    relus_per_layer: float
    relus_left: int

    @property
    def layers_win(self) -> bool:
        """Whether one more layer saves more than all ReLUs that are left."""
        return self.relus_per_layer > self.relus_left


def where_layers_beat_relus(
    model: str, network: Network, channel: Channel, phase: str = "total_s"
) -> BreakEven:
    """Prices a ReLU against a linear layer; ValueError for a network without ReLUs or such layers."""
    candidates = [i for i, layer in enumerate(network.linear) if prod(layer.kernel) > 1]
    if not network.relus or len(network.linear) < 2 or not candidates:
        raise ValueError(f"network {network.name!r} has no ReLU or no convolution to spare")

    def seconds(changed: Network) -> float:
        return _seconds(modelled(model, changed, channel), phase)

    whole = seconds(network)
    relu_s = (whole - seconds(replace(network, relus=0))) / network.relus
    relu_layer_s = whole - seconds(replace(network, relu_layers=network.relu_layers - 1))
    layer_s = median(
        whole - seconds(replace(network, linear=network.linear[:i] + network.linear[i + 1 :]))
        for i in candidates
    )
    return BreakEven(
        model,
        network.name,
        channel.name,
        phase,
        relu_s,
        relu_layer_s,
        layer_s,
        layer_s / relu_s if relu_s else nan,
        network.relus,
    )


def modelled_rows(
    networks: Iterable[Network | Mapping[str, Any]],
    channels: Iterable[Channel] = tuple(CHANNELS.values()),
    models: Iterable[str] = tuple(MODELS),
) -> pd.DataFrame:
    """One row for each network, model and channel; networks may be plain dicts (`Network.as_dict`).

    Seconds and bytes stand in columns named `modelled_*`, so that none is taken for a measured one. `rank` is
    the place by `modelled_total_s` among the networks under the same model and channel (1 is the cheapest).
    """
    known = [each if isinstance(each, Network) else network_from_dict(each) for each in networks]
    channels, models = tuple(channels), tuple(models)
    rows = []
    for model in models:
        for channel in channels:
            for network in known:
                cost = modelled(model, network, channel)
                rows.append(
                    {
                        "label": cost.label,
                        "model": model,
                        "channel": channel.name,
                        "network": network.name,
                        "relus": network.relus,
                        "relu_layers": network.relu_layers,
                        "linear_layers": len(network.linear),
                        "modelled_offline_s": cost.offline_s,
                        "modelled_online_s": cost.online_s,
                        "modelled_total_s": cost.total_s,
                        "modelled_offline_bytes": cost.offline_bytes,
                        "modelled_online_bytes": cost.online_bytes,
                        "modelled_rounds": cost.rounds,
                        "covers": cost.covers,
                        "verified": cost.verified,
                        "source": cost.source,
                    }
                )
    frame = pd.DataFrame(rows)
    if len(frame):
        groups = frame.groupby(["model", "channel"])["modelled_total_s"]
        frame["rank"] = groups.rank(method="min").astype(int)
    return frame


def break_even_rows(
    networks: Iterable[Network],
    channels: Iterable[Channel] = tuple(CHANNELS.values()),
    models: Iterable[str] = tuple(MODELS),
    phase: str = "total_s",
) -> pd.DataFrame:
    """`where_layers_beat_relus` for each network, model and channel, one row each."""
    networks, channels = tuple(networks), tuple(channels)
    return pd.DataFrame(
        asdict(found) | {"label": LABEL, "layers_win": found.layers_win}
        for model in models
        for channel in channels
        for network in networks
        for found in [where_layers_beat_relus(model, network, channel, phase)]
    )
