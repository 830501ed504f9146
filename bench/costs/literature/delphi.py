"""DELPHI as measured in "Characterizing and Optimizing End-to-End Systems for Private Inference".

The paper is by Garimella et al. (ASPLOS 2023). The numbers are those of its artifact,
github.com/kvgarimella/characterizing-private-inference, under simulator/experiments/: utils/gc_models.py,
utils/he_models.py and, unless said otherwise, utils/cifar10_{server,client}_garbler_utils_r18.py (ResNet-18
on CIFAR, averages of ten runs of DELPHI's own code). The order of the sums is that of e2e_latency.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil, log2, prod
from statistics import fmean

from pibench.costs.literature.channels import Channel
from pibench.costs.literature.charge import Modelled
from pibench.costs.literature.network import LinearLayer, Network

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
STAGE_S = {  # channels in a ciphertext -> mean seconds of these layers (off_server_compute_he_eval)
    8: fmean((13.5142, 13.4495, 13.4172, 13.3948)),  # 64 channels of 32 x 32
    32: fmean((14.5279, 14.5311, 14.5088)),  # 128 of 16 x 16
    128: fmean((15.8275, 15.8042, 15.8131)),  # 256 of 8 x 8
    512: fmean((17.1431, 17.1464, 17.1434)),  # 512 of 4 x 4
}
CLASSIFIER_S = (0.06, 0.0147)  # a linear layer: fixed, and for each 8192 weights; ours, see the docs


@dataclass(frozen=True)
class Threads:
    """Threads of each kind of work; the defaults are those of the artifact's artifact/generate_fig12.sh.

    `server_he` above 1 means layer-parallel HE: each thread takes the next layer.
    """

    client: int = 4
    server_gc: int = 32
    server_he: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"threads: {name} must be a whole number of at least 1, not {value!r}")


def garbled_s(who: str, what: str, relus: int, threads: int = 1) -> float:
    """Returns the seconds to "garble" or "evaluate" ReLUs on a machine; gc_models.py's least-squares line."""
    x, y = fmean(GC_COUNTS), fmean(GC_SECONDS[who, what])
    points = list(zip(GC_COUNTS, GC_SECONDS[who, what], strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return max(y + slope * (relus - x), 0.0) / threads


def _pixels(layer: LinearLayer) -> int:
    """Returns the slots of one channel: the map rounded up to a power of two.

    This is ours beyond the published sizes.
    """
    return 2 ** ceil(log2(prod(layer.in_map)))


def upload_ciphertexts(layer: LinearLayer) -> int:
    """Returns the number of ciphertexts that the client encrypts.

    The packed input is encrypted once for each position of the kernel.
    """
    return prod(layer.kernel) * ceil(layer.inputs * _pixels(layer) / SLOTS)


def download_ciphertexts(layer: LinearLayer) -> int:
    """Returns the number of ciphertexts of the result; a stride leaves the map as large as the input's."""
    return ceil(layer.outputs * _pixels(layer) / SLOTS)


def he_products(layer: LinearLayer) -> int:
    """Returns the products of a ciphertext and a plaintext: one for each upload and output channel.

    The count is ours. With one time a product for each packing, it gives all published layers of ResNet-18
    within 2 %. It gives those of ResNet-32 and VGG-16 within 15 %: 3x3, strided and stem layers alike. It
    extends the table to other kernels (a merged 5x5 costs 25 / 9) and to 1x1 shortcuts, which DELPHI's
    networks do not have.
    """
    return upload_ciphertexts(layer) * ceil(layer.outputs / layer.groups)


def he_s(layer: LinearLayer) -> float:
    """Returns the seconds of one layer's homomorphic evaluation on one server thread.

    The time of a product depends on the number of channels in a ciphertext. It is taken from ResNet-18's
    layers, and continued linearly in the logarithm between and beyond them (ours).
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
    """Returns the seconds of all layers when each thread takes the next one.

    The results differ by -2 to -13 % from he_models.py's table.
    """
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
    """Models DELPHI as published: the server garbles, the client evaluates (run_server_garbler_protocol).

    Offline the linear layers run in HE. The server garbles, encodes and sends the circuits, and the client
    gets its labels by oblivious transfer. Online, for each layer, the client sends its masked input, the
    server sends its labels, and the client evaluates. Latency is charged for each of these messages (ours:
    the artifact has no round-trip term; with an rtt of 0 the sums equal its own).
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
    """Models Garimella's proposal with swapped roles (run_client_garbler_protocol).

    The client garbles and sends the circuits up, so that the server stores them. The oblivious transfer of
    the server's labels moves into the online phase: one message down and one up for each ReLU layer.
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
    """Models DELPHI's roles with the layer-parallel HE of Garimella et al."""
    return delphi_server_garbler(network, channel, LAYER_PARALLEL, "delphi-server-garbler-lphe")


def delphi_client_garbler_lphe(network: Network, channel: Channel) -> Modelled:
    """Models both proposals of Garimella et al.: the client garbles, HE is layer-parallel."""
    return delphi_client_garbler(network, channel, LAYER_PARALLEL, "delphi-client-garbler-lphe")
