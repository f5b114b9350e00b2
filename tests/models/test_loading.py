"""A model folder fits whole or is refused: configurations and weights that are wrong in every way we could think of."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgen.models import AutoencoderKL, UNet2DConditionModel
from latentgen.models.base import StrictModel

UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {"block_out_channels": (8,), "norm_num_groups": 4}
MODELS = {"unet": (UNet2DConditionModel, UNET), "vae": (AutoencoderKL, VAE)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[type, Path]:
    """A class and a folder that it saved."""
    model, config = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model(**config).save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(saved: tuple[type, Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(saved[1], tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def test_an_honest_folder_loads(saved: tuple[type, Path], folder: Path) -> None:
    model, info = saved[0].from_pretrained(folder, output_loading_info=True)
    assert not model.training
    assert not any(info.values())
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in load_file(folder / WEIGHTS).items())


def test_loaded_in_another_type(saved: tuple[type, Path], folder: Path) -> None:
    model = saved[0].from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_unknown_configuration_key_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    edit_config(folder, frequency_of_tea=3)
    with pytest.raises(ValueError, match=r"\{'frequency_of_tea': 3\}"):
        saved[0].from_pretrained(folder)
    with pytest.raises(ValueError, match="frequency_of_tea"):
        saved[0].from_config(json.loads((folder / "config.json").read_text()))


def test_unknown_keyword_of_the_call_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    with pytest.raises(ValueError, match="norm_num_grups"):
        saved[0].from_pretrained(folder, norm_num_grups=2)


def test_unused_keywords_can_be_asked_for(saved: tuple[type, Path], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"frequency_of_tea": 3}
    _, unused = saved[0].from_config(config, return_unused_kwargs=True)
    assert unused["frequency_of_tea"] == 3


def test_configuration_of_another_class_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    edit_config(folder, _class_name="ControlNetModel")
    with pytest.raises(ValueError, match="ControlNetModel.*" + saved[0].__name__):
        saved[0].from_pretrained(folder)


def test_unsupported_value_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    edit_config(folder, act_fn="tanh")
    with pytest.raises(ValueError, match=r"act_fn='tanh'.*silu"):
        saved[0].from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_out_channels", None),
        ("block_out_channels", 8),
        ("block_out_channels", [8, "x"]),
        ("norm_num_groups", 4.5),
        ("norm_num_groups", True),
        ("act_fn", 3),
        ("sample_size", [1, 2, 3]),
        ("layers_per_block", {"a": 1}),
    ],
)
def test_value_of_the_wrong_type_is_refused(saved: tuple[type, Path], folder: Path, name: str, value: Any) -> None:
    edit_config(folder, **{name: value})
    with pytest.raises(ValueError, match=f"^{name}=.*expected"):
        saved[0].from_pretrained(folder)


def test_value_that_cannot_be_built_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    edit_config(folder, in_channels=-4)
    with pytest.raises(ValueError, match="cannot be built"):
        saved[0].from_pretrained(folder)


def test_missing_weight_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    name = next(name for name in load_file(folder / WEIGHTS) if "conv_in" in name)
    edit_weights(folder, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=f"1 missing .*{name}"):
        saved[0].from_pretrained(folder)


def test_weight_left_over_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"spare.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"1 unexpected \(spare.weight"):
        saved[0].from_pretrained(folder)


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}])
def test_weight_of_another_shape_is_refused(saved: tuple[type, Path], folder: Path, options: dict) -> None:
    name = next(name for name in load_file(folder / WEIGHTS) if name.endswith("conv_in.weight"))
    edit_weights(folder, lambda state: state.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match=name) as refusal:
        saved[0].from_pretrained(folder, **options)
    assert "[3, 5]" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=f"1 of another shape .{name}"):
        saved[0].from_pretrained(folder, ignore_mismatched_sizes=True, **options)


def test_half_a_file_is_refused(saved: tuple[type, Path], folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=WEIGHTS):
        saved[0].from_pretrained(folder)


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS])
def test_missing_file_is_named(saved: tuple[type, Path], folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(OSError, match=missing):
        saved[0].from_pretrained(folder)


def test_pickle_is_not_read_unasked(saved: tuple[type, Path], folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=WEIGHTS):
        saved[0].from_pretrained(folder)
    with pytest.raises(OSError, match=WEIGHTS):
        saved[0].from_pretrained(folder, use_safetensors=None)
    with pytest.raises(ValueError, match="use_safetensors=False asks for pickles"):
        saved[0].from_pretrained(folder, use_safetensors=False)


def test_missing_folder(saved: tuple[type, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"nowhere .* saved {saved[0].__name__}"):
        saved[0].from_pretrained(tmp_path / "nowhere", local_files_only=True)


def test_sharded_weights_are_checked_too(saved: tuple[type, Path], tmp_path: Path) -> None:
    model = saved[0].from_pretrained(saved[1])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    again = saved[0].from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    state = load_file(shards[0])
    name = sorted(state)[0]
    state.pop(name)
    save_file(state, shards[0], metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing .*{name}"):
        saved[0].from_pretrained(tmp_path)


def test_every_model_is_strict_and_is_a_diffusers_model() -> None:
    for model in (UNet2DConditionModel, AutoencoderKL):
        assert issubclass(model, StrictModel)
        assert issubclass(model, diffusers.ModelMixin)
        assert issubclass(model, diffusers.ConfigMixin)


def test_memory_switches_that_would_do_nothing_or_break_are_refused() -> None:
    unet = UNet2DConditionModel(**UNET)
    with pytest.raises(ValueError, match=r"slices.*sdpa"):
        unet.set_attention_slice("auto")
    unet.set_attention_slice(None)
    with pytest.raises(ValueError, match="does not support"):
        unet.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


def test_xformers_switch_and_unknown_backend_are_refused() -> None:
    model = AutoencoderKL(**VAE)
    with pytest.raises(ValueError, match=r"xformers.*sdpa"):
        model.enable_xformers_memory_efficient_attention()
    with pytest.raises(ValueError, match="'flesh'; expected one of sdpa"):
        model.set_attention_backend("flesh")


def test_a_change_of_dtype_is_no_news(caplog):
    log = logging.getLogger("diffusers.models.modeling_utils")
    log.addHandler(caplog.handler)
    try:
        AutoencoderKL(**VAE).to(torch.float16)
        log.warning("this is one")
    finally:
        log.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"this is one"}
