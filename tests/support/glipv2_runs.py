"""A tiny GLIPv2 and its inputs: glip_runs.py with masks and hidden words."""

import torch
from glip_runs import GLIP_BAD_VALUES, SIZES, WORDS, glip_inputs, glip_labels, glip_tokenizer, with_open_weights
from tiny import copy_of

from hf_clip_variants import (
    GLIPv2Config,
    GLIPv2ForZeroShotObjectDetection,
    GLIPv2ImageProcessor,
    GLIPv2Processor,
)


MASK = WORDS.index("[MASK]")
GLIPV2_SIZES = SIZES | {"contrastive_dim": 10, "mask_num_convs": 2}
GLIPV2_SIZES |= {"mask_token_id": MASK, "end_token_id": WORDS.index("[SEP]")}
OFF = {"use_inter_image_loss": False, "use_mlm": False, "use_mask_head": False}
# Arguments of a configuration that are wrong, and what the error says.
GLIPV2_BAD_VALUES = (
    *GLIP_BAD_VALUES,
    ({"contrastive_dim": 0}, "contrastive_dim: 0, expected a whole number in 1.."),
    ({"max_positive_regions": 0}, "max_positive_regions: 0"),
    ({"inter_image_gather": "some"}, "inter_image_gather: 'some', expected 'exact' or 'official'"),
    ({"inter_image_weight": -1.0}, "inter_image_weight: -1.0, expected a number >= 0"),
    ({"mlm_probability": 1.5}, "mlm_probability: 1.5, expected a number from 0 to 1"),
    ({"mlm_weight": float("nan")}, "mlm_weight"),
    ({"mask_token_id": 500}, "mask_token_id: 500 is outside of the vocabulary, expected 0..28"),
    ({"end_token_id": -1}, "end_token_id: -1 is outside of the vocabulary"),
    ({"mask_num_convs": -1}, "mask_num_convs: -1"),
    ({"use_mask_head": "yes"}, "use_mask_head"),
)


def glipv2_config(**fields) -> GLIPv2Config:
    return GLIPv2Config(**GLIPV2_SIZES | fields)


def glipv2_processor(**options) -> GLIPv2Processor:
    images = GLIPv2ImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return GLIPv2Processor(images, glip_tokenizer(), **{"max_text_length": 24} | options)


def glipv2_model(seed: int = 0, **fields) -> GLIPv2ForZeroShotObjectDetection:
    def build():
        torch.manual_seed(seed)
        model = GLIPv2ForZeroShotObjectDetection(glipv2_config(**fields)).eval()
        with_open_weights(model)
        return model

    return copy_of(f"glipv2 {seed} {sorted(fields.items())}", build)


def glipv2_labels(batch: int) -> list[dict]:
    """GLIP's, with ellipses for masks."""
    y, x = torch.meshgrid(*2 * (torch.arange(64) / 64,), indexing="ij")
    labels = glip_labels(batch)
    for one in labels:
        masks = [((x - a) / w) ** 2 + ((y - b) / h) ** 2 <= 0.25 for a, b, w, h in one["boxes"].tolist()]
        one["masks"] = torch.stack(masks)
    return labels


def glipv2_inputs(batch: int) -> dict:
    """Every other prompt is a sentence; the second token of each is hidden."""
    inputs = glip_inputs(batch) | {"labels": glipv2_labels(batch)}
    words = torch.full_like(inputs["input_ids"], -100)
    words[:, 1] = inputs["input_ids"][:, 1]
    inputs["input_ids"] = torch.where(words >= 0, MASK, inputs["input_ids"])
    return inputs | {"mlm_labels": words, "is_caption": torch.arange(batch) % 2 == 1}


# Images of each of two ranks, and fields of the model's configuration.
RANK_CASES = {
    "even": ((2, 2), {}),
    "uneven": ((3, 1), {}),
    "official": ((2, 2), {"inter_image_gather": "official"}),
}


def glipv2_step(rows: slice, **fields) -> dict[str, torch.Tensor]:
    """Losses and gradients in training, of some of four images. The last one has no object, one object has no mask."""
    inputs = glipv2_inputs(4)
    del inputs["labels"][1]["masks"]
    inputs["labels"][3] = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    inputs["is_caption"] = torch.tensor([False, False, True, False])
    model = glipv2_model(**fields).train()
    outputs = model(**{name: value[rows] for name, value in inputs.items()})
    outputs.loss.backward()
    found = {"loss": outputs.loss.detach()} | outputs.loss_dict
    return found | {f"grad.{name}": p.grad for name, p in model.named_parameters()}


ANSWERS = ["yes", "no", "red"]
QUESTIONS = ["a small cat", "the traffic light on the red car", "dog", "the bird"]


def answering_config(**fields) -> GLIPv2Config:
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
    return glipv2_config(**labels | fields)


def answering_model(seed: int = 0, **fields):
    def build():
        from hf_clip_variants import GLIPv2ForVisualQuestionAnswering

        torch.manual_seed(seed)
        model = GLIPv2ForVisualQuestionAnswering(answering_config(**fields)).eval()
        with_open_weights(model)
        return model

    return copy_of(f"glipv2 answering {seed} {sorted(fields.items())}", build)


def answering_inputs(batch: int) -> dict:
    """Questions, their answers, and the objects that the answers are about."""
    prompts = glipv2_processor()(questions=[QUESTIONS[i % 4] for i in range(batch)])
    objects = glipv2_labels(batch)
    for one in objects:
        one["class_labels"] = torch.zeros(2, dtype=torch.long)
    inputs = {"pixel_values": glipv2_inputs(batch)["pixel_values"], **prompts}
    return inputs | {"labels": torch.arange(batch) % 3, "object_labels": objects}


def answering_collate(rows: list[dict]) -> dict:
    """`object_labels` stay a list."""
    return {
        name: [row[name] for row in rows] if name == "object_labels" else torch.stack([row[name] for row in rows])
        for name in rows[0]
    }


# Cases of the contract, beside what they share with GLIP's.
GLIPV2 = {
    "name": "glipv2",
    "config": glipv2_config,
    "inputs": glipv2_inputs,
    "processor": glipv2_processor,
    "bad_values": GLIPV2_BAD_VALUES,
}
GLIPV2_ANSWERING = {
    "name": "glipv2",
    "part": "AutoModelForVisualQuestionAnswering",
    "auto_class": "AutoModelForVisualQuestionAnswering",
    "config": answering_config,
    "inputs": answering_inputs,
    "processor": glipv2_processor,
    "by_row": ("logits",),
    "collate": answering_collate,
    "only_in_training": ("object_labels",),
}


def captioning_inputs(batch: int) -> dict:
    """Captions, of which every other one is shorter, and images."""
    ids = torch.randint(5, len(WORDS), (batch, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1::2, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {
        "pixel_values": glipv2_inputs(batch)["pixel_values"],
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "labels": labels,
    }


_LAST = f"layers.{GLIPV2_SIZES['head_num_layers'] - 1}"
GLIPV2_CAPTIONING = {
    "name": "glipv2",
    "part": "AutoModelForImageTextToText",
    "auto_class": "AutoModelForImageTextToText",
    "config": glipv2_config,
    "inputs": captioning_inputs,
    "processor": glipv2_processor,
    "by_row": ("logits",),
    "collate": None,
    # What finds boxes and masks, and what regions learn of words in the last layer.
    "untrained": (
        *("predictions.", "contrast.", "mask_head.", f"{_LAST}.convolution."),
        *(f"{_LAST}.fusion.{name}" for name in ("image_out", "image_scale", "text_value")),
    ),
}
