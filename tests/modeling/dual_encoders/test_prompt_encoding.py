"""`encode_prompts` is `CLIPTextModel(input_ids).pooler_output`, with less work."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from hf_clip_variants.modeling.dual_encoders import prompt_encoding
from hf_clip_variants.modeling.dual_encoders.prompt_encoding import encode_prompts, plan_prompts, why_own_layers


SOS, EOS, CONTEXT_LENGTH, WIDTH = 97, 98, 77, 32


def make_text_model(eos_token_id=EOS, seed=0, **overrides):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=SOS,
        eos_token_id=eos_token_id,
        **overrides,
    )
    model = CLIPTextModel(config).eval()
    with torch.no_grad():  # CLIP's own initialisation is so small that a wrong attention hardly shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(scope="module")
def text_model():
    return make_text_model()


def padded(prompts, length=CONTEXT_LENGTH, pad=EOS):
    """Lists of inner tokens -> (N, length) ids: SOS, tokens, EOS, padding."""
    return torch.tensor([[SOS, *p, EOS] + [pad] * (length - 2 - len(p)) for p in prompts])


def class_prompts(num_classes=7, templates=(([1, 2, 3], [4]), ([1, 2, 5, 6], [4]), ([], [7, 8])), seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = [
        torch.randint(10, 90, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator).tolist()
        for _ in range(num_classes)
    ]
    return padded([[*before, *name, *after] for name in names for before, after in templates])


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative error {error:.1e}"


def saved_bytes(model, step):
    """Bytes that autograd keeps for the backward pass of `step()`, the model's weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # a freed storage's address may come again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()
    return sum(kept.values()), result


@pytest.mark.parametrize("eos_token_id", [EOS, 2])
def test_equals_the_full_length_forward(eos_token_id):
    model = make_text_model(eos_token_id)
    ids = class_prompts()
    with torch.no_grad():
        assert_same(encode_prompts(model, ids), model(ids).pooler_output)


def test_pools_where_transformers_pools_for_any_padding(text_model):
    ids = padded([[5, 6], [7]], length=12, pad=0)
    ids[1, 6:8] = EOS  # only the first EOS counts
    ids[0, 9] = 96
    legacy = make_text_model(eos_token_id=2)  # the largest id counts, here the first of them
    with torch.no_grad():
        assert_same(encode_prompts(text_model, ids), text_model(ids).pooler_output)
        assert_same(encode_prompts(legacy, ids), legacy(ids).pooler_output)
        ids[ids == EOS] = 42  # the largest id may be anywhere, even SOS
        assert_same(encode_prompts(legacy, ids), legacy(ids).pooler_output)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_model_for_any_prompts_trees_and_chunks(data):
    prompt = st.lists(
        st.integers(0, 2), max_size=18
    )  # few ids: many shared beginnings of every length, and equal prompts
    ids = padded(data.draw(st.lists(prompt, min_size=1, max_size=25)), length=20)
    chunk = data.draw(st.integers(1, 200))
    model = make_text_model(seed=1)
    before = prompt_encoding.TREE_TOKENS
    try:
        prompt_encoding.TREE_TOKENS = data.draw(st.integers(1, 80))
        with torch.no_grad():
            actual = encode_prompts(model, ids, max_tokens_per_chunk=chunk)
            assert_same(actual, model(ids).pooler_output)
            prefix = data.draw(st.integers(0, 4))
            ids[:, 1 : 1 + prefix] = 3
            ids[:, 19] = EOS
            embeds = model.embeddings.token_embedding(ids)
            actual = encode_prompts(model, ids, embeds, shared_prefix=1 + prefix, max_tokens_per_chunk=chunk)
            assert_same(actual, model(ids).pooler_output)
    finally:
        prompt_encoding.TREE_TOKENS = before


def test_every_token_of_the_prefix_tree_is_computed_once():
    ids = class_prompts()
    plan = plan_prompts(ids, EOS)
    prefixes = {tuple(row[: i + 1]) for row in ids.tolist() for i in range(row.index(EOS) + 1)}
    assert plan.token_index.shape[0] == 1 and plan.num_tokens == len(prefixes) < (ids != EOS).sum() + len(ids)
    stated = plan_prompts(ids, EOS, shared_prefix=1)
    assert stated.num_tokens == 1 + sum(row.index(EOS) for row in ids.tolist())


def test_trees_are_as_few_and_as_equal_as_can_be(monkeypatch):
    monkeypatch.setattr(prompt_encoding, "TREE_TOKENS", 40)
    ids = padded([[i, i, i, i] for i in range(20)])
    plan = plan_prompts(ids, EOS)  # 1 + 5 tokens a prompt: 7 prompts fit in 40 tokens, so 3 trees, of 7 or 6 prompts
    assert plan.token_index.shape == (3, 36)
    assert sorted((plan.subtree_end > 0).sum(1).tolist()) == [31, 36, 36]


def full_length_from_embeddings(model, ids, embeds):
    """The official way: all tokens of all prompts, then the row at EOS."""
    from transformers.masking_utils import create_causal_mask

    hidden = model.embeddings(inputs_embeds=embeds)
    mask = create_causal_mask(model.config, hidden, None, None)
    hidden = model.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return model.final_layer_norm(hidden)[torch.arange(len(ids)), (ids == EOS).int().argmax(1)]


def coop_embeds(model, ids, context, position):
    """Shared context vectors at `position`, as in CoOp with the class name last (1) or in the middle."""
    embeds = model.embeddings.token_embedding(ids)
    context = context.expand(len(ids), -1, -1)
    return torch.cat([embeds[:, :position], context, embeds[:, position + context.shape[1] :]], dim=1)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("shared", [0, 1, 5])
def test_gradients_of_embeddings_and_weights_equal_the_full_length_ones(shared, checkpoint):
    model = make_text_model()
    ids = padded([[1, 1, 1, 1, *name, 9] for name in ([20], [30, 31], [40, 41, 42], [20, 50])])
    target = torch.randn(len(ids), WIDTH)

    def step(encode):
        model.zero_grad()
        context = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
        pooled = encode(coop_embeds(model, ids, context, 1))
        (pooled * target).sum().backward()
        return [pooled.detach(), context.grad, *(p.grad.clone() for p in model.parameters())]

    reference = step(lambda embeds: full_length_from_embeddings(model, ids, embeds))
    ours = step(
        lambda embeds: encode_prompts(
            model, ids, embeds, shared_prefix=shared, max_tokens_per_chunk=16, checkpoint=checkpoint
        )
    )
    names = ["pooled", "context", *(name for name, _ in model.named_parameters())]
    scale = max(r.norm() for r in reference)
    for name, a, r in zip(names, ours, reference, strict=True):
        # k_proj.bias has no gradient in exact arithmetic (softmax does not see it): compare it with the others' size
        assert (a - r).norm() <= 1e-5 * max(r.norm(), 1e-2 * scale), name


def test_the_whole_gradient_of_a_shared_prefix_goes_to_row_0(text_model):
    ids = padded([[1, 1, 5], [1, 1, 6]], length=8)
    embeds = text_model.embeddings.token_embedding(ids).detach().requires_grad_()
    encode_prompts(text_model, ids, embeds, shared_prefix=3).sum().backward()
    assert embeds.grad[0, :3].abs().min() > 0 and not embeds.grad[1, :3].any()
    assert embeds.grad[1, 3:5].abs().min() > 0 and not embeds.grad[:, 5:].any()  # nothing after EOS


def test_variants_of_all_prompts_equal_one_call_each(text_model):
    ids = class_prompts(num_classes=4, templates=(([1, 1, 1], [9]),))
    variants = torch.stack(
        [coop_embeds(text_model, ids, torch.randn(3, WIDTH), 1) for _ in range(5)]
    )  # e.g. one per image
    with torch.no_grad():
        together = encode_prompts(text_model, ids, variants, shared_prefix=4, max_tokens_per_chunk=32)
        own_layers = encode_prompts(make_text_model(output_attentions=True), ids, variants, shared_prefix=4)
        assert together.shape == (5, 4, WIDTH)
        for embeds, pooled, pooled_by_own_layers in zip(variants, together, own_layers, strict=True):
            assert_same(pooled, full_length_from_embeddings(text_model, ids, embeds))
            assert_same(pooled_by_own_layers, pooled)


def test_coop_keeps_an_eighth_for_backward():
    model = make_text_model().requires_grad_(False)
    ids = class_prompts(num_classes=40, templates=(([1, 1, 1, 1], [9]),))
    context = torch.randn(4, WIDTH, requires_grad=True)
    embeds = coop_embeds(model, ids, context, 1)
    plan = plan_prompts(ids, EOS, shared_prefix=5)
    official, _ = saved_bytes(model, lambda: full_length_from_embeddings(model, ids, embeds))
    ours, _ = saved_bytes(model, lambda: encode_prompts(model, ids, embeds, plan=plan))
    assert ours <= official / 8
    chunked, pooled = saved_bytes(
        model, lambda: encode_prompts(model, ids, embeds, plan=plan, max_tokens_per_chunk=64, checkpoint=True)
    )
    assert chunked <= ours / 8 and pooled.requires_grad


def test_a_plan_is_reused_and_costs_nothing_per_step(text_model, monkeypatch):
    ids = class_prompts()
    expected = encode_prompts(text_model, ids)
    plan = plan_prompts(ids, EOS)
    monkeypatch.setattr(prompt_encoding, "plan_prompts", None)
    assert torch.equal(encode_prompts(text_model, ids, plan=plan), expected)
    assert plan.to("cpu") is plan
    assert plan.to("meta") is plan.to("meta") and plan.to("meta").token_index.is_meta
    assert torch.equal(encode_prompts(copy.deepcopy(text_model), ids, plan=copy.deepcopy(plan)), expected)


def test_plans_that_do_not_fit_are_errors(text_model):
    ids = class_prompts()
    plan = plan_prompts(ids, EOS)
    with pytest.raises(ValueError, match=r"plan: made for input_ids of shape \(21, 77\), got \(20, 77\)"):
        encode_prompts(text_model, ids[:20], plan=plan)
    with pytest.raises(ValueError, match="made with shared_prefix='auto', but 3 was asked for"):
        encode_prompts(text_model, ids, plan=plan, shared_prefix=3)


def test_equal_ids_do_not_imply_equal_given_embeddings(text_model):
    ids = padded([[1, 5], [1, 5]], length=6)
    embeds = torch.randn(2, 6, WIDTH)
    expected = full_length_from_embeddings(text_model, ids, embeds)
    assert_same(encode_prompts(text_model, ids, embeds), expected)
    for sharing in ({"shared_prefix": "auto"}, {"plan": plan_prompts(ids, EOS)}):
        with pytest.raises(
            ValueError, match="ids, which do not determine inputs_embeds; say how many tokens are shared"
        ):
            encode_prompts(text_model, ids, embeds, **sharing)


class RowDependentEmbeddings(nn.Module):
    """What a prompt tuner puts in the place of `text_model.embeddings`: class-specific context for equal ids."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.context = nn.Parameter(torch.randn(2, 1, WIDTH))

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None):
        if inputs_embeds is None:
            inputs_embeds = self.base_layer.token_embedding(input_ids)
            inputs_embeds = torch.cat([inputs_embeds[:, :1], self.context, inputs_embeds[:, 2:]], dim=1)
        return self.base_layer(inputs_embeds=inputs_embeds, position_ids=position_ids)


def test_embeddings_wrapped_by_a_tuner_see_whole_rows():
    model = make_text_model()
    model.embeddings = RowDependentEmbeddings(model.embeddings)
    ids = padded([[1, 5], [1, 5]], length=6)
    expected = model(ids).pooler_output
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert_same(encode_prompts(model, ids), expected)
    assert_same(encode_prompts(model, ids, plan=plan_prompts(ids, EOS)), expected)
    encode_prompts(model, ids).sum().backward()
    ours, model.embeddings.context.grad = model.embeddings.context.grad, None
    model(ids).pooler_output.sum().backward()
    assert_same(ours, model.embeddings.context.grad)


class LoraLinear(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Parameter(torch.randn(4, base_layer.in_features))
        self.up = nn.Parameter(torch.randn(base_layer.out_features, 4) * 0.05)

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def test_lora_on_projections_takes_part_without_falling_back():
    model = make_text_model()
    plain = encode_prompts(model, class_prompts()).detach()
    for layer in model.encoder.layers:
        for parent, name in ((layer.self_attn, "q_proj"), (layer.self_attn, "out_proj"), (layer.mlp, "fc1")):
            setattr(parent, name, LoraLinear(getattr(parent, name)))
    ids = class_prompts()
    assert why_own_layers(model) is None
    assert_same(encode_prompts(model, ids), model(ids).pooler_output)
    assert (encode_prompts(model, ids) - plain).abs().max() > 0.1
    encode_prompts(model, ids).sum().backward()
    assert model.encoder.layers[-1].self_attn.q_proj.up.grad.any()


class DoubledLayer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, attention_mask, **kwargs):
        return 2 * self.layer(hidden_states, attention_mask, **kwargs)


def replace_layer(model):
    model.encoder.layers[1] = DoubledLayer(model.encoder.layers[1])


def hook_attention(model):
    model.encoder.layers[0].self_attn.register_forward_hook(lambda module, args, output: (output[0] * 2, output[1]))


def patch_forward(model):
    layer = model.encoder.layers[2]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: original(*args, **kwargs) * 2


def hook_text_model(model):
    model.register_forward_pre_hook(lambda module, args: None)


def record_hidden_states(model):
    model.config.output_hidden_states = True


@pytest.mark.parametrize(
    "change, reason",
    [
        (replace_layer, "replaced by a DoubledLayer"),
        (hook_attention, "CLIPAttention has a hook"),
        (patch_forward, "CLIPEncoderLayer has a hook or a patched forward"),
        (hook_text_model, "text model has a hook"),
        (record_hidden_states, "record hidden states"),
    ],
)
def test_changed_layers_run_themselves_on_trimmed_prompts(change, reason, monkeypatch):
    model = make_text_model()
    ids = class_prompts()
    change(model)
    assert reason in why_own_layers(model)
    expected = model(ids).pooler_output
    lengths = []
    forward = model.embeddings.forward
    monkeypatch.setattr(
        model.embeddings,
        "forward",
        lambda input_ids, **k: lengths.append(input_ids.shape[1]) or forward(input_ids, **k),
    )
    assert_same(encode_prompts(model, ids, max_tokens_per_chunk=50), expected)
    assert set(lengths) == {plan_prompts(ids, EOS).longest} and len(lengths) > 1
    monkeypatch.undo()
    embeds = model.embeddings.token_embedding(ids)
    assert_same(encode_prompts(model, ids, embeds, shared_prefix=1), expected)


def test_dropout_in_training_runs_own_layers():
    model = make_text_model(attention_dropout=0.5)
    ids = padded([[1, 2, 3], [1, 2, 3]])
    assert why_own_layers(model) is None
    model.train()
    assert why_own_layers(model) == "attention dropout is on"
    first, second = encode_prompts(model, ids)
    assert not torch.allclose(first, second)  # equal prompts draw their own masks
    model = make_text_model().train()
    assert why_own_layers(model) is None
    model.encoder.layers[0].mlp.fc1 = nn.Sequential(nn.Dropout(0.1), model.encoder.layers[0].mlp.fc1)
    assert why_own_layers(model) == "dropout is on"


def test_recording_hooks_left_by_transformers_do_not_slow_later_calls():
    model = make_text_model()
    ids = class_prompts()
    assert len(model(ids, output_hidden_states=True).hidden_states) == 4
    assert any(layer._forward_hooks for layer in model.encoder.layers)
    assert why_own_layers(model) is None


def test_gradient_checkpointing_of_the_model_is_respected():
    model = make_text_model().train()
    ids = class_prompts()
    plain, _ = saved_bytes(model, lambda: encode_prompts(model, ids))
    model.activation_checkpointing_enable()
    checkpointed, pooled = saved_bytes(model, lambda: encode_prompts(model, ids))
    assert checkpointed < plain / 4
    pooled.sum().backward()
    assert model.encoder.layers[0].mlp.fc1.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_the_model_itself(text_model, dtype):
    ids = class_prompts()
    half = copy.deepcopy(text_model).to(dtype)
    context = torch.zeros(1, WIDTH)  # a float32 adapter on a half-precision encoder
    with torch.no_grad():
        exact = text_model(ids).pooler_output
        ours, own = encode_prompts(half, ids), half(ids).pooler_output
        assert ours.dtype == dtype
        error, own_error = ((1 - torch.cosine_similarity(x.float(), exact)).max() for x in (ours, own))
        assert error <= max(2 * own_error, 1e-6) and own_error < 1e-3
        embeds = half.embeddings.token_embedding(ids) + context
        assert torch.equal(
            encode_prompts(half, ids, embeds, shared_prefix=1), encode_prompts(half, ids, shared_prefix=1)
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = encode_prompts(text_model, ids)
        assert (1 - torch.cosine_similarity(mixed.float(), exact)).max() < 1e-3


def test_compiles_to_one_graph(text_model):
    ids = class_prompts()
    plan = plan_prompts(ids, EOS, shared_prefix=1)
    embeds = text_model.embeddings.token_embedding(ids).detach()
    compiled = torch.compile(encode_prompts, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_same(compiled(text_model, ids, embeds, plan=plan), encode_prompts(text_model, ids, embeds))


@pytest.mark.parametrize(
    "prompts, message",
    [
        (torch.zeros(0, 5, dtype=torch.long), r"at least one prompt, got torch.int64 \(0, 5\)"),
        (torch.zeros(5, dtype=torch.long), r"expected integer ids of shape \(prompts, tokens\)"),
        (torch.zeros(2, 5), "got torch.float32"),
        (torch.tensor([[SOS, EOS], [SOS, EOS], [SOS, EOS], [SOS, 5]]), r"row 3 has no EOS token \(eos_token_id 98\)"),
        (
            torch.full((2, 90), 5).index_fill_(1, torch.tensor([85]), EOS),
            "row 0 has 86 tokens, the text encoder takes 77",
        ),
    ],
)
def test_bad_ids_are_named(text_model, prompts, message):
    with pytest.raises(ValueError, match=message):
        encode_prompts(text_model, prompts)


def test_bad_arguments_are_named(text_model):
    ids = padded([[1, 5], [1, 6], [2, 6]], length=6)
    with pytest.raises(ValueError, match="row 2 has id 2 at position 1 where row 0 has 1"):
        encode_prompts(text_model, ids, shared_prefix=2)
    for bad in (-1, True, 1.0, "all"):
        with pytest.raises(ValueError, match='shared_prefix: expected "auto" or a number of tokens'):
            encode_prompts(text_model, ids, shared_prefix=bad)
    with pytest.raises(
        ValueError, match=r"inputs_embeds: expected shape \(\[batch,\] \*\(3, 6\), width\).*got \(3, 5, 32\)"
    ):
        encode_prompts(text_model, ids, torch.zeros(3, 5, WIDTH))
    with pytest.raises(
        TypeError, match="text_model: expected transformers' CLIPTextModel or MetaClip2TextModel, got Linear"
    ):
        encode_prompts(nn.Linear(2, 2), ids)
