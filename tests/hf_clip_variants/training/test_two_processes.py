import torch
from paths import PROGRAMS
from processes import finish, run_on_ranks, start_program
from safetensors.torch import load_file

import hf_clip_variants


PROGRAM = PROGRAMS / "train_adapters.py"


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder in folders:
        folder.mkdir()
    run_on_ranks(PROGRAM, folders[0], "2", world_size=2, folder=folders[0])
    log = tmp_path / "one.log"
    finish({log: start_program(PROGRAM, folders[1], "4", log=log, ACCELERATE_USE_CPU="true")})
    two, one = ({path.stem: load_file(path) for path in folder.glob("*.safetensors")} for folder in folders)
    rows = hf_clip_variants.methods("adapter")
    adapters = {row.name for row in rows if row.task == "image-classification"} - {"tip_adapter"} | {"tip_adapter_f"}
    assert set(one) == set(two) == {"whole"} | adapters
    for method, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                two[method][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=f"{method}: {name}": f"{n}: {text}"
            )
