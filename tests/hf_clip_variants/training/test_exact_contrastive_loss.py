"""The callback on one process, where its loss equals the model's. Two processes: test_contrastive_ranks.py."""

import pytest
import torch
from contrastive_runs import step_batch, step_model, train_by_trainer
from transformers import CLIPModel

from hf_clip_variants.modeling.losses.contrastive_loss_reference import contrastive_loss_reference
from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss


def tiny_siglip():
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return SiglipModel(
        SiglipConfig(text_config={**sizes, "vocab_size": 20}, vision_config={**sizes, "image_size": 32})
    )


def test_exact_loss_is_returned_in_training_with_and_without_return_loss():
    model, batch = step_model(), step_batch(6)
    own = model(**batch, return_loss=True).loss
    handle = ExactContrastiveLoss(chunk_size=4).attach(model)
    for kwargs in ({}, {"return_loss": True}):
        outputs = model(**batch, **kwargs)
        torch.testing.assert_close(outputs.loss, own)
        assert list(outputs)[0] == "loss", "Trainer reads the first entry of a tuple"
        assert "_SoftmaxLoss" in type(outputs.loss.grad_fn).__name__
    model.eval()
    assert model(**batch).loss is None, "evaluation uses the model's own loss"
    handle.remove()
    assert model.train()(**batch).loss is None


def test_siglip_gets_the_sigmoid_loss():
    model = tiny_siglip()
    batch = {"input_ids": torch.randint(20, (6, 5)), "pixel_values": torch.randn(6, 3, 32, 32)}
    outputs = model.train()(**batch, return_loss=True)
    handle = ExactContrastiveLoss().attach(model)
    torch.testing.assert_close(model(**batch).loss, outputs.loss)
    handle.remove()
    ExactContrastiveLoss(form="softmax").attach(model)
    softmax = contrastive_loss_reference(outputs.image_embeds, outputs.text_embeds, model.logit_scale[0])
    torch.testing.assert_close(model(**batch).loss, softmax)


@pytest.mark.parametrize(
    ("model", "form", "trained", "scale"),
    [
        (step_model, None, True, 100.0),
        (step_model, None, False, torch.tensor(5.0).exp()),
        (tiny_siglip, None, True, torch.tensor(5.0).exp()),
        (tiny_siglip, "softmax", True, 100.0),
    ],
    ids=["CLIP", "CLIP with a frozen scale", "SigLIP", "SigLIP with CLIP's loss"],
)
def test_the_logit_scale_is_limited_after_each_step_as_in_the_paper(tmp_path, model, form, trained, scale):
    from transformers import Trainer, TrainingArguments

    model = model()
    with torch.no_grad():
        model.logit_scale.fill_(5.0)
    model.logit_scale.requires_grad_(trained)
    side = model.config.vision_config.image_size
    ids = step_batch(2)["input_ids"] if isinstance(model, CLIPModel) else torch.ones(2, 6, dtype=torch.long)
    rows = [{"input_ids": ids[i], "pixel_values": torch.randn(3, side, side)} for i in range(2)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=[ExactContrastiveLoss(form)]).train()
    assert model.logit_scale.exp().item() == pytest.approx(float(scale), rel=1e-5)


def test_exact_loss_trains_a_peft_model():
    from peft import LoraConfig, get_peft_model

    model, batch = step_model(), step_batch(6)
    own = model(**batch, return_loss=True).loss
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).train()
    ExactContrastiveLoss().attach(tuned)
    loss = tuned(**batch).loss
    torch.testing.assert_close(loss, own)
    loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_gradient_accumulation_equals_training_without_the_callback(tmp_path):
    """A loss function given as `compute_loss_func` would not be divided by the accumulation steps."""
    plain, exact = (train_by_trainer(tmp_path / str(e), 4, exact=e, accumulation=2) for e in (False, True))
    for (name, a), (_, b) in zip(plain.named_parameters(), exact.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert exact.train()(**step_batch(4)).loss is None, "after training the model is unchanged"


def test_outputs_without_embeddings_are_refused():
    model = step_model()
    ExactContrastiveLoss().attach(model)
    with pytest.raises(ValueError, match="needs outputs with image_embeds and text_embeds.*CLIPModel returned tuple"):
        model(**step_batch(2), return_dict=False)
