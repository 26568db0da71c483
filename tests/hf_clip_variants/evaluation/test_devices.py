"""A device that is not here is an error in one line, not one from the middle of a model."""

import pytest
import torch

from hf_clip_variants.evaluation.devices import choose_device


@pytest.fixture
def machine(monkeypatch):
    """Pretends that there are `count` devices of a kind."""

    def pretend(kind: str | None, count: int = 0):
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")

    return pretend


def test_without_a_gpu_only_the_cpu_is_taken(machine):
    machine(None)
    assert choose_device() == choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "cuda", "cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"device: got '{name}', but torch .* finds n"):
            choose_device(name)


def test_gpus_are_counted(machine):
    machine("cuda", 2)
    assert choose_device() == choose_device("gpu") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(
        ValueError, match=r"got 'cuda:2', but torch .* finds 2 of them here; want cpu or cuda:0 to cuda:1"
    ):
        choose_device("cuda:2")
    with pytest.raises(ValueError, match="got 'mps'"):
        choose_device("mps")


def test_words_that_are_no_device_are_refused(machine):
    machine("cuda", 1)
    for name in ("gpus", "cuda:x", "nvidia"):
        with pytest.raises(ValueError, match=f"device: got '{name}'; want cpu, gpu, cuda"):
            choose_device(name)
