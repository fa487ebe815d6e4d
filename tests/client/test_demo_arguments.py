import pytest

from vmmd_client import demo


@pytest.mark.parametrize("arguments", [["--updates", "0"], ["--updates", "x"], ["--vcpus", "65"], ["--rounds", "3"]])
def test_a_number_out_of_its_bounds_is_refused_before_anything_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_file_that_is_no_recording_is_an_error_that_names_it(capsys: pytest.CaptureFixture[str]):
    assert demo.main(["--trace", "/none/such"]) == 1
    assert "/none/such" in capsys.readouterr().err
