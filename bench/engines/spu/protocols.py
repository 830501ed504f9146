"""The differences between the engines: SPU's protocol and its options other than the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FRACTION_BITS = 16
"""As in the other engines; SPU's own default in a ring of 64 bits is 18."""


@dataclass(frozen=True)
class Protocol:
    """A protocol of SPU.

    `kind` is its name there. `colocated` keeps a value with the owner of its plaintext until it meets a
    share. CHEETAH then multiplies weights in plaintext, as its paper does, and sends a fifth less. ABY3 would
    share the weights anew in every inference and send more. SEMI2K sends the same.
    """

    kind: str
    colocated: bool = False


PROTOCOLS = {
    "spu-semi2k": Protocol("SEMI2K"),
    "spu-aby3": Protocol("ABY3"),
    "spu-cheetah": Protocol("CHEETAH", colocated=True),
    "spu-byhand": Protocol("SEMI2K"),
}
"""Engines by name (`pibench.engines.ENGINES`)."""


def runtime_config(protocol: Protocol, profile: bool = True) -> Any:
    """Returns SPU's configuration: ring Z_2^64, one thread, the profile with rounds and bytes.

    Truncation is SPU's default, which is correct to one unit in the last place (`trunc_allow_msb_error` is
    off). CHEETAH's products are correct too (`enable_mul_lsb_error` is off), and its comparisons are exact.
    SEMI2K takes its Beaver triples from the first party.
    """
    from spu import libspu

    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, protocol.kind), field=libspu.FieldType.FM64
    )
    config.fxp_fraction_bits = FRACTION_BITS
    config.max_concurrency = 1
    config.enable_pphlo_profile = profile
    config.experimental_enable_colocated_optimization = protocol.colocated
    return config


def options(engine: str) -> dict[str, str | int | bool]:
    """Describes an engine's arithmetic for a row, by SPU's own names of its options.

    No comparison is approximate, so a ReLU is exact. Only CHEETAH has `enable_mul_lsb_error`.
    """
    kind = PROTOCOLS[engine].kind
    return {
        "protocol": kind,
        "ring_bits": 64,
        "fraction_bits": FRACTION_BITS,
        "relu": "exact",
        "trunc_allow_msb_error": False,
        **({"enable_mul_lsb_error": False} if kind == "CHEETAH" else {}),
        "experimental_enable_colocated_optimization": PROTOCOLS[engine].colocated,
    }
