"""The choice of the quickest form of each convolution."""

from pibench.engines.base import StepCost
from pibench.measure.forms import main, quickest, seconds_of


def cost(name, seconds):
    return StepCost(name, "convolution", seconds, 1, 8)


def test_a_factored_convolution_takes_the_time_of_all_its_steps():
    costs = [
        *(cost("layer1_0_conv1_0", 0.25), cost("layer1_0_conv1_1", 0.5), cost("layer1_0_relu1", 4.0)),
        *(cost("layer1_0_conv10", 8.0), cost("layer1_0_conv2", 2.0), cost("conv1", 16.0)),
    ]
    assert seconds_of(["layer1.0.conv1", "layer1.0.conv2", "fc"], costs) == {
        "layer1.0.conv1": 0.75,
        "layer1.0.conv2": 2.0,
    }


def test_each_convolution_takes_its_quickest_form_and_stays_dense_in_a_tie():
    seconds = {
        "dense": {"a": 1.0, "b": 1.0, "c": 1.0},
        "channel": {"a": 0.5, "b": 1.0},
        "tucker": {"a": 0.6, "b": 2.0, "c": 0.9},
    }
    assert quickest(seconds) == {"a": "channel", "b": "dense", "c": "tucker"}


def test_the_command_measures_every_form_of_every_layer(capsys):
    assert main(["--width", "4", "--rounds", "1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["ms,", "median", "dense", "channel", "spatial", "tucker", "quickest"]
    assert len(lines) == 16
    for line in lines:
        name, *cells, choice = line.split()
        strided = name.endswith("0.conv1") and not name.startswith("layer1")
        assert [cell == "–" for cell in cells] == [False, strided, strided, False]
        assert choice in ("dense", "channel", "spatial", "tucker")
    assert main(["--link", "9Mbit", "--width", "4"]) == 1
    assert capsys.readouterr().err
