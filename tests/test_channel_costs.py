"""What an inner channel costs, measured."""

import pytest

from pibench.measure.channels import SHARES, line, main


def test_a_line_tells_what_channels_add_from_what_a_layer_costs_without():
    assert line({1.0: 5.0, 0.5: 3.0, 0.25: 2.0, 0.125: 1.5}) == pytest.approx((1.0, 4.0))
    assert line({1.0: 1.0, 0.5: 2.0}) == (3.0, 0.0)


def test_the_command_measures_every_block_with_every_share_of_its_channels(capsys):
    assert main(["--width", "4", "--rounds", "1"]) == 0
    head, *lines, whole = capsys.readouterr().out.splitlines()
    assert head.split() == ["ms,", "median", *map(str, SHARES), "fixed", "channels"]
    assert [each.split()[0] for each in lines] == [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)]
    for each in lines:
        _, *seconds, fixed, channels = map(str, each.split())
        expected = line({s: float(cell) for s, cell in zip(SHARES, seconds, strict=True)})
        assert (float(fixed), float(channels)) == pytest.approx(expected, abs=0.002)
    inner = sum(float(each.split()[1]) for each in lines)
    assert float(whole.split()[2]) > inner
    assert main(["--link", "9Mbit", "--width", "4"]) == 1
    assert capsys.readouterr().err
