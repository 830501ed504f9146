import pytest

from pibench.models.commands import Parser, exit_status


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


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (["--rows", "senet-0.08"], "(did you mean 'senet-0.09'?)"),
        (["--rosw", "senet-0.09"], "(did you mean '--rows'?)"),
        (["--rosw=senet-0.09"], "(did you mean '--rows'?)"),
        (["--rows", "quux"], "(choose from 'senet-0.09', 'joint'); --help"),
        (["--count", "x"], "argument --count: invalid int value: 'x'; --help"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one_in_one_sentence(given, near, capsys):
    parser = Parser(prog="it")
    parser.add_argument("--rows", choices=("senet-0.09", "joint"))
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(given)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert near in said
    assert said.startswith("it: ")
    assert said.count("\n") == 1
