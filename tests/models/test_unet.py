"""What the U-Net promises beyond equality with diffusers: projected text, layouts, adapters, refusals."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor

from latentgen.models import TextProjections, UNet2DConditionModel

CONFIG = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
POOLED = {"addition_embed_type": "text", "addition_embed_type_num_heads": 8}
LORA = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"])


def network(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG | changes)


def inputs(batch: int = 2, height: int = 8, width: int = 12, text_dim: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 4, height, width, generator=generator),
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, text_dim, generator=generator),
    }


def waken_adapter(model: UNet2DConditionModel) -> None:
    """A new LoRA changes nothing, its second factor being zero; give it something to say."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("changes", [{}, {"encoder_hid_dim": 40}, {"only_cross_attention": True}, POOLED])
def test_projected_text_gives_the_same(changes: dict, masked: bool) -> None:
    model = network(**changes)
    arguments = inputs(text_dim=changes.get("encoder_hid_dim", 24))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7]) if masked else None
    expected = model(**arguments, encoder_attention_mask=mask).sample
    text = model.project_text(arguments["encoder_hidden_states"], mask)
    for _ in range(2):  # used again, as at the next step
        assert torch.equal(model(**arguments | {"encoder_hidden_states": text}).sample, expected)


def test_text_is_projected_once_for_many_steps() -> None:
    model, arguments = network(), inputs()
    calls = []
    layers = [module for name, module in model.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    text = model.project_text(arguments["encoder_hidden_states"])
    assert isinstance(text, TextProjections)
    assert len(text.keys_values) == 2 + 1 + 4  # a level down has one transformer, the middle one, a level up two
    for _ in range(3):
        model(**arguments | {"encoder_hidden_states": text})
    assert len(calls) == len(layers) == 2 * len(text.keys_values)
    for hook in hooks:
        hook.remove()


def test_masked_words_do_not_count() -> None:
    model, arguments = network(), inputs()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    one = model(**arguments, encoder_attention_mask=mask).sample
    arguments["encoder_hidden_states"][:, 4:] += 10
    torch.testing.assert_close(model(**arguments, encoder_attention_mask=mask).sample, one)
    shorter = arguments | {"encoder_hidden_states": arguments["encoder_hidden_states"][:, :4]}
    torch.testing.assert_close(model(**shorter).sample, one)


@pytest.mark.parametrize("linear", [False, True])
def test_channels_last_changes_nothing_but_the_layout(linear: bool) -> None:
    model, arguments = network(use_linear_projection=linear), inputs()
    expected = model(**arguments).sample
    assert expected.is_contiguous()
    model.to(memory_format=torch.channels_last)
    arguments["sample"] = arguments["sample"].to(memory_format=torch.channels_last)
    layouts = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_pre_hook(
                lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    actual = model(**arguments).sample
    assert all(layouts)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing() -> None:
    model, arguments = network(dropout=0.1), inputs()
    results = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        assert model.is_gradient_checkpointing == checkpointing
        model.zero_grad()
        torch.manual_seed(2)  # the same dropout
        output = model(**arguments).sample
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointing_keeps_less() -> None:
    model, arguments = network(), inputs()
    kept = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        saved: list[int] = []

        def count(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(**arguments)
        kept.append(sum(saved))
    assert kept[1] < 0.6 * kept[0]


@settings(max_examples=15)
@given(height=st.integers(1, 13), width=st.integers(1, 13), batch=st.integers(1, 3))
def test_any_size_comes_back(height: int, width: int, batch: int) -> None:
    arguments = inputs(batch, height, width)
    assert network()(**arguments).sample.shape == arguments["sample"].shape


def test_a_picture_does_not_see_its_neighbours() -> None:
    model, arguments = network(), inputs(batch=3)
    together = model(**arguments).sample
    for i in range(3):
        alone = model(**{name: value[i : i + 1] for name, value in arguments.items()}).sample
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("timestep", [501, 501.0, torch.tensor(501), torch.tensor([501]), torch.tensor([501.0, 501.0])])
def test_timestep_in_every_form(timestep: Any) -> None:
    model, arguments = network(), inputs()
    expected = model(**arguments | {"timestep": torch.tensor([501, 501])}).sample
    assert torch.equal(model(**arguments | {"timestep": timestep}).sample, expected)


def test_a_copy_reads_the_prompt_with_its_own_weights() -> None:
    model, arguments = network(), inputs()
    expected = model(**arguments).sample
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(copied(**arguments).sample, expected)


def test_tuple_output() -> None:
    model, arguments = network(), inputs()
    (sample,) = model(**arguments, return_dict=False)
    assert torch.equal(sample, model(**arguments).sample)


def test_attention_backends_agree() -> None:
    model, arguments = network(), inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7])
    expected = model(**arguments, encoder_attention_mask=mask).sample
    model.set_attention_backend("math")
    with torch.nn.attention.sdpa_kernel([]):  # torch's own kernels would fail here
        actual = model(**arguments, encoder_attention_mask=mask).sample
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    model.reset_attention_backend()
    assert torch.equal(model(**arguments, encoder_attention_mask=mask).sample, expected)


def test_half_precision_keeps_its_type() -> None:
    model, arguments = network(), inputs()
    expected = model(**arguments).sample
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in arguments.items()}
    actual = model.bfloat16()(**half).sample
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_lora_adapter_trains_scales_and_loads_in_diffusers(tmp_path) -> None:
    model, arguments = network(), inputs()
    plain = model(**arguments).sample
    model.requires_grad_(False)
    model.add_adapter(LORA)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(model(**arguments).sample, plain)
    waken_adapter(model)
    adapted = model(**arguments).sample
    assert not torch.allclose(adapted, plain, rtol=0.01)
    assert torch.equal(model(**arguments, cross_attention_kwargs={}).sample, adapted)
    torch.testing.assert_close(model(**arguments, cross_attention_kwargs={"scale": 0.0}).sample, plain)
    assert torch.equal(model(**arguments).sample, adapted)  # the scale was for one call
    text = model.project_text(arguments["encoder_hidden_states"])
    assert torch.equal(model(**arguments | {"encoder_hidden_states": text}).sample, adapted)

    model.save_lora_adapter(tmp_path)
    theirs = diffusers.UNet2DConditionModel(**CONFIG)
    theirs.load_state_dict(network().state_dict())
    theirs.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(theirs(**arguments).sample, adapted, rtol=1e-4, atol=1e-5)
    model.fuse_lora()
    model.unload_lora()
    torch.testing.assert_close(model(**arguments).sample, adapted, rtol=1e-4, atol=1e-5)


REFUSED = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "num_attention_heads": 4,
    "attention_head_dim": 5,
    "dual_cross_attention": True,
    "class_embed_type": "text",
    "addition_embed_type": "image_hint",
    "encoder_hid_dim_type": "text_image_proj",
    "resnet_time_scale_shift": "ada_group",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4,
    "time_embedding_type": "fourier",
    "attention_type": "gated",
    "mid_block_only_cross_attention": True,
    "cross_attention_norm": "group_norm",
    "addition_embed_type_num_heads": 32,
    "act_fn": "tanh",
    "norm_num_groups": 7,
    "layers_per_block": (1, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_keyword_is_refused_with_its_value(name: str) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        network(**{name: REFUSED[name]})
    value = REFUSED[name]
    shown = repr(value[0]) if name.endswith("block_types") else repr(value)
    assert shown in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim"),
        ({"transformer_layers_per_block": ([1], [1], [2])}, "reverse_transformer_layers_per_block"),
    ],
)
def test_incomplete_configuration_is_refused(changes: dict, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}=None"):
        network(**changes)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("attention_mask", torch.ones(2, 7), "attention_mask"),
        ("down_intrablock_additional_residuals", [torch.zeros(1)], "intrablock"),
        ("mid_block_additional_residual", torch.zeros(1), "both"),
        ("cross_attention_kwargs", {"gligen": {}}, "gligen"),
        ("added_cond_kwargs", {"image_embeds": torch.zeros(1)}, "image_embeds"),
        ("class_labels", torch.tensor([1, 2]), "class_labels"),
        ("timestep_cond", torch.zeros(2, 4), "time_cond_proj_dim"),
    ],
)
def test_unsupported_argument_is_refused(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network()(**inputs(), **{argument: value})


def test_conditions_that_are_missing_are_named() -> None:
    sdxl = network(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64)
    with pytest.raises(ValueError, match="time_ids"):
        sdxl(**inputs(), added_cond_kwargs={"text_embeds": torch.zeros(2, 16)})
    with pytest.raises(ValueError, match="class_labels"):
        network(num_class_embeds=3)(**inputs())


def test_too_few_control_residuals_are_refused() -> None:
    with pytest.raises(ValueError, match="2 down_block_additional_residuals"):
        network()(
            **inputs(),
            down_block_additional_residuals=[torch.zeros(1)] * 2,
            mid_block_additional_residual=torch.zeros(1),
        )


def test_a_mask_comes_too_late_for_projected_text() -> None:
    model, arguments = network(), inputs()
    arguments["encoder_hidden_states"] = model.project_text(arguments["encoder_hidden_states"])
    with pytest.raises(ValueError, match="project_text"):
        model(**arguments, encoder_attention_mask=torch.ones(2, 7))


def test_every_keyword_is_documented() -> None:
    documentation = inspect.getdoc(UNet2DConditionModel)
    for name in list(inspect.signature(UNet2DConditionModel.__init__).parameters)[1:]:
        assert f"    {name}:" in documentation
