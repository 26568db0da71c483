"""open_clip's models that pool by average: what their weights show without a configuration."""

import pytest
import torch
from official_files import letters_tokenizer
from parity_fixtures import load_fixture
from safetensors.torch import save_file

from hf_clip_variants import convert_checkpoint


POSITIONS = "visual.positional_embedding"


def sines_and_cosines(grid: int, width: int) -> torch.Tensor:
    """open_clip's `get_2d_sincos_pos_embed`: (1 + grid², width), zeros for the class token."""
    frequencies = 10000.0 ** -(torch.arange(width // 4).double() / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid).double(), torch.arange(grid).double(), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    patches = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fixed_positions_are_refused_and_learned_ones_are_not(tmp_path, dtype):
    """Learned positions may have a class token at zero."""
    fixture = load_fixture("clip_openai_ckpt_vit")
    tokenizer = letters_tokenizer(fixture.meta["hparams_expected"]["vocab_size"], tmp_path / "letters")
    strays = ("input_resolution", "context_length", "vocab_size")
    weights = {name: t.float() for name, t in fixture.state_dict.items() if name not in strays}
    file, (count, width) = tmp_path / "open_clip_model.safetensors", weights[POSITIONS].shape
    save_file(weights | {POSITIONS: sines_and_cosines(int((count - 1) ** 0.5), width).to(dtype)}, file)
    with pytest.raises(ValueError, match=f"{POSITIONS}: fixed sines and cosines, .* pool by average"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    weights[POSITIONS][0] = 0
    save_file(weights, file)
    assert convert_checkpoint(file, tmp_path / "out", tokenizer=tokenizer).method == "clip"
