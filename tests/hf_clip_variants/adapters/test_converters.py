"""The contract of converters for official adapter files; special cases are in the parity tests."""

from converter_contract import AdapterConverterContract
from official_files import learner, whole_model
from parity_fixtures import load_fixture

from hf_clip_variants.adapters.clip_adapter.convert import convert_clip_adapter
from hf_clip_variants.adapters.cocoop.convert import convert_cocoop
from hf_clip_variants.adapters.coop.convert import convert_coop
from hf_clip_variants.adapters.ivlp.convert import convert_ivlp
from hf_clip_variants.adapters.maple.convert import convert_maple
from hf_clip_variants.adapters.vpt.convert import convert_vpt, convert_vpt_vit


class TestCoOp(AdapterConverterContract):
    convert = staticmethod(convert_coop)
    own = "ctx$"

    def official(self):
        found = learner(load_fixture("coop"))
        return {"ctx": found["unified.ctx"], **{name: found[name] for name in ("token_prefix", "token_suffix")}}


class TestCoCoOp(AdapterConverterContract):
    convert = staticmethod(convert_cocoop)
    own = "ctx$|meta_net"

    def official(self):
        return learner(load_fixture("cocoop"))


class TestMaPLe(AdapterConverterContract):
    convert = staticmethod(convert_maple)
    own = "ctx$|proj|compound"

    def official(self):
        return learner(load_fixture("maple"))


class TestMaPLeOfAWholeModel(TestMaPLe):
    own = r"prompt_learner\.(ctx$|proj|compound)"

    def official(self):
        return whole_model(load_fixture("maple"))


class TestVPT(AdapterConverterContract):
    convert = staticmethod(convert_vpt)
    own = "VPT"
    optional = r"2\.VPT"  # a file with fewer layers is valid, too
    unknown = "text_encoder.transformer.resblocks.1.VPT_shallow"

    def official(self):
        return whole_model(load_fixture("vpt_deep"))


class TestIVLP(AdapterConverterContract):
    convert = staticmethod(convert_ivlp)
    own = r"VPT|prompt_learner\.ctx$"
    optional = r"VPT"
    unknown = "image_encoder.transformer.resblocks.99.VPT_shallow"

    def official(self):
        return whole_model(load_fixture("ivlp"))


class TestVPTOnViT(AdapterConverterContract):
    convert = staticmethod(convert_vpt_vit)
    own = "prompt_|head"
    optional = "deep"  # missing if only the first layer has prompts
    unknown = None  # the file also holds the ViT

    def official(self):
        return load_fixture("vpt_vit_deep").state_dict


class TestCLIPAdapter(AdapterConverterContract):
    convert = staticmethod(convert_clip_adapter)
    own = "fc"
    unknown = "fc.3.weight"

    def official(self):
        prefix = "adapter."
        weights = load_fixture("clip_adapter").state_dict
        return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
