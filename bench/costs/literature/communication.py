"""Protocols for which the literature gives bits and rounds.

The seconds cover only communication: bytes over the bandwidth, and half a round trip for each round. L is the
length of a ring element in bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2

from pibench.costs.literature.channels import Channel
from pibench.costs.literature.charge import Modelled
from pibench.costs.literature.network import LinearLayer, Network

SOK = "KU Leuven SoK, eprint 2025/1679, theoretical cost tables"
LAMBDA = 128
OT_BITS, RING_BITS, FRACTION_BITS = 32, 64, 16
SCI_DEGREE, SCI_MODULUS_BITS = 8192, (180, 120)
CHEETAH_DEGREE, CHEETAH_MODULUS_BITS = 4096, (60, 60)


@dataclass(frozen=True)
class Talk:
    """Bits and rounds of a protocol: for each ReLU, each output element, and each ciphertext of a layer.

    `senders` parties send equal parts at the same time. `layer_bytes` returns the bytes of a linear layer.
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
        each = sent / talk.senders / 2  # half of the bytes in each direction (ours)
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
    """Returns the bytes of a layer's ciphertexts in both directions, packed as tightly as possible (ours)."""
    there, back = (2 * degree * bits / 8 for bits in modulus_bits)
    return lambda layer: there * ceil(layer.input_size / degree) + back * ceil(layer.output_size / degree)


def cryptflow2(network: Network, channel: Channel) -> Modelled:
    """Models CrypTFlow2 (CCS 2020), L = 32: 128 L + 18 L bits and log2 L + 2 rounds a ReLU.

    A linear layer sends tightly packed ciphertexts of degree 8192, with 180 bits there and 120 bits back
    (OpenCheetah's SCI/src/LinearHE; a lower bound of ours). The model omits the faithful truncation (O(128 L)
    bits in the SoK) and the homomorphic work.
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
    """Models Cheetah (USENIX Security 2022), L = 32, unverified: about 11 L bits, log2 L + 2 rounds a ReLU.

    A linear layer sends ciphertexts as in `cryptflow2`, at degree 4096 and 60 bits (OpenCheetah's
    cheetah-api.cpp). A stochastic truncation adds 13 L bits and log2 L rounds for each output (the SoK's
    truncation table).
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
    """Models Orca (S&P 2024), function secret sharing, L = 64: 2 L + 2 bits and 2 rounds a ReLU online.

    The offline phase is a dealer's keys: L (128 + 7) + 128 + 1 bits a ReLU. The model omits the keys of
    truncation (O(128 (L + k)) in the SoK) and of linear layers. A linear layer opens its masked output (2 L
    bits, 1 round: ours) and truncates it by k = 16 bits (2 (L - k + 1) bits, 3 rounds).
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
    """Models ABY3 (CCS 2018), three parties, L = 64: 45 L bits online, log2 L + 3 rounds a ReLU.

    The offline phase costs 60 L bits a ReLU. The SoK lists these numbers for security with abort against an
    active adversary. A linear layer is the replicated dot product with truncation of the passive protocol: 3
    L bits for each output and 1 round (ours: the SoK's active one grows with the length of the product).
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
