import pytest

from hf_clip_variants import cli


@pytest.fixture
def run(capsys):
    """Runs the program in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        return exit.value.code or 0, *capsys.readouterr()

    return run
