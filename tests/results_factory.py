"""Synthetic rows with plausible numbers, for the tests of results, report and figures."""

from __future__ import annotations

import copy
import functools
from math import ceil

import numpy as np

from pibench.models import catalogue
from pibench.models.base import Family

VARIANTS = (
    "baseline",
    "senet-0.36",
    "senet-0.18",
    "senet-0.09",
    "senet-0.045",
    "joint-0.208",
    "joint-0.104",
    "joint-0.052",
    "joint-0.026",
    "merged-exact",
)
SHALLOW = {(2, 1), (3, 0), (3, 1), (4, 0), (4, 1)}
ALL_RELUS = 557_056
LINKED = ("baseline", "senet-0.09", "joint-0.052")
LINKS = {"loopback": (0.0, None), "lan": (0.3e-3, 3e9), "wan": (40e-3, 400e6)}
H0 = 40e-6  # software's seconds a hop
LOOPBACK_BITS_S = 2.4e10
SHALLOW_RELUS = 475_136  # of the network whose SHALLOW blocks have lost their middle ReLU


def network(variant: str) -> list[dict]:
    """The steps of ResNet-18 (width 64, 32x32 images, 100 classes) or of a reduction of it."""
    family, _, fraction = variant.rpartition("-") if variant[-1].isdigit() else (variant, "", "1")
    keep = float(fraction)
    steps: list[dict] = []

    def convolution(name, c_in, c_out, size, k, out):
        macs, weights = c_in * c_out * k * k * out * out, c_in * c_out * k * k
        steps.append(
            {
                "name": name,
                "kind": "convolution",
                "x": c_in * size * size,
                "w": weights,
                "macs": macs,
                "parameters": weights + c_out,
                "relus": 0,
                "linear": {
                    "name": name,
                    "kind": "convolution",
                    "inputs": c_in,
                    "outputs": c_out,
                    "kernel": [k, k],
                    "in_map": [size, size],
                    "out_map": [out, out],
                    "groups": 1,
                },
            }
        )

    def other(name, kind, size=0, relus=0):
        steps.append(
            {"name": name, "kind": kind, "x": size, "w": 0, "macs": 0, "parameters": 0, "relus": relus}
        )

    def relu(name, size):
        structure = SHALLOW_RELUS if family == "joint" else ALL_RELUS
        other(name, "relu", size, size if keep == 1 else round(size * keep * ALL_RELUS / structure))

    convolution("conv1", 3, 64, 32, 3, 32)
    relu("relu", 64 * 32 * 32)
    c_in, size = 64, 32
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            out = size // 2 if stage > 1 and block == 0 else size
            name = f"layer{stage}_{block}"
            elements = channels * out * out
            if (stage, block) in SHALLOW and family in ("joint", "merged-exact"):
                convolution(f"{name}_conv1", c_in, channels, size, 3 if family == "joint" else 5, out)
            else:
                convolution(f"{name}_conv1", c_in, channels, size, 3, out)
                relu(f"{name}_relu1", elements)
                convolution(f"{name}_conv2", channels, channels, out, 3, out)
                if c_in != channels:
                    convolution(f"{name}_shortcut", c_in, channels, size, 1, out)
                other(f"{name}_add", "add", elements)
            relu(f"{name}_relu2", elements)
            c_in, size = channels, out
    other("pool", "averagepool", 512 * 16)
    other("flatten", "flatten", 512)
    steps.append(
        {
            "name": "fc",
            "kind": "linear",
            "x": 512,
            "w": 51_200,
            "macs": 51_200,
            "parameters": 51_300,
            "relus": 0,
            "linear": {
                "name": "fc",
                "kind": "linear",
                "inputs": 512,
                "outputs": 100,
                "kernel": [1, 1],
                "in_map": [1, 1],
                "out_map": [1, 1],
                "groups": 1,
            },
        }
    )
    other("open", "open", 100)
    return steps


def describe(variant: str) -> dict:
    """The network as the literature's models see it."""
    steps = network(variant)
    relus = [step["relus"] for step in steps if step["kind"] == "relu"]
    linear = [step["linear"] for step in steps if "linear" in step]
    return {"name": variant, "relus": sum(relus), "relu_layers": len(relus), "linear": linear}


def make_check(engine: str = "stock", link: str = "loopback", **changes) -> dict:
    """The check of a link that is nearly what was asked for; `changes` replace what it found."""
    rtt, bandwidth = LINKS[link]
    hops = 4 if engine == "stock" else 1
    check = {
        "shaper": "none" if link == "loopback" else "user-space",
        "asked_rtt_s": rtt,
        "measured_rtt_s": 1.004 * rtt + 45e-6,
        "asked_bandwidth_bits_s": bandwidth,
        "measured_bandwidth_bits_s": 0.985 * bandwidth if bandwidth else LOOPBACK_BITS_S,
        "round_s": hops * (rtt / 2 + H0),
        "round_hops": hops,
        "hop_overhead_s": H0,
        "ok": True,
        "complaint": None,
    }
    return check | changes


def make_layers(variant: str, engine: str) -> list[dict]:
    """Each step with the bytes and rounds that its engine needs and seconds that look measured."""
    layers = []
    for step in network(variant):
        n, x, w, kind = step["relus"], step["x"], step["w"], step["kind"]
        linear = kind in ("convolution", "linear")
        if engine == "stock":
            sent = 8 * (x + w) if linear else 232 * n
            rounds = 1 if linear else 9 * (kind == "relu")
            seconds = step["macs"] / 2e9 + 4e-9 * (x + w) if linear else 1.25e-6 * n + 0.002 * (n > 0)
        else:
            sent = 8 * x if linear else (1680 * ceil(n / 64) + 8 * x if kind == "relu" else 0)
            rounds = 1 if linear else 5 * (kind == "relu")
            seconds = step["macs"] / 9e9 + 2e-9 * x if linear else 9e-8 * n + 0.0004 * (n > 0)
        if kind == "open":
            sent, rounds, seconds = 800, 1, 2e-4
        layers.append(
            {
                "name": step["name"],
                "kind": kind,
                "seconds": seconds + 3e-5,
                "rounds": rounds,
                "bytes_sent": sent,
                "relus": n,
                "macs": step["macs"],
                "parameters": step["parameters"],
            }
        )
    return layers


def make_row(
    variant: str = "baseline",
    engine: str = "stock",
    batch: int = 1,
    role: str = "headline",
    count: int = 15,
    seed: int = 0,
    link: str = "loopback",
    **changes,
) -> dict:
    """A whole row; `changes` replace top-level keys. A shaped link takes a bit longer than the model."""
    rng = np.random.default_rng([seed, batch, len(engine), *variant.encode(), *link.encode()])
    layers = make_layers(variant, engine)
    base = sum(layer["seconds"] for layer in layers)
    scale = batch if engine == "stock" else 0.15 + 0.85 * batch

    def draw(seconds: float) -> list[float]:
        return [float(value) for value in seconds * scale * np.exp(rng.normal(0, 0.02, count))]

    offline = draw(base * (0.66 if engine == "stock" else 1.8))
    online = draw(base)
    sent = sum(layer["bytes_sent"] for layer in layers) * batch
    rounds = sum(layer["rounds"] for layer in layers)
    hops = rounds * (4 if engine == "stock" else 1)
    rtt, bandwidth = LINKS[link]
    if link != "loopback":
        compute = base - hops * H0 - 8 * sent / LOOPBACK_BITS_S
        online = draw((compute + 1.03 * hops * (rtt / 2 + H0) + 1.02 * 8 * sent / bandwidth) / scale)
    steps = network(variant)
    reference = None
    against = None
    if role == "link":
        layers = []
    elif variant != "baseline":
        against = ("baseline", engine)
    elif engine == "lean":
        against = ("baseline", "stock")
    if against is not None:
        other = make_layers(*against)
        seconds = sum(layer["seconds"] for layer in other)
        offline_too = draw(seconds * (0.66 if against[1] == "stock" else 1.8))
        online_too = draw(seconds)
        reference = {
            "case": case_id(against[0], against[1], batch),
            "offline_s": offline_too,
            "online_s": online_too,
            "total_s": [a + b for a, b in zip(offline_too, online_too, strict=True)],
        }
    lean = engine == "lean"
    row = {
        "case": case_id(variant, engine, batch, link),
        "variant": variant,
        "width": 64,
        "engine": engine,
        "provider": "dealer" if lean else "TFP",
        "batch": batch,
        "link": link,
        "timing": "measured" if link == "loopback" else "emulated",
        "link_check": make_check(engine, link),
        "parties": 2,
        "role": role,
        "weights": "seeded",
        "images": "embedded public-domain picture (tests/factory)",
        "cost": {
            "relus": sum(step["relus"] for step in steps),
            "comparisons": 0,
            "relu_layers": sum(step["kind"] == "relu" for step in steps),
            "linear_layers": sum(step["macs"] > 0 for step in steps),
            "macs": sum(step["macs"] for step in steps),
            "parameters": sum(step["parameters"] for step in steps),
        },
        "traffic": {
            "rounds": rounds,
            "hops": hops,
            "bytes_sent": sent,
            "bytes_sent_by_party": [sent, sent - 8 * lean],
            "bytes_total": 2 * sent - 8 * lean,
        },
        "setup": {
            "seconds": 2.4 if lean else 0.9,
            "rounds": 21 if lean else 0,
            "bytes_sent_by_party": [89_683_456, 89_683_456] if lean else [44_861_328, 1_000],
        },
        "offline": {
            "correlated_bytes_by_party": [59_000_000, 32] if lean else [410_000_000, 410_000_000],
            "dealt_bytes": 59_000_032 if lean else None,
        },
        "times": {
            "offline_s": offline,
            "online_s": online,
            "total_s": [a + b for a, b in zip(offline, online, strict=True)],
        },
        "plaintext_s": [1.2 * 0.013 * batch] * count if link == "loopback" else [],
        "reference": reference,
        "peak_memory_bytes_by_party": [900_000_000, 880_000_000] if lean else [1_500_000_000, 1_480_000_000],
        "truncation": {
            "expected_per_inference": 0.0 if lean else 1.4e-4,
            "expected": 0.0 if lean else 1.4e-4 * count,
            "observed": 0,
        },
        "answer": {"max_error": 3e-4, "spread": 1.9, "relative_error": 1.6e-4, "tolerance": 0.02},
        "rounds": {"attempted": count, "succeeded": count},
        "layers": layers,
        "network": describe(variant),
        "conventions": {
            "relu": "scalar comparisons evaluated under MPC, per image",
            "rounds": "collective calls, including opening the result",
        },
        "machine": {
            "cpu": "AMD EPYC 9B14",
            "cores": 2,
            "memory_bytes": 8_322_342_912,
            "system": "Linux 6.1",
            "python": "3.11.7",
        },
        "versions": {"torch": "2.13.0", "crypten": "0.4.1", "numba": "0.61.2", "pibench": "0.1.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "run": "2026-01-02T03:04:05Z-1",
        "started": "2026-01-02T03:04:05+00:00",
    }
    row.update(copy.deepcopy(changes))
    return row


PROTOCOLS = {"spu-semi2k": (2, 5.0, True), "spu-aby3": (3, 5.5, False), "spu-cheetah": (2, 55.0, False)}
"""SPU's engines: parties, times of the stock engine's seconds, whether their traffic is steady."""


def make_protocol_row(
    variant: str = "baseline",
    engine: str = "spu-semi2k",
    count: int = 6,
    link: str = "loopback",
    paired: bool = True,
    **changes,
) -> dict:
    """A row of one clock, in turn with its own engine's baseline if `paired`."""
    parties, slower, steady = PROTOCOLS[engine]
    row = make_row(variant, "stock", role="protocol", count=count, link=link)
    base = make_row("baseline", "stock", count=count, seed=1)
    row |= {
        "case": f"{engine}/{variant}/w64/b1/{parties}p/{link}",
        "engine": engine,
        "parties": parties,
        "provider": "first party" if engine == "spu-semi2k" else "none",
        "trust": "nobody but the parties",
        "options": {"protocol": engine.removeprefix("spu-").upper(), "ring_bits": 64, "fraction_bits": 16},
        "times": {"all_phases_s": [slower * seconds for seconds in row["times"]["total_s"]]},
        "reference": None,
    }
    row["offline"] = {"correlated_bytes_by_party": [0] * parties, "dealt_bytes": None}
    row["truncation"] = {"expected_per_inference": 0.0, "expected": 0.0, "observed": 0}
    for part in ("traffic", "setup"):
        sent = row[part]["bytes_sent_by_party"]
        row[part]["bytes_sent_by_party"] = [sent[0]] * parties
    row["traffic"]["bytes_total"] = sum(row["traffic"]["bytes_sent_by_party"])
    row["peak_memory_bytes_by_party"] = [2_000_000_000] * parties
    if not steady:
        sent = {key: row["traffic"][key] for key in ("rounds", "bytes_sent_by_party")}
        row["traffic_of_rounds"] = [copy.deepcopy(sent) for _ in range(count)]
    if paired and variant != "baseline" and link == "loopback":
        seconds = [slower * each for each in base["times"]["total_s"]]
        row["reference"] = {"case": f"{engine}/baseline/w64/b1/{parties}p/{link}", "all_phases_s": seconds}
    row.update(copy.deepcopy(changes))
    return row


def make_protocol_rows() -> list[dict]:
    """Three networks under each of SPU's protocols; CHEETAH's are not paired."""
    return [
        make_protocol_row(variant, engine, paired=engine != "spu-cheetah")
        for engine in PROTOCOLS
        for variant in LINKED
    ]


def case_id(variant: str, engine: str, batch: int = 1, link: str = "loopback") -> str:
    """The id that make_row gives."""
    return f"{engine}/{variant}/w64/b{batch}/2p/{link}"


def make_link_rows() -> list[dict]:
    """The link cases: some variants on both engines over the LAN and the WAN."""
    return [
        make_row(variant, engine, role="link", link=link, count=2 if engine == "stock" else 3)
        for link in ("lan", "wan")
        for engine in ("stock", "lean")
        for variant in LINKED
    ]


def make_rows() -> list[dict]:
    """Every variant on both engines at batch 1, the link cases, and the baseline at batches 4 and 16."""
    rows = [make_row(variant, engine) for engine in ("stock", "lean") for variant in VARIANTS]
    rows += make_link_rows()
    for engine in ("stock", "lean"):
        rows += [make_row("baseline", engine, batch, role="batch") for batch in (4, 16)]
    return rows


ACCURACIES = {
    "baseline": 0.652,
    "senet-0.72": 0.651,
    "senet-0.54": 0.65,
    "senet-0.36": 0.648,
    "senet-0.18": 0.635,
    "senet-0.09": 0.611,
    "senet-0.045": 0.572,
    "snl-0.18": 0.632,
    "snl-0.09": 0.595,
    "snl-0.052": 0.574,
    "poly-0.09": 0.619,
    "poly-0.045": 0.583,
    "joint": 0.649,
    "joint-0.416": 0.6485,
    "joint-0.312": 0.647,
    "joint-0.208": 0.645,
    "joint-0.104": 0.622,
    "joint-0.09": 0.618,
    "joint-0.052": 0.605,
    "joint-0.026": 0.553,
    "joint3-0.052": 0.601,
    "joint-snl-0.18": 0.641,
    "joint-snl-0.09": 0.62,
    "joint-snl-0.052": 0.606,
    "cap-joint-0.052": 0.594,
    "deepreduce": 0.57,
    "merged-exact": 0.62,
    "folding-5": 0.624,
    "folding-3": 0.634,
    "senet-merged-0.36": 0.642,
    "senet-merged-0.18": 0.629,
    "senet-merged-0.09": 0.604,
    "senet-merged-0.045": 0.566,
    "joint-merged-0.208": 0.639,
    "joint-merged-0.104": 0.616,
    "joint-merged-0.09": 0.61,
    "joint-merged-0.052": 0.598,
    "joint-merged-0.026": 0.546,
    "bilinear-1": 0.541,
    "bilinear-2": 0.612,
    "pixels-0.75": 0.631,
    "pixels-0.5": 0.598,
    "trp-channel-0.9": 0.633,
    "trp-channel-4": 0.621,
    "trp-spatial-0.9": 0.632,
    "trp-spatial-4": 0.618,
    "tucker-0.9": 0.628,
    "tucker-4": 0.609,
    "trp-quickest-4": 0.614,
    "eca": 0.661,
    "eca-hard": 0.66,
    "cap-3": 0.641,
    "cap-10": 0.617,
    "cap-untuned-3": 0.608,
    "cap-untuned-10": 0.549,
    "shrinkage-0.9": 0.646,
    "gated": 0.648,
    "constrained-relus-0.75": 0.626,
    "constrained-macs-0.5": 0.627,
    "constrained-seconds-0.75": 0.629,
    "constrained-masks-0.09": 0.604,
}
"""Of every variant that can be trained, in the order of reports."""
MACS = {
    **dict.fromkeys(("joint-snl-0.18", "joint-snl-0.09", "joint-snl-0.052"), 11_000_000),
    **dict.fromkeys(("snl-0.18", "snl-0.052"), 43_000_000),  # apart, so that labels have room
    "cap-joint-0.052": 17_000_000,
    "folding-5": 47_000_000,
    "folding-3": 41_000_000,
    "cap-3": 26_500_000,
    "cap-10": 18_000_000,
    "gated": 55_000_000,
    "cap-untuned-3": 26_500_000,
    "cap-untuned-10": 18_000_000,
    "trp-quickest-4": 12_000_000,
    "constrained-relus-0.75": 19_000_000,
    "constrained-macs-0.5": 17_500_000,
    "constrained-seconds-0.75": 20_500_000,
}
"""Of those that have MACs of their own."""
RELUS_LEFT = {
    "folding-5": 0.62,
    "folding-3": 0.71,
    "cap-3": 0.89,
    "cap-10": 0.78,
    "gated": 0.44,
    "cap-untuned-3": 0.89,
    "cap-untuned-10": 0.78,
    "constrained-relus-0.75": 0.75,
    "constrained-macs-0.5": 0.76,
    "constrained-seconds-0.75": 0.77,
}
"""Shares of the ReLUs that a structure leaves."""


def make_accuracy_row(variant: str = "baseline", width: int = 16, seed: int = 0, **changes) -> dict:
    """A row of accuracy.json; an odd seed is 0.4 points worse, an even one from 2 on 0.4 points better."""
    fraction = 0.6 if variant in ("merged-exact", "joint") else 0.088 if variant == "deepreduce" else 1.0
    fraction = RELUS_LEFT.get(variant, fraction)
    declared = catalogue.variants().get(variant)
    fraction = fraction if declared is None or declared.fraction is None else declared.fraction
    macs = 46_000_000 if variant == "merged-exact" else 23_000_000 if "joint" in variant else 35_000_000
    macs -= 4_000_000 * ("-merged-" in variant) + 8_000_000 * variant.startswith("trp-channel")
    macs -= 20_000_000 * variant.startswith("tucker") - 4_000_000 * variant.startswith("trp-spatial")
    macs = MACS.get(variant, macs)
    row = {
        "variant": variant,
        "width": width,
        "seed": seed,
        "epochs": 24 if variant == "baseline" else 44,
        "relus": round(ALL_RELUS * width / 64 * fraction),
        "macs": macs,
        "accuracy_heldout": ACCURACIES[variant] + 0.005,
        "accuracy_test": round(ACCURACIES[variant] + (0.0, -0.004, 0.004)[seed % 3], 4),
        "wall_s": 1200.0,
        "machine": "AMD EPYC 9B14, 2 threads",
        "phases": {"baseline": 24},
        "plan": "long",
        "epochs_scale": 1.0,
        "precision": "bfloat16",
    }
    return row | changes


def make_accuracy(**changes) -> list[dict]:
    """Every trainable variant at width 16 with seed 0, two of them with three seeds."""
    several = ("senet-0.09", "joint-0.052")
    return [
        make_accuracy_row(variant, seed=seed, **changes)
        for variant in ACCURACIES
        for seed in (range(3) if variant in several else (0,))
    ]


def make_judged(**changes) -> dict:
    """Returns the additions of fixed point and real parties to a row of accuracy.json."""
    private = {
        "images": 100,
        "agreement": 0.99,
        "accuracy": 0.6,
        "accuracy_plaintext": 0.61,
        "max_logit_error": 0.01,
        "spread": 10.0,
        "wrong_truncations": {"expected": 0.0, "observed": 0},
    }
    judged = {
        "accuracy_fixed_point": 0.6109,
        "fixed_point": {"images": 10_000, "agreement": 0.998},
        "private": {"stock": private, "lean": private | {"agreement": 1.0}},
    }
    return judged | changes


def make_narrow_rows(width: int = 16) -> list[dict]:
    """The cases of both engines at the width of the trained networks."""
    rows = []
    for engine in ("stock", "lean"):
        for variant in VARIANTS:
            case = case_id(variant, engine).replace("w64", f"w{width}")
            row = make_row(variant, engine, role="sweep", width=width, case=case, network=None)
            row["weights"] = "trained"
            trained = make_accuracy_row(variant, width)
            row["cost"] |= {"relus": trained["relus"], "macs": trained["macs"]}
            row["times"] = {clock: [seconds / 4 for seconds in row["times"][clock]] for clock in row["times"]}
            if row["reference"]:
                old = row["reference"]
                row["reference"] = {name: [s / 4 for s in old[name]] for name in old if name != "case"}
                row["reference"]["case"] = old["case"].replace("w64", f"w{width}")
            rows.append(row)
    return rows


def make_masks(seed: int = 0) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Masks of six networks of width 16; the joint one lacks a layer."""
    rng = np.random.default_rng(seed)
    shapes = {"layer1.0.relu2": (16, 32, 32), "layer2.0.relu1": (32, 16, 16), "layer2.0.relu2": (32, 16, 16)}
    shapes["layer3.0.relu2"] = (64, 8, 8)
    shares = {"layer1.0.relu2": 0.02, "layer2.0.relu1": 0.2, "layer2.0.relu2": 0.1, "layer3.0.relu2": 0.3}
    return {
        (variant, 16): {
            layer: rng.random(shape) < shares[layer]
            for layer, shape in shapes.items()
            if variant != "joint-0.09" or layer != "layer2.0.relu1"
        }
        for variant in (
            *("senet-0.09", "joint-0.09", "snl-0.09", "poly-0.09", "joint-snl-0.09"),
            "constrained-masks-0.09",
        )
    }


RELUS = (
    "relu",
    *(f"layer{stage}.{block}.relu{i}" for stage in (1, 2, 3, 4) for block in (0, 1) for i in (1, 2)),
)


def make_sensitivity(shift: float = 0.0) -> dict:
    """The content of sensitivity.json: rising from the stem to the last layer."""
    return {"sensitivity": {layer: place / 17 + shift for place, layer in enumerate(RELUS)}}


def remember(statistic):
    """The same function of a list, computed once for the same values."""
    cached = functools.cache(statistic)
    return lambda values: cached(tuple(values))


TOY = Family("toy", "Toy", "none", "Removes what it likes.", "#123456", "h", place=25, shown="toy-0.09")


def add_toy_family(monkeypatch) -> None:
    """Puts a family and two variants of it into the catalogue, as a file in models/reductions/ would."""
    families, names = catalogue.families(), catalogue.variant_names()
    known = {family.name: family for family in sorted([*families.values(), TOY], key=lambda x: x.place)}
    place = names.index("joint")
    monkeypatch.setattr(catalogue, "families", lambda: known)
    monkeypatch.setattr(
        catalogue, "variant_names", lambda: (*names[:place], "toy-0.09", "toy-0.02", *names[place:])
    )
