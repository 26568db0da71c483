import json

import pytest
import torch
import typer
from adapter_models import tiny_classifier
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from hf_clip_variants import CoOpConfig
from hf_clip_variants.commands.verify import verify as verify_command
from hf_clip_variants.hub.model_cards import model_card
from hf_clip_variants.hub.verification import verify


@pytest.fixture
def adapter_folder(tmp_path):
    model = get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=2))
    model.save_pretrained(tmp_path)
    model_card(model, weights=tmp_path).save(tmp_path / "README.md")
    return tmp_path


def statuses(folder):
    return {check.file: check.status for check in verify(folder)}


def test_untouched_weights_are_ok(adapter_folder, capsys):
    assert statuses(adapter_folder) == {"adapter_model.safetensors": "ok"}
    verify_command(str(adapter_folder), None, True)
    assert json.loads(capsys.readouterr().out) == [{"file": "adapter_model.safetensors", "status": "ok", "detail": ""}]


def test_a_damaged_letter_in_the_prose_of_the_card_does_not_matter(adapter_folder):
    card = adapter_folder / "README.md"
    card.write_bytes(card.read_bytes() + b"\xe8\xff")
    assert statuses(adapter_folder) == {"adapter_model.safetensors": "ok"}


def test_a_device_among_the_weights_is_not_read(adapter_folder):
    (adapter_folder / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="model.safetensors: not a regular file"):
        verify(adapter_folder)


def test_a_flipped_bit_is_found(adapter_folder, capsys):
    path = adapter_folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    load_file(path)
    assert statuses(adapter_folder) == {path.name: "changed"}
    with pytest.raises(typer.Exit) as stopped:
        verify_command(str(adapter_folder), None, False)
    assert stopped.value.exit_code == 1 and "changed (sha256" in capsys.readouterr().out


def test_missing_unknown_damaged_and_non_finite_files_are_told_apart(adapter_folder):
    (adapter_folder / "more.safetensors").write_bytes(b"not recorded")
    assert statuses(adapter_folder) == {"adapter_model.safetensors": "ok", "more.safetensors": "not recorded"}
    (adapter_folder / "adapter_model.safetensors").unlink()
    assert statuses(adapter_folder)["adapter_model.safetensors"] == "missing"


def test_weights_that_were_saved_with_nan_are_reported(adapter_folder):
    path = adapter_folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(path).items()}, path)
    model_card(adapter_folder).save(adapter_folder / "README.md")
    (check,) = verify(adapter_folder)
    assert check.status == "not finite" and "clipv_coop_context" in check.detail
    path.write_bytes(path.read_bytes()[:-4])
    model_card(adapter_folder).save(adapter_folder / "README.md")
    assert statuses(adapter_folder) == {path.name: "damaged"}


def test_a_folder_without_hashes_is_an_error(adapter_folder):
    (adapter_folder / "README.md").write_text("# mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no hashes to compare with"):
        verify(adapter_folder)
    (adapter_folder / "README.md").unlink()
    with pytest.raises(ValueError, match="has no hashes to compare with"):
        verify(adapter_folder)


def test_a_repository_without_hashes_is_referred_to_the_hubs_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(ValueError, match="me/clip has no hashes .*; `hf cache verify me/clip` compares"):
        verify("me/clip")
    with pytest.raises(ValueError, match="weight files$"):
        verify(tmp_path)
