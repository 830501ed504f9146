import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from json_faults import BROKEN, damaged
from safetensors.torch import save_file
from torch import nn

from pibench.measure.count import cost_of
from pibench.models import manifest, variants
from pibench.models import weights as checkpoint
from pibench.models.allocation import allocate
from pibench.models.data import normalised, picture_crops
from pibench.models.graph.relu import MaskedReLU
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.variants import VARIANTS, UnknownVariantError, calibrate, variant
from pibench.models.weights import WeightsError, load, read_weights, save_weights
from pibench.models.zoo import layout_of

RESNET18_RELUS = layout_of("resnet18").relus
WIDTH = 4
IMAGES = normalised(picture_crops(4))
ORIGINAL = 557_056

# name: (ReLUs, ReLU layers, linear layers, MACs, parameters) at width 64, 100 classes, 32x32
EXPECTED = {
    "baseline": (557_056, 17, 21, 555_468_800, 11_215_332),
    "senet-0.72": (401_080, 17, 21, 555_468_800, 11_215_332),
    "senet-0.54": (300_810, 17, 21, 555_468_800, 11_215_332),
    "senet-0.36": (200_540, 17, 21, 555_468_800, 11_215_332),
    "senet-0.18": (100_270, 17, 21, 555_468_800, 11_215_332),
    "senet-0.09": (50_135, 17, 21, 555_468_800, 11_215_332),
    "senet-0.045": (25_068, 17, 21, 555_468_800, 11_215_332),
    "snl-0.18": (100_270, 17, 21, 555_468_800, 11_215_332),
    "snl-0.09": (50_135, 17, 21, 555_468_800, 11_215_332),
    "snl-0.052": (28_967, 17, 21, 555_468_800, 11_215_332),
    "poly-0.09": (50_135, 17, 21, 555_468_800, 11_215_349),  # and a constant c0 a layer
    "poly-0.045": (25_068, 17, 21, 555_468_800, 11_215_349),
    "joint": (344_064, 12, 14, 362_530_816, 10_214_884),
    "joint-0.416": (231_735, 12, 14, 362_530_816, 10_214_884),
    "joint-0.312": (173_801, 12, 14, 362_530_816, 10_214_884),
    "joint-0.208": (115_868, 12, 14, 362_530_816, 10_214_884),
    "joint-0.104": (57_934, 12, 14, 362_530_816, 10_214_884),
    "joint-0.09": (50_135, 12, 14, 362_530_816, 10_214_884),
    "joint-0.052": (28_967, 12, 14, 362_530_816, 10_214_884),
    "joint-0.026": (14_483, 12, 14, 362_530_816, 10_214_884),
    "joint3-0.052": (28_967, 14, 17, 440_125_440, 10_985_572),
    "joint-snl-0.18": (100_270, 12, 14, 362_530_816, 10_214_884),
    "joint-snl-0.09": (50_135, 12, 14, 362_530_816, 10_214_884),
    "joint-snl-0.052": (28_967, 12, 14, 362_530_816, 10_214_884),
    "cap-joint-0.052": (28_967, 12, 14, 316_524_544, 8_223_940),  # as found at width 16
    "deepreduce": (49_152, 4, 21, 555_468_800, 11_215_332),
    "merged-exact": (344_064, 12, 14, 731_629_568, 12_246_500),
    "folding-5": (344_064, 12, 14, 731_629_568, 12_246_500),
    "folding-3": (409_600, 14, 17, 658_229_248, 11_960_164),
    "senet-merged-0.36": (200_540, 12, 16, 410_241_024, 11_095_268),
    "senet-merged-0.18": (100_270, 12, 16, 410_241_024, 11_095_268),
    "senet-merged-0.09": (50_135, 12, 16, 410_241_024, 11_095_268),
    "senet-merged-0.045": (25_068, 12, 16, 410_241_024, 11_095_268),
    "joint-merged-0.208": (115_868, 9, 11, 274_352_128, 10_096_612),
    "joint-merged-0.104": (57_934, 9, 11, 274_352_128, 10_096_612),
    "joint-merged-0.09": (50_135, 9, 11, 274_352_128, 10_096_612),
    "joint-merged-0.052": (28_967, 9, 11, 274_352_128, 10_096_612),
    "joint-merged-0.026": (14_483, 9, 11, 274_352_128, 10_096_612),
    "bilinear-1": (557_056, 17, 41, 51_135_616, 125_700),
    "bilinear-2": (2_228_224, 17, 41, 402_815_232, 886_564),
    "pixels-0.75": (417_792, 17, 21, 555_468_800, 11_215_332),
    "pixels-0.5": (278_528, 17, 21, 555_468_800, 11_215_332),
    "trp-channel-0.9": (557_056, 17, 34, 155_830_272, 2_571_748),
    "trp-channel-4": (557_056, 17, 34, 201_050_112, 4_399_588),
    "trp-spatial-0.9": (557_056, 17, 34, 124_307_456, 2_252_772),
    "trp-spatial-4": (557_056, 17, 34, 146_524_160, 3_351_012),
    "tucker-0.9": (557_056, 17, 53, 38_263_040, 443_940),
    "tucker-4": (557_056, 17, 53, 75_876_352, 1_548_260),
    "trp-quickest-4": (557_056, 17, 41, 97_896_448, 1_892_324),
    "eca": (557_056 + 19_200, 17 + 8, 29, 555_478_144, 11_215_368),  # ten comparisons a channel of 8 blocks
    "eca-hard": (557_056 + 3_840, 17 + 8, 29, 555_478_144, 11_215_368),
    "cap-3": (478_720, 17, 21, 439_863_296, 10_155_252),  # as found at width 16
    "cap-10": (450_560, 17, 21, 377_341_952, 8_984_620),
    "cap-untuned-3": (478_720, 17, 21, 439_863_296, 10_155_252),
    "cap-untuned-10": (450_560, 17, 21, 377_341_952, 8_984_620),
    "shrinkage-0.9": (557_056, 17, 21, 555_468_800, 11_215_332),  # zeros are shared like any weight
    "gated": (868_352, 17, 30, 802_605_056, 15_937_636),  # a gate has two knots and a convolution
    "constrained-relus-0.75": (417_792, 17, 21, 372_623_360, 10_901_792),  # as found at width 16
    "constrained-macs-0.5": (387_328, 17, 21, 274_712_576, 9_814_032),  # so is this
    "constrained-seconds-0.75": (396_544, 17, 21, 308_332_544, 10_228_848),  # and this
    "constrained-masks-0.09": (50_135, 17, 21, 555_468_800, 11_215_332),
}


@pytest.fixture(autouse=True)
def no_stored_weights(tmp_path, monkeypatch):
    """An empty folder of weights: tests do not depend on what has been trained."""
    monkeypatch.setattr(manifest, "FOLDER", tmp_path / "weights")


@pytest.fixture(scope="module")
def built():
    """Every variant once, seeded."""
    return {name: recipe.build(width=WIDTH, weights=None) for name, recipe in VARIANTS.items()}


def kinds(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_the_recipes_are_those_of_the_project():
    assert set(VARIANTS) == set(EXPECTED)
    assert all(name == recipe.name for name, recipe in VARIANTS.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_cost_at_full_width(name, monkeypatch):
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    cost = cost_of(VARIANTS[name].build(weights=None), IMAGES[:1])
    assert (cost.relus, cost.relu_layers, cost.linear_layers, cost.macs, cost.parameters) == EXPECTED[name]
    assert cost.comparisons == 0


@pytest.mark.parametrize("name", [name for name in EXPECTED if VARIANTS[name].fraction is not None])
def test_the_name_carries_the_fraction_of_the_original_relus(name, built):
    fraction = float(name.rpartition("-")[2])
    assert EXPECTED[name][0] == round(fraction * ORIGINAL) == VARIANTS[name].budget()
    assert cost_of(built[name], IMAGES[:1]).relus == round(fraction * ORIGINAL * WIDTH / 64)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_folded_frozen_and_in_eval_mode(name, built):
    model = built[name]
    assert not kinds(model, nn.BatchNorm2d)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.meta["trained"] is False
    assert model.meta["variant"] == name


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_stay_near_one_and_images_have_different_logits(name, built):
    model, largest = built[name], []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: largest.append(output.abs().mean().item())
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    logits = model(IMAGES)
    for hook in hooks:
        hook.remove()
    assert 0.1 < min(largest) <= max(largest) < 10
    assert logits.isfinite().all()
    for one in range(len(logits)):
        for other in range(one):
            assert (logits[one] - logits[other]).abs().max() > 0.05 * logits.abs().max()


@pytest.mark.parametrize("name", ["baseline", "snl-0.09", "joint-0.09"])
def test_building_is_seeded_and_leaves_the_global_generator_alone(name, built):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    again, other = (VARIANTS[name].build(width=WIDTH, weights=None, seed=seed) for seed in (0, 1))
    VARIANTS[name].budget(WIDTH)
    assert torch.equal(before, torch.get_rng_state())
    expected = built[name].state_dict()
    assert all(torch.equal(expected[key], tensor) for key, tensor in again.state_dict().items())
    assert not any(torch.equal(expected[key], tensor) for key, tensor in other.state_dict().items())


def test_senet_masks_follow_the_allocation(built):
    counts = {name: int(built["senet-0.09"].get_submodule(name).mask.sum()) for name in RESNET18_RELUS}
    sizes = [built["senet-0.09"].get_submodule(name).mask.numel() for name in RESNET18_RELUS]
    assert list(counts.values()) == allocate(sizes, SENET_SENSITIVITY, round(0.09 * ORIGINAL * WIDTH / 64))


def test_joint_has_five_convolutions_in_place_of_blocks(built):
    model = built["joint-0.09"]
    assert len(kinds(model, nn.Conv2d)) == 13
    assert {model.get_submodule(name).kernel_size for name in kinds(model, nn.Conv2d)} == {(3, 3), (1, 1)}
    assert [name for name in kinds(model, nn.Conv2d) if name.endswith("shallow")] == [
        *("layer1.0.shallow", "layer1.1.shallow", "layer2.0.shallow", "layer2.1.shallow", "layer3.0.shallow")
    ]
    assert sum(node.name.startswith("add") for node in model.graph.nodes) == 3


def test_merged_exact_differs_from_its_unmerged_network_at_the_border_only(built):
    recipe = dataclasses.replace(VARIANTS["merged-exact"], finish=VARIANTS["baseline"].finish)
    plain, merged = recipe.build(width=WIDTH, weights=None), built["merged-exact"]
    assert [merged.get_submodule(name).kernel_size[0] for name in kinds(merged, nn.Conv2d)][:6] == [
        3,
        5,
        5,
        7,
        5,
        7,
    ]
    images = normalised(picture_crops(2, 64))
    stages = []
    for model in (plain, merged):
        relu = model.get_submodule("layer1.1.relu2")
        hook = relu.register_forward_hook(lambda *call: stages.append(call[2]))
        model(images)
        hook.remove()
    one, other = stages
    torch.testing.assert_close(one[..., 8:-8, 8:-8], other[..., 8:-8, 8:-8], rtol=1e-4, atol=1e-5)
    assert (one - other).abs().max() > 1e-3


def test_classes_and_image_size_are_free():
    model = VARIANTS["joint-0.09"].build(width=2, weights=None, classes=7, image_size=64)
    images = normalised(picture_crops(2, 64))
    assert model(images).shape == (2, 7)
    assert cost_of(model, images).relus == round(0.09 * ORIGINAL * 2 / 64 * 4)
    with pytest.raises(ValueError, match="the image size or width differs"):
        model(IMAGES)


def test_an_unknown_variant_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown variant 'senet-0\.5': known are baseline, senet-0\.72, "):
        variant("senet-0.5")
    assert variant("baseline") == VARIANTS["baseline"]
    with pytest.raises(KeyError) as error:
        VARIANTS["typo"]
    assert str(error.value).startswith("unknown variant 'typo': known are baseline, senet-0.72, ")
    assert error.type is UnknownVariantError
    assert "typo" not in VARIANTS
    assert VARIANTS.get("typo") is None


@pytest.mark.parametrize("name", ["width", "classes", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "8"])
@pytest.mark.parametrize("recipe", ["baseline", "senet-0.09", "merged-exact"])
def test_sizes_that_are_none_are_named(recipe, name, value):
    reason = f"^{name} must be a positive whole number, not {value!r}$"
    with pytest.raises(ValueError, match=reason):
        VARIANTS[recipe].build(**({"width": 2} | {name: value}))
    if name != "classes":
        with pytest.raises(ValueError, match=reason):
            VARIANTS[recipe].budget(**{name: value})


def test_calibration_takes_the_statistics_of_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.1)).eval()
    calibrate(model, [IMAGES])
    activation = model[0](IMAGES)
    torch.testing.assert_close(model[1].running_mean, activation.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, activation.var((0, 2, 3)))
    assert not model.training
    assert model[1].momentum == 0.1
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072)).eval()
    calibrate(model, [IMAGES])
    torch.testing.assert_close(model[1].running_mean, IMAGES.flatten(1).mean(0))


def test_calibration_takes_the_mean_over_several_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    batches = IMAGES.split(2)
    calibrate(model, batches)
    torch.testing.assert_close(model[1].running_mean, model[0](IMAGES).mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    variances = torch.stack([model[0](batch).var((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(model[1].running_var, variances.mean(0))
    assert model[1].momentum == 0.1
    assert not model.training


@pytest.mark.parametrize(
    "name", ["baseline", "senet-0.09", "snl-0.09", "joint-0.052", "merged-exact", "joint-merged-0.052"]
)
def test_stored_weights_and_masks_come_back(name):
    recipe = VARIANTS[name]
    trained = recipe.build(width=WIDTH, weights=None, seed=5)
    path = manifest.FOLDER / checkpoint.file_name(name, WIDTH)
    save_weights(trained, path)
    loaded = recipe.build(width=WIDTH)
    assert loaded.meta["trained"] is True
    assert next(loaded.parameters()).dtype == torch.float32
    assert loaded.state_dict().keys() == trained.state_dict().keys()
    for key, tensor in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)
    assert cost_of(loaded, IMAGES).relus == cost_of(trained, IMAGES).relus
    assert recipe.build(width=WIDTH, weights=path).meta["trained"]
    assert not recipe.build(width=WIDTH, weights=None).meta["trained"]
    assert not recipe.build(width=WIDTH, classes=10).meta["trained"]  # trained for another number of classes
    assert not recipe.build(width=2).meta["trained"]
    single = manifest.FOLDER / "single.safetensors"
    save_weights(trained, single, dtype=torch.float32)
    assert all(
        torch.equal(tensor, trained.state_dict()[key])
        for key, tensor in recipe.build(width=WIDTH, weights=single).state_dict().items()
    )


def test_masks_learnt_elsewhere_may_fill_or_empty_layers():
    """SNL has its own distribution: an emptied layer and a whole one come back as such."""
    recipe = VARIANTS["snl-0.09"]
    shapes = {name: (WIDTH, 32, 32) for name in ("relu", "layer1.0.relu1")}
    budget = recipe.budget(WIDTH)

    def masks(layout, shapes_of_all, count, seed):
        keep = dict.fromkeys(RESNET18_RELUS, False)
        keep["layer4.1.relu2"] = True
        rest = count - 8 * WIDTH * 16
        return keep | {"relu": (torch.arange(4096) < rest).view(shapes["relu"])}

    learnt = dataclasses.replace(recipe, masks=masks).build(width=WIDTH, weights=None)
    assert kinds(learnt, MaskedReLU) == ["relu"]
    path = manifest.FOLDER / "learnt.safetensors"
    save_weights(learnt, path)
    loaded = recipe.build(width=WIDTH, weights=path)
    assert kinds(loaded, MaskedReLU) == ["relu"]
    assert kinds(loaded, nn.ReLU) == ["layer4.1.relu2"]
    assert cost_of(loaded, IMAGES).relus == budget


@pytest.fixture
def stored():
    """A stored senet-0.09 at WIDTH."""
    path = manifest.FOLDER / checkpoint.file_name("senet-0.09", WIDTH)
    save_weights(VARIANTS["senet-0.09"].build(width=WIDTH, weights=None), path)
    return path


def test_a_damaged_file_is_refused(stored):
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"senet-0\.09-w4\.safetensors is damaged: its SHA-256 is not the manifest's"
    ):
        VARIANTS["senet-0.09"].build(width=WIDTH)
    stored.unlink()
    with pytest.raises(WeightsError, match=r"lists senet-0\.09-w4\.safetensors, but the file is missing"):
        VARIANTS["senet-0.09"].build(width=WIDTH)


def older(path):
    """Rewrites a weights file as the project wrote it before files carried decisions; returns its network."""
    stored = read_weights(path)
    model = load(path)
    relus = {
        name: "masked" if isinstance(module, MaskedReLU) else "whole"
        for name, module in model.named_modules()
        if isinstance(module, (MaskedReLU, nn.ReLU))
    }
    save_file(dict(stored.tensors), path, metadata={"relus": json.dumps(relus)})
    listed(path)
    return model


def listed(path):
    """Puts the SHA-256 that a file has now into the manifest."""
    entry = manifest.read_manifest(path.parent)[path.name]
    manifest.replace_listed(path, path.read_bytes(), entry["classes"], entry["image_size"])


@pytest.mark.parametrize("name", ["senet-0.09", "joint-0.052", "deepreduce", "merged-exact"])
def test_an_older_file_is_built_by_its_variant(name):
    path = manifest.FOLDER / checkpoint.file_name(name, WIDTH)
    save_weights(VARIANTS[name].build(width=WIDTH, weights=None), path)
    model = older(path)
    again = VARIANTS[name].build(width=WIDTH)
    assert again.meta["decisions"] == model.meta["decisions"]
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    with pytest.raises(WeightsError, match=r"is older than decisions in weights files: build its variant"):
        load(path)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("senet-0.18", {"width": WIDTH}, r"keeps 3133 ReLUs, senet-0\.18 has 6267"),
        ("baseline", {"width": WIDTH}, "keeps 3133 ReLUs, baseline has 34816"),
        ("joint-0.09", {"width": WIDTH}, r"another architecture: joint-0\.09 has no ReLU layer1\.0\.relu1"),
        (
            "senet-0.09",
            {"width": 2},
            r"another architecture: relu: a ReLU mask of shape \[4, 32, 32\] does not fit",
        ),
        ("senet-0.09", {"width": WIDTH, "image_size": 64}, "another architecture: relu: a ReLU mask"),
        (
            "senet-0.09",
            {"width": WIDTH, "classes": 3},
            r"another architecture: fc\.bias is \[100\] instead of \[3\], and 1",
        ),
    ],
)
def test_older_weights_of_another_architecture_are_refused(stored, name, arguments, reason):
    older(stored)
    with pytest.raises(WeightsError, match=reason):
        VARIANTS[name].build(weights=stored, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("senet-0.18", {"width": WIDTH}),
        ("joint-0.09", {"width": WIDTH}),
        ("senet-0.09", {"width": 2}),
        ("senet-0.09", {"width": WIDTH, "image_size": 64}),
        ("senet-0.09", {"width": WIDTH, "classes": 3}),
    ],
)
def test_weights_of_another_network_are_refused(stored, name, arguments):
    with pytest.raises(
        WeightsError, match=r"was made for another network: .* \('senet-0\.09', 'resnet18', 4"
    ):
        VARIANTS[name].build(weights=stored, **arguments)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "not of format 1"),
        ({"width": 0}, "its width is no positive whole number"),
        ({"classes": True}, "its classes is no positive whole number"),
        ({"variant": 3}, "its variant is no text"),
        ({"more": 1}, "lack or do not know 'more'"),
        ({"steps": {}}, "its steps are no list"),
        ({"steps": [["fold_batchnorm"]]}, "no pair of a transform's name and its arguments"),
        ({"steps": [["nonsense", {}]]}, "unknown transform 'nonsense': known are"),
        ({"steps": [["fold_batchnorm", {"odd": 1}]]}, "cannot be rebuilt from its decisions"),
        ({"steps": [["merge_convs", {"names": {"tensor": "none"}}]]}, "name a tensor that it has not: none"),
        ({"network": "lenet"}, "a network that is not known, 'lenet'"),
        ({"network": "resnet20"}, "cannot be rebuilt from its decisions: no ReLU named"),
        ({"image_size": 64}, "cannot be rebuilt from its decisions: .*the image size or width differs"),
        ({"classes": 7}, r"another architecture: fc\.bias is \[100\] instead of \[7\]"),
    ],
)
def test_a_header_is_checked(stored, change, reason):
    content = json.loads(read_weights(stored).decisions.to_json()) | change
    tensors = dict(read_weights(stored).tensors)
    save_file(tensors, stored, metadata={"decisions": json.dumps(content)})
    listed(stored)
    with pytest.raises(WeightsError, match=reason) as error:
        load(stored)
    assert str(error.value).startswith(stored.name)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda weight: weight.index_fill(0, torch.tensor(0), torch.nan),
            "fc.weight holds values that are no",
        ),
        (
            lambda weight: weight.index_fill(0, torch.tensor(0), torch.inf),
            "fc.weight holds values that are no",
        ),
        (lambda weight: weight.to(torch.int32), "fc.weight is of torch.int32 instead of torch.float32"),
        (lambda weight: weight > 0, "fc.weight is of torch.bool instead of torch.float32"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused_though_they_are_listed(stored, spoil, reason):
    made = read_weights(stored)
    tensors = dict(made.tensors)
    tensors["fc.weight"] = spoil(tensors["fc.weight"])
    save_file(tensors, stored, metadata={"decisions": made.decisions.to_json()})
    listed(stored)
    for use in (load, lambda path: VARIANTS["senet-0.09"].build(width=WIDTH, weights=path)):
        with pytest.raises(WeightsError, match=reason):
            use(stored)


@pytest.mark.parametrize("key", ["decisions", "relus"])
@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_header_that_is_no_json_is_named(stored, key, text):
    """Also of older files, whose header holds the kinds of ReLUs."""
    content = text.decode("latin-1").replace("\x00", " ")
    save_file(dict(read_weights(stored).tensors), stored, metadata={key: content})
    listed(stored)
    with pytest.raises(WeightsError, match=r"^senet-0\.09-w4\.safetensors [^\n]+$"):
        VARIANTS["senet-0.09"].build(width=WIDTH)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A stored senet-0.09 at width 1, and its content."""
    path = tmp_path_factory.mktemp("weights") / "senet-0.09-w1.safetensors"
    save_weights(VARIANTS["senet-0.09"].build(width=1, weights=None), path)
    return path, read_weights(path)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_network_is_built_or_its_header_refused_in_one_line(data, tiny):
    """Whatever value stands in the decisions."""
    path, made = tiny
    content = data.draw(damaged(json.loads(made.decisions.to_json())))
    save_file(dict(made.tensors), path, metadata={"decisions": json.dumps(content)})
    listed(path)
    said = ""
    try:
        load(path)
    except WeightsError as error:
        said = str(error)
    assert "\n" not in said


def test_a_file_is_built_from_itself_alone(stored):
    other = stored.with_name("anything.safetensors")
    model = VARIANTS["joint-0.09"].build(width=WIDTH, weights=None, seed=3, classes=7)
    save_weights(model, other, dtype=torch.float32)
    state = torch.get_rng_state()
    again = load(other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.meta["decisions"] == model.meta["decisions"]


def test_weights_of_another_structure_are_refused():
    baseline = VARIANTS["baseline"].build(width=WIDTH, weights=None)
    baseline.delete_submodule("layer1.0.conv2")
    state = dict(baseline.state_dict())
    assert "layer1.0.conv2.weight" not in state
    path = manifest.FOLDER / "other.safetensors"
    save_weights(VARIANTS["baseline"].build(width=WIDTH, weights=None), path)
    stored = read_weights(path)
    tensors = {name: tensor for name, tensor in stored.tensors.items() if name in state} | {
        "new": torch.ones(1)
    }
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv2\.bias is missing, and 2 more differences"):
        checkpoint.put_weights(
            VARIANTS["baseline"].build(width=WIDTH, weights=None),
            dataclasses.replace(stored, tensors=tensors),
        )


def test_unlisted_and_foreign_files_are_refused(stored):
    other = stored.with_name("other.safetensors")
    other.write_bytes(stored.read_bytes())
    with pytest.raises(WeightsError, match=r"other\.safetensors is not listed in"):
        read_weights(other)
    stored.write_bytes(b"not a safetensors file")
    listed(stored)
    with pytest.raises(WeightsError, match="is no weights file of this project"):
        read_weights(stored)
    (stored.parent / manifest.MANIFEST).write_text("{")
    with pytest.raises(WeightsError, match=r"manifest\.json is no JSON"):
        VARIANTS["baseline"].build(width=WIDTH)
