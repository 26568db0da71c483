import pytest
from few_shot_runs import save_images, save_tiny_clip

from hf_clip_variants import cli


@pytest.fixture
def run(capsys):
    """Runs the program in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        return exit.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder with a tiny CLIP."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder with emoji of a few classes: two styles to train on, two of other designers to test on."""
    folder = tmp_path_factory.mktemp("images")
    return save_images(folder, {"train": ["fluentflat", "emojione"], "test": ["fluent3d", "notov1"]})
