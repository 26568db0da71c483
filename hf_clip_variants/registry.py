"""
The one table of methods.

One row a method. The rows drive the registration with transformers' Auto classes and with PEFT, `hf-clip-variants methods`, the table
in README.md and the parametrised contract tests; nothing else lists methods by hand. Reading it imports nothing: classes are written
`"module:Class"`, relative to `hf_clip_variants`, and are imported by `Method.load`.
"""

import difflib
import importlib
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from .registration.auto_mappings import register_lazily
from .registration.post_import import after_import


@dataclass(frozen=True)
class Paper:
    title: str
    arxiv: str
    year: int  # of the first version on arXiv
    authors: str = ""  # as BibTeX wants them

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class OfficialCode:
    repository: str  # owner/name on GitHub
    licence: str | None  # SPDX identifier; None: the repository states none, so nothing of it may be copied

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}"


@dataclass(frozen=True)
class Tower:
    """
    A part of a model that is of use alone, with a configuration of its own.

    Args:
        name: suffix of the configuration's `model_type`, behind the method's name.
        config: the configuration class.
        auto_classes: Auto class -> class, as in `Method`.
    """

    name: str
    config: str
    auto_classes: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Method:
    """
    One method: what it is, where it comes from and which classes implement it.

    Args:
        name: folder, argument of every command and suffix of `model_type` or `peft_type`.
        kind: `"model"` (own forward and checkpoints, in `modeling/<name>`) or `"adapter"` (a PEFT tuner, in `adapters/<name>`).
        title: how the paper writes the method's name.
        task: the Hub's pipeline tag.
        summary: when to use it, in one line.
        config: the configuration class.
        model: models only, the class that `hf_clip_variants` exports; `auto_classes` says what each Auto class gives.
        processor, image_processors, feature_extractor: models only. `image_processors` is keyed by transformers' back-end name;
            `feature_extractor` is for sounds.
        towers: models only, parts that the Auto classes know as well.
        layer, tuner: adapters only, the module that wraps and PEFT's `BaseTuner`.
    """

    name: str
    kind: Literal["model", "adapter"]
    title: str
    paper: Paper
    code: OfficialCode
    task: str
    summary: str
    config: str
    model: str | None = None
    auto_classes: dict[str, str] = field(default_factory=dict, hash=False)
    processor: str | None = None
    image_processors: dict[str, str] = field(default_factory=dict, hash=False)
    feature_extractor: str | None = None
    towers: tuple[Tower, ...] = ()
    layer: str | None = None
    tuner: str | None = None

    @property
    def folder(self) -> str:
        """The package that holds the method."""
        return f"hf_clip_variants.{'modeling' if self.kind == 'model' else 'adapters'}.{self.name}"

    @property
    def model_type(self) -> str | None:
        """`config.model_type` of a model. Prefixed: a plain name would clash on the day transformers ships the method."""
        return f"clipv-{self.name}" if self.kind == "model" else None

    @property
    def peft_type(self) -> str | None:
        """`config.peft_type` of an adapter."""
        return f"CLIPV_{self.name.upper()}" if self.kind == "adapter" else None

    @property
    def exports(self) -> dict[str, str]:
        """Public class name -> module: what `hf_clip_variants` offers of this method."""
        references = [self.config, self.model, self.processor, *self.image_processors.values(), self.feature_extractor]
        references += self.auto_classes.values()
        for tower in self.towers:
            references += [tower.config, *tower.auto_classes.values()]
        return {name: module for module, name in (_split(reference) for reference in references if reference)}

    def load(self, part: str) -> type:
        """Import and return one class: `part` is one of `_PARTS` or the name of an Auto class."""
        reference = self.auto_classes.get(part) or (getattr(self, part) if part in _PARTS else None)
        if reference is None:
            known = [name for name in _PARTS if getattr(self, name)] + list(self.auto_classes)
            raise ValueError(f"part: {self.name} has no {part!r}; it has {', '.join(known)}")
        return _load(reference)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data, for `hf-clip-variants methods --json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "task": self.task,
            "summary": self.summary,
            "paper": {"title": self.paper.title, "url": self.paper.url, "year": self.paper.year},
            "code": {"url": self.code.url, "licence": self.code.licence},
            "model_type": self.model_type,
            "peft_type": self.peft_type,
            "config": ":".join(_split(self.config)),
            "auto_classes": list(self.auto_classes),
        }


_PARTS = ("config", "model", "processor", "feature_extractor", "layer", "tuner")


def _split(reference: str) -> tuple[str, str]:
    module, _, name = reference.partition(":")
    return f"hf_clip_variants.{module}", name


def _load(reference: str) -> type:
    module, name = _split(reference)
    return getattr(importlib.import_module(module), name)


_CLIP_CLASSIFIER = "modeling.clip_classifier.modeling_clip_classifier:CLIPClassifier"
_CLIP_PAPER = Paper(
    "Learning Transferable Visual Models From Natural Language Supervision",
    "2103.00020",
    2021,
    "Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and Agarwal, Sandhini and "
    "Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya",
)
_CLIP_RESNET = "modeling.clip_resnet.modeling_clip_resnet:CLIPResNet"
_AUDIOCLIP = "modeling.audioclip.modeling_audioclip:AudioCLIP"

_MAPLE = Paper(
    "MaPLe: Multi-modal Prompt Learning",
    "2210.03117",
    2022,
    "Khattak, Muhammad Uzair and Rasheed, Hanoona and Maaz, Muhammad and Khan, Salman and Khan, Fahad Shahbaz",
)

_SLIP = "modeling.slip.modeling_slip:SLIP"

_METHODS = (
    Method(
        name="clip_classifier",
        kind="model",
        title="CLIP",
        paper=_CLIP_PAPER,
        code=OfficialCode("openai/CLIP", "MIT"),
        task="zero-shot-image-classification",
        summary="No pictures, only names: zero-shot classification with prompt templates. Every adapter sits on it.",
        config="modeling.clip_classifier.configuration_clip_classifier:CLIPClassifierConfig",
        model=_CLIP_CLASSIFIER,
        auto_classes={
            "AutoModel": _CLIP_CLASSIFIER,
            "AutoModelForZeroShotImageClassification": _CLIP_CLASSIFIER,
            "AutoModelForImageClassification": _CLIP_CLASSIFIER,
        },
        processor="modeling.clip_classifier.processing_clip_classifier:CLIPClassifierProcessor",
        image_processors={
            "torchvision": "modeling.clip_classifier.image_processing_clip_classifier:CLIPClassifierImageProcessor"
        },
    ),
    Method(
        name="clip_resnet",
        kind="model",
        title="CLIP-ResNet",
        paper=_CLIP_PAPER,
        code=OfficialCode("openai/CLIP", "MIT"),
        task="zero-shot-image-classification",
        summary="CLIP with a ResNet image tower (RN50 to RN50x64): for work built on it, and for maps of four resolutions.",
        config="modeling.clip_resnet.configuration_clip_resnet:CLIPResNetConfig",
        model=_CLIP_RESNET + "Model",
        auto_classes={
            "AutoModel": _CLIP_RESNET + "Model",
            "AutoModelForZeroShotImageClassification": _CLIP_RESNET + "Model",
        },
        towers=(
            Tower(
                name="vision",
                config="modeling.clip_resnet.configuration_clip_resnet:CLIPResNetVisionConfig",
                auto_classes={"AutoModel": _CLIP_RESNET + "VisionModel", "AutoBackbone": _CLIP_RESNET + "Backbone"},
            ),
        ),
    ),
    Method(
        name="slip",
        kind="model",
        title="SLIP",
        paper=Paper(
            "SLIP: Self-supervision meets Language-Image Pre-training",
            "2112.12750",
            2021,
            "Mu, Norman and Kirillov, Alexander and Wagner, David and Xie, Saining",
        ),
        code=OfficialCode("facebookresearch/SLIP", "MIT"),
        task="zero-shot-image-classification",
        summary="Pre-training: CLIP's loss plus SimCLR, MoCo v3, BYOL or SimSiam; better features from the same pictures.",
        config="modeling.slip.configuration_slip:SLIPConfig",
        model=_SLIP + "Model",
        auto_classes={
            "AutoModel": _SLIP + "Model",
            "AutoModelForZeroShotImageClassification": _SLIP + "Model",
            "AutoModelForPreTraining": _SLIP + "ForPreTraining",
        },
    ),
    Method(
        name="audioclip",
        kind="model",
        title="AudioCLIP",
        paper=Paper(
            "AudioCLIP: Extending CLIP to Image, Text and Audio",
            "2106.13043",
            2021,
            'Guzhov, Andrey and Raue, Federico and Hees, J{\\"o}rn and Dengel, Andreas',
        ),
        code=OfficialCode("AndreyGuzhov/AudioCLIP", "MIT"),
        task="zero-shot-audio-classification",
        summary="Sounds, pictures and texts in one space: names sounds without examples, finds pictures by sound and back.",
        config="modeling.audioclip.configuration_audioclip:AudioCLIPConfig",
        model=_AUDIOCLIP + "Model",
        auto_classes={
            "AutoModel": _AUDIOCLIP + "Model",
            "AutoModelForZeroShotImageClassification": _AUDIOCLIP + "Model",
        },
        processor="modeling.audioclip.processing_audioclip:AudioCLIPProcessor",
        feature_extractor="modeling.audioclip.feature_extraction_audioclip:AudioCLIPFeatureExtractor",
        towers=(
            Tower(
                name="audio",
                config="modeling.audioclip.configuration_audioclip:AudioCLIPAudioConfig",
                auto_classes={"AutoModel": _AUDIOCLIP + "AudioModel"},
            ),
        ),
    ),
    Method(
        name="coop",
        kind="adapter",
        title="CoOp",
        paper=Paper(
            "Learning to Prompt for Vision-Language Models",
            "2109.01134",
            2021,
            "Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei",
        ),
        code=OfficialCode("KaiyangZhou/CoOp", "MIT"),
        task="image-classification",
        summary="Learns the words around the class name. A few kilobytes; unified contexts still take new class names.",
        config="adapters.coop.config:CoOpConfig",
        layer="adapters.coop.layer:CoOpLayer",
        tuner="adapters.coop.model:CoOpModel",
    ),
    Method(
        name="cocoop",
        kind="adapter",
        title="CoCoOp",
        paper=Paper(
            "Conditional Prompt Learning for Vision-Language Models",
            "2203.05557",
            2022,
            "Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei",
        ),
        code=OfficialCode("KaiyangZhou/CoOp", "MIT"),
        task="image-classification",
        summary="CoOp's words, shifted for each picture: loses less on classes that were not trained on. Any batch size here.",
        config="adapters.cocoop.config:CoCoOpConfig",
        layer="adapters.cocoop.layer:CoCoOpLayer",
        tuner="adapters.cocoop.model:CoCoOpModel",
    ),
    Method(
        name="maple",
        kind="adapter",
        title="MaPLe",
        paper=_MAPLE,
        code=OfficialCode("muzairkhattak/multimodal-prompt-learning", "MIT"),
        task="image-classification",
        summary="Learned tokens in several layers of both towers, coupled: for classes that were and were not trained on.",
        config="adapters.maple.config:MaPLeConfig",
        layer="adapters.maple.layer:MaPLePromptEmbedder",
        tuner="adapters.maple.model:MaPLeModel",
    ),
    Method(
        name="vpt",
        kind="adapter",
        title="VPT",
        paper=Paper(
            "Visual Prompt Tuning",
            "2203.12119",
            2022,
            "Jia, Menglin and Tang, Luming and Chen, Bor-Chun and Cardie, Claire and Belongie, Serge and Hariharan, Bharath and Lim, Ser-Nam",
        ),
        code=OfficialCode("KMnP/vpt", "CC-BY-NC-4.0"),
        task="image-classification",
        summary="Learned tokens beside the patches, shallow or deep; on CLIP's image tower or on a plain ViT with a new head.",
        config="adapters.vpt.config:VPTConfig",
        layer="adapters.vpt.layer:VPTHome",
        tuner="adapters.vpt.model:VPTModel",
    ),
    Method(
        name="ivlp",
        kind="adapter",
        title="IVLP",
        paper=_MAPLE,
        code=OfficialCode("muzairkhattak/multimodal-prompt-learning", "MIT"),
        task="image-classification",
        summary="Learned tokens in both towers, not coupled; or in the text tower alone (deep language prompting).",
        config="adapters.ivlp.config:IVLPConfig",
        layer="adapters.ivlp.layer:IVLPPromptEmbedder",
        tuner="adapters.ivlp.model:IVLPModel",
    ),
    Method(
        name="clip_adapter",
        kind="adapter",
        title="CLIP-Adapter",
        paper=Paper(
            "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
            "2110.04544",
            2021,
            "Gao, Peng and Geng, Shijie and Zhang, Renrui and Ma, Teli and Fang, Rongyao and Zhang, Yongfeng and Li, Hongsheng and Qiao, Yu",
        ),
        code=OfficialCode("gaopengcuhk/CLIP-Adapter", None),
        task="image-classification",
        summary="A small bottleneck on CLIP's features. Trains in seconds on cached features; works on a plain CLIPModel.",
        config="adapters.clip_adapter.config:CLIPAdapterConfig",
        layer="adapters.clip_adapter.layer:CLIPAdapterLayer",
        tuner="adapters.clip_adapter.model:CLIPAdapterModel",
    ),
    Method(
        name="tip_adapter",
        kind="adapter",
        title="Tip-Adapter",
        paper=Paper(
            "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
            "2207.09519",
            2022,
            "Zhang, Renrui and Fang, Rongyao and Zhang, Wei and Gao, Peng and Li, Kunchang and Dai, Jifeng and Qiao, Yu and Li, Hongsheng",
        ),
        code=OfficialCode("gaopengcuhk/Tip-Adapter", None),
        task="image-classification",
        summary="The first to try with 1 to 16 pictures a class: no training, or a short one of the cache (Tip-Adapter-F).",
        config="adapters.tip_adapter.config:TipAdapterConfig",
        layer="adapters.tip_adapter.layer:TipAdapterLayer",
        tuner="adapters.tip_adapter.model:TipAdapterModel",
    ),
)


def methods(kind: Literal["model", "adapter"] | None = None) -> list[Method]:
    """
    All methods in the table's order, or those of one kind.

    Example:

    ```python
    >>> import hf_clip_variants

    >>> [method.name for method in hf_clip_variants.methods("adapter")]
    ['coop', 'cocoop', 'maple', 'vpt', 'ivlp', 'clip_adapter', 'tip_adapter']
    ```
    """
    if kind not in (None, "model", "adapter"):
        raise ValueError(f"kind: got {kind!r}, expected 'model', 'adapter' or None")
    return [row for row in _METHODS if kind in (None, row.kind)]


def method(name: str) -> Method:
    """The row called `name`. Raises `ValueError` with the nearest names when there is none."""
    for row in _METHODS:
        if row.name == name:
            return row
    known = [row.name for row in _METHODS]
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"method: unknown {name!r}{hint} Known: {', '.join(known)}")


def register() -> None:
    """
    Make every method known to transformers' Auto classes and to PEFT. `import hf_clip_variants` calls it; calling it again is harmless.

    Nothing is imported for it. Each of their modules gets our entries when it is imported (or now, if it already is), and each entry
    imports its class when it is looked up.
    """
    after_import("transformers.models.auto.configuration_auto", _register_configs)
    after_import("transformers.models.auto.modeling_auto", _register_models)
    after_import("transformers.models.auto.processing_auto", _register_processors)
    after_import("transformers.models.auto.image_processing_auto", _register_image_processors)
    after_import("transformers.models.auto.feature_extraction_auto", _register_feature_extractors)
    after_import("peft", _register_adapters)


def _configs() -> list[tuple[str, str, dict[str, str]]]:
    """Of every model and every tower: model type, configuration class, Auto classes."""
    found = []
    for row in methods("model"):
        found.append((row.model_type, row.config, row.auto_classes))
        found += [(f"{row.model_type}_{tower.name}", tower.config, tower.auto_classes) for tower in row.towers]
    return found


def _register_configs(module) -> None:
    for model_type, config, _ in _configs():
        register_lazily(
            module.CONFIG_MAPPING, model_type, lambda kind=model_type, config=config: (kind, _load(config))
        )


def _register_models(module) -> None:
    for _, config, auto_classes in _configs():
        for auto_class, reference in auto_classes.items():
            mapping = getattr(module, auto_class)._model_mapping
            _register_for_config(mapping, config, lambda reference=reference: _load(reference))


def _register_processors(module) -> None:
    for row in methods("model"):
        if row.processor:
            _register_for_config(module.PROCESSOR_MAPPING, row.config, lambda row=row: row.load("processor"))


def _register_image_processors(module) -> None:
    for row in methods("model"):
        if row.image_processors:
            _register_for_config(
                module.IMAGE_PROCESSOR_MAPPING,
                row.config,
                lambda row=row: {backend: _load(reference) for backend, reference in row.image_processors.items()},
            )


def _register_feature_extractors(module) -> None:
    for row in methods("model"):
        if row.feature_extractor:
            _register_for_config(
                module.FEATURE_EXTRACTOR_MAPPING, row.config, lambda row=row: row.load("feature_extractor")
            )


def _register_for_config(mapping, config: str, load_value) -> None:
    register_lazily(mapping, ".".join(_split(config)), lambda: (_load(config), load_value()))


def _register_adapters(module) -> None:
    # `hf_clip_variants.adapters` imports PEFT, then registers. If it is there already, another thread (or this one, further down the
    # stack) is in the middle of that and will finish; asking for it here could deadlock with that thread.
    if "hf_clip_variants.adapters" not in sys.modules:
        importlib.import_module("hf_clip_variants.adapters")
