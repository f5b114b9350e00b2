"""U-Net and autoencoder against diffusers' classes of the same names: outputs, gradients, files, keywords."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn

from latentgen.models import AutoencoderKL, UNet2DConditionModel

TOLERANCE = 1e-4
TEXT_DIM, WORDS, PICTURES = 24, 7, 2

TINY = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": TEXT_DIM,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
UNETS = {
    "sd1": TINY,
    "sd2": TINY | {"use_linear_projection": True, "attention_head_dim": (2, 4, 8), "upcast_attention": True},
    "sdxl": TINY
    | {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    "emoji": {
        "in_channels": 8,
        "out_channels": 8,
        "block_out_channels": (128, 256, 256),
        "layers_per_block": 1,
        "cross_attention_dim": 256,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "inpainting": TINY | {"in_channels": 9},
    "upscaler": TINY | {"only_cross_attention": (True, True, False), "num_class_embeds": 10, "in_channels": 7},
    "unlike at every level": TINY
    | {
        "layers_per_block": (1, 2, 1),
        "cross_attention_dim": (TEXT_DIM,) * 3,
        "transformer_layers_per_block": ([1], [2, 1], [1]),
        "reverse_transformer_layers_per_block": ([1, 1], [2, 1, 1], [1, 2]),
        "mid_block_type": "UNetMidBlock2D",
        "only_cross_attention": True,
    },
    "only text below": TINY | {"only_cross_attention": (False, False, True), "block_out_channels": (16, 32, 24)},
    "only text everywhere": TINY | {"only_cross_attention": True, "cross_attention_dim": 32},
    "as published for SDXL": TINY | {"upcast_attention": None, "freq_shift": 0.0, "attention_type": "default"},
    "heads that fit where there is attention": TINY
    | {
        "block_out_channels": (16, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 12,
    },
    "modulated": TINY
    | {
        "resnet_time_scale_shift": "scale_shift",
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "act_fn": "gelu",
        "norm_eps": 1e-4,
        "downsample_padding": 0,
        "mid_block_scale_factor": 2.0,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
    },
    "embedded otherwise": TINY
    | {
        "time_embedding_dim": 40,
        "time_cond_proj_dim": 12,
        "time_embedding_act_fn": "silu",
        "timestep_post_act": "mish",
        "encoder_hid_dim": TEXT_DIM,
        "class_embed_type": "timestep",
        "class_embeddings_concat": True,
        "mid_block_type": None,
    },
    "text beside the time": TINY
    | {"addition_embed_type": "text", "addition_embed_type_num_heads": 4, "encoder_hid_dim": TEXT_DIM},
    "classes by projection": TINY | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 5},
    "classes by layer": TINY | {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 5},
    "classes as they are": TINY | {"class_embed_type": "identity"},
}

VAE_TINY = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "layers_per_block": 2,
}
VAES = {
    "sd": VAE_TINY,
    "without attention": VAE_TINY | {"mid_block_add_attention": False, "latent_channels": 8},
    "without quant convolutions": VAE_TINY
    | {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.1},
    "grey, deep": VAE_TINY
    | {
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16, 16, 24),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "act_fn": "relu",
    },
}


SD1 = {"sample_size": 64, "cross_attention_dim": 768}
SD2 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD_VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}


@pytest.mark.parametrize(
    ("ours", "config"),
    [
        (UNet2DConditionModel, SD1),
        (UNet2DConditionModel, SD2),
        (UNet2DConditionModel, SDXL),
        (AutoencoderKL, SD_VAE),
    ],
    ids=["sd1", "sd2", "sdxl", "vae"],
)
def test_names_and_shapes_at_full_size(ours: type, config: dict) -> None:
    with torch.device("meta"):  # no memory, no numbers
        networks = [model(**config) for model in (ours, getattr(diffusers, ours.__name__))]
    actual, expected = ({name: value.shape for name, value in net.state_dict().items()} for net in networks)
    assert actual == expected


def pair(name: str, config: dict) -> tuple[nn.Module, nn.Module]:
    """Diffusers' network and ours, with the same random weights; loading is strict in both directions."""
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config)
    ours = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}[name](**config)
    for parameter in theirs.parameters():
        # Biases and norms away from 0 and 1, so that swapping or dropping one shows.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def close(ours: Tensor, theirs: Tensor, scale: float = 0.0) -> bool:
    """Whether the relative error is within the tolerance; `scale` is the norm below which a tensor counts as noise."""
    error = (ours - theirs).norm() / max(theirs.norm().item(), scale)
    return bool(error <= TOLERANCE)


def unet_inputs(config: dict, height: int = 8, width: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text_dim = config["cross_attention_dim"]
    inputs = {
        "sample": randn(PICTURES, config.get("in_channels", 4), height, width).requires_grad_(),
        "timestep": torch.tensor([7, 803]),
        "encoder_hidden_states": randn(
            PICTURES, WORDS, text_dim if isinstance(text_dim, int) else text_dim[0]
        ).requires_grad_(),
    }
    if config.get("addition_embed_type") == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": randn(PICTURES, 16), "time_ids": 512 * randn(PICTURES, 6).abs()}
    if "time_cond_proj_dim" in config:
        inputs["timestep_cond"] = randn(PICTURES, config["time_cond_proj_dim"])
    kind = config.get("class_embed_type")
    if kind == "timestep" or "num_class_embeds" in config:
        inputs["class_labels"] = torch.tensor([3, 9])
    elif kind == "identity":
        inputs["class_labels"] = randn(PICTURES, 4 * config["block_out_channels"][0])
    elif kind is not None:
        inputs["class_labels"] = randn(PICTURES, config["projection_class_embeddings_input_dim"])
    return inputs


def gradients(model: nn.Module, output: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of `output` by every parameter and by the inputs that ask for it."""
    wanted = dict(model.named_parameters())
    wanted |= {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    values = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    return dict(zip(wanted, values, strict=True))


def compare_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    # Some gradients are zero in exact arithmetic (a bias on attention's keys): what is there is rounding.
    scale = 1e-3 * max(gradient.norm().item() for gradient in theirs.values())
    wrong = [name for name in theirs if not close(ours[name], theirs[name], scale)]
    assert not wrong


@pytest.mark.parametrize("name", UNETS)
def test_unet_and_its_gradients(name: str) -> None:
    theirs, ours = pair("UNet2DConditionModel", UNETS[name])
    inputs = unet_inputs(UNETS[name])
    expected, actual = theirs(**inputs).sample, ours(**inputs).sample
    assert close(actual, expected)
    compare_gradients(gradients(ours, actual, inputs), gradients(theirs, expected, inputs))


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (5, 16), (1, 3)])
def test_unet_of_any_size(size: tuple[int, int]) -> None:
    theirs, ours = pair("UNet2DConditionModel", TINY)
    inputs = unet_inputs(TINY, *size)
    assert close(ours(**inputs).sample, theirs(**inputs).sample)


@pytest.mark.parametrize("name", ["sd1", "upscaler"])
@pytest.mark.parametrize("mask", [[[1, 1, 1, 0, 0, 0, 0], [1] * 7], [[0] * 7, [1, 0] * 3 + [1]]])
def test_unet_with_masked_words(name: str, mask: list[list[int]]) -> None:
    theirs, ours = pair("UNet2DConditionModel", UNETS[name])
    inputs = unet_inputs(UNETS[name]) | {"encoder_attention_mask": torch.tensor(mask)}
    assert close(ours(**inputs).sample, theirs(**inputs).sample)
    plain = inputs | {"encoder_attention_mask": None}
    assert not close(ours(**plain).sample, theirs(**inputs).sample)


def test_unet_under_a_controlnet() -> None:
    theirs, ours = pair("UNet2DConditionModel", TINY)
    inputs = unet_inputs(TINY)
    controlnet = ControlNetModel.from_unet(ours, conditioning_embedding_out_channels=(8, 8))
    for parameter in controlnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # its outputs begin as zeros
    down, mid = controlnet(**inputs, controlnet_cond=torch.randn(PICTURES, 3, 16, 24), return_dict=False)
    control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    expected = theirs(**inputs, **control).sample
    assert close(ours(**inputs, **control).sample, expected)
    assert not close(ours(**inputs).sample, expected)


@pytest.mark.parametrize("name", VAES)
def test_autoencoder_and_its_gradients(name: str) -> None:
    config = VAES[name]
    theirs, ours = pair("AutoencoderKL", config)
    generator = torch.Generator().manual_seed(3)
    picture = torch.randn(PICTURES, config.get("in_channels", 3), 16, 24, generator=generator).requires_grad_()
    drawn = []
    for model in (theirs, ours):
        posterior = model.encode(picture).latent_dist
        noise = torch.Generator().manual_seed(4)
        decoded = model.decode(posterior.sample(noise)).sample
        output = torch.cat([decoded.flatten(), posterior.kl(), posterior.mode().flatten(), posterior.logvar.flatten()])
        drawn.append((decoded, posterior, gradients(model, output, {"picture": picture})))
    (expected, prior, expected_gradients), (actual, posterior, actual_gradients) = drawn
    assert close(actual, expected)
    assert close(posterior.parameters, prior.parameters)
    assert close(posterior.kl(), prior.kl())
    assert close(posterior.nll(prior.mode() + 1), prior.nll(prior.mode() + 1))
    assert close(posterior.kl(posterior.__class__(-prior.parameters)), prior.kl(prior.__class__(-prior.parameters)))
    compare_gradients(actual_gradients, expected_gradients)


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_autoencoder_forward(sample_posterior: bool) -> None:
    theirs, ours = pair("AutoencoderKL", VAE_TINY)
    picture = torch.randn(PICTURES, 3, 8, 8)
    outputs = [
        model(picture, sample_posterior=sample_posterior, generator=torch.Generator().manual_seed(5)).sample
        for model in (theirs, ours)
    ]
    assert close(outputs[1], outputs[0])


@pytest.mark.parametrize(
    ("name", "config"),
    [("UNet2DConditionModel", UNETS["sdxl"]), ("AutoencoderKL", VAES["without quant convolutions"])],
)
def test_files_go_both_ways(name: str, config: dict, tmp_path) -> None:
    theirs, ours = pair(name, config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    read = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert read == json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert read["_class_name"] == name
    here = type(ours).from_pretrained(tmp_path / "theirs")
    there, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    for loaded in (here, there):
        state = loaded.state_dict()
        assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("ours", [UNet2DConditionModel, AutoencoderKL])
def test_keywords_and_defaults(ours: type) -> None:
    def keywords(model: type) -> dict[str, object]:
        return {name: p.default for name, p in inspect.signature(model.__init__).parameters.items()}

    assert keywords(ours) == keywords(getattr(diffusers, ours.__name__))


@pytest.mark.parametrize("how", ["file", "state dict"])
def test_old_names_of_the_autoencoders_attention(how: str, tmp_path) -> None:
    theirs, ours = pair("AutoencoderKL", VAE_TINY)
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = {}
    for key, value in ours.state_dict().items():
        for new in [n for n in old if f"mid_block.attentions.0.{n}" in key]:
            key = key.replace(new, old[new])
        state[key] = value
    assert sum(key not in ours.state_dict() for key in state) == 2 * 2 * len(old)
    fresh = AutoencoderKL(**VAE_TINY)
    if how == "state dict":
        fresh.load_state_dict(state, strict=True)
    else:
        from safetensors.torch import save_file

        fresh.save_config(tmp_path)
        save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
        fresh = AutoencoderKL.from_pretrained(tmp_path)
    picture = torch.randn(1, 3, 8, 8)
    assert close(fresh(picture).sample, theirs(picture).sample)
