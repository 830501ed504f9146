"""Cost models of the literature: published numbers, sums recomputed by hand, orders, units and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from math import inf, isnan, nan

import pytest
import torch
from torch import nn

from pibench.costs.literature import (
    CHANNELS,
    LABEL,
    MODELS,
    BreakEven,
    Channel,
    LinearLayer,
    Network,
    break_even_rows,
    describe,
    modelled,
    modelled_rows,
    network_from_dict,
    where_layers_beat_relus,
)
from pibench.costs.literature.delphi import (
    CIRCUIT_BYTES,
    LABEL_BYTES,
    OT_SEND_BYTES,
    OT_SETUP_BYTES,
    Threads,
    delphi_client_garbler,
    delphi_server_garbler,
    download_ciphertexts,
    garbled_s,
    he_products,
    he_s,
    he_total_s,
    upload_ciphertexts,
)
from pibench.links import LINKS
from pibench.models.variants import VARIANTS
from pibench.program.lower import lower

LAN = CHANNELS["lan"]


def conv(inputs, outputs, size, stride=1, kernel=3, name="c"):
    out = size // stride
    return LinearLayer(name, "convolution", inputs, outputs, (kernel, kernel), (size, size), (out, out))


def published_resnet18(size=32, classes=10):
    """The ResNet-18 of the artifact: 17 convolutions without shortcuts and the classifier, 17 ReLU layers."""
    layers, relus, channels = [conv(3, 64, size)], 64 * size * size, 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            layers += [conv(channels, width, size, stride), conv(width, width, size // stride)]
            channels, size = width, size // stride
            relus += 2 * width * size * size
    fc = LinearLayer("fc", "linear", 512, classes, (1, 1), (1, 1), (1, 1))
    return Network("published", relus, 17, (*layers, fc))


R18 = published_resnet18()

# utils/cifar10_server_garbler_utils_r18.py, one number a layer, in order.
HE_EVALUATION_S = [
    *(1.6988, 13.5142, 13.4495, 13.4172, 13.3948, 26.7558, 14.5279, 14.5311, 14.5088),
    *(29.5328, 15.8275, 15.8042, 15.8131, 31.7222, 17.1431, 17.1464, 17.1434),
]
UPLOAD_BYTES = [4719545, *[37756304] * 5, *[18878156] * 4, *[9439082] * 4, *[4719545] * 3, 524401]
DOWNLOAD_BYTES = [
    *[4195152] * 5,
    *(8390296, 2097580, 2097580, 2097580, 4195152, 1048794, 1048794, 1048794, 2097580),
    *[524401] * 4,
]
# utils/he_models.py, ResNet-18 on CIFAR with 1 to 17 threads.
LAYER_PARALLEL_S = [
    *(292.4065, 151.7543, 107.7275, 79.8120, 64.4129, 62.5728, 50.7191, 49.0401, 48.7289),
    *(48.3394, 48.3207, 48.5412, 36.1273, 35.9051, 35.8559, 35.8916, 36.5112),
]


def test_the_published_network_is_the_published_one():
    assert R18.relus == 557_056
    assert R18.macs == 549_131_264
    assert len(R18.linear) == 18


def test_bytes_a_relu():
    """Published totals over 557,056 ReLUs, whole bytes."""
    assert (CIRCUIT_BYTES, OT_SETUP_BYTES, OT_SEND_BYTES, LABEL_BYTES) == (17_072, 672, 1_344, 1_184)


def test_ciphertexts_are_the_published_bytes():
    assert [524_393 * upload_ciphertexts(layer) + 8 for layer in R18.linear] == UPLOAD_BYTES
    assert [524_393 * download_ciphertexts(layer) + 8 for layer in R18.linear] == DOWNLOAD_BYTES


def test_he_seconds_of_each_published_layer():
    """One product for each uploaded ciphertext and output channel: 9 * 8 * 64 = 4608 in stage 1."""
    assert [he_products(layer) for layer in R18.linear[:7]] == [576, *[4608] * 4, 9216, 4608]
    for layer, published in zip(R18.linear, HE_EVALUATION_S, strict=False):
        assert he_s(layer) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("layer", "published", "within"),
    [  # cifar10_server_garbler_utils_r32.py and _vgg16.py, tiny_server_garbler_utils_r18.py
        (conv(3, 16, 32), 0.4340, 0.05),
        (conv(16, 16, 32), 0.8482, 0.05),
        (conv(16, 32, 32, 2), 1.6846, 0.05),
        (conv(32, 32, 16), 0.9217, 0.05),
        (conv(64, 64, 8), 2.2597, 0.15),
        (conv(64, 128, 16), 7.3134, 0.05),
        (conv(512, 512, 2), 18.5745, 0.05),
        (conv(64, 64, 64), 49.6660, 0.03),
        (conv(512, 512, 8), 63.7932, 0.03),
        (LinearLayer("fc", "linear", 512, 4096, (1, 1), (1, 1), (1, 1)), 3.811, 0.25),
        (LinearLayer("fc", "linear", 4096, 4096, (1, 1), (1, 1), (1, 1)), 38.6636, 0.25),
        (LinearLayer("fc", "linear", 512, 10, (1, 1), (1, 1), (1, 1)), 0.0723, 0.25),
    ],
)
def test_he_seconds_of_other_published_layers(layer, published, within):
    assert he_s(layer) == pytest.approx(published, rel=within)


def test_layer_parallel_he_against_the_published_table():
    for threads, published in enumerate(LAYER_PARALLEL_S, start=1):
        assert 0.86 < he_total_s(R18.linear, threads) / published < 1.0


def test_larger_kernels_and_shortcuts_follow_the_same_count():
    assert he_s(conv(64, 64, 32, kernel=5)) == pytest.approx(25 / 9 * he_s(conv(64, 64, 32)))
    assert he_s(conv(64, 128, 32, 2, kernel=1)) == pytest.approx(he_s(conv(64, 128, 32, 2)) / 9)
    depthwise = replace(conv(64, 64, 32), groups=64)
    assert he_products(depthwise) == 72


def test_garbling_is_the_artifacts_line():
    """gc_models.py's numpy.polyfit of degree 1, evaluated by hand; threads divide."""
    assert garbled_s("server", "garble", 1000) == pytest.approx(1.03742703e-1 - 8.85333e-6, rel=1e-6)
    assert garbled_s("client", "garble", 1000) == pytest.approx(6.8676e-1 - 6.3513e-4, rel=1e-4)
    assert garbled_s("server", "evaluate", 1000) == pytest.approx(5.456424e-2 - 1.22266547e-5, rel=1e-6)
    assert garbled_s("client", "evaluate", 1000, 4) == pytest.approx(
        (3.4595006e-1 - 8.17822e-5) / 4, rel=1e-6
    )
    assert garbled_s("client", "evaluate", 0) == 0


def test_delphi_server_garbler_by_hand():
    """500 Mbit/s each way, 32 threads garble, 4 evaluate, 1 for HE: the artifact's sums, written out."""
    cost = delphi_server_garbler(R18, CHANNELS["garimella"])
    n, bandwidth = 557_056, 500e6 / 8
    up = 33_180_308 + sum(UPLOAD_BYTES) + 4_096 + 374_341_632
    down = sum(DOWNLOAD_BYTES) + 9_510_061_120 + 748_683_264
    work = 0.340 + 2.7635495 + 0.1668283 + 292.4065 + (1.03742703e-4 * n) / 32 + 4.225
    assert cost.offline_bytes == up + down - 17 * 64  # framing of the circuits, a layer
    assert cost.offline_s == pytest.approx(work + (up + down) / bandwidth, rel=0.015)  # HE: 286 for 292 s
    online_up = 27_689 + 4 * 589_865 + 589_865 + 4 * 294_953 + 4 * 147_497 + 3 * 73_769 + 9 * 512 + 41
    online_down = 77_594_624 * 557_056 / 65_536 + 131
    assert cost.online_bytes == pytest.approx(online_up + online_down, rel=1e-9)
    work = 0.4276910 + 1.9914513 + 3.4595006e-4 * n / 4
    assert cost.online_s == pytest.approx(work + (online_up + online_down) / bandwidth, rel=1e-4)
    assert cost.rounds == 18 + 17 + 1


def test_delphi_client_garbler_by_hand():
    channel = Channel("split", 0.0, 835e6, 165e6)
    cost = delphi_client_garbler(R18, channel)
    n, up, down = 557_056, 835e6 / 8, 165e6 / 8
    work = 0.340 + 2.7635495 + 0.1668283 + 292.4065 + 6.8676e-4 * n / 4 + 4.225
    traffic = (33_180_308 + sum(UPLOAD_BYTES) + 9_510_061_120) / up + (sum(DOWNLOAD_BYTES) + 4_096) / down
    assert cost.offline_s == pytest.approx(work + traffic, rel=0.02)
    traffic = (27_689 + 748_683_264) / up + (374_341_632 + 131) / down
    work = 0.4276910 + 1.9914513 + 5.456424e-5 * n / 32
    assert cost.online_s == pytest.approx(work + traffic, rel=1e-4)


def test_against_the_artifacts_own_output_on_tinyimagenet():
    """artifact/generate_fig14.ipynb, ResNet-18: both roles with their split of 1 Gbit/s, 17 HE threads."""
    tiny = published_resnet18(64, 200)
    threads = Threads(client=4, server_gc=32, server_he=17)
    assert tiny.relus == 2_228_224
    server = delphi_server_garbler(tiny, Channel("split", 0.0, 198e6, 802e6), threads)
    assert server.offline_s == pytest.approx(524.5414 + 25.1102 + 152.8440, rel=0.05)
    assert server.online_s == pytest.approx(27.1222 + 199.9192 + 0.6102, rel=0.03)
    client = delphi_client_garbler(tiny, Channel("split", 0.0, 835e6, 165e6), threads)
    assert client.offline_s == pytest.approx(386.0659 + 400.4502 + 152.8440, rel=0.03)
    assert client.online_s == pytest.approx(101.2928 + 11.0051 + 0.6102, rel=0.02)


def test_roles_swap_who_waits():
    channel = CHANNELS["garimella"]
    server, client = delphi_server_garbler(R18, channel), delphi_client_garbler(R18, channel)
    assert client.online_s < server.online_s  # the server evaluates
    assert client.offline_s > server.offline_s  # the client garbles
    fast_up = replace(channel, up_bit_per_s=5e9)
    assert modelled("delphi-client-garbler", R18, fast_up).total_s < client.total_s - 100
    assert modelled("delphi-server-garbler", R18, fast_up).total_s > server.total_s - 15


def test_threads_help_and_bad_ones_are_refused():
    one = delphi_server_garbler(R18, LAN, Threads(1, 1, 1))
    assert delphi_server_garbler(R18, LAN, Threads(8, 1, 1)).online_s < one.online_s
    assert delphi_server_garbler(R18, LAN, Threads(1, 1, 17)).offline_s < one.offline_s - 200
    assert modelled("delphi-server-garbler-lphe", R18, LAN).offline_s < one.offline_s
    with pytest.raises(ValueError, match="server_he must be a whole number of at least 1, not 0"):
        Threads(server_he=0)


def test_columns_by_hand():
    """0.09 s + 21 us * 557,056 = 11.788 s; SENet's 49,600 ReLUs 1.13 s; 2.45 us * 557,056 = 1.365 s."""
    assert modelled("21us-column", R18, LAN).online_s == pytest.approx(11.788176)
    senet = modelled("21us-column", replace(R18, relus=49_600), LAN)
    assert senet.online_s == pytest.approx(1.1316)
    assert isnan(senet.offline_s)
    assert senet.total_s == senet.online_s
    assert not senet.verified
    assert modelled("autorep-column", R18, LAN).online_s == pytest.approx(1.3647872)


ONE = Network("one", 1000, 1, (conv(64, 64, 32),))


def test_cryptflow2_by_hand():
    """L = 32: 584 B and 7 rounds a ReLU; 8 + 8 ciphertexts of 2 * 8192 * 180 (back: 120) bits, 2 rounds."""
    cost = modelled("cryptflow2", ONE, Channel("c", 0.01, 1e9, 1e9))
    sent = 584 * 1000 + 8 * 368_640 + 8 * 245_760
    assert (cost.online_bytes, cost.rounds) == (sent, 7 + 2 + 1)
    assert cost.online_s == pytest.approx(8 * sent / 1e9 + 10 * 0.005)
    assert cost.offline_s == 0


def test_cheetah_by_hand():
    """11 * 32 bits = 44 B a ReLU; 16 + 16 ciphertexts of 61,440 B; 52 B of truncation an output, 5 rounds."""
    cost = modelled("cheetah", ONE, Channel("c", 0.01, 1e9, 1e9))
    sent = 44 * 1000 + 32 * 61_440 + 52 * 65_536
    assert (cost.online_bytes, cost.rounds, cost.verified) == (sent, 7 + 7 + 1, False)


def test_orca_by_hand():
    """130 bits and 2 rounds a ReLU, 8,769 bits of keys; 128 + 98 bits and 4 rounds for a layer's outputs."""
    cost = modelled("orca", ONE, Channel("c", 0.01, 1e9, 1e9))
    sent = 130 / 8 * 1000 + 226 / 8 * 65_536
    assert (cost.online_bytes, cost.offline_bytes, cost.rounds) == (sent, 8_769 / 8 * 1000, 2 + 4 + 1)
    assert cost.online_s == pytest.approx(8 * sent / 2 / 1e9 + 7 * 0.005)
    assert cost.total_s == cost.online_s + cost.offline_s


def test_aby3_by_hand():
    """L = 64: 360 B online and 480 B offline, 9 rounds a ReLU; 24 B an output, 1 round; a third a party."""
    cost = modelled("aby3", ONE, Channel("c", 0.01, 1e9, 1e9))
    sent = 360 * 1000 + 24 * 65_536
    assert (cost.online_bytes, cost.offline_bytes, cost.rounds) == (sent, 480_000, 9 + 1 + 1)
    assert cost.online_s == pytest.approx(8 * sent / 3 / 1e9 + 11 * 0.005)


PHYSICAL = [name for name in MODELS if "column" not in name]


@pytest.mark.parametrize("model", MODELS)
def test_more_relus_never_cost_less_and_the_label_is_modelled(model):
    costs = [modelled(model, replace(R18, relus=relus), LAN) for relus in (0, 1, 1000, 10**6)]
    assert [cost.total_s for cost in costs] == sorted(cost.total_s for cost in costs)
    assert costs[-1].total_s > costs[0].total_s
    assert {cost.label for cost in costs} == {LABEL} == {"modelled"}
    assert costs[0].source
    with pytest.raises(FrozenInstanceError):
        costs[0].label = "measured"


@pytest.mark.parametrize("model", PHYSICAL)
def test_layers_latency_and_bandwidth_cost(model):
    whole = modelled(model, R18, LAN)
    less = modelled(model, replace(R18, linear=R18.linear[:8]), LAN)
    assert less.online_s < whole.online_s
    assert less.offline_s <= whole.offline_s
    slow = modelled(model, R18, replace(LAN, rtt_s=0.1))
    assert slow.online_s == pytest.approx(whole.online_s + whole.rounds * (0.1 - LAN.rtt_s) / 2)
    narrow = modelled(model, R18, replace(LAN, up_bit_per_s=1e8, down_bit_per_s=1e8))
    assert narrow.online_s > whole.online_s
    assert (narrow.online_bytes, narrow.rounds) == (whole.online_bytes, whole.rounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.0, 1e9), "up_bit_per_s must be a positive number, not 0"),
        ((0.0, 1e9, -5.0), "down_bit_per_s must be a positive number, not -5"),
        ((0.0, inf, 1e9), "up_bit_per_s must be a positive number, not inf"),
        ((0.0, 1e9, nan), "down_bit_per_s must be a positive number, not nan"),
        ((-1.0, 1e9, 1e9), "rtt_s must be 0 or more seconds, not -1"),
        ((nan, 1e9, 1e9), "rtt_s must be 0 or more seconds, not nan"),
    ],
)
def test_impossible_channels(arguments, message):
    with pytest.raises(ValueError, match=message):
        Channel("odd", *arguments)


def test_channels_are_the_links_of_the_suite_and_one_of_a_paper():
    for name in ("lan", "wan", "wan-slow"):
        link, channel = LINKS[name], CHANNELS[name]
        assert channel == Channel(name, link.rtt_s, link.bandwidth_bits_s, link.bandwidth_bits_s)
    assert [*CHANNELS] == ["lan", "wan", "wan-slow", "garimella"]


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown model 'gazelle': known are delphi-server-garbler, .*aby3"):
        modelled("gazelle", R18, LAN)
    with pytest.raises(ValueError, match="unknown phase 'setup_s': known are total_s, online_s"):
        where_layers_beat_relus("orca", R18, LAN, "setup_s")
    with pytest.raises(ValueError, match="has no linear layer"):
        modelled("orca", replace(R18, linear=()), LAN)
    with pytest.raises(ValueError, match="no ReLU or no convolution to spare"):
        where_layers_beat_relus("orca", replace(R18, relus=0), LAN)


# The project's own variants.


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    def network(name):
        program = lower(VARIANTS[name].build(64, weights=None), torch.zeros(1, 3, 32, 32)).program
        return describe(name, program)

    return {name: network(name) for name in ("baseline", "senet-0.045", "joint-0.208", "merged-exact")}


def test_describe_reads_shapes(networks):
    baseline = networks["baseline"]
    assert (baseline.relus, baseline.relu_layers, len(baseline.linear)) == (557_056, 17, 21)
    assert baseline.macs == 555_468_800
    first = baseline.linear[0]
    assert (first.inputs, first.outputs, first.kernel, first.in_map, first.out_map) == (
        *(3, 64, (3, 3)),
        *((32, 32), (32, 32)),
    )
    assert len(networks["joint-0.208"].linear) == 14
    assert {layer.kernel for layer in networks["merged-exact"].linear} >= {(3, 3), (5, 5), (7, 7)}


def test_describe_refuses_what_no_model_prices():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2))
    with pytest.raises(ValueError, match=r"price no maxpool \(step '1' of pooled\)"):
        describe("pooled", lower(model, torch.zeros(1, 3, 4, 4)).program)


def test_ranking(networks):
    """DELPHI in total: layers decide. With every layer at once, or online: ReLUs. Merging 3x3s pays no HE."""
    every = list(networks.values())

    def names(model, phase="total_s", channel=LAN):
        ranked = sorted(every, key=lambda each: getattr(modelled(model, each, channel), phase))
        return [each.name for each in ranked]

    by_layers = ["joint-0.208", "senet-0.045", "baseline", "merged-exact"]
    by_relus = ["senet-0.045", "joint-0.208", "merged-exact", "baseline"]
    assert names("delphi-server-garbler") == by_layers
    assert names("delphi-server-garbler", "online_s") == by_relus
    assert names("delphi-server-garbler-lphe")[:3] == ["senet-0.045", "joint-0.208", "baseline"]
    assert names("21us-column") == names("autorep-column") == by_relus
    assert names("orca", "online_s", CHANNELS["wan"])[-2:] == ["senet-0.045", "baseline"]  # rounds


def test_where_layers_beat_relus_by_hand(networks):
    """Under Orca without latency a 64-channel 32 x 32 layer is 226 / 130 bits * 65,536 online."""
    quiet = replace(LAN, rtt_s=0.0)
    pair = Network("pair", 10**6, 2, (conv(64, 64, 32), conv(64, 64, 32)))
    found = where_layers_beat_relus("orca", pair, quiet, "online_s")
    assert found.relus_per_layer == pytest.approx(226 / 130 * 65_536)
    assert found.relu_s == pytest.approx(130 / 2 / 3e9)
    assert not found.layers_win
    few = where_layers_beat_relus("orca", replace(pair, relus=100_000), quiet, "online_s")
    assert few.layers_win
    delphi = where_layers_beat_relus("delphi-server-garbler", networks["baseline"], LAN)
    assert isinstance(delphi, BreakEven)
    assert delphi.layer_s == pytest.approx(16, abs=1)  # seconds of HE, nearly alone
    assert 90_000 < delphi.relus_per_layer < 120_000
    assert where_layers_beat_relus("delphi-server-garbler", networks["senet-0.045"], LAN).layers_win
    assert where_layers_beat_relus("21us-column", networks["baseline"], LAN).relus_per_layer == 0


def test_rows_from_plain_dicts(networks):
    plain = json.loads(json.dumps([network.as_dict() for network in networks.values()]))
    assert [network_from_dict(entry) for entry in plain] == list(networks.values())
    frame = modelled_rows(plain)
    assert len(frame) == 4 * len(MODELS) * len(CHANNELS)
    assert set(frame["label"]) == {"modelled"}
    assert not [name for name in frame if name.endswith(("_s", "_bytes")) and "modelled" not in name]
    assert (
        frame.groupby(["model", "channel"])["rank"].apply(lambda ranks: sorted(ranks) == [1, 2, 3, 4]).all()
    )
    assert frame[frame.model.str.contains("column")]["modelled_offline_s"].isna().all()
    one = frame[(frame.model == "orca") & (frame.channel == "wan") & (frame.network == "baseline")].iloc[0]
    assert one.modelled_online_s == modelled("orca", networks["baseline"], CHANNELS["wan"]).online_s
    even = break_even_rows(list(networks.values()), [LAN])
    assert len(even) == 4 * len(MODELS)
    assert {"relu_s", "layer_s", "relus_per_layer", "layers_win", "label"} <= set(even.columns)
    assert modelled_rows([]).empty


def test_neither_torch_nor_crypten_is_needed():
    code = "import sys, pibench.costs.literature\nassert not {'torch', 'crypten'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
