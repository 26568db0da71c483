"""The rows of models: methods with a forward pass and checkpoints of their own, in `modeling/<name>`."""

from .rows import CheckpointEntry, Method, OfficialCode, Option, Paper, Submodel


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

_FND_CLIP = "modeling.fnd_clip.modeling_fnd_clip:FNDCLIPForSequenceClassification"

_DEPTHCLIP = "modeling.depthclip.modeling_depthclip:DepthCLIPForDepthEstimation"
_VILD = "modeling.vild.modeling_vild:ViLD"

_GLIP = "modeling.glip.modeling_glip:GLIP"
_GLIPV2 = "modeling.glipv2.modeling_glipv2:GLIPv2"

_SLIP = "modeling.slip.modeling_slip:SLIP"
_GROUPVIT = "modeling.groupvit.modeling_groupvit:GroupViT"

_CLIP_VIL = "modeling.clip_vil.answering_clip_vil:ClipViLFor"

_LSEG = "modeling.lseg.modeling_lseg:LSeg"
_DENSE_PROCESSOR = "modeling.dense.processing_dense:DenseProcessor"
_DENSE_IMAGE_PROCESSORS = {"torchvision": "modeling.dense.image_processing_dense:DenseImageProcessor"}

# Of several formats.
_DUAL_ENCODER = Option("dual_encoder", str, "the CLIP that it was trained with, folder or Hub id.")
_CLASSES_IN_FILE = Option("classes", str, "names of the classes in the file, with commas between them, or a file.")

_VIDEO_ANOMALY_CLIP = "modeling.video_anomaly_clip.modeling_video_anomaly_clip:VideoAnomalyClipModel"

_CLIP_OPTIONS = (
    Option(
        "activation",
        ("quick_gelu", "gelu"),
        "no weights tell; quick_gelu for OpenAI's, gelu for most of open_clip's.",
        default="open_clip_config.json beside the file, else quick_gelu",
    ),
    Option("open_clip_config", str, "open_clip's configuration of the model, a JSON file."),
)

MODELS = (
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
        name="groupvit",
        kind="model",
        title="GroupViT",
        paper=Paper(
            "GroupViT: Semantic Segmentation Emerges from Text Supervision",
            "2202.11094",
            2022,
            "Xu, Jiarui and De Mello, Shalini and Liu, Sifei and Byeon, Wonmin and Breuel, Thomas and Kautz, Jan and "
            "Wang, Xiaolong",
        ),
        code=OfficialCode("NVlabs/GroupViT", "LicenseRef-NVIDIA-Source-Code-NC"),
        task="image-segmentation",
        summary="Segmentation by text, learned from captions alone: patches become groups, groups get class names.",
        config="modeling.groupvit.configuration_groupvit:GroupViTConfig",
        model=_GROUPVIT + "Model",
        auto_classes={
            "AutoModel": _GROUPVIT + "Model",
            "AutoModelForZeroShotImageClassification": _GROUPVIT + "Model",
            "AutoModelForSemanticSegmentation": (
                "modeling.groupvit.modeling_groupvit_segmentation:GroupViTForSemanticSegmentation"
            ),
        },
        processor=_DENSE_PROCESSOR,
        image_processors=_DENSE_IMAGE_PROCESSORS,
        submodels=(
            Submodel(
                name="vision",
                config="modeling.groupvit.configuration_groupvit:GroupViTVisionConfig",
                auto_classes={"AutoModel": _GROUPVIT + "VisionModel"},
            ),
        ),
        checkpoints=(CheckpointEntry("groupvit", "GroupViT", "modeling.groupvit.convert_groupvit:CHECKPOINTS"),),
        pretraining="modeling.groupvit.pretraining_groupvit:GROUPVIT",
    ),
    Method(
        name="lseg",
        kind="model",
        title="LSeg",
        paper=Paper(
            "Language-driven Semantic Segmentation",
            "2201.03546",
            2022,
            "Li, Boyi and Weinberger, Kilian Q. and Belongie, Serge and Koltun, Vladlen and Ranftl, Ren{\\'e}",
        ),
        code=OfficialCode("isl-org/lang-seg", "MIT"),
        task="image-segmentation",
        summary="Label maps of some classes to train on; then segments by any texts, and by two texts of each image.",
        config="modeling.lseg.configuration_lseg:LSegConfig",
        model=_LSEG + "ForSemanticSegmentation",
        auto_classes={
            "AutoModel": _LSEG + "Model",
            "AutoModelForSemanticSegmentation": _LSEG + "ForSemanticSegmentation",
        },
        processor=_DENSE_PROCESSOR,
        image_processors=_DENSE_IMAGE_PROCESSORS,
        checkpoints=(
            CheckpointEntry(
                "lseg",
                "LSeg",
                "modeling.lseg.convert_lseg:CHECKPOINTS",
                (
                    Option("hooks", str, "the four layers that the decoder reads.", default="5,11,17,23 of 24"),
                    Option("readout", ("ignore", "add"), "what becomes of a class token that is not projected."),
                    Option("head_block", ("bottleneck", "depthwise"), "arch_option 1 or 2; no weights tell."),
                    Option("block_depth", int, "of that block.", default="0"),
                    Option("block_activation", ("relu", "lrelu", "tanh"), "of that block.", default="lrelu"),
                ),
            ),
        ),
    ),
    Method(
        name="clip4clip",
        kind="model",
        title="CLIP4Clip",
        paper=Paper(
            "CLIP4Clip: An Empirical Study of CLIP for End to End Video Clip Retrieval",
            "2104.08860",
            2021,
            "Luo, Huaishao and Ji, Lei and Zhong, Ming and Chen, Yang and Lei, Wen and Duan, Nan and Li, Tianrui",
        ),
        code=OfficialCode("ArrowLuo/CLIP4Clip", "MIT"),
        task="feature-extraction",
        summary="Videos found by texts and texts by videos: CLIP on frames, with one of four heads over time.",
        config="modeling.clip4clip.configuration_clip4clip:CLIP4ClipConfig",
        model="modeling.clip4clip.modeling_clip4clip:CLIP4ClipModel",
        auto_classes={
            "AutoModel": "modeling.clip4clip.modeling_clip4clip:CLIP4ClipModel",
            "AutoModelForVideoClassification": (
                "modeling.clip4clip.classification_clip4clip:CLIP4ClipForVideoClassification"
            ),
        },
        processor="modeling.video.processing_video:VideoTextProcessor",
        video_processor="modeling.video.video_processing:CLIPVideoProcessor",
        checkpoints=(CheckpointEntry("clip4clip", "CLIP4Clip", "modeling.clip4clip.convert_clip4clip:CHECKPOINTS"),),
    ),
    Method(
        name="actionclip",
        kind="model",
        title="ActionCLIP",
        paper=Paper(
            "ActionCLIP: A New Paradigm for Video Action Recognition",
            "2109.08472",
            2021,
            "Wang, Mengmeng and Xing, Jiazheng and Liu, Yong",
        ),
        code=OfficialCode("sallymmx/ActionCLIP", "MIT"),
        task="video-classification",
        summary="Actions in videos by class names: CLIP on frames that sees time, with sixteen prompts a class.",
        config="modeling.actionclip.configuration_actionclip:ActionCLIPConfig",
        model="modeling.actionclip.modeling_actionclip:ActionCLIPModel",
        auto_classes={
            "AutoModel": "modeling.actionclip.modeling_actionclip:ActionCLIPModel",
            "AutoModelForVideoClassification": (
                "modeling.actionclip.classification_actionclip:ActionCLIPForVideoClassification"
            ),
        },
        processor="modeling.video.processing_video:VideoTextProcessor",
        video_processor="modeling.video.video_processing:CLIPVideoProcessor",
        checkpoints=(
            CheckpointEntry("actionclip", "ActionCLIP", "modeling.actionclip.convert_actionclip:CHECKPOINTS"),
        ),
    ),
    Method(
        name="videoclip",
        kind="model",
        title="VideoCLIP",
        paper=Paper(
            "VideoCLIP: Contrastive Pre-training for Zero-shot Video-Text Understanding",
            "2109.14084",
            2021,
            "Xu, Hu and Ghosh, Gargi and Huang, Po-Yao and Okhonko, Dmytro and Aghajanyan, Armen and Metze, Florian "
            "and Zettlemoyer, Luke and Feichtenhofer, Christoph",
        ),
        code=OfficialCode("facebookresearch/fairseq", "CC-BY-NC"),
        task="feature-extraction",
        summary="What happens when in a video: each second compared with texts; retrieval, steps, moments, questions.",
        config="modeling.videoclip.configuration_videoclip:VideoCLIPConfig",
        model="modeling.videoclip.modeling_videoclip:VideoCLIPModel",
        auto_classes={"AutoModel": "modeling.videoclip.modeling_videoclip:VideoCLIPModel"},
        processor="modeling.video.processing_video:VideoTextProcessor",
        video_processor="modeling.video.video_processing:CLIPVideoProcessor",
        checkpoints=(
            CheckpointEntry(
                "videoclip",
                "VideoCLIP",
                "modeling.videoclip.convert_videoclip:CHECKPOINTS",
                (
                    Option("s3d", str, "weights of HowTo100M's S3D; without them the model takes features only."),
                    Option("max_video_length", int, "seconds that the video encoder sees.", default="32"),
                ),
            ),
        ),
    ),
    Method(
        name="video_anomaly_clip",
        kind="model",
        title="AnomalyCLIP (video)",
        paper=Paper(
            "Delving into CLIP latent space for Video Anomaly Recognition",
            "2310.02835",
            2023,
            "Zanella, Luca and Liberatori, Benedetta and Menapace, Willi and Poiesi, Fabio and Wang, Yiming and "
            "Ricci, Elisa",
        ),
        code=OfficialCode("lucazanella/AnomalyCLIP", None),
        task="video-anomaly-detection",
        summary="Which frames of a video are abnormal, and how; trained with labels of whole videos.",
        config="modeling.video_anomaly_clip.configuration_video_anomaly_clip:VideoAnomalyClipConfig",
        model=_VIDEO_ANOMALY_CLIP,
        auto_classes={"AutoModel": _VIDEO_ANOMALY_CLIP},
        processor="modeling.video.processing_video:VideoTextProcessor",
        video_processor="modeling.video.video_processing:CLIPVideoProcessor",
        checkpoints=(
            CheckpointEntry(
                "video_anomaly_clip",
                "AnomalyCLIP (video)",
                "modeling.video_anomaly_clip.convert_video_anomaly_clip:CHECKPOINTS",
                (
                    Option("centroid", str, "the mean of normal frames.", default="ncentroid.pt beside the file"),
                    _CLASSES_IN_FILE,
                    Option("normal_class", str, "the class without an anomaly.", default="begins with normal"),
                    Option("temporal_heads", int, "attention heads of the layers over time.", default="8"),
                ),
                files="last.ckpt",
            ),
        ),
    ),
    Method(
        name="pointclip",
        kind="model",
        title="PointCLIP and PointCLIP V2",
        paper=Paper(
            "PointCLIP V2: Prompting CLIP and GPT for Powerful 3D Open-world Learning",
            "2211.11682",
            2022,
            "Zhu, Xiangyang and Zhang, Renrui and He, Bowei and Guo, Ziyu and Zeng, Ziyao and Qin, Zipeng and Zhang, "
            "Shanghang and Gao, Peng",
        ),
        code=OfficialCode("yangyangyang127/PointCLIP_V2", "MIT"),
        task="zero-shot-point-cloud-classification",
        summary="Point clouds and meshes classified by texts, and cut into parts: CLIP on depth maps of views.",
        config="modeling.pointclip.configuration_pointclip:PointCLIPConfig",
        model="modeling.pointclip.modeling_pointclip:PointCLIPModel",
        auto_classes={"AutoModel": "modeling.pointclip.modeling_pointclip:PointCLIPModel"},
        processor="modeling.points.processing_points:PointTextProcessor",
        point_processor="modeling.points.point_processing:PointCloudProcessor",
    ),
    Method(
        name="fnd_clip",
        kind="model",
        title="FND-CLIP",
        paper=Paper(
            "Multimodal Fake News Detection via CLIP-Guided Learning",
            "2205.14304",
            2022,
            "Zhou, Yangming and Ying, Qichao and Qian, Zhenxing and Li, Sheng and Zhang, Xinpeng",
        ),
        code=OfficialCode("zhouyangming/FND-CLIP-Fake-News-Detection", None),
        task="text-and-image-classification",
        summary="Posts of a text and an image sorted into classes such as rumour or not, with the reasons.",
        config="modeling.fnd_clip.configuration_fnd_clip:FNDCLIPConfig",
        model=_FND_CLIP,
        auto_classes={"AutoModel": _FND_CLIP, "AutoModelForSequenceClassification": _FND_CLIP},
        processor="modeling.fnd_clip.processing_fnd_clip:FNDCLIPProcessor",
        checkpoints=(
            CheckpointEntry(
                "fnd_clip",
                "FND-CLIP",
                "modeling.fnd_clip.convert_fnd_clip:CHECKPOINTS",
                (
                    Option(
                        "bert",
                        str,
                        "the BERT that it was trained with, folder or Hub id.",
                        default="bert-base-chinese",
                    ),
                    _DUAL_ENCODER,
                    _CLASSES_IN_FILE,
                ),
            ),
        ),
    ),
    Method(
        name="depthclip",
        kind="model",
        title="DepthCLIP",
        paper=Paper(
            "Can Language Understand Depth?",
            "2207.01077",
            2022,
            "Zhang, Renrui and Zeng, Ziyao and Guo, Ziyu and Li, Yafeng",
        ),
        code=OfficialCode("Adonis-galaxy/DepthCLIP", None),
        task="depth-estimation",
        summary="Depth of an image by sentences such as 'this object is far', without training: what CLIP knows.",
        config="modeling.depthclip.configuration_depthclip:DepthCLIPConfig",
        model=_DEPTHCLIP,
        auto_classes={"AutoModel": _DEPTHCLIP, "AutoModelForDepthEstimation": _DEPTHCLIP},
        image_processors={"torchvision": "modeling.depthclip.image_processing_depthclip:DepthCLIPImageProcessor"},
    ),
    Method(
        name="vqgan_clip",
        kind="model",
        title="VQGAN-CLIP",
        paper=Paper(
            "VQGAN-CLIP: Open Domain Image Generation and Editing with Natural Language Guidance",
            "2204.08583",
            2022,
            "Crowson, Katherine and Biderman, Stella and Kornis, Daniel and Stander, Dashiell and Hallahan, Eric and "
            "Castricato, Louis and Raff, Edward",
        ),
        code=OfficialCode("nerdyrodent/VQGAN-CLIP", "MIT"),
        task="text-to-image",
        summary="A text becomes a picture, or changes one: the codes of a VQGAN are optimised for any dual encoder.",
        config="modeling.vqgan_clip.configuration_vqgan_clip:VQGANCLIPConfig",
        model="modeling.vqgan_clip.modeling_vqgan_clip:VQGANCLIPForImageSynthesis",
        auto_classes={"AutoModel": "modeling.vqgan_clip.modeling_vqgan_clip:VQGANCLIPForImageSynthesis"},
        submodels=(
            Submodel(
                name="autoencoder",
                config="modeling.vqgan_clip.configuration_vqgan_clip:VQGANConfig",
                auto_classes={"AutoModel": "modeling.vqgan_clip.autoencoder_vqgan_clip:VQGANModel"},
            ),
        ),
        checkpoints=(CheckpointEntry("vqgan", "VQGAN", "modeling.vqgan_clip.convert_vqgan_clip:CHECKPOINTS"),),
    ),
    Method(
        name="clipdraw",
        kind="model",
        title="CLIPDraw",
        paper=Paper(
            "CLIPDraw: Exploring Text-to-Drawing Synthesis through Language-Image Encoders",
            "2106.14843",
            2021,
            "Frans, Kevin and Soros, Lisa B. and Witkowski, Olaf",
        ),
        code=OfficialCode("kvfrans/clipdraw", "Apache-2.0"),
        task="text-to-drawing",
        summary="A text becomes a vector drawing of coloured strokes. No training: any dual encoder guides.",
        config="modeling.clipdraw.configuration_clipdraw:CLIPDrawConfig",
        model="modeling.clipdraw.modeling_clipdraw:CLIPDrawForImageSynthesis",
        auto_classes={"AutoModel": "modeling.clipdraw.modeling_clipdraw:CLIPDrawForImageSynthesis"},
    ),
    Method(
        name="clipasso",
        kind="model",
        title="CLIPasso",
        paper=Paper(
            "CLIPasso: Semantically-Aware Object Sketching",
            "2202.05822",
            2022,
            "Vinker, Yael and Pajouheshgar, Ehsan and Bo, Jessica Y. and Bachmann, Roman Christian and Bermano, Amit "
            "Haim and Cohen-Or, Daniel and Zamir, Amir and Shamir, Ariel",
        ),
        code=OfficialCode("yael-vinker/CLIPasso", "CC-BY-NC-SA-4.0"),
        task="image-to-drawing",
        summary="A photograph becomes a sketch of few strokes, whose number is the level of abstraction.",
        config="modeling.clipasso.configuration_clipasso:CLIPassoConfig",
        model="modeling.clipasso.modeling_clipasso:CLIPassoForImageSynthesis",
        auto_classes={"AutoModel": "modeling.clipasso.modeling_clipasso:CLIPassoForImageSynthesis"},
    ),
    Method(
        name="vild",
        kind="model",
        title="ViLD",
        paper=Paper(
            "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
            "2104.13921",
            2021,
            "Gu, Xiuye and Lin, Tsung-Yi and Kuo, Weicheng and Cui, Yin",
        ),
        code=OfficialCode("tensorflow/tpu", "Apache-2.0"),
        task="zero-shot-object-detection",
        summary="Boxes and masks of classes that are texts, also of classes without any training box.",
        config="modeling.vild.configuration_vild:ViLDConfig",
        model=_VILD + "ForZeroShotObjectDetection",
        auto_classes={
            "AutoModel": _VILD + "ForZeroShotObjectDetection",
            "AutoModelForZeroShotObjectDetection": _VILD + "ForZeroShotObjectDetection",
        },
        processor="modeling.vild.processing_vild:ViLDProcessor",
        image_processors={"torchvision": "modeling.vild.image_processing_vild:ViLDImageProcessor"},
        checkpoints=(
            CheckpointEntry(
                "vild",
                "ViLD",
                "modeling.vild.convert_vild:CHECKPOINTS",
                (
                    Option("variant", ("text", "vild"), "of a file with one branch.", default="vild"),
                    _DUAL_ENCODER,
                    _CLASSES_IN_FILE,
                ),
            ),
        ),
    ),
    Method(
        name="glip",
        kind="model",
        title="GLIP",
        paper=Paper(
            "Grounded Language-Image Pre-training",
            "2112.03857",
            2021,
            "Li, Liunian Harold and Zhang, Pengchuan and Zhang, Haotian and Yang, Jianwei and Li, Chunyuan and Zhong, "
            "Yiwu and Wang, Lijuan and Yuan, Lu and Zhang, Lei and Hwang, Jenq-Neng and Chang, Kai-Wei and "
            "Gao, Jianfeng",
        ),
        code=OfficialCode("microsoft/GLIP", "MIT"),
        task="zero-shot-object-detection",
        summary="Boxes of class names, and of the phrases of a sentence.",
        config="modeling.glip.configuration_glip:GLIPConfig",
        model=_GLIP + "ForZeroShotObjectDetection",
        auto_classes={
            "AutoModel": _GLIP + "ForZeroShotObjectDetection",
            "AutoModelForZeroShotObjectDetection": _GLIP + "ForZeroShotObjectDetection",
        },
        processor="modeling.glip.processing_glip:GLIPProcessor",
        image_processors={"torchvision": "modeling.glip.image_processing_glip:GLIPImageProcessor"},
        checkpoints=(
            CheckpointEntry(
                "glip",
                "GLIP",
                "modeling.glip.convert_glip:CHECKPOINTS",
                (Option("fusion_heads", int, "of the fusion; no weights tell.", default="8"),),
            ),
        ),
    ),
    Method(
        name="glipv2",
        kind="model",
        title="GLIPv2",
        paper=Paper(
            "GLIPv2: Unifying Localization and Vision-Language Understanding",
            "2206.05836",
            2022,
            "Zhang, Haotian and Zhang, Pengchuan and Hu, Xiaowei and Chen, Yen-Chun and Li, Liunian Harold and Dai, "
            "Xiyang and Wang, Lijuan and Yuan, Lu and Hwang, Jenq-Neng and Gao, Jianfeng",
        ),
        code=OfficialCode("microsoft/GLIP", "MIT"),
        task="zero-shot-object-detection",
        summary="GLIP with masks, answers and captions; trained with the words of all images and hidden ones.",
        config="modeling.glipv2.configuration_glipv2:GLIPv2Config",
        model=_GLIPV2 + "ForZeroShotObjectDetection",
        auto_classes={
            "AutoModel": _GLIPV2 + "ForZeroShotObjectDetection",
            "AutoModelForZeroShotObjectDetection": _GLIPV2 + "ForZeroShotObjectDetection",
            "AutoModelForVisualQuestionAnswering": (
                "modeling.glipv2.answering_glipv2:GLIPv2ForVisualQuestionAnswering"
            ),
            "AutoModelForImageTextToText": "modeling.glipv2.captioning_glipv2:GLIPv2ForImageTextToText",
        },
        processor="modeling.glipv2.processing_glipv2:GLIPv2Processor",
        image_processors={"torchvision": "modeling.glipv2.image_processing_glipv2:GLIPv2ImageProcessor"},
    ),
    Method(
        name="clip_vil",
        kind="model",
        title="CLIP-ViL",
        paper=Paper(
            "How Much Can CLIP Benefit Vision-and-Language Tasks?",
            "2107.06383",
            2021,
            "Shen, Sheng and Li, Liunian Harold and Tan, Hao and Bansal, Mohit and Rohrbach, Anna and Chang, Kai-Wei "
            "and Yao, Zhewei and Keutzer, Kurt",
        ),
        code=OfficialCode("clip-vil/CLIP-ViL", "MIT"),
        task="visual-question-answering",
        summary="Questions about images, entailment and captions: CLIP's grid and words in one BERT.",
        config="modeling.clip_vil.configuration_clip_vil:ClipViLConfig",
        model="modeling.clip_vil.modeling_clip_vil:ClipViLModel",
        auto_classes={
            "AutoModel": "modeling.clip_vil.modeling_clip_vil:ClipViLModel",
            "AutoModelForPreTraining": _CLIP_VIL + "PreTraining",
            "AutoModelForVisualQuestionAnswering": _CLIP_VIL + "VisualQuestionAnswering",
            "AutoModelForSequenceClassification": _CLIP_VIL + "VisualEntailment",
            "AutoModelForImageTextToText": "modeling.clip_vil.captioning_clip_vil:ClipViLForImageCaptioning",
        },
        processor="modeling.clip_vil.processing_clip_vil:ClipViLProcessor",
        image_processors={"torchvision": "modeling.clip_vil.image_processing_clip_vil:ClipViLImageProcessor"},
        checkpoints=(
            CheckpointEntry(
                "clip_vil",
                "CLIP-ViL",
                "modeling.clip_vil.convert_clip_vil:CHECKPOINTS",
                (Option("answers", str, "the list of answers, in the file's order: .json or .txt."),),
            ),
        ),
    ),
)
