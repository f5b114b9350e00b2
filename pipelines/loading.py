"""From a folder, a Hub id or nothing (the bundled model) to the parts of a pipeline, each of our own class."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub import utils as hub_utils
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from latentgen.models import AutoencoderKL, UNet2DConditionModel
from pipelines.choices import scheduler_class
from pipelines.inputs import Generation
from pipelines.weights import check_weights, read_json, shard_names, weight_name

INDEX = "model_index.json"
# diffusers drops keys with a leading underscore without a word, so our own settings can live in its index.
SETTINGS = "_latentgen"
BUNDLED = Path(__file__).parent / "pretrained" / "emoji"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Components that diffusers' folders may name and that drawing a picture does not need.
_NOT_NEEDED = frozenset({"safety_checker", "feature_extractor"})
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_SHORTEST_CONTEXT = 3  # a start mark, a word and an end mark
# position_ids is a constant that older transformers saved with the weights.
_NO_WEIGHT = re.compile(r"(.*\.)?position_ids")


class HubOptions(NamedTuple):
    """How to reach the Hub, in the keywords of `huggingface_hub`, and the parts that need not be fetched."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    without: frozenset[str] = frozenset()


class _Part(NamedTuple):
    """One component's folder: its configuration file, the stem of its weights if it has any, and how to load it."""

    config: str
    stem: str | None
    classes: tuple[str, ...]  # empty: any that the loader knows
    load: Callable[[Path, str, torch.dtype, str | None], Any]


def locate(source: str | Path | None, variant: str | None, hub: HubOptions) -> Path:
    """Find the model folder, downloading it when `source` is a Hub id.

    Raises:
        FileNotFoundError: No such folder, or nothing of that name on the Hub or in its cache.
        ValueError: `source` is a file or means nothing.
    """
    if source is None:
        if not (BUNDLED / INDEX).is_file():
            raise FileNotFoundError(
                f"this installation has no bundled model in {BUNDLED}; install latentgen from its wheel, or name a "
                "model folder or a Hub id"
            )
        return BUNDLED
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise ValueError(f"model {source!r}; expected a folder, a Hub id such as 'owner/name', or None")
    try:
        folder = Path(source).expanduser()
    except RuntimeError as error:  # "~somebody" of nobody
        raise FileNotFoundError(f"there is no model folder {source} ({error}); check the path") from error
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{source} is a file; expected a model folder with {INDEX}")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"there is no model folder {source}; check the path")
    return _fetch(source, variant, hub)


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`, checked for components that this pipeline cannot honour.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: It is damaged, or of another kind of model.
    """
    index = read_json(folder / INDEX)
    named = {name: value for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    unknown = sorted(set(named) - set(PARTS) - _NOT_NEEDED)
    if unknown:
        raise ValueError(
            f"{folder / INDEX} describes a {index.get('_class_name')} with {', '.join(unknown)}; expected a Stable "
            f"Diffusion folder with {', '.join(PARTS)}"
        )
    for name, value in named.items():
        if name in PARTS:
            _check_class(folder, name, value)
    return index


def stated_generation(index: Mapping[str, Any]) -> Generation:
    """The defaults of a call that the folder states, and ours for the others.

    Raises:
        ValueError: A name that is not known, or a value that makes no sense.
    """
    stated = index.get(SETTINGS, {})
    generation = stated.get("generation", {}) if isinstance(stated, dict) else stated
    if not isinstance(generation, dict):
        raise ValueError(f"{INDEX} has {SETTINGS}: {stated!r}; expected an object with an object 'generation'")
    return Generation().but(generation)


def load_parts(
    folder: Path, index: Mapping[str, Any], dtype: torch.dtype, variant: str | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Load every component that `given` does not bring; all files are checked before the first is loaded.

    Raises:
        FileNotFoundError: A file of a component is missing; the message names it.
        ValueError: A file is damaged, pickled or does not fit its configuration.
    """
    variants = {name: _check_part(folder, name, index, variant) for name in PARTS if name not in given}
    if variant and variants and not any(variants.values()):
        raise ValueError(f"{folder} has no weights of variant {variant!r}; leave the variant out")
    parts = {name: _load(name, folder / name, index[name][1], dtype, found) for name, found in variants.items()}
    return {**parts, **given}


def load_text_tower(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The tokenizer and the text encoder of a model folder, or of one that holds `tokenizer` and `text_encoder` alone.

    Raises:
        FileNotFoundError, ValueError: As `load_parts`.
    """
    if (folder / INDEX).is_file():
        index = read_index(folder)
    else:
        index = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    parts = load_parts(folder, index, dtype, None, dict.fromkeys(set(PARTS) - {"text_encoder", "tokenizer"}))
    check_vocabularies(parts["tokenizer"], parts["text_encoder"])
    return parts["tokenizer"], parts["text_encoder"]


def check_vocabularies(tokenizer: Any, text_encoder: Any) -> None:
    """Check that a text encoder knows every token that its tokenizer can give it.

    Raises:
        ValueError: It does not.
    """
    known = text_encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder knows {known}; take parts of one model"
        )


def load_autoencoder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder that was saved in a folder, or in the folder `vae` of one.

    Raises:
        FileNotFoundError: There is none, or a file of it is missing.
        ValueError: A file is damaged, pickled or does not fit its configuration.
    """
    home = next((one for one in (folder / "vae", folder) if (one / PARTS["vae"].config).is_file()), None)
    if home is None:
        raise FileNotFoundError(f"{folder} holds no autoencoder; give the folder that one was saved in")
    return _load("vae", home, "AutoencoderKL", dtype, _check_files("vae", home, None))


def _load(name: str, home: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> Any:
    try:
        return PARTS[name].load(home, class_name, dtype, variant)
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # what libraries raise over damaged files has no common class
        raise ValueError(
            f"{home} cannot be loaded ({type(error).__name__}: {error}); fetch or save it again"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' bars and load reports: what they would say is raised as an error here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    no_hub_bars = hub_utils.are_progress_bars_disabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        # Enabling bars that the environment switched off for good would warn.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if bars:
                log.enable_progress_bar()
            if no_hub_bars:
                hub_utils.disable_progress_bars()


def _check_class(folder: Path, name: str, value: list) -> None:
    class_name = value[1] if len(value) == 2 else None
    if not isinstance(class_name, str):
        raise ValueError(f"{folder / INDEX} has {name}: {value!r}; expected a pair of library and class name")
    if PARTS[name].classes and class_name not in PARTS[name].classes:
        raise ValueError(
            f"{folder / INDEX} names {class_name} as its {name}; supported: {', '.join(PARTS[name].classes)}"
        )


def _check_part(folder: Path, name: str, index: Mapping[str, Any], variant: str | None) -> str | None:
    """Check one component's files; returns the variant that its weights come in."""
    if not isinstance(index.get(name), list) or not index[name] or index[name][0] is None:
        raise ValueError(f"{folder / INDEX} names no {name}; pass one to from_pretrained, or take a whole model folder")
    return _check_files(name, folder / name, variant)


def _check_files(name: str, home: Path, variant: str | None) -> str | None:
    part = PARTS[name]
    if not home.is_dir():
        raise FileNotFoundError(f"{home} is missing; the model folder is not complete")
    read_json(home / part.config)
    if name == "tokenizer":
        _check_vocabulary(home)
    if part.stem is None:
        return None
    weights = weight_name({path.name for path in home.iterdir()}, part.stem, variant, str(home))
    check_weights(home / weights)
    return variant if variant and f".{variant}." in weights else None


def _check_vocabulary(home: Path) -> None:
    """A tokenizer is one tokenizer.json, or the vocabulary and the merges of older ones."""
    if (home / "tokenizer.json").is_file():
        read_json(home / "tokenizer.json")
        return
    read_json(home / "vocab.json")
    if not (home / "merges.txt").is_file():
        raise FileNotFoundError(f"{home / 'merges.txt'} is missing; the model folder is not complete")


def _load_vae(folder: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, variant=variant, use_safetensors=True)


def _load_unet(folder: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, variant=variant, use_safetensors=True)


def _load_text_encoder(folder: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> Any:
    options = {"variant": variant} if variant else {}
    try:
        with quiet_transformers():
            model, info = getattr(transformers, class_name).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
    wrong = {kind: sorted(key for key in info[kind] if not _NO_WEIGHT.fullmatch(key)) for kind in _KEY_REPORTS}
    if any(wrong.values()):
        told = "; ".join(f"{label} {', '.join(wrong[kind][:5])}" for kind, label in _KEY_REPORTS.items() if wrong[kind])
        raise ValueError(f"the weights in {folder} are not those of its config.json: {told}; fetch or save them again")
    # Numbers in config.json that make no sense show themselves when the tower runs.
    with torch.no_grad():
        model(torch.tensor([[0, model.config.eos_token_id]]))
    return model


_KEY_REPORTS = {"missing_keys": "missing", "unexpected_keys": "unexpected"}


def _load_tokenizer(folder: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> Any:
    tokenizer = getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < _SHORTEST_CONTEXT:
        raise ValueError(
            f"{folder} has model_max_length={longest!r}; expected a whole number of tokens, at least "
            f"{_SHORTEST_CONTEXT}"
        )
    return tokenizer


def _load_scheduler(folder: Path, class_name: str, dtype: torch.dtype, variant: str | None) -> Any:
    if not read_json(folder / PARTS["scheduler"].config):
        raise ValueError(f"{folder} describes no noise schedule; fetch or save the model again")
    return scheduler_class(class_name, of_model=True).from_pretrained(folder)


PARTS = {
    "vae": _Part("config.json", "diffusion_pytorch_model", ("AutoencoderKL",), _load_vae),
    "text_encoder": _Part("config.json", "model", ("CLIPTextModel",), _load_text_encoder),
    "tokenizer": _Part("tokenizer_config.json", None, _TOKENIZERS, _load_tokenizer),
    "unet": _Part("config.json", "diffusion_pytorch_model", ("UNet2DConditionModel",), _load_unet),
    "scheduler": _Part("scheduler_config.json", None, (), _load_scheduler),
}


def _fetch(repo: str, variant: str | None, hub: HubOptions) -> Path:
    """Download what the parts need of one resolved revision; without a network, take the cache's copy of it."""
    problem: Exception | None = None
    if not hub.local_files_only:
        try:
            info = HfApi(token=hub.token).model_info(repo, revision=hub.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            asked = repo if hub.revision is None else f"{repo} at revision {hub.revision}"
            raise FileNotFoundError(
                f"there is no folder {repo} here and no model {asked} on the Hub that you may read; check the name"
            ) from error
        except Exception as error:  # the Hub's client has no common class for "the network does not answer"
            problem = error
        else:
            try:
                return _download(repo, info.sha, {file.rfilename for file in info.siblings or []}, variant, hub)
            except (ValueError, OSError):
                raise
            except Exception as error:  # a connection that breaks off has no common class either
                raise OSError(
                    f"the download of {repo} broke off ({type(error).__name__}: {error}); run it again, what is there "
                    "is kept"
                ) from error
    try:
        # Asked for the index alone: a download takes less than the whole repository, and all parts are checked later.
        where: dict[str, Any] = {"revision": hub.revision, "cache_dir": hub.cache_dir, "allow_patterns": [INDEX]}
        return Path(snapshot_download(repo, local_files_only=True, **where))
    except OSError as error:
        reason = f"the Hub cannot be reached ({type(problem).__name__})" if problem else "local_files_only is set"
        raise FileNotFoundError(
            f"there is no folder {repo} here, {reason} and the Hub's cache has no copy of that model"
        ) from error


def _download(repo: str, revision: str | None, files: set[str], variant: str | None, hub: HubOptions) -> Path:
    if INDEX not in files:
        raise FileNotFoundError(f"the Hub's {repo} has no {INDEX}; expected a model in diffusers' folder layout")
    where: dict[str, Any] = {"cache_dir": hub.cache_dir, "token": hub.token}
    index = read_index(Path(hf_hub_download(repo, INDEX, revision=revision, **where)).parent)
    wanted = [INDEX]
    for name in PARTS.keys() - hub.without:
        part = PARTS[name]
        names = {file.removeprefix(f"{name}/") for file in files if file.startswith(f"{name}/")}
        small = [file for file in names if file.endswith((".json", ".txt")) and ".index." not in file]
        if part.stem and isinstance(index.get(name), list):
            weights = weight_name(names, part.stem, variant, f"{repo}/{name}")
            small += shard_names(names, part.stem, weights)
        wanted += [f"{name}/{file}" for file in small]
    # By name, so that the cache knows the name when there is no network; again if the name has moved meanwhile.
    folder = Path(snapshot_download(repo, allow_patterns=wanted, revision=hub.revision, **where))
    if folder.name != revision:
        folder = Path(snapshot_download(repo, allow_patterns=wanted, revision=revision, **where))
    return folder
