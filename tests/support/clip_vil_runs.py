"""A tiny CLIP-ViL of each head, its processor, and batches for it."""

import torch
from PIL import Image
from tiny import copy_of

from hf_clip_variants import ClipViLConfig, ClipViLImageProcessor, ClipViLProcessor
from hf_clip_variants.registry import method


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += "what colour is the a cat dog red blue green yes no there how many on ? . and".split()
WORDS += [f"w{i}" for i in range(11)]
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
ANSWERS = ["yes", "no", "red", "blue", "two"]
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 56,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RESNET = {"hidden_size": 64, "depths": [1, 2, 1, 1], "num_attention_heads": 2, "image_size": 64, "projection_dim": 20}
VIT = {"model_type": "clip_vision_model", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"intermediate_size": 48, "image_size": 48, "patch_size": 16, "projection_dim": 20}
DECODER = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "max_position_embeddings": 40}
DECODER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
LABELS = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
TOKENS = {"cls_token_id": CLS, "sep_token_id": SEP}
HEADS = {
    "model": "model",
    "pretraining": "AutoModelForPreTraining",
    "vqa": "AutoModelForVisualQuestionAnswering",
    "entailment": "AutoModelForSequenceClassification",
    "captioning": "AutoModelForImageTextToText",
}
# Arguments of a configuration that are wrong, and what the error says.
CLIP_VIL_BAD_VALUES = (
    ({"grid_position_size": 0}, "grid_position_size: 0"),
    ({"num_flat_positions": 10**9}, "num_flat_positions: 1000000000"),
    ({"num_visual_tokens_train": 0}, "num_visual_tokens_train: 0"),
    ({"vit_positions": "zero"}, "vit_positions: 'zero', expected one of resized, flat"),
    ({"max_text_length": 2}, "max_text_length: 2, expected at least 3"),
    ({"max_text_length": 30}, "text_config.max_position_embeddings: 24, expected at least 30"),
    ({"cls_token_id": -1}, "cls_token_id: -1, expected the number of a token"),
    ({"freeze_vision": "yes"}, "freeze_vision"),
    ({"vision_config": {"model_type": "vit"}}, "vision_config.model_type: 'vit', expected 'clipv-clip_resnet_vision'"),
    ({"vision_config": {"hidden_size": 100}}, "hidden_size: 100 is not a multiple of 32"),
    ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels: 1, expected 3"),
    ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type: 'gpt2', expected 'bert'"),
    ({"text_config": {"is_decoder": True}}, "text_config: got a decoder, expected an encoder"),
    ({"text_config": {"type_vocab_size": 0}}, "text_config.type_vocab_size: 0, expected at least 1"),
    ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
    ({"decoder_config": {"vocab_size": 7}}, "decoder_config.vocab_size: 7, expected 35, that of text_config"),
    ({"decoder_config": {"decoder_attention_heads": 5}}, "decoder_config.decoder_attention_heads: 5 does not divide"),
    ({"decoder_config": {"model_type": "gpt2"}}, "decoder_config.model_type: 'gpt2', expected 'mbart'"),
    ({"decoder_config": {"max_position_embeddings": 10}}, "decoder_config.max_position_embeddings: 10, expected at"),
)


def clip_vil_config(**fields) -> ClipViLConfig:
    """A configuration in which no size is the default."""
    parts = {"text_config": TEXT, "vision_config": RESNET, "decoder_config": DECODER}
    sizes = {"grid_position_size": 6, "max_text_length": 12}
    return ClipViLConfig(**parts | sizes | TOKENS | LABELS | fields)


def vit_config(**fields) -> ClipViLConfig:
    return clip_vil_config(vision_config=VIT, **fields)


@torch.no_grad()
def with_open_branches(model) -> None:
    """A new ResNet's residual branches are zero, and its statistics trivial; here neither is."""
    for name, tensor in model.state_dict().items():
        if "vision_model" not in name:
            continue
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)


def clip_vil_model(head: str = "vqa", seed: int = 0, config=clip_vil_config, **fields):
    def build():
        torch.manual_seed(seed)
        model = method("clip_vil").load(HEADS[head])(config(**fields)).eval()
        with_open_branches(model)
        return model

    return copy_of(f"clip_vil {head} {seed} {config.__name__} {sorted(fields.items())}", build)


def texts(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every other one is shorter."""
    ids = torch.randint(5, len(WORDS), (batch, 8), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[:, 0], ids[:, 7] = CLS, SEP
    ids[1::2, 5], ids[1::2, 6:], mask[1::2, 6:] = SEP, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def pixels(batch: int, height: int = 64, width: int = 96, seed: int = 1) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))}


def pairs(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return texts(batch, seed) | pixels(batch, seed=seed + 1)


def vqa_inputs(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    labels = torch.rand(batch, len(ANSWERS), generator=torch.Generator().manual_seed(seed + 2))
    return pairs(batch, seed) | {"labels": labels}


def entailment_inputs(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return pairs(batch, seed) | {"labels": torch.arange(batch) % 3}


def pretraining_inputs(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of each text two words are masked."""
    inputs = pairs(batch, seed)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 1:3] = inputs["input_ids"][:, 1:3]
    inputs["input_ids"][:, 1:3] = WORDS.index("[MASK]")
    of_pairs = {"matching_labels": torch.arange(batch) % 2, "answer_labels": torch.arange(batch) % 5}
    return inputs | {"labels": labels} | of_pairs


def captioning_inputs(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """All captions have one length: half batches of others have other means."""
    inputs = pairs(batch, seed)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["input_ids"][inputs["input_ids"] == 0] = 9
    return inputs | {"labels": inputs["input_ids"].clone()}


def clip_vil_tokenizer():
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)
    tokenizer.model_max_length = 12
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    return tokenizer


def clip_vil_processor(**settings) -> ClipViLProcessor:
    """As the released one, of images that are small."""
    images = ClipViLImageProcessor(**{"size": {"shortest_edge": 64, "longest_edge": 96}} | settings)
    return ClipViLProcessor(images, clip_vil_tokenizer())


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(numbers.numpy())


_SHARED = {
    "name": "clip_vil",
    "config": clip_vil_config,
    "processor": clip_vil_processor,
    "prepare": with_open_branches,
    "loss_is_of_the_batch": True,  # of a ResNet in training
}


def _case(head: str, inputs, **fields) -> dict:
    part = HEADS[head]
    auto = {"auto_class": part} if part != "model" else {}
    return _SHARED | {"part": part, "inputs": inputs} | auto | fields


# Cases of tests/support/model_contract.py.
CLIP_VIL_CASES = (
    _case("vqa", vqa_inputs, bad_values=CLIP_VIL_BAD_VALUES),
    _case("entailment", entailment_inputs, config=lambda: clip_vil_config(id2label=None, label2id=None, num_labels=3)),
    _case(
        "pretraining",
        pretraining_inputs,
        output="prediction_logits",
        by_row=("prediction_logits", "matching_logits", "answer_logits"),
    ),
    _case("captioning", captioning_inputs),
)
