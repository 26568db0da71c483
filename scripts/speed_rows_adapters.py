"""Rows of `benchmark_speed.py` for prompts in both encoders and for features, each against the official computation.

The official computation is written out here on the same weights: encoders at every step, 77 tokens per prompt, the
published batch size.
"""

import copy

import torch
from speed_rows import (
    OURS,
    Row,
    imagenet_class_names,
    largest_relative_error,
    make_classifier,
    make_clip,
    relative_error,
)
from torch.nn import functional as F


def _prompts(names: list[str], words: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, 77) ids of "words name." and (K,) positions of the end tokens."""
    from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    texts = [f"{words} {name.replace('_', ' ')}." for name in names]
    ids = official_tokenizer()(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return ids, (ids == 49407).int().argmax(1)


def _run_text(clip, embeds: torch.Tensor, ends: torch.Tensor, deep: torch.Tensor | None = None) -> torch.Tensor:
    """(K, 77, d) token embeddings -> (K, e) embeddings, the whole encoder over all tokens.

    `deep` (J - 1, n, d) replaces tokens 1..n before the layers after the first.
    """
    text_model = clip.text_model
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    hidden = embeds + text_model.embeddings.position_embedding.weight
    for number, layer in enumerate(text_model.encoder.layers):
        if deep is not None and 0 < number <= len(deep):
            prompt = deep[number - 1].expand(len(hidden), -1, -1)
            hidden = torch.cat([hidden[:, :1], prompt, hidden[:, 1 + prompt.shape[1] :]], dim=1)
        hidden = layer(hidden, mask)
    pooled = text_model.final_layer_norm(hidden)[torch.arange(len(ends)), ends]
    return F.normalize(clip.text_projection(pooled), dim=-1)


def _image_embeds(clip, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)


def _pixels(clip, count: int) -> torch.Tensor:
    size = clip.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class _CoCoOp:
    """Our model and the official step on the same weights."""

    def __init__(self, small: bool, classes: int, images: int, text_chunk_size: int | None = None):
        from peft import get_peft_model

        from hf_clip_variants.adapters import CoCoOpConfig

        self.clip = make_clip(small, vision=True, patch_size=16)
        names = imagenet_class_names()[:classes]
        config = CoCoOpConfig(text_chunk_size=text_chunk_size)
        torch.manual_seed(0)
        self.model = get_peft_model(make_classifier(self.clip).set_classes(names), config).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.context, self.weight1, self.bias1, self.weight2, self.bias2 = (
            p.detach().clone().requires_grad_() for p in self.parameters
        )
        self.pixels = _pixels(self.clip, images)
        self.labels = torch.arange(images) % classes
        with torch.no_grad():
            self.features = self.clip.get_image_features(self.pixels).pooler_output
        ids, self.ends = _prompts(names, "a photo of a")
        self.embeds = self.clip.text_model.embeddings.token_embedding(ids)

    def ours(self, image_given: bool = True):
        for p in self.parameters:
            p.grad = None
        images = {"image_features": self.features} if image_given else {"pixel_values": self.pixels}
        loss = self.model(**images, labels=self.labels).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in self.parameters)]

    def official(self, image_given: bool, only: int | None = None):
        """Batch size 1, as published; gradients of several images are averaged."""
        own = (self.context, self.weight1, self.bias1, self.weight2, self.bias2)
        for p in own:
            p.grad = None
        rows = range(len(self.pixels)) if only is None else [only]
        total = torch.zeros(())
        for row in rows:
            if image_given:
                image = F.normalize(self.features[row : row + 1], dim=-1)
            else:
                image = _image_embeds(self.clip, self.pixels[row : row + 1])
            shift = F.linear(F.relu(F.linear(image, self.weight1, self.bias1)), self.weight2, self.bias2)
            context = (self.context + shift).expand(len(self.embeds), -1, -1)
            spliced = torch.cat([self.embeds[:, :1], context, self.embeds[:, 1 + context.shape[1] :]], dim=1)
            logits = self.clip.logit_scale.exp() * image @ _run_text(self.clip, spliced, self.ends).T
            loss = F.cross_entropy(logits, self.labels[row : row + 1]) / len(rows)
            loss.backward()
            total = total + loss.detach()
        return [total, *(p.grad for p in own)]


def cocoop_step(small: bool) -> Row:
    """The published step: one image, 50 classes."""
    step = _CoCoOp(small, classes=5 if small else 50, images=1)
    every, given = "official, encoders every step", "official, image features given"
    return Row(
        "1 image, 50 classes, 4 context tokens, ours from cached image features, ViT-B/16, fp32",
        {OURS: step.ours, every: lambda: step.official(False), given: lambda: step.official(True)},
        {every: 10, given: 10},
        error=largest_relative_error,
        tolerance=2e-5,  # gradients of the network pass a sum over all classes
        weights=(step.clip,),
        kept_target=8,
        peak=True,
    )


def cocoop_pixels(small: bool) -> Row:
    """The same step with the image encoder run by both."""
    step = _CoCoOp(small, classes=5 if small else 50, images=1)
    every = "official, encoders every step"
    return Row(
        "1 image, 50 classes, 4 context tokens, both from pixels, ViT-B/16, fp32",
        {OURS: lambda: step.ours(image_given=False), every: lambda: step.official(False)},
        {every: 6},
        error=largest_relative_error,
        tolerance=2e-5,
        weights=(step.clip,),
    )


def cocoop_batch_8(small: bool) -> Row:
    """Eight images at once against eight steps of one: the same mean loss and gradients."""
    step = _CoCoOp(small, classes=5 if small else 25, images=2 if small else 8)
    given = "official, 8 steps of 1 image"
    return Row(
        "8 images, 25 classes, image features given, ViT-B text encoder, fp32",
        {OURS: step.ours, given: lambda: step.official(True)},
        {given: 10},
        error=largest_relative_error,
        tolerance=2e-5,
    )


def cocoop_memory(small: bool, text_chunk_size: int | None = None) -> Row:
    """What a step of eight images keeps, against the official step of one."""
    step = _CoCoOp(small, 5 if small else 50, 2 if small else 8, text_chunk_size)
    one = "official, 1 step of 1 image"
    how = "computed twice (text_chunk_size=256)" if text_chunk_size else "kept"
    return Row(
        f"8 images, ours {how}, against 1 of the official, 50 classes, image features given; 8x the images: "
        "times are not comparable",
        {OURS: step.ours, one: lambda: step.official(True, only=0)},
        {one: 0.8 if text_chunk_size else 1.2},
        weights=(step.clip,),
        kept_target=8 if text_chunk_size else 1,
        peak=True,
    )


def cocoop_memory_chunked(small: bool) -> Row:
    return cocoop_memory(small, text_chunk_size=256)


def maple_step(small: bool) -> Row:
    """The whole step, both encoders forward and backward."""
    from peft import get_peft_model

    from hf_clip_variants.adapters import MaPLeConfig

    classes, images, depth, count = (5, 2, 2, 2) if small else (100, 4, 9, 2)
    clip, names = make_clip(small, vision=True, patch_size=16, vision_layers=2), imagenet_class_names()[:classes]
    torch.manual_seed(0)
    wrapped = copy.deepcopy(clip)  # the tuner puts modules around its layers
    model = get_peft_model(
        make_classifier(wrapped).set_classes(names), MaPLeConfig(prompt_depth=depth, num_prompt_tokens=count)
    ).train()
    parameters = {
        name.split("clipv_maple_")[1].split(".")[0]: p for name, p in model.named_parameters() if p.requires_grad
    }
    own = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    pixels, labels = _pixels(clip, images), torch.arange(images) % classes
    ids, ends = _prompts(names, "a photo of a")
    embeds = clip.text_model.embeddings.token_embedding(ids)

    def ours():
        for p in parameters.values():
            p.grad = None
        loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        return [loss.detach(), *(parameters[name].grad for name in sorted(parameters))]

    def official():
        for p in own.values():
            p.grad = None
        context, deep = own["context"], own["text_prompts"]
        visual = [
            F.linear(prompt, weight, bias)
            for prompt, weight, bias in zip(
                [context, *deep], own["projection_weight"], own["projection_bias"], strict=True
            )
        ]
        spliced = [embeds[:, :1], context.expand(len(ids), -1, -1), embeds[:, 1 + count :]]
        text = _run_text(clip, torch.cat(spliced, dim=1), ends, deep)
        vision_model = clip.vision_model
        hidden = torch.cat([vision_model.embeddings(pixels), visual[0].expand(images, -1, -1)], dim=1)
        hidden = vision_model.pre_layrnorm(hidden)
        for number, layer in enumerate(vision_model.encoder.layers):
            if 0 < number < depth:
                hidden = torch.cat([hidden[:, :-count], visual[number].expand(images, -1, -1)], dim=1)
            hidden = layer(hidden, None)
        image = F.normalize(clip.visual_projection(vision_model.post_layernorm(hidden[:, 0])), dim=-1)
        loss = F.cross_entropy(clip.logit_scale.exp() * image @ text.T, labels)
        loss.backward()
        return [loss.detach(), *(own[name].grad for name in sorted(own))]

    return Row(
        f"{images} images, {classes} classes, depth {depth}, 2 tokens, both encoders ViT-B/16, fp32",
        {OURS: ours, "official, 77 tokens": official},
        {"official, 77 tokens": 3.5},
        error=largest_relative_error,
        tolerance=5e-5,
        weights=(clip, wrapped),
        kept_target=3,
        peak=True,
    )


def maple_text(small: bool) -> Row:
    """The text part of that step alone: prompts in nine layers -> class features -> gradients of the text side."""
    from peft import get_peft_model

    from hf_clip_variants.adapters import MaPLeConfig

    classes, depth, count = (5, 2, 2) if small else (100, 9, 2)
    clip, names = make_clip(small, vision=True, patch_size=16, vision_layers=2), imagenet_class_names()[:classes]
    torch.manual_seed(0)
    classifier = make_classifier(copy.deepcopy(clip)).set_classes(names)
    model = get_peft_model(classifier, MaPLeConfig(prompt_depth=depth, num_prompt_tokens=count)).train()
    context, deep = (
        next(p for name, p in model.named_parameters() if part in name)
        for part in ("clipv_maple_context", "clipv_maple_text_prompts")
    )
    own_context, own_deep = (p.detach().clone().requires_grad_() for p in (context, deep))
    ids, ends = _prompts(names, "a photo of a")
    embeds = clip.text_model.embeddings.token_embedding(ids)
    image = F.normalize(torch.randn(4, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.arange(4) % classes

    def finish(text, parameters):
        for p in parameters:
            p.grad = None
        loss = F.cross_entropy(clip.logit_scale.exp() * image @ text.T, labels)
        loss.backward()
        return [loss.detach(), *(p.grad for p in parameters)]

    def ours():
        return finish(F.normalize(classifier.get_class_features(), dim=-1), (context, deep))

    def official():
        spliced = [embeds[:, :1], own_context.expand(len(ids), -1, -1), embeds[:, 1 + count :]]
        return finish(_run_text(clip, torch.cat(spliced, dim=1), ends, own_deep), (own_context, own_deep))

    return Row(
        f"text part of it: {classes} classes, depth {depth}, 2 tokens, ViT-B text encoder, fp32",
        {OURS: ours, "official, 77 tokens": official},
        {"official, 77 tokens": 9},
        error=largest_relative_error,
        tolerance=5e-5,
        weights=(clip, classifier.clip),
        kept_target=8,
    )


def clip_adapter_epoch(small: bool) -> Row:
    """Two steps of CLIP-Adapter: both encoders at every step, against features computed once."""
    from peft import get_peft_model

    from hf_clip_variants.adapters import CLIPAdapterConfig

    classes, images, batch = (4, 4, 2) if small else (10, 16, 8)
    clip, names = make_clip(small, vision=True, patch_size=16), imagenet_class_names()[:classes]
    torch.manual_seed(0)
    model = get_peft_model(make_classifier(clip).set_classes(names), CLIPAdapterConfig())
    parameters = [p for p in model.parameters() if p.requires_grad]
    start, ratio = [p.detach().clone() for p in parameters], model.peft_config["default"].ratio
    pixels, labels = _pixels(clip, images), torch.arange(images) % classes
    ids, ends = _prompts(names, "a photo of a")
    with torch.no_grad():
        features = torch.cat([clip.get_image_features(part).pooler_output for part in pixels.split(batch)])

    def train(parameters, logits_of):
        optimizer = torch.optim.SGD(parameters, lr=1e-2)
        for rows in torch.arange(images).split(batch):
            loss = F.cross_entropy(logits_of(rows), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters])

    def ours():
        with torch.no_grad():
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
        return train(parameters, lambda rows: model(image_features=features[rows]).logits)

    def official():
        down, up = own = [value.clone().requires_grad_() for value in start]

        def logits(rows):
            with torch.no_grad():
                image = clip.get_image_features(pixels[rows]).pooler_output
                text = _run_text(clip, clip.text_model.embeddings.token_embedding(ids), ends)
            adapted = F.relu(F.linear(F.relu(F.linear(image, down)), up))
            image = F.normalize(ratio * adapted + (1 - ratio) * image, dim=-1)
            return clip.logit_scale.exp() * image @ text.T

        return train(own, logits)

    return Row(
        f"{images} images in batches of {batch}, one plain view of each, encoded before; {classes} classes, ViT-B/16, "
        "fp32",
        {OURS: ours, "official, encoders every step": official},
        {"official, encoders every step": 50},
        error=relative_error,
        tolerance=1e-4,
        peak=True,
    )


class _Fit:
    """A whole fit by `train_adapter` on cached features, and a loop in bare torch that does the same arithmetic.

    The peer has what somebody would write who trains this one thing: no PEFT, no model around the text encoder, class
    embeddings and unit-norm features made before the loop where they are constant, and the loss read once an epoch.
    """

    def __init__(self, small: bool, config, classes: int, shots: int, epochs: int, **recipe):
        from peft import get_peft_model

        from hf_clip_variants.data.images.feature_cache import Features
        from hf_clip_variants.data.images.labelled_images import CachedImages
        from hf_clip_variants.few_shot.recipes import COOP_TRAINER, Recipe

        classes, shots, self.epochs = (4, 2, 2) if small else (classes, shots, epochs)
        self.clip = make_clip(small)
        self.classifier = make_classifier(self.clip).set_classes(imagenet_class_names()[:classes])
        width = self.clip.config.projection_dim
        features = torch.randn(1, classes * shots, width, generator=torch.Generator().manual_seed(0))
        self.features, self.labels = features[0], torch.arange(classes * shots) % classes
        self.images = CachedImages(Features(features, self.labels))
        with torch.no_grad():
            self.class_embeds = F.normalize(self.classifier.get_class_features(), dim=-1)
            self.scale = self.clip.logit_scale.exp()
        torch.manual_seed(0)
        self.model = get_peft_model(self.classifier, config)
        if hasattr(self.model.base_model, "build_cache"):
            self.model.base_model.build_cache(self.features, self.labels)
        self.config = self.model.peft_config["default"]
        values = {"learning_rate": 2e-3, "views": 1, "batch_size": 32} | COOP_TRAINER | recipe
        self.recipe = Recipe(method="fit", epochs=self.epochs, **values)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]

    def ours(self):
        from hf_clip_variants.few_shot.training_loop import train_adapter

        with torch.no_grad():
            for p, value in zip(self.parameters, self.start, strict=True):
                p.copy_(value)
        curve = train_adapter(
            self.model,
            self.images,
            self.recipe.make_optimizer,
            self.recipe.learning_rate_at,
            epochs=self.epochs,
            batch_size=self.recipe.batch_size,
            seed=0,
        )
        return [torch.tensor(curve), *(p.detach().clone() for p in self.parameters)]

    def bare(self, logits_of, unit_norm: bool = True):
        """`logits_of(features (B, D), *parameters)` -> (B, C)."""
        from hf_clip_variants.few_shot.training_loop import batches

        own = [value.clone().requires_grad_() for value in self.start]
        optimizer, curve = self.recipe.make_optimizer(own), []
        features = F.normalize(self.features, dim=-1) if unit_norm else self.features
        for epoch in range(self.epochs):
            losses, plan = [], list(batches(len(features), self.recipe.batch_size, 0, epoch, False))
            for step, rows in enumerate(plan):
                optimizer.param_groups[0]["lr"] = self.recipe.learning_rate_at(epoch, step, len(plan))
                loss = F.cross_entropy(logits_of(features[rows], *own), self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach() * len(rows))
            curve.append(float(torch.stack(losses).sum()) / len(features))
        return [torch.tensor(curve), *(p.detach() for p in own)]

    def row(self, what: str, logits_of, unit_norm: bool = True) -> Row:
        return Row(
            f"whole fit, {self.epochs} epochs of {len(self.features)} images, {len(self.class_embeds)} classes, "
            f"batches of {self.recipe.batch_size}, {what}, width {self.features.shape[1]}, fp32",
            {OURS: self.ours, "bare torch": lambda: self.bare(logits_of, unit_norm)},
            {"bare torch": 1 / 1.3},
            error=largest_relative_error,
            tolerance=1e-4,
        )


def clip_adapter_fit(small: bool) -> Row:
    from hf_clip_variants.adapters import CLIPAdapterConfig

    fit = _Fit(small, CLIPAdapterConfig(), classes=50, shots=16, epochs=20)

    def logits(features, down, up):
        adapted = F.relu(F.linear(F.relu(F.linear(features, down)), up))
        image = F.normalize(torch.lerp(features, adapted, fit.config.ratio), dim=-1)
        return fit.scale * image @ fit.class_embeds.T

    return fit.row("CLIP-Adapter", logits, unit_norm=False)


def tip_adapter_f_fit(small: bool) -> Row:
    from hf_clip_variants.adapters import TipAdapterConfig

    optimizer = {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "batch_size": 256}
    fit = _Fit(small, TipAdapterConfig(trainable_keys=True), classes=50, shots=4, epochs=20, **optimizer)
    config, one_hot = fit.config, F.one_hot(fit.labels, len(fit.class_embeds)).float()

    def logits(image, keys):
        votes = (config.beta * (image @ keys.T - 1)).exp() @ one_hot
        return config.logit_scale * image @ fit.class_embeds.T + config.alpha * votes

    return fit.row("Tip-Adapter-F", logits)


def linear_head_fit(small: bool) -> Row:
    from hf_clip_variants.adapters import LinearHeadConfig

    fit = _Fit(small, LinearHeadConfig(trainable=True), classes=50, shots=16, epochs=20)

    def logits(image, weight, bias):
        return fit.scale * image @ fit.class_embeds.T + fit.config.alpha * F.linear(image, weight, bias)

    return fit.row("linear head", logits)


def coop_fit(small: bool) -> Row:
    """The peer's text side is our `encode_prompts`, planned once: what is compared is all that is around it."""
    from hf_clip_variants.adapters import CoOpConfig
    from hf_clip_variants.modeling.dual_encoders.prompt_encoding import encode_prompts, plan_prompts, pooled_token

    fit = _Fit(small, CoOpConfig(), classes=10, shots=4, epochs=4)
    text_model, prompts, count = fit.clip.text_model, fit.classifier.class_prompts, fit.config.num_context_tokens
    ids = torch.cat([prompts.start_ids, prompts.placeholders(count), prompts.tail_ids], dim=1)
    embeds = text_model.embeddings.token_embedding(ids).detach()
    plan = plan_prompts(ids, pooled_token(text_model), 1 + count)

    def logits(image, context):
        spliced = [embeds[:, :1], context.expand(len(embeds), -1, -1), embeds[:, 1 + count :]]
        text = fit.clip.text_projection(encode_prompts(text_model, ids, torch.cat(spliced, dim=1), plan=plan))
        return fit.scale * image @ F.normalize(text, dim=-1).T

    return fit.row("CoOp, 16 tokens, ViT-B text encoder", logits)


ADAPTER_ROWS = {
    "cocoop_step": cocoop_step,
    "cocoop_pixels": cocoop_pixels,
    "cocoop_batch_8": cocoop_batch_8,
    "cocoop_memory": cocoop_memory,
    "cocoop_memory_chunked": cocoop_memory_chunked,
    "maple_step": maple_step,
    "maple_text": maple_text,
    "clip_adapter_epoch": clip_adapter_epoch,
    "clip_adapter_fit": clip_adapter_fit,
    "tip_adapter_f_fit": tip_adapter_f_fit,
    "linear_head_fit": linear_head_fit,
    "coop_fit": coop_fit,
}
