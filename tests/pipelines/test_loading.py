"""Model folders: what is written opens here and in diffusers, and what is missing or damaged is named."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import latentgen
from latentgen import TextToImagePipeline
from pipelines import loading

CALL = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 2, "output_type": "np", "show_progress": False}


def load(source: object, **options: object) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(source, **{"torch_dtype": torch.float32, "device": "cpu"} | options)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What diffusers and transformers log, which reaches pytest only where they pass it on."""
    for library in (diffusers, transformers):
        library.utils.logging.enable_propagation()
    yield caplog
    for library in (diffusers, transformers):
        library.utils.logging.disable_propagation()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Whole folders


def test_our_own_classes_are_loaded_from_a_folder_of_diffusers(tiny_folder) -> None:
    pipe = load(tiny_folder)
    assert type(pipe.unet) is latentgen.UNet2DConditionModel
    assert type(pipe.vae) is latentgen.AutoencoderKL
    assert type(pipe.scheduler) is latentgen.DDIMScheduler
    assert (pipe.dtype, pipe.device) == (torch.float32, torch.device("cpu"))
    assert not any(module.training for module in (pipe.unet, pipe.vae, pipe.text_encoder))


def test_what_we_save_opens_in_diffusers_and_here_without_a_warning(tiny_folder, tmp_path, log, recwarn) -> None:
    pipe = load(tiny_folder)
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(theirs) is diffusers.StableDiffusionPipeline
    assert type(theirs.unet) is diffusers.UNet2DConditionModel
    again = load(tmp_path / "model")
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(pipe, name).state_dict()
        for loaded in (getattr(theirs, name).state_dict(), getattr(again, name).state_dict()):
            assert loaded.keys() == expected.keys()
            assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert np.array_equal(again(**CALL).images, pipe(**CALL).images)
    assert [record.getMessage() for record in log.records] == []
    assert not [warning for warning in recwarn if "diffusers" not in str(warning.filename)]


def test_saved_files_suit_older_transformers_too(tiny_folder, tmp_path) -> None:
    load(tiny_folder).save_pretrained(tmp_path)
    assert all(key.startswith("text_model.") for key in load_file(tmp_path / "text_encoder" / "model.safetensors"))
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (tmp_path / "tokenizer" / name).stat().st_size > 0
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    assert np.array_equal(load(tmp_path)(**CALL).images, load(tiny_folder)(**CALL).images)


def test_both_key_layouts_of_the_text_tower_load(tiny_folder, tiny_copy) -> None:
    path = tiny_copy / "text_encoder" / "model.safetensors"
    flat = {key.removeprefix("text_model."): tensor for key, tensor in load_file(path).items()}
    expected = load(tiny_folder)(**CALL).images
    for prefix, extra in (("", {}), ("text_model.", {"text_model.embeddings.position_ids": torch.arange(24)[None]})):
        save_file({prefix + key: t for key, t in flat.items()} | extra, path, metadata={"format": "pt"})
        assert np.array_equal(load(tiny_copy)(**CALL).images, expected)


def test_half_precision_variants_and_shards(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "model"
    load(tiny_folder).save_pretrained(folder)
    load(tiny_folder, torch_dtype="float16").save_pretrained(folder, variant="fp16", max_shard_size="40KB")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    whole, halved = load(folder), load(folder, variant="fp16")
    assert np.array_equal(whole(**CALL).images, load(tiny_folder)(**CALL).images)
    weight, half = whole.unet.conv_in.weight, halved.unet.conv_in.weight
    assert half.dtype == torch.float32
    assert torch.equal(half, weight.half().float())
    assert not torch.equal(half, weight)
    # A component without the variant gives its plain weights.
    (folder / "text_encoder" / "model.fp16.safetensors").unlink()
    load(folder, variant="fp16")
    # Only variants: the message says which.
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pass variant='fp16' to load those$"):
        load(folder)
    with pytest.raises(ValueError, match="no weights of variant 'fp99'"):
        load(tiny_folder, variant="fp99")


def test_of_a_whole_file_and_shards_side_by_side_the_checked_ones_are_read(tiny_copy: Path, tmp_path: Path) -> None:
    pipe = load(tiny_copy)
    home = tiny_copy / "unet"
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(2)
    pipe.unet.save_pretrained(home, max_shard_size="100KB")
    other = diffusers.UNet2DConditionModel.from_pretrained(home)
    assert torch.equal(load(tiny_copy).unet.conv_out.weight, other.conv_out.weight)
    next(home.glob("*-of-*.safetensors")).write_bytes(b"")
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        load(tiny_copy)


def test_a_compiled_pipeline_is_saved_as_what_it_was(tiny_folder, tmp_path) -> None:
    pipe = load(tiny_folder)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert np.array_equal(again(**CALL).images, load(tiny_folder)(**CALL).images)


def test_a_saved_model_does_not_say_where_its_parts_came_from(tiny_folder, tmp_path) -> None:
    TextToImagePipeline.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    texts = {path: path.read_text() for path in (tmp_path / "model").rglob("*.json")}
    assert {path.parent.name for path in texts} >= {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert [path for path, text in texts.items() if str(tiny_folder) in text] == []


def test_who_may_read_a_new_file_may_read_a_saved_model(tiny_folder, tmp_path) -> None:
    (tmp_path / "note").write_text("")
    TextToImagePipeline.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "note").stat().st_mode}


def test_saving_again_replaces_and_leaves_no_stale_shards(tiny_folder, tmp_path) -> None:
    pipe = load(tiny_folder)
    (tmp_path / "README.md").write_text("mine")
    pipe.save_pretrained(tmp_path, max_shard_size="40KB")
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    pipe.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "unet").glob("*.safetensors*")] == ["diffusion_pytorch_model.safetensors"]
    assert torch.equal(load(tmp_path).unet.conv_out.bias, pipe.unet.conv_out.bias)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_a_save_that_is_cut_off_is_never_taken_for_a_model(tiny_folder, tmp_path, monkeypatch) -> None:
    pipe = load(tiny_folder)
    pipe.save_pretrained(tmp_path)
    moves = []

    def fail_late(*args: object) -> None:
        moves.append(args)
        if len(moves) == 5:
            raise OSError("disk full")
        original(*args)

    original = shutil.os.replace
    monkeypatch.setattr("pipelines.saving.os.replace", fail_late)
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model_index.json is missing"):
        load(tmp_path)


def test_only_whole_pipelines_and_safetensors_are_saved(tiny_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="would write pickles"):
        load(tiny_folder).save_pretrained(tmp_path / "model", safe_serialization=False)
    with pytest.raises(ValueError, match="has no text_encoder"):
        load(tiny_folder, text_encoder=None).save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        load(tiny_folder).save_pretrained(tmp_path / "file")
    assert not (tmp_path / "model").exists()


def test_options_of_loading(tiny_folder) -> None:
    other = load(tiny_folder).vae
    pipe = load(tiny_folder, vae=other, scheduler="ddpm", torch_dtype="bf16")
    assert pipe.vae is other
    assert type(pipe.scheduler) is latentgen.DDPMScheduler
    assert pipe.scheduler.config.beta_end == 0.012
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16
    mine = latentgen.DDIMScheduler()
    assert load(tiny_folder, scheduler=mine).scheduler is mine
    for options, message in (
        ({"scheduler": "dimm"}, "scheduler 'dimm' is not known"),
        ({"torch_dtype": "float12"}, "dtype 'float12'"),
        ({"torch_dtype": torch.int64}, "dtype torch.int64"),
        ({"device": "toaster"}, "device 'toaster'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tiny_folder, **options)
    assert load(tiny_folder, torch_dtype=None, dtype="fp16").dtype == torch.float16
    with pytest.raises(ValueError, match="both dtype and torch_dtype"):
        load(tiny_folder, dtype="fp16")
    with pytest.raises(TypeError, match="no option unett"):
        load(tiny_folder, unett=None)
    # What diffusers' pipelines are told and is so here.
    load(tiny_folder, use_safetensors=True, safety_checker=None, requires_safety_checker=False)
    with pytest.raises(ValueError, match="use_safetensors=False is not supported"):
        load(tiny_folder, use_safetensors=False)


# Folders that are not whole


def test_every_missing_file_is_named(tiny_folder, tmp_path) -> None:
    needed = sorted(path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file())
    assert len(needed) >= 9
    for number, name in enumerate(needed):
        copy = tmp_path / str(number)
        shutil.copytree(tiny_folder, copy)
        (copy / name).unlink()
        # Without tokenizer.json an older tokenizer's files are looked for.
        expected = "vocab.json" if name.name == "tokenizer.json" else str(name)
        with pytest.raises(FileNotFoundError, match=f"{expected} is missing"):
            load(copy)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(tiny_copy, name: str) -> None:
    shutil.rmtree(tiny_copy / name)
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load(tiny_copy)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_weights_cut_short_are_named(tiny_copy, name: str, keep: float) -> None:
    path = tiny_copy / f"{name}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=f"{path.name} .*(cut short|header)"):
        load(tiny_copy)


def test_half_written_json_is_named(tiny_copy) -> None:
    for path in sorted(tiny_copy.rglob("*.json")):
        content = path.read_text()
        for damaged in (content[: len(content) // 2], "", "[1]"):
            path.write_text(damaged)
            with pytest.raises(ValueError, match=path.name):
                load(tiny_copy)
        path.write_text(content)
    load(tiny_copy)


def test_pickles_are_refused_by_name_and_by_content(tiny_copy) -> None:
    path = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors"
    for write in (torch.save, lambda weights, to: to.write_bytes(pickle.dumps(weights))):
        write({"a": [1]}, path)
        with pytest.raises(ValueError, match=r"is a pickle; expected whole safetensors"):
            load(tiny_copy)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"only as diffusion_pytorch_model.bin, a pickle"):
        load(tiny_copy)


def test_a_header_that_lies_is_refused(tiny_copy) -> None:
    path = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    for length in (2**63, len(content), 3):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(ValueError, match="safetensors"):
            load(tiny_copy)
    header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="no readable safetensors header"):
        load(tiny_copy)


def test_an_index_cannot_point_outside_its_folder_or_at_nothing(tiny_copy) -> None:
    path = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors"
    outside = path.rename(tiny_copy / "outside.safetensors")
    index = path.with_name(f"{path.name}.index.json")
    for name, error, message in (
        ("../outside.safetensors", ValueError, "expected the plain name"),
        (str(outside), ValueError, "expected the plain name"),
        ("gone.safetensors", FileNotFoundError, "gone.safetensors is missing"),
    ):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
        with pytest.raises(error, match=message):
            load(tiny_copy)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        load(tiny_copy)


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny_copy) -> None:
    path = tiny_copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("final_layer_norm.weight"))
    for changed, message in (
        ({key: t for key, t in weights.items() if key != name}, "missing final_layer_norm.weight"),
        (weights | {"surplus": torch.zeros(1)}, "unexpected surplus"),
        (weights | {name: torch.zeros(5)}, "do not fit"),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load(tiny_copy)
    save_file(weights, path, metadata={"format": "pt"})
    edit(tiny_copy / "unet" / "config.json", block_out_channels=[16, 48])
    with pytest.raises(ValueError, match="unet"):
        load(tiny_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "names UNet3DConditionModel as its unet"),
        ({"unet": ["diffusers"]}, "expected a pair"),
        ({"unet": [None, None]}, "names no unet"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "with text_encoder_2; expected a Stable Diffusion"),
        ({"scheduler": ["diffusers", "DiffusionPipeline"]}, "scheduler 'DiffusionPipeline' is not known"),
        ({"scheduler": ["os", "system"]}, "scheduler 'system' is not known"),
        ({"tokenizer": ["transformers", "AutoTokenizer"]}, "names AutoTokenizer as its tokenizer"),
        ({"_latentgen": {"generation": {"steps": 3}}}, "settings steps are not known"),
        ({"_latentgen": {"generation": {"guidance_scale": "high"}}}, "guidance_scale='high'"),
        ({"_latentgen": [1]}, "_latentgen"),
        ({"_latentgen": "x"}, "expected an object"),
    ],
    ids=str,
)
def test_an_index_that_cannot_be_honoured_is_refused(tiny_copy, changes: dict, message: str) -> None:
    edit(tiny_copy / "model_index.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(tiny_copy)


def test_a_safety_checker_is_not_loaded(tiny_copy) -> None:
    edit(tiny_copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "safety_checker" not in load(tiny_copy).components


# Where models come from


def test_names_that_lead_nowhere(tmp_path, monkeypatch) -> None:
    (tmp_path / "file.safetensors").write_text("")
    for source, error, message in (
        (tmp_path / "gone", FileNotFoundError, "there is no model folder"),
        (str(tmp_path / "gone"), FileNotFoundError, "there is no model folder"),
        ("./gone", FileNotFoundError, "there is no model folder"),
        (tmp_path, FileNotFoundError, "model_index.json is missing"),
        (tmp_path / "file.safetensors", ValueError, "is a file; expected a model folder"),
        ("~nobody-of-that-name/x", FileNotFoundError, "there is no model folder"),
        ("", ValueError, "expected a folder"),
        (3, ValueError, "expected a folder"),
    ):
        with pytest.raises(error, match=message):
            load(source)
    monkeypatch.setattr(loading, "BUNDLED", tmp_path / "emoji")
    with pytest.raises(FileNotFoundError, match="no bundled model"):
        load(None)


def test_no_name_means_the_bundled_model(tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr(loading, "BUNDLED", tiny_folder)
    assert np.array_equal(load(None)(**CALL).images, load(tiny_folder)(**CALL).images)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1000.5}),
        ("scheduler/scheduler_config.json", {"beta_end": None}),
        ("scheduler/scheduler_config.json", {"beta_end": [0.1]}),
        ("scheduler/scheduler_config.json", {"timestep_spacing": ["leading"]}),
        ("scheduler/scheduler_config.json", {"trained_betas": "abc"}),
        ("text_encoder/config.json", {"hidden_size": "32"}),
        ("text_encoder/config.json", {"num_attention_heads": 5}),
        ("text_encoder/config.json", {"num_attention_heads": 0}),
        ("text_encoder/config.json", {"hidden_act": "unheard-of"}),
        ("vae/config.json", {"scaling_factor": 0.0}),
        ("text_encoder/config.json", {"eos_token_id": None}),
        ("text_encoder/config.json", {"layer_norm_eps": None}),
        ("text_encoder/config.json", {"num_attention_heads": -1}),
        ("unet/config.json", {"sample_size": 8.0}),
        ("unet/config.json", {"sample_size": 0}),
        ("unet/config.json", {"norm_num_groups": 8.0}),
        ("unet/config.json", {"downsample_padding": -1}),
        ("unet/config.json", {"dropout": float("nan")}),
        ("vae/config.json", {"norm_num_groups": 4.0}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "77"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 24.0}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1}),
    ],
)
def test_values_of_the_wrong_kind_are_our_errors(tiny_copy: Path, file: str, values: dict) -> None:
    edit(tiny_copy / file, **values)
    with pytest.raises(ValueError):  # noqa: PT011  # which message depends on who reads the file
        load(tiny_copy)


def test_a_misspelt_setting_of_the_scheduler_is_no_default(tiny_copy: Path) -> None:
    path = tiny_copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"prediction_type"', '"predicton_type"'))
    with pytest.raises(ValueError, match="'predicton_type', which it does not know; write 'prediction_type'"):
        load(tiny_copy)


def test_an_empty_scheduler_is_no_default(tiny_copy: Path) -> None:
    (tiny_copy / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match="describes no noise schedule"):
        load(tiny_copy)


@pytest.mark.parametrize("content", ["{}", '{"model": {}}', '{"version": "1.0"'])
def test_a_damaged_tokenizer_is_our_error(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer"):
        load(tiny_copy)


def test_a_half_written_list_of_merges_is_our_error(tiny_copy: Path) -> None:
    home = tiny_copy / "tokenizer"
    pipe = load(tiny_copy)
    pipe.tokenizer.backend_tokenizer.model.save(str(home))
    (home / "tokenizer.json").unlink()
    assert np.array_equal(load(tiny_copy)(**CALL).images, pipe(**CALL).images)
    merges = (home / "merges.txt").read_bytes().rstrip()
    (home / "merges.txt").write_bytes(merges[:-1])
    with pytest.raises(ValueError, match="tokenizer"):
        load(tiny_copy)


def test_a_tokenizer_of_any_allowed_class_can_be_saved_and_loaded_again(tiny_copy: Path, tmp_path: Path) -> None:
    edit(tiny_copy / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    config = tiny_copy / "tokenizer" / "tokenizer_config.json"
    edit(config, tokenizer_class="PreTrainedTokenizerFast")
    pipe = load(tiny_copy)
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    assert np.array_equal(load(tmp_path / "again")(**CALL).images, pipe(**CALL).images)


def test_what_diffusers_would_pass_over_is_said_on_saving(tiny_copy: Path, tmp_path: Path) -> None:
    edit(tiny_copy / "vae" / "config.json", shift_factor=0.1)
    edit(tiny_copy / "scheduler" / "scheduler_config.json", prediction_type="flow")
    pipe = load(tiny_copy)
    with pytest.warns(UserWarning, match="VAE's shift_factor, prediction_type 'flow'"):
        pipe.save_pretrained(tmp_path / "again")


def test_a_scheduler_of_another_kind_of_model_is_the_models_own_or_refused(tiny_copy: Path) -> None:
    home = tiny_copy / "scheduler" / "scheduler_config.json"
    with pytest.raises(ValueError, match="does not sample this kind of model"):
        load(tiny_copy, scheduler="FlowMatchEulerDiscreteScheduler")
    home.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}))
    edit(tiny_copy / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    assert load(tiny_copy)(**CALL).images.shape[-1] == 3
    edit(tiny_copy / "model_index.json", scheduler=["diffusers", "RePaintScheduler"])
    with pytest.raises(ValueError, match="does not sample this kind of model"):
        load(tiny_copy)
