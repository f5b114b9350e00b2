"""Times latentgen against diffusers on the same weights, in turns in one process, and compares what they make.

    python scripts/benchmark.py generate --model pipelines/pretrained/emoji
    python scripts/benchmark.py networks --model pipelines/pretrained/emoji --dtype float32

Figures are of this machine as it is now: leave it alone meanwhile, and trust the ratio more than the seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentgen.cli import script
from latentgen.evaluation.timing import interleaved, median_ratio
from latentgen.hardware import default_dtype, parse_device, parse_dtype
from pipelines import TextToImagePipeline, inputs
from pipelines.choices import scheduler_class
from pipelines.loading import BUNDLED

OURS, THEIRS = "latentgen", "diffusers"
PROMPT = "a red apple, noto style"
# Without these, diffusers warns of parts that the folder rightly does not have.
_NO_CHECKER: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}


def parser() -> argparse.ArgumentParser:
    """The arguments of both subcommands."""
    made = script.Parser("benchmark.py", __doc__)
    subcommands = made.add_subparsers(dest="subcommand", required=True, metavar="{generate,networks}")
    generate = subcommands.add_parser("generate", help="whole pictures: TextToImagePipeline, StableDiffusionPipeline")
    networks = subcommands.add_parser("networks", help="U-Net and VAE, forward, and forward with backward")
    generate.add_argument("--prompt", default=PROMPT, help=f"default: {PROMPT}")
    generate.add_argument("--steps", type=int, default=20, help="default 20")
    generate.add_argument("--guidance-scale", type=float, default=5.0, help="default 5")
    generate.add_argument("--scheduler", default="ddim", help="the sampler, from both libraries; default ddim")
    for one, batch in ((generate, 1), (networks, 4)):
        add = one.add_argument
        add("--model", type=Path, default=BUNDLED, help="a model folder; default: the bundled model")
        add("--dtype", action="append", help="float32, bfloat16 or float16, may be given again; default: fast ones")
        add("--batch-size", type=int, default=batch, help=f"pictures at once; default {batch}")
        add("--rounds", type=int, default=5, help="timed runs of each; default 5")
        add("--warmups", type=int, default=1, help="runs of each before them; default 1")
        add("--device", help="cpu, cuda, ...; default: the fastest")
        add("--threads", type=int, help="CPU threads")
        add("--json", type=Path, help="file for the figures")
        add("--overwrite", action="store_true", help="replace the file")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for an error that the user can mend."""
    return script.run(lambda: _work(parser().parse_args(words)))


def _work(options: argparse.Namespace) -> None:
    for name, least in (("batch_size", 1), ("rounds", 1), ("warmups", 0)):
        inputs.whole(f"--{name.replace('_', '-')}", getattr(options, name), least)
    if options.threads is not None:
        torch.set_num_threads(inputs.whole("--threads", options.threads))
    if options.json:
        script.new_file(options.json, options.overwrite)
    device = parse_device(options.device)
    dtypes = _dtypes(options.dtype, device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.rounds} rounds A B A B")
    measure = {"generate": _generate, "networks": _networks}[options.subcommand]
    results = [measured for dtype in dtypes for measured in measure(options, device, dtype)]
    if options.json:
        report = {"torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}
        text = json.dumps({**report, "options": _plain(options), "results": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
        print(options.json)


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _dtypes(names: Sequence[str] | None, device: torch.device) -> list[torch.dtype]:
    """float32, and bfloat16 where the device multiplies it in hardware; or what was asked for."""
    wanted = [parse_dtype(name, device) for name in names] if names else [torch.float32, default_dtype(device)]
    return list(dict.fromkeys(wanted))


def _report(
    what: str, dtype: torch.dtype, seconds: dict[str, list[float]], pictures: int, difference: float, of: str
) -> dict[str, Any]:
    """Prints one comparison and returns it."""
    name = str(dtype).removeprefix("torch.")
    ratio = median_ratio(seconds, OURS, THEIRS)
    print(f"\n{what}, {name}")
    for who, times in seconds.items():
        low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        middle = median(times)
        print(f"  {who:<10} {middle:9.4f} s  [{low:.4f}, {high:.4f}]  {pictures / middle:8.2f} pictures/s")
    print(f"  ratio of medians {ratio:.3f}; {of} {difference:.2e}", flush=True)
    return {"what": what, "dtype": name, "seconds": seconds, "ratio": ratio, "difference": difference}


# --- generate


def _generate(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    import diffusers

    prompts = inputs.prompt_list([options.prompt] * options.batch_size)
    scheduler = scheduler_class(options.scheduler)
    ours: Any = TextToImagePipeline.from_pretrained(
        options.model, torch_dtype=dtype, device=device, scheduler=options.scheduler
    )
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=dtype, **_NO_CHECKER)
    their_class = getattr(diffusers, scheduler.__name__)
    theirs.scheduler = their_class.from_config(theirs.scheduler.config)
    theirs.to(device)
    side = ours.unet.config.sample_size
    noise = torch.randn(len(prompts), ours.unet.config.in_channels, side, side, generator=_generator(0))
    call = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "output_type": "np",
    }
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    contenders: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: ours(prompts, latents=noise.clone(), **call).images,
        THEIRS: lambda: theirs(prompts, latents=noise.to(device, dtype), **call).images,
    }
    images = {name: draw() for name, draw in contenders.items()}
    difference = float(np.abs(images[OURS].astype(np.float64) - images[THEIRS]).max())
    seconds = interleaved(contenders, options.rounds, options.warmups, device)
    sampler = f"{options.steps} steps of {scheduler.__name__}, guidance {options.guidance_scale:g}"
    what = f"batch of {len(prompts)}, {sampler}"
    return [_report(what, dtype, seconds, len(prompts), difference, "largest difference of pixels in [0, 1]")]


# --- networks


def _networks(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    import diffusers

    import latentgen.models

    generator, batch = _generator(0), options.batch_size
    results = []
    for folder, class_name, example in (
        ("unet", "UNet2DConditionModel", _unet_example),
        ("vae", "AutoencoderKL", _vae_example),
    ):
        home = options.model / folder
        if not (home / "config.json").is_file():
            raise FileNotFoundError(f"{home} holds no {class_name}; give a model folder in diffusers' layout")
        networks = {
            name: getattr(library, class_name)
            .from_pretrained(home, torch_dtype=dtype)
            .to(device, memory_format=torch.channels_last)
            .eval()
            for name, library in ((OURS, latentgen.models), (THEIRS, diffusers))
        }
        given, run = example(networks[OURS], batch, generator)
        given = tuple(one.to(device, dtype if one.is_floating_point() else one.dtype) for one in given)
        with torch.inference_mode():
            outputs = {name: run(network, *given) for name, network in networks.items()}
        difference = _relative(outputs[OURS], outputs[THEIRS])
        for label, how in (("forward", _forward), ("forward and backward", _forward_backward)):
            contenders = {name: _bound(how, run, network, given) for name, network in networks.items()}
            seconds = interleaved(contenders, options.rounds, options.warmups, device)
            what = f"{class_name}, {label}, batch of {batch}"
            results.append(_report(what, dtype, seconds, batch, difference, "relative difference of outputs"))
    return results


def _unet_example(unet: Any, batch: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Callable]:
    config, tokens = unet.config, 77
    side = config.sample_size
    sample = torch.randn(batch, config.in_channels, side, side, generator=generator)
    text = torch.randn(batch, tokens, config.encoder_hid_dim or config.cross_attention_dim, generator=generator)
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    return (sample, timesteps, text), lambda network, *given: network(*given).sample


def _vae_example(vae: Any, batch: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Callable]:
    side = vae.config.sample_size
    pictures = torch.rand(batch, vae.config.in_channels, side, side, generator=generator) * 2 - 1
    return (pictures,), lambda network, *given: network(*given).sample


def _bound(how: Callable, run: Callable, network: nn.Module, given: tuple[Tensor, ...]) -> Callable[[], None]:
    return lambda: how(run, network, given)


def _forward(run: Callable, network: nn.Module, given: tuple[Tensor, ...]) -> None:
    with torch.inference_mode():
        run(network, *given)


def _forward_backward(run: Callable, network: nn.Module, given: tuple[Tensor, ...]) -> None:
    run(network, *given).float().square().mean().backward()
    network.zero_grad(set_to_none=True)


def _relative(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
