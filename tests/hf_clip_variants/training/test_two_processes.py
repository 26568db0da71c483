import torch
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file

import hf_clip_variants


def train(folder, world_size, batch_size):
    folder.mkdir()
    run_on_ranks(PROGRAMS / "train_adapters.py", folder, batch_size, world_size=world_size, folder=folder)
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    two, one = train(tmp_path / "two", 2, batch_size=2), train(tmp_path / "one", 1, batch_size=4)
    adapters = {row.name for row in hf_clip_variants.methods("adapter")} - {"tip_adapter"} | {"tip_adapter_f"}
    assert set(one) == set(two) == {"whole"} | adapters
    for method, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                two[method][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=f"{method}: {name}": f"{n}: {text}"
            )
