"""`TextToImagePipeline`: from sentences to pictures by latent diffusion."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from packaging.version import Version
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from latentgen.conditioning import ClipConditioner, TextConditioning
from latentgen.configuration import one_of
from latentgen.hardware import parse_device, parse_dtype
from pipelines import inputs
from pipelines.choices import adapt_scheduler, check_steps, make_scheduler, scheduler_class
from pipelines.denoise import CALLBACK_TENSORS, Denoising, decode, denoise, to_arrays, to_pil
from pipelines.loading import PARTS, HubOptions, check_vocabularies, load_parts, locate, read_index, stated_generation
from pipelines.noise import Noise
from pipelines.saving import save_folder

# output_type -> how a batch becomes output, and how batches of output are joined
_OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[list], Any]]] = {
    "pil": (to_pil, lambda batches: [picture for batch in batches for picture in batch]),
    "np": (to_arrays, np.concatenate),
    "pt": (lambda pictures: pictures, torch.cat),
    "latent": (lambda latents: latents, torch.cat),
}

# What pipelines of diffusers are told by many and is so here in any case, and the values that say so.
_AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (None, True),
    "safety_checker": (None,),
    "feature_extractor": (None,),
    "requires_safety_checker": (None, False),
}
_OLD_SIZE = 64  # latents of Stable Diffusion 1


@dataclass
class TextToImageOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: PIL images, an array (B, H, W, 3), a tensor (B, 3, H, W), both in [0, 1], or latents (B, C, h, w).
        seeds: The seed that draws each of them again; None where the caller brought generators or latents.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int] | None = None


class TextToImagePipeline(DiffusionPipeline):
    """Latent diffusion as Stable Diffusion 1 and 2 put it together (arXiv 2112.10752), without a safety checker.

    A picture is a function of the model, the prompt, the settings and its seed, not of the batch it is drawn in but for
    the rounding of the dtype: its noise is drawn on the CPU in float32, by a generator of its own.

    Args:
        vae: `AutoencoderKL`; decodes latents.
        text_encoder: transformers' `CLIPTextModel`; None where every call brings its `prompt_embeds`.
        tokenizer: The tokenizer of `text_encoder`.
        unet: `UNet2DConditionModel`.
        scheduler: Any scheduler of ours or of diffusers; the sampler of calls that name no other.
        generation: Default steps and guidance; None is 50 steps at 7.5.

    Raises:
        ValueError: The parts do not fit each other.
    """

    model_cpu_offload_seq: ClassVar[str] = "text_encoder->unet->vae"  # type: ignore[assignment,misc]
    _callback_tensor_inputs = list(CALLBACK_TENSORS)

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        generation: inputs.Generation | None = None,
    ) -> None:
        super().__init__()
        check_fit(vae, text_encoder, unet, tokenizer)
        if scheduler is not None:
            adapt_scheduler(scheduler)
        _adapt_size(unet)
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        for module in (vae, unet):
            module.to(memory_format=torch.channels_last)
        self.generation = generation or inputs.Generation()
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._guidance_scale, self._guidance_rescale, self._interrupt, self._num_timesteps = 1.0, 0.0, False, 0
        self._conditioner: ClipConditioner | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | Path | None = None,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        variant: str | None = None,
        scheduler: Any = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **components: Any,
    ) -> TextToImagePipeline:
        """Load a model with our own networks, from safetensors only.

        Args:
            model: A folder that diffusers' `save_pretrained` wrote, a Hub id, or None for the bundled model.
            torch_dtype: What to compute in; None takes what this hardware is fast at, see `latentgen.hardware`.
            dtype: The same, as diffusers calls it now.
            device: Where to compute; None takes the fastest device.
            variant: Which weights of a component to take where it has several, such as "fp16".
            scheduler: Another sampler than the model's own: a name, or an object.
            revision: A branch, tag or commit on the Hub.
            cache_dir: Where the Hub's files are kept.
            token: Access token for the Hub.
            local_files_only: Do not ask the Hub; use what is in its cache.
            **components: Parts to take instead of the model's: vae, text_encoder, tokenizer, unet. What diffusers'
                pipelines are often told and is so here (`use_safetensors=True`, `safety_checker=None`) may be said.

        Raises:
            FileNotFoundError: There is no such model, or a file of it is missing.
            ValueError: A file of it is damaged, pickled or of another kind of model; or an option makes no sense.
            OSError: The Hub's files cannot be fetched whole.
        """
        for name in _AS_IT_IS.keys() & components.keys():
            if (value := components.pop(name)) not in _AS_IT_IS[name]:
                raise ValueError(f"{name}={value!r} is not supported; leave it out")
        if dtype is not None and torch_dtype is not None:
            raise ValueError("both dtype and torch_dtype were given; give one of them")
        target = parse_device(device)
        wanted_dtype = parse_dtype(torch_dtype if dtype is None else dtype, target)
        if unknown := sorted(set(components) - set(PARTS)):
            raise TypeError(f"from_pretrained has no option {', '.join(unknown)}; components are {', '.join(PARTS)}")
        named = scheduler if isinstance(scheduler, str) else None
        if named is not None:
            scheduler_class(named)
        elif scheduler is not None:
            components["scheduler"] = make_scheduler(scheduler, None)
        hub = HubOptions(revision, cache_dir, token, local_files_only, without=frozenset(components))
        folder = locate(model, variant, hub)
        index = read_index(folder)
        generation = stated_generation(index)
        parts = load_parts(folder, index, wanted_dtype, variant, components)
        parts["scheduler"] = make_scheduler(named, parts["scheduler"])
        pipe = cls(**parts, generation=generation)
        pipe.register_to_config(_name_or_path=str(model or folder))
        return pipe.to(target)

    @classmethod
    def from_pipe(  # type: ignore[override]
        cls, pipeline: DiffusionPipeline, torch_dtype: torch.dtype | None = None, **components: Any
    ) -> TextToImagePipeline:
        """Make a pipeline of another one's parts, which it shares: ours, or diffusers' Stable Diffusion.

        Args:
            pipeline: Where the parts come from, and the defaults of a call if it has them.
            torch_dtype: What to compute in from now on; the parts of `pipeline` are converted too.
            **components: Parts to take instead.

        Raises:
            ValueError: A part is missing, or the parts do not fit each other.
        """
        if unknown := sorted(set(components) - set(PARTS)):
            raise TypeError(f"from_pipe has no option {', '.join(unknown)}; components are {', '.join(PARTS)}")
        parts = {**pipeline.components, **components}
        if missing := [name for name in PARTS if name not in parts]:
            raise ValueError(f"{type(pipeline).__name__} has no {', '.join(missing)}; give them, or another pipeline")
        made = cls(**{name: parts[name] for name in PARTS}, generation=getattr(pipeline, "generation", None))
        return made if torch_dtype is None else made.to(torch_dtype)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write a folder that `from_pretrained` and diffusers' StableDiffusionPipeline open.

        The weights are written in the dtype that they have now: `pipe.to(torch.float16)` first for half the size.

        Args:
            save_directory: The folder; made if it is not there. See `pipelines.saving.save_folder` on what is replaced.
            safe_serialization: Must be True: there are no pickles here.
            variant: Goes into the names of the weight files, such as "fp16".
            max_shard_size: U-Net and VAE weights beyond it ("5GB") are spread over several files.

        Raises:
            ValueError: The pipeline is not whole, or pickles were asked for.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles; only safetensors are written")
        save_folder(self.components, Path(save_directory), asdict(self.generation), variant, max_shard_size)

    @property
    def conditioner(self) -> ClipConditioner:
        """The text encoder with its tokenizer.

        Raises:
            ValueError: This pipeline has none.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; pass prompt_embeds (and negative_prompt_embeds)")
        made = self._conditioner
        if made is None or made.text_encoder is not self.text_encoder or made.tokenizer is not self.tokenizer:
            self._conditioner = ClipConditioner(self.tokenizer, self.text_encoder)
        return self._conditioner  # type: ignore[return-value]

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the running call."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """The guidance rescaling of the running call."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running call asks the U-Net a second time without the prompt."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """How often a batch of the running call asks the U-Net."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call shall stop after this step; a callback may set `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        num_images_per_prompt: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float | None = None,
        scheduler: Any = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | TextConditioning | None = None,
        negative_prompt_embeds: Tensor | TextConditioning | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        show_progress: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TextToImageOutput | tuple:
        """Draw pictures.

        Pictures come in the order of the prompts, all of one prompt together.

        Args:
            prompt: A sentence or several.
            negative_prompt: What to lead away from: one for all, or one for each prompt. Needs guidance.
            height: Of the pictures, in pixels; None is the size the model was trained at.
            width: The same.
            num_inference_steps: How often the sampler asks the U-Net.
            guidance_scale: How far to go from the unconditional towards the conditional prediction; up to 1 there is
                no guidance, and each step costs half.
            guidance_rescale: See `classifier_free`.
            num_images_per_prompt: Pictures of each prompt; None is one, or with a single prompt one for each seed.
            seed: One for each picture; a single s gives s, s + 1, ...; None takes chance.
            generator: Instead of seeds: one for each picture, or one that serves them in turn.
            eta: 0 is DDIM, 1 as much fresh noise as DDPM; for schedulers that know it.
            scheduler: For this call: a name such as "ddim", or an object.
            latents: Noise of unit variance to start from, (pictures, C, h, w).
            prompt_embeds: Encoded prompts instead of `prompt`, (prompts, L, D).
            negative_prompt_embeds: The same for `negative_prompt`; one, or one for each prompt.
            batch_size: Draw at most so many pictures at once; None draws all. The pictures of seeds are the same.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Return a `TextToImageOutput`, not the tuple (images, seeds).
            show_progress: Show a bar; see also `set_progress_bar_config`.
            callback_on_step_end: Called as (pipeline, step, timestep, tensors) after every step of every batch; may
                return tensors that replace those it was shown; `prompt_embeds` as it was shown holds, with guidance,
                the negative prompts' rows before the prompts'.
            callback_on_step_end_tensor_inputs: Which tensors it is shown.

        Raises:
            ValueError: An argument makes no sense.
            FloatingPointError: The networks gave NaN or infinity.
        """
        one_of("output_type", output_type, tuple(_OUTPUTS))
        settings = self._take_settings(num_inference_steps, guidance_scale, guidance_rescale, eta)
        texts, negatives = self._check_texts(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        each = inputs.images_each(num_images_per_prompt, seed, len(texts))
        prompt_of = [i for i in range(len(texts)) for _ in range(each)]
        noise = Noise.of(seed, generator, latents, (len(prompt_of), *self._latent_shape(height, width)))
        at_once = len(prompt_of) if batch_size is None else inputs.whole("batch_size", batch_size)
        sampler, device = make_scheduler(scheduler, self.scheduler), self._execution_device
        check_steps(sampler, settings.num_inference_steps)
        run = Denoising(
            scheduler=sampler,
            eta=float(settings.eta),
            callback=callback_on_step_end,
            callback_tensors=_callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs),
            text=self._encode(texts).rows(prompt_of),
            negative=None if negatives is None else self._encode(negatives).rows(prompt_of),
            generators=noise.generators,
        )
        convert, join = _OUTPUTS[output_type]
        done = []
        batches = torch.arange(len(prompt_of)).split(at_once)
        self._num_timesteps = len(sampler.timesteps)
        if settings.eta and "eta" not in inspect.signature(sampler.step).parameters:
            warnings.warn(f"{type(sampler).__name__} knows no eta; it has no effect", stacklevel=2)
        with self._bar(len(batches) * self._num_timesteps, show_progress) as bar:
            for rows in batches:
                if self._interrupt:
                    break
                # Anew for every batch: multistep samplers remember the one before, and callbacks change guidance.
                self._guide_by(settings)
                sampler.set_timesteps(settings.num_inference_steps, device=device)
                result = denoise(self, noise.latents[rows].to(device), run.rows(rows.tolist()), bar.update)
                done.append(convert(result if output_type == "latent" else decode(self.vae, result)))
        self.maybe_free_model_hooks()
        images = join(done)
        seeds = noise.seeds and noise.seeds[: len(images)]  # fewer when a callback stopped the call
        return TextToImageOutput(images, seeds) if return_dict else (images, seeds)

    def _take_settings(self, *given: float | None) -> inputs.Generation:
        settings = self.generation.but(dict(zip(inputs.SETTINGS, given, strict=True)))
        self._guide_by(settings)
        self._interrupt = False
        return settings

    def _guide_by(self, settings: inputs.Generation) -> None:
        self._guidance_scale, self._guidance_rescale = float(settings.guidance_scale), float(settings.guidance_rescale)

    def _check_texts(
        self, prompt: Any, prompt_embeds: Any, negative_prompt: Any, negative_embeds: Any
    ) -> tuple[list[str] | TextConditioning, list[str] | TextConditioning | None]:
        """What to encode, or is encoded, for each prompt and, with guidance, for each negative prompt."""
        for name, words, encoded in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_embeds),
        ):
            if words is not None and encoded is not None:
                raise ValueError(f"both {name} and {name}_embeds were given; give one of them")
        width = _text_width(self.unet)
        texts: list[str] | TextConditioning
        negatives: list[str] | TextConditioning
        texts = inputs.prompt_list(prompt) if prompt_embeds is None else _given("prompt_embeds", prompt_embeds, width)
        if negative_embeds is None:
            negatives = inputs.negative_list(negative_prompt, len(texts))
        else:
            given = _given("negative_prompt_embeds", negative_embeds, width)
            if len(given) not in (1, len(texts)):
                raise ValueError(f"{len(given)} negative_prompt_embeds for {len(texts)} prompts; give 1 or as many")
            negatives = given.rows([i % len(given) for i in range(len(texts))])
        if not self.do_classifier_free_guidance:
            if negative_prompt or negative_embeds is not None:
                warnings.warn(
                    f"the negative prompt has no effect at guidance_scale={self.guidance_scale:g}; use more than 1",
                    stacklevel=3,
                )
            return texts, None
        return texts, negatives

    def _encode(self, texts: list[str] | TextConditioning) -> TextConditioning:
        encoded = texts if isinstance(texts, TextConditioning) else self.conditioner(texts)
        return encoded.to(self._execution_device)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        trained = self.unet.config.sample_size
        sides = trained if isinstance(trained, (list, tuple)) else (trained, trained)
        step = self.vae_scale_factor
        pixels = [
            inputs.side(name, value, side and side * step, step)
            for name, value, side in zip(("height", "width"), (height, width), sides, strict=True)
        ]
        return self.unet.config.in_channels, pixels[0] // step, pixels[1] // step

    def _bar(self, total: int, shown: bool) -> Any:
        return self.progress_bar(total=total) if shown else tqdm(disable=True)


def _callback_tensors(callback: Any, names: Sequence[str]) -> tuple[str, ...]:
    # diffusers' PipelineCallback objects say themselves what they want to see.
    names = tuple(getattr(callback, "tensor_inputs", names))
    for name in names:
        one_of("callback_on_step_end_tensor_inputs", name, CALLBACK_TENSORS)
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end={callback!r}; expected a function")
    return names


def _given(name: str, value: Any, width: int | None) -> TextConditioning:
    if not isinstance(value, (Tensor, TextConditioning)):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a tensor or a TextConditioning")
    text = value if isinstance(value, TextConditioning) else TextConditioning(value)
    if width is not None and text.embeddings.shape[-1] != width:
        raise ValueError(f"{name} has {text.embeddings.shape[-1]} channels; this model's U-Net reads {width}")
    return text


def _text_width(unet: Any) -> int | None:
    """Channels of the text tokens that `unet` reads."""
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    return width[0] if isinstance(width, (list, tuple)) else width


def _adapt_size(unet: Any) -> None:
    """Make an old Stable Diffusion draw at 512 pixels where its folder says less, and warn of it, as diffusers does."""
    size, written_by = unet.config.sample_size, unet.config.get("_diffusers_version")
    if written_by and Version(str(written_by)) < Version("0.9.0.dev0") and isinstance(size, int) and size < _OLD_SIZE:
        warnings.warn(
            f"changed the U-Net's sample_size={size} to {_OLD_SIZE}, which models that diffusers {written_by} wrote "
            "were trained at",
            stacklevel=3,
        )
        unet.register_to_config(sample_size=_OLD_SIZE)


def check_fit(vae: Any, text_encoder: Any, unet: Any, tokenizer: Any = None) -> None:
    """Check that parts belong together.

    Raises:
        ValueError: They do not.
    """
    for name, part in (("vae", vae), ("unet", unet)):
        if not hasattr(part, "config"):
            raise ValueError(f"{name}={part!r}; expected a model, a pipeline cannot be without it")
    expected, latent = unet.config.in_channels, vae.config.latent_channels
    if expected != latent:
        raise ValueError(f"the U-Net reads {expected} channels, the VAE writes {latent}; take parts of one model")
    if text_encoder is not None and text_encoder.config.hidden_size != _text_width(unet):
        raise ValueError(
            f"the U-Net reads text of {_text_width(unet)} channels, the text encoder writes "
            f"{text_encoder.config.hidden_size}; take parts of one model"
        )
    if text_encoder is not None and tokenizer is not None:
        check_vocabularies(tokenizer, text_encoder)
    for name, given in (("time_cond_proj_dim", (None,)), ("addition_embed_type", (None, "text"))):
        if (value := getattr(unet.config, name, None)) not in given:
            raise ValueError(f"the U-Net has {name}={value!r}, which this pipeline cannot give it")
