"""transformers' missing pipeline: posts of a text and an image to a class, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from ..clip_classifier.classification_loss import MULTI_LABEL


TASK = "text-and-image-classification"
SEVERAL_IMAGES = ("first", "mean")
WITHOUT_IMAGE = ("error", "text")


class TextAndImageClassificationPipeline(Pipeline):
    """
    Sorts posts of a text and an image into the model's classes, such as rumour or not, and says what counted.

    For models of this package that read both in one and name what they weigh (`modalities`).

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    classify = pipeline("text-and-image-classification", model="folder-or-hub-id")
    classify("A shark swims through the streets of Houston", "shark.jpg")
    # {'label': 'rumor', 'score': 0.93, 'scores': {'rumor': 0.93, 'nonrumor': 0.07}, 'similarity': 0.21,
    #  'weights': {'text': 0.61, 'image': 0.35, 'cross': 0.58}, 'layers': [0.08, …]}
    ```
    """

    _load_processor = True
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if not hasattr(self.model, "modalities") or getattr(self.processor, "clip_tokenizer", None) is None:
            raise ValueError(
                f"model: {type(self.model).__name__} does not read a text and an image in one, or its processor lacks "
                "a part; want a model of hf_clip_variants for this task, with its processor"
            )

    def __call__(self, text=None, image=None, clip_text=None, **kwargs: Any):
        """
        Args:
            text (`str` or `list[str]`): of each post; or, without `image`, a post or a list of posts as dictionaries
                with `text`, `image` and maybe `clip_text`.
            image: for each text what the image processor takes: a PIL image, path, URL, bytes or array; a list of
                several; None.
            clip_text (*optional*): for each text one that the dual encoder reads, such as a translation.
            several_images (`"first"` or `"mean"`, defaults to `"first"`): of a post with several, the first as in the
                paper's tests, or the mean of the answers to each; then **images** has each one's.
            without_image (`"error"` or `"text"`, defaults to `"error"`): what to do with a post without an image;
                `"text"`: answer by its text alone.
            batch_size (`int`, defaults to 1).

        Returns:
            For each post a dictionary: the best **label** and its **score**, **scores** of all labels, **similarity**
            of text and image (a cosine; None without an image), **weights** of text, image and both, 0..1, and
            **layers**: the share of each of BERT's states, the embeddings first.

        Raises:
            ValueError: a post without text or image, another number of images than of texts, an image that cannot be
                read; with the number of the post.
        """
        posts, is_one = _posts(text, image, clip_text)
        found = super().__call__([{"post": post} for post in posts], **kwargs)
        return found[0] if is_one else found

    def _sanitize_parameters(self, several_images="first", without_image="error", **unknown):
        if unknown:
            raise TypeError(
                f"{', '.join(sorted(unknown))}: unknown, expected several_images, without_image or batch_size"
            )
        for name, value, known in (
            ("several_images", several_images, SEVERAL_IMAGES),
            ("without_image", without_image, WITHOUT_IMAGE),
        ):
            if value not in known:
                raise ValueError(f"{name}: {value!r}, expected {' or '.join(map(repr, known))}")
        return {"several_images": several_images, "without_image": without_image}, {}, {}

    def preprocess(self, inputs, several_images="first", without_image="error"):
        post = inputs["post"]
        images = post["image"] if isinstance(post["image"], list | tuple) else [post["image"]]
        images = [image for image in images if image is not None]
        if not images and without_image == "error":
            raise ValueError(
                f"posts[{post['number']}]: no image; want one, or without_image='text' for answers by the text alone"
            )
        images = images[:1] if several_images == "first" else images
        try:
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
        except ValueError as error:
            raise ValueError(f"posts[{post['number']}]: {error}") from error
        return {"item": {"pixels": pixels, "post": post}}

    def _forward(self, model_inputs):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        # Where the layers are weighed over the batch, a post must be its own batch.
        size = 1 if self.model.config.batch_layer_attention else len(items)
        found = [one for start in range(0, len(items), size) for one in self._answers(items[start : start + size])]
        return {"found": found[0] if single else found}

    def _answers(self, items: Sequence[Mapping]) -> list[dict[str, torch.Tensor]]:
        """For each post what is said of each of its images, or of none: tensors with a row an image."""
        counts = [1 if item["pixels"] is None else len(item["pixels"]) for item in items]
        posts = [item["post"] for item, count in zip(items, counts, strict=True) for _ in range(count)]
        there = torch.tensor([int(item["pixels"] is not None) for item in items]).repeat_interleave(
            torch.tensor(counts)
        )
        edge = self.model.family.image_size(self.model.config.dual_encoder_config)
        none = torch.zeros(1, self.model.config.backbone_config.num_channels, edge, edge)
        texts = self.processor(
            text=[post["text"] for post in posts],
            clip_text=[post["clip_text"] or post["text"] for post in posts],
            return_tensors="pt",
        )
        pixels = torch.cat([none if item["pixels"] is None else item["pixels"] for item in items])
        inputs = dict(texts) | {"pixel_values": pixels.to(self.dtype), "image_mask": there}
        outputs = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        logits = outputs.logits.float()
        several = self.model.config.problem_type == MULTI_LABEL
        tensors = {
            "scores": logits.sigmoid() if several else logits.softmax(-1),
            "similarity": outputs.similarity,
            "weights": outputs.modality_weights,
            "layers": outputs.layer_attention,
        }
        tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()} | {"there": there}
        split = {name: tensor.split(counts) for name, tensor in tensors.items()}
        return [{name: parts[number] for name, parts in split.items()} for number in range(len(items))]

    def postprocess(self, model_outputs):
        found = model_outputs["found"]
        found = found[0] if isinstance(found, list) else found
        answers = [
            self._named({name: part[place] for name, part in found.items()}) for place in range(len(found["there"]))
        ]
        if len(answers) == 1:
            return answers[0]
        mean = self._named({name: part.float().mean(0) for name, part in found.items()})
        return mean | {"images": answers}

    def _named(self, answer: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        names = self.model.config.id2label
        scores = {names[label]: float(score) for label, score in enumerate(answer["scores"].tolist())}
        best = max(scores, key=scores.get)
        return {
            "label": best,
            "score": scores[best],
            "scores": scores,
            "similarity": float(answer["similarity"]) if answer["there"] else None,
            "weights": dict(zip(self.model.modalities, answer["weights"].tolist(), strict=True)),
            "layers": answer["layers"].tolist(),
        }


def _posts(text, image, clip_text) -> tuple[list[dict[str, Any]], bool]:
    """Posts as dictionaries with their numbers, and whether it was one, not a list."""
    if isinstance(text, Mapping) or (isinstance(text, list | tuple) and text and isinstance(text[0], Mapping)):
        if image is not None or clip_text is not None:
            raise ValueError("image, clip_text: got them beside posts with their own, expected either")
        is_one = isinstance(text, Mapping)
        posts = [text] if is_one else list(text)
    else:
        is_one = isinstance(text, str)
        texts = [text] if is_one else text
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(f"text: got {type(text).__name__}, expected a text, a list of them, or posts")
        images = [image] if is_one else ([None] * len(texts) if image is None else image)
        clips = [clip_text] if is_one else ([None] * len(texts) if clip_text is None else clip_text)
        for name, values in (("image", images), ("clip_text", clips)):
            if not isinstance(values, list | tuple) or len(values) != len(texts):
                count = len(values) if isinstance(values, list | tuple) else 1
                raise ValueError(f"{name}: {count} for {len(texts)} texts, expected one for each, or None")
        names = ("text", "image", "clip_text")
        posts = [dict(zip(names, values, strict=True)) for values in zip(texts, images, clips, strict=True)]
    found = []
    for number, post in enumerate(posts):
        words = post.get("text") if isinstance(post, Mapping) else None
        if not isinstance(words, str) or not words.strip():
            raise ValueError(f"posts[{number}]: text: got {words!r}, expected a text")
        found.append({"text": words, "image": post.get("image"), "clip_text": post.get("clip_text"), "number": number})
    return found, is_one


__all__ = ["TASK", "TextAndImageClassificationPipeline"]
