"""
The table of methods, with one row per method.

Everything that depends on the list of methods reads it here: registration with transformers' Auto classes and with
PEFT (`registration/`), commands, conversion, few-shot fitting, pre-training, the table in README.md and the contract
tests. Nothing else lists methods by hand. Reading the table imports nothing: classes, functions and descriptors are
references `"module:name"`, relative to `hf_clip_variants`, which `Method.load` and `load_reference` import.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal


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
    licence: str | None  # SPDX identifier; None: no licence is stated, so no code may be copied

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}"


KindName = Literal["model", "adapter", "synthesis"]


@dataclass(frozen=True)
class Kind:
    """
    A kind of method, and what its methods have in common.

    Args:
        package: the package with a folder for each method, relative to `hf_clip_variants`.
        required: fields that every row of the kind has.
        optional: fields that a row of the kind may have.
        registered_with: the library that the classes are registered with when `hf_clip_variants` is imported. None:
            they are not registered, and users import them by name.
    """

    package: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    registered_with: Literal["transformers", "peft"] | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # Own forward pass, own checkpoints: a PretrainedConfig and PreTrainedModels behind Auto classes.
        "model": Kind(
            package="modeling",
            required=("config", "model", "auto_classes"),
            optional=("processor", "image_processors", "feature_extractor", "submodels", "checkpoints", "pretraining"),
            registered_with="transformers",
        ),
        # A few trained tensors on a frozen backbone: a PEFT configuration and tuner.
        "adapter": Kind(
            package="adapters",
            required=("config", "layer", "tuner"),
            optional=("few_shot", "checkpoints", "card_snippet"),
            registered_with="peft",
        ),
        # Pixels or strokes that are optimised with frozen models. No weights are trained. The configuration is a
        # dataclass; the generator is a callable that takes loaded models and a text or an image, and returns an image.
        "synthesis": Kind(package="synthesis", required=("config", "generator")),
    }
)


@dataclass(frozen=True)
class Submodel:
    """
    A part of a model that can be used alone, such as the image encoder, with its own configuration.

    Args:
        name: suffix of the configuration's `model_type`, after the method's name.
        config: the configuration class.
        auto_classes: Auto class -> class, as in `Method`.
    """

    name: str
    config: str
    auto_classes: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class FewShotEntry:
    """
    A way to fit an adapter to a few labelled images, as `adapt --methods` and `fit_adapter` name it.

    Args:
        name: its name in commands and results. An adapter may have several entries, for instance with and without
            training.
        title: its name in tables and reports.
        descriptor: `few_shot.method.FewShotMethod`, with recipes and the function that fits.
        by_default: whether `adapt` runs it by default; it must take only minutes without a GPU.
        in_demo: whether `demo` runs it by default.
    """

    name: str
    title: str
    descriptor: str
    by_default: bool = False
    in_demo: bool = False


@dataclass(frozen=True)
class Option:
    """
    An option of `convert`, on the command line and as a keyword of `convert_checkpoint`.

    Args:
        name: the keyword.
        type: `str`, `int`, `float`, `bool`, or the values that it may have.
        help: one line; the methods that it belongs to are put in front of it.
        default: as help shows it; None where it is plain or there is none.
        flag: on the command line, where it is not the keyword with hyphens.
    """

    name: str
    type: type | tuple[str, ...]
    help: str
    default: str | None = None
    flag: str | None = None


@dataclass(frozen=True)
class CheckpointEntry:
    """
    A format of official checkpoints, as `convert --method` names it.

    Args:
        name: the format's name; mostly the method's. A row may have several, such as backbones of a classifier.
        title: in help and messages.
        descriptor: a `ModelFormat` (`modeling.loading_and_saving.checkpoint_format`) or an `AdapterFormat`
            (`adapters.checkpoint_format`).
        options: what `convert` can be told about files of this format, besides the options of every model or adapter.
        files: what the files are called, where that is not up to the user.
    """

    name: str
    title: str
    descriptor: str
    options: tuple[Option, ...] = ()
    files: str | None = None


@dataclass(frozen=True)
class Method:
    """
    One method: its paper and code, and the classes that implement it.

    Args:
        name: name of its folder, of the argument of commands, and suffix of `model_type` or `peft_type`.
        kind: `"model"` (own forward pass and checkpoints, in `modeling/<name>`), `"adapter"` (a PEFT tuner, in
            `adapters/<name>`) or `"synthesis"` (an image optimised with frozen models, in `synthesis/<name>`).
        title: the method's name as in the paper.
        task: the Hub's pipeline tag.
        summary: when to use it, in one line.
        config: the configuration class.
        model: models only, the class that `hf_clip_variants` exports; `auto_classes` says what each Auto class gives.
        processor, image_processors, feature_extractor: models only. The keys of `image_processors` are transformers'
            names of back-ends; `feature_extractor` is for audio.
        submodels: models only, parts that are also registered with the Auto classes.
        layer, tuner: adapters only, a wrapping layer and the subclass of PEFT's `BaseTuner`.
        generator: synthesis only, the callable that returns the image.
        few_shot: adapters only, the ways to fit it to a few labelled images.
        checkpoints: formats of official files that `convert` can read.
        pretraining: how `scripts/pretrain.py` trains it (`modeling.dual_encoders.pretraining.Pretraining`).
        card_snippet: code in the model card of an adapter on a plain `CLIPModel`, if the usual code does not work; a
            format string of the configuration's fields, `repo_id`, `base_model` and `names`.
    """

    name: str
    kind: KindName
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
    submodels: tuple[Submodel, ...] = ()
    layer: str | None = None
    tuner: str | None = None
    generator: str | None = None
    few_shot: tuple[FewShotEntry, ...] = ()
    checkpoints: tuple[CheckpointEntry, ...] = ()
    pretraining: str | None = None
    card_snippet: str | None = None

    @property
    def folder(self) -> str:
        """Full name of the method's package."""
        return f"hf_clip_variants.{KINDS[self.kind].package}.{self.name}"

    @property
    def model_type(self) -> str | None:
        """`config.model_type` of a model. The prefix avoids a clash if transformers adds the method one day."""
        return f"clipv-{self.name}" if self.kind == "model" else None

    @property
    def peft_type(self) -> str | None:
        """`config.peft_type` of an adapter."""
        return f"CLIPV_{self.name.upper()}" if self.kind == "adapter" else None

    @property
    def exports(self) -> dict[str, str]:
        """Public class name -> module, for all classes of this method that `hf_clip_variants` exports."""
        references = [self.config, self.model, self.processor, *self.image_processors.values(), self.feature_extractor]
        references += [*self.auto_classes.values(), self.generator]
        for submodel in self.submodels:
            references += [submodel.config, *submodel.auto_classes.values()]
        return {name: module for module, name in (split_reference(reference) for reference in references if reference)}

    def load(self, part: str) -> Any:
        """Import and return one class, function or descriptor: one of `_PARTS`, or the name of an Auto class."""
        reference = self.auto_classes.get(part) or (getattr(self, part) if part in _PARTS else None)
        if reference is None:
            known = [name for name in _PARTS if getattr(self, name)] + list(self.auto_classes)
            raise ValueError(f"part: {self.name} has no {part!r}; it has {', '.join(known)}")
        return load_reference(reference)

    def as_dict(self) -> dict[str, Any]:
        """The row as a dictionary, for `hf-clip-variants methods --json`."""
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
            "config": ":".join(split_reference(self.config)),
            "auto_classes": list(self.auto_classes),
            "few_shot": [entry.name for entry in self.few_shot],
            "checkpoints": [entry.name for entry in self.checkpoints],
        }


_PARTS = (
    "config",
    "model",
    "processor",
    "feature_extractor",
    "layer",
    "tuner",
    "generator",
    "pretraining",
    "card_snippet",
)


def split_reference(reference: str) -> tuple[str, str]:
    """`"adapters.coop.config:CoOpConfig"` -> full name of the module, and name in the module."""
    module, _, name = reference.partition(":")
    return f"hf_clip_variants.{module}", name


def load_reference(reference: str) -> Any:
    """Import and return the object that a reference `"module:name"` names."""
    module, name = split_reference(reference)
    return getattr(importlib.import_module(module), name)


_CLIP_CLASSIFIER = "modeling.clip_classifier.modeling_clip_classifier:CLIPClassifier"
_CLIP_PAPER = Paper(
    "Learning Transferable Visual Models From Natural Language Supervision",
    "2103.00020",
    2021,
    "Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and Agarwal, Sandhini "
    "and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and Krueger, Gretchen and "
    "Sutskever, Ilya",
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

# Options of several formats.
_CLIP_OPTIONS = (
    Option(
        "activation",
        ("quick_gelu", "gelu"),
        "no weights tell; quick_gelu for OpenAI's, gelu for most of open_clip's.",
        default="open_clip_config.json beside the file, else quick_gelu",
    ),
    Option("open_clip_config", str, "open_clip's configuration of the model, a JSON file."),
)
_CONTEXT_INIT = Option("context_init", str, "the words that the training began with; '' for none.")

_METHODS = (
    Method(
        name="clip_classifier",
        kind="model",
        title="CLIP",
        paper=_CLIP_PAPER,
        code=OfficialCode("openai/CLIP", "MIT"),
        task="zero-shot-image-classification",
        summary="No images, only class names: zero-shot classification with templates. The base of every adapter.",
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
        checkpoints=(
            CheckpointEntry("clip", "CLIP", "modeling.clip.convert_clip:CHECKPOINTS", _CLIP_OPTIONS),
            CheckpointEntry("chinese_clip", "Chinese-CLIP", "modeling.chinese_clip.convert_chinese_clip:CHECKPOINTS"),
        ),
        pretraining="modeling.clip.pretraining_clip:CLIP",
    ),
    Method(
        name="clip_resnet",
        kind="model",
        title="CLIP-ResNet",
        paper=_CLIP_PAPER,
        code=OfficialCode("openai/CLIP", "MIT"),
        task="zero-shot-image-classification",
        summary="CLIP with a ResNet image encoder (RN50 to RN50x64): for work built on it, and for feature maps.",
        config="modeling.clip_resnet.configuration_clip_resnet:CLIPResNetConfig",
        model=_CLIP_RESNET + "Model",
        auto_classes={
            "AutoModel": _CLIP_RESNET + "Model",
            "AutoModelForZeroShotImageClassification": _CLIP_RESNET + "Model",
        },
        submodels=(
            Submodel(
                name="vision",
                config="modeling.clip_resnet.configuration_clip_resnet:CLIPResNetVisionConfig",
                auto_classes={"AutoModel": _CLIP_RESNET + "VisionModel", "AutoBackbone": _CLIP_RESNET + "Backbone"},
            ),
        ),
        checkpoints=(
            CheckpointEntry(
                "clip_resnet", "CLIP-ResNet", "modeling.clip_resnet.convert_clip_resnet:CHECKPOINTS", _CLIP_OPTIONS
            ),
        ),
        pretraining="modeling.clip_resnet.pretraining_clip_resnet:CLIP_RESNET",
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
        summary="Pre-training with CLIP's loss plus SimCLR, MoCo v3, BYOL or SimSiam: better image features.",
        config="modeling.slip.configuration_slip:SLIPConfig",
        model=_SLIP + "Model",
        auto_classes={
            "AutoModel": _SLIP + "Model",
            "AutoModelForZeroShotImageClassification": _SLIP + "Model",
            "AutoModelForPreTraining": _SLIP + "ForPreTraining",
        },
        checkpoints=(
            CheckpointEntry(
                "slip",
                "SLIP",
                "modeling.slip.convert_slip:CHECKPOINTS",
                (Option("keep_head", bool, "with its self-supervised head, to go on with the training."),),
            ),
        ),
        pretraining="modeling.slip.pretraining_slip:SLIP",
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
        summary="Audio, images and texts in one space: zero-shot audio classification, audio-image retrieval.",
        config="modeling.audioclip.configuration_audioclip:AudioCLIPConfig",
        model=_AUDIOCLIP + "Model",
        auto_classes={
            "AutoModel": _AUDIOCLIP + "Model",
            "AutoModelForZeroShotImageClassification": _AUDIOCLIP + "Model",
        },
        processor="modeling.audioclip.processing_audioclip:AudioCLIPProcessor",
        feature_extractor="modeling.audioclip.feature_extraction_audioclip:AudioCLIPFeatureExtractor",
        submodels=(
            Submodel(
                name="audio",
                config="modeling.audioclip.configuration_audioclip:AudioCLIPAudioConfig",
                auto_classes={"AutoModel": _AUDIOCLIP + "AudioModel"},
            ),
        ),
        checkpoints=(CheckpointEntry("audioclip", "AudioCLIP", "modeling.audioclip.convert_audioclip:CHECKPOINTS"),),
        pretraining="modeling.audioclip.pretraining_audioclip:AUDIOCLIP",
    ),
    Method(
        name="tip_adapter",
        kind="adapter",
        title="Tip-Adapter",
        paper=Paper(
            "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
            "2207.09519",
            2022,
            "Zhang, Renrui and Fang, Rongyao and Zhang, Wei and Gao, Peng and Li, Kunchang and Dai, Jifeng and "
            "Qiao, Yu and Li, Hongsheng",
        ),
        code=OfficialCode("gaopengcuhk/Tip-Adapter", None),
        task="image-classification",
        summary="The first to try with 1 to 16 images per class: no training, or a short one (Tip-Adapter-F).",
        config="adapters.tip_adapter.config:TipAdapterConfig",
        layer="adapters.tip_adapter.layer:TipAdapterLayer",
        tuner="adapters.tip_adapter.model:TipAdapterModel",
        few_shot=(
            FewShotEntry(
                "tip_adapter",
                "Tip-Adapter",
                "adapters.tip_adapter.few_shot:TIP_ADAPTER",
                by_default=True,
                in_demo=True,
            ),
            FewShotEntry(
                "tip_adapter_f",
                "Tip-Adapter-F",
                "adapters.tip_adapter.few_shot:TIP_ADAPTER_F",
                by_default=True,
                in_demo=True,
            ),
        ),
        checkpoints=(
            CheckpointEntry(
                "tip_adapter",
                "Tip-Adapter",
                "adapters.tip_adapter.convert:CHECKPOINTS",
                (
                    Option("alpha", float, "weight of the cache.", default="1.0"),
                    Option("beta", float, "sharpness.", default="5.5"),
                    Option("values", str, "the labels.", default="values_*.pt beside the file"),
                ),
                files="keys_*.pt or best_F_*.pt",
            ),
        ),
    ),
    Method(
        name="linear_head",
        kind="adapter",
        title="Linear head (GDA, CLAP)",
        paper=Paper(
            "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation",
            "2402.04087",
            2024,
            "Wang, Zhengbo and Liang, Jian and Sheng, Lijun and He, Ran and Wang, Zilei and Tan, Tieniu",
        ),
        code=OfficialCode("mrflogs/ICLR24", None),
        task="image-classification",
        summary="A linear classifier added to CLIP's: by formula (GDA), or pulled to the texts and with votes (CLAP).",
        config="adapters.linear_head.config:LinearHeadConfig",
        layer="adapters.linear_head.layer:LinearHeadLayer",
        tuner="adapters.linear_head.model:LinearHeadModel",
        few_shot=(
            FewShotEntry("gda", "GDA", "adapters.linear_head.few_shot:GDA", by_default=True, in_demo=True),
            FewShotEntry("clap", "CLAP", "adapters.linear_head.few_shot:CLAP", by_default=True, in_demo=True),
        ),
    ),
    Method(
        name="clip_adapter",
        kind="adapter",
        title="CLIP-Adapter",
        paper=Paper(
            "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
            "2110.04544",
            2021,
            "Gao, Peng and Geng, Shijie and Zhang, Renrui and Ma, Teli and Fang, Rongyao and Zhang, Yongfeng and "
            "Li, Hongsheng and Qiao, Yu",
        ),
        code=OfficialCode("gaopengcuhk/CLIP-Adapter", None),
        task="image-classification",
        summary="A small bottleneck on CLIP's features. Trains in seconds; works on a plain CLIPModel, too.",
        config="adapters.clip_adapter.config:CLIPAdapterConfig",
        layer="adapters.clip_adapter.layer:CLIPAdapterLayer",
        tuner="adapters.clip_adapter.model:CLIPAdapterModel",
        few_shot=(
            FewShotEntry(
                "clip_adapter",
                "CLIP-Adapter",
                "adapters.clip_adapter.few_shot:CLIP_ADAPTER",
                by_default=True,
                in_demo=True,
            ),
        ),
        checkpoints=(
            CheckpointEntry(
                "clip_adapter",
                "CLIP-Adapter",
                "adapters.clip_adapter.convert:CHECKPOINTS",
                (Option("ratio", float, "weight of the adapted feature.", default="0.2"),),
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
        summary="Learns the words around the class name. A few kilobytes; can serve new class names, too.",
        config="adapters.coop.config:CoOpConfig",
        layer="adapters.coop.layer:CoOpLayer",
        tuner="adapters.coop.model:CoOpModel",
        few_shot=(FewShotEntry("coop", "CoOp", "adapters.coop.few_shot:COOP", by_default=True, in_demo=True),),
        card_snippet="adapters.coop.card:SNIPPET_ON_CLIP",
        checkpoints=(
            CheckpointEntry(
                "coop",
                "CoOp",
                "adapters.coop.convert:CHECKPOINTS",
                (
                    Option(
                        "class_token_position",
                        ("end", "middle", "front"),
                        "where the class name stands.",
                        default="end",
                        flag="--position",
                    ),
                ),
            ),
        ),
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
        summary="CoOp's context, shifted for each image: better on classes that were not trained on. Any batch size.",
        config="adapters.cocoop.config:CoCoOpConfig",
        layer="adapters.cocoop.layer:CoCoOpLayer",
        tuner="adapters.cocoop.model:CoCoOpModel",
        few_shot=(FewShotEntry("cocoop", "CoCoOp", "adapters.cocoop.few_shot:COCOOP"),),
        checkpoints=(CheckpointEntry("cocoop", "CoCoOp", "adapters.cocoop.convert:CHECKPOINTS"),),
    ),
    Method(
        name="maple",
        kind="adapter",
        title="MaPLe",
        paper=_MAPLE,
        code=OfficialCode("muzairkhattak/multimodal-prompt-learning", "MIT"),
        task="image-classification",
        summary="Coupled learned tokens in several layers of both encoders: for trained classes and for new ones.",
        config="adapters.maple.config:MaPLeConfig",
        layer="adapters.maple.layer:MaPLePromptEmbedder",
        tuner="adapters.maple.model:MaPLeModel",
        few_shot=(FewShotEntry("maple", "MaPLe", "adapters.maple.few_shot:MAPLE"),),
        checkpoints=(CheckpointEntry("maple", "MaPLe", "adapters.maple.convert:CHECKPOINTS", (_CONTEXT_INIT,)),),
    ),
    Method(
        name="vpt",
        kind="adapter",
        title="VPT",
        paper=Paper(
            "Visual Prompt Tuning",
            "2203.12119",
            2022,
            "Jia, Menglin and Tang, Luming and Chen, Bor-Chun and Cardie, Claire and Belongie, Serge and "
            "Hariharan, Bharath and Lim, Ser-Nam",
        ),
        code=OfficialCode("KMnP/vpt", "CC-BY-NC-4.0"),
        task="image-classification",
        summary="Learned tokens beside image patches; on CLIP's image encoder, or on an image model with a new head.",
        config="adapters.vpt.config:VPTConfig",
        layer="adapters.vpt.layer:VPTPromptParameters",
        tuner="adapters.vpt.model:VPTModel",
        few_shot=(FewShotEntry("vpt", "VPT", "adapters.vpt.few_shot:VPT", in_demo=True),),
        checkpoints=(CheckpointEntry("vpt", "VPT", "adapters.vpt.convert:CHECKPOINTS"),),
    ),
    Method(
        name="ivlp",
        kind="adapter",
        title="IVLP",
        paper=_MAPLE,
        code=OfficialCode("muzairkhattak/multimodal-prompt-learning", "MIT"),
        task="image-classification",
        summary="Learned tokens in both encoders, not coupled; or in one of them (deep language prompting, VPT).",
        config="adapters.ivlp.config:IVLPConfig",
        layer="adapters.ivlp.layer:IVLPPromptEmbedder",
        tuner="adapters.ivlp.model:IVLPModel",
        few_shot=(FewShotEntry("ivlp", "IVLP", "adapters.ivlp.few_shot:IVLP"),),
        checkpoints=(CheckpointEntry("ivlp", "IVLP", "adapters.ivlp.convert:CHECKPOINTS", (_CONTEXT_INIT,)),),
    ),
)


def methods(kind: KindName | None = None) -> list[Method]:
    """
    All methods in the table's order, or those of one kind.

    Example:

    ```python
    >>> import hf_clip_variants

    >>> [method.name for method in hf_clip_variants.methods("adapter")]
    ['tip_adapter', 'linear_head', 'clip_adapter', 'coop', 'cocoop', 'maple', 'vpt', 'ivlp']
    ```
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected {', '.join(map(repr, KINDS))} or None")
    return [row for row in _METHODS if kind in (None, row.kind)]


def method(name: str) -> Method:
    """The row called `name`. Raises `ValueError` with the nearest names when there is none."""
    for row in _METHODS:
        if row.name == name:
            return row
    known = [row.name for row in _METHODS]
    raise ValueError(f"method: {unknown_name(name, known)}")


def few_shot_entries() -> dict[str, FewShotEntry]:
    """Name -> entry, for all ways to fit an adapter to a few labelled images, in the table's order."""
    return {entry.name: entry for row in _METHODS for entry in row.few_shot}


def checkpoint_entries() -> dict[str, tuple[Method, CheckpointEntry]]:
    """Name -> row and entry of every format of official checkpoints, in the table's order. Imports nothing."""
    return {entry.name: (row, entry) for row in _METHODS for entry in row.checkpoints}


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `"; did you mean 'x' or 'y'?"`, or `"."` when nothing is near.

    >>> did_you_mean("tip-adaptr", ["coop", "tip_adapter"])
    "; did you mean 'tip_adapter'?"
    """
    spellings = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), spellings, n=2)
    return f"; did you mean {' or '.join(repr(spellings[match]) for match in near)}?" if near else "."


def unknown_name(name: Any, known: Iterable[str]) -> str:
    """A message about a name that is none of `known`.

    >>> unknown_name("tip-adaptr", ["coop", "tip_adapter"])
    "unknown 'tip-adaptr'; did you mean 'tip_adapter'? Known: coop, tip_adapter"
    """
    known = list(known)
    return f"unknown {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}"
