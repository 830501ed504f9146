import pytest

from pibench.models.commands import exit_status


def raising(error):
    def work():
        raise error

    return work


def test_the_exit_status_says_how_a_command_ended(capsys):
    assert exit_status(lambda: None) == 0
    assert capsys.readouterr().err == ""
    assert exit_status(raising(KeyError("a")), OSError, LookupError) == 1
    assert capsys.readouterr().err == "'a'\n"
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_an_error_that_is_not_expected_passes():
    with pytest.raises(ZeroDivisionError):
        exit_status(raising(ZeroDivisionError()), ValueError)
