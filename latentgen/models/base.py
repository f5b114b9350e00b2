"""What every network shares: strict loading of configurations and weights, and checks of what is asked for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from latentgen.configuration import check_types, one_of
from latentgen.models.attention import BACKENDS, DEFAULT_BACKEND, Attention

Model = TypeVar("Model", bound="StrictModel")

# diffusers 0.42 warns of every change of dtype, even where the list of what had to stay float32 is empty.
logging.getLogger("diffusers.models.modeling_utils").addFilter(
    lambda record: "should be kept in float32: []" not in record.getMessage()
)

# Keys that a config.json may carry beside the constructor's keywords; the second line's are left by diffusers'
# EMAModel, which saves its own state there.
_BOOKKEEPING = frozenset({"quantization_config", "auto_map"}) | {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
}
# How many tensor names an error message lists before it only counts.
_NAMES_SHOWN = 5
# The part of diffusers' and torch's messages that names the tensor whose shape does not fit, and the shapes.
_MISFIT = re.compile(r"\S+ expected shape .*?, but got torch\.Size\(\[.*?\]\)|size mismatch for .*")


def at_least(name: str, value: Any, least: int) -> None:
    """Check a number or each of several; None is nobody's choice.

    Raises:
        ValueError: One is smaller.
    """
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if one is not None and one < least:
            raise ValueError(f"{name}={value!r}; expected {least} or more")


def per_level(name: str, value: Any, levels: int) -> tuple:
    """Spread a keyword that may be one value or a list with one value a level over all levels.

    Raises:
        ValueError: A list of another length was given.
    """
    if not isinstance(value, (list, tuple)):
        return (value,) * levels
    if len(value) != levels:
        raise ValueError(
            f"{name}={value!r} has {len(value)} entries; expected one value or {levels}, one for each level"
        )
    return tuple(value)


def required(config: Any, *names: str) -> None:
    """Check that keywords which others depend on have a value.

    Raises:
        ValueError: One is None.
    """
    for name in names:
        if config[name] is None:
            raise ValueError(f"{name}=None, but the other keywords of this configuration need it; give it a value")


def groups_fit(name: str, channels: int, groups: int) -> None:
    """Check that a group normalisation over `channels` can be built.

    Raises:
        ValueError: `groups` does not divide `channels`.
    """
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{name}: norm_num_groups={groups!r} does not divide {channels} channels; choose a divisor of it"
        )


class Checkpointed(nn.Module):
    """A module whose parts can run under gradient checkpointing; `enable_gradient_checkpointing` of a model sets it."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def through(self, part: nn.Module, *inputs: Any) -> Tensor:
        """What `part` makes of `inputs`."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)


class StrictModel(ModelMixin, ConfigMixin):
    """A diffusers model whose folder either fits whole or is refused.

    diffusers warns about configuration keys it does not know and about weights that are missing or left over, and
    goes on with random values. Here both are errors.
    """

    config_name: Any = "config.json"
    # Text is projected for all levels at once, by layers of blocks that have not run yet: no block can be left behind
    # on another device until then.
    _supports_group_offloading = False
    _internal_dict: Any

    @property
    def config(self) -> Any:
        """The constructor's keywords and their values, by attribute or by key."""
        return self._internal_dict

    @classmethod
    def from_config(
        cls: type[Model],
        config: Any = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Model | tuple[Model, dict[str, Any]]:
        """Build the model, with random weights, from a configuration.

        Args:
            config: The content of a `config.json`, a dict.
            return_unused_kwargs: Give back what the constructor does not know instead of raising.
            **kwargs: Keywords that overrule `config`.

        Raises:
            ValueError: The configuration is of another class or has a key that this class does not know.
        """
        if isinstance(config, dict):
            written_by = config.get("_class_name", cls.__name__)
            if written_by != cls.__name__:
                raise ValueError(
                    f"this configuration describes a {written_by!r}, not a {cls.__name__!r}; load it with its own class"
                )
            if not return_unused_kwargs:
                known = cls._get_init_keys(cls) | _BOOKKEEPING
                unknown = {k: v for k, v in {**config, **kwargs}.items() if k not in known and not k.startswith("_")}
                if unknown:
                    raise ValueError(
                        f"{cls.__name__} does not know the configuration keys {unknown!r}; remove them from "
                        f"{cls.config_name} (or from the call) if they do not change the network"
                    )
            check_types(cls, {**config, **kwargs})
        try:
            return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        except (TypeError, RuntimeError, ZeroDivisionError) as error:
            # A configuration comes from a file: a value of the wrong kind is bad input, not a bug here.
            raise ValueError(f"this configuration of a {cls.__name__} cannot be built: {error}") from error

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> Any:
        """Load a folder or a Hub id as diffusers does, but fail unless the file holds exactly this network's tensors.

        Args:
            pretrained_model_name_or_path: A folder with `config.json` and weights, or a Hub id.
            **kwargs: diffusers' loading options (`torch_dtype`, `subfolder`, `revision`, `variant`, ...). With
                `output_loading_info=True` a pair (model, info) is returned.

        Raises:
            ValueError: A tensor is missing, left over or of another shape; the configuration is not supported; or
                pickled weights were asked for.
            FileNotFoundError: There is no such folder, or it holds no configuration.
            OSError: A file in it cannot be read.
        """
        with_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True  # diffusers would fall back to pickle
        elif not kwargs["use_safetensors"]:
            raise ValueError("use_safetensors=False asks for pickles, which may run code; only safetensors are read")
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except OSError as error:
            place = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
            if (place / cls.config_name).is_file():
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FileNotFoundError(
                f"{place} is no folder with a {cls.config_name} here, and the Hub does not give it ({reason}); "
                f"expected the folder or Hub id of a saved {cls.__name__}"
            ) from error
        except (RuntimeError, ValueError) as error:
            misfit = _MISFIT.search(str(error))
            if misfit is None:
                raise
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} do not fit {cls.config_name}: {misfit.group()}"
            ) from error
        model, info = loaded
        if kwargs.get("device_map") is None:
            # An index may promise weights that its shards do not hold; diffusers leaves those without storage.
            tensors = [*model.named_parameters(), *model.named_buffers()]
            info["missing_keys"] = [*info["missing_keys"], *(name for name, tensor in tensors if tensor.is_meta)]
        # Of a tensor that does not fit diffusers tells the name and both shapes.
        info["mismatched_keys"] = [one if isinstance(one, str) else one[0] for one in info["mismatched_keys"]]
        kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape"}
        problems = [
            f"{len(set(info[kind]))} {label} ({', '.join(sorted(set(info[kind]))[:_NAMES_SHOWN])}, ...)"
            for kind, label in kinds.items()
            if info[kind]
        ]
        if problems:
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} are not those of this {cls.__name__}: "
                f"{'; '.join(problems)}; check that config.json and the weights belong together"
            )
        return (model, info) if with_info else model

    def set_attention_backend(self, backend: str) -> None:
        """Choose how attention is computed, by a name in `latentgen.models.attention.BACKENDS`.

        Raises:
            ValueError: No such backend.
        """
        one_of("attention backend", backend, BACKENDS)
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def reset_attention_backend(self) -> None:
        """Back to the default backend."""
        self.set_attention_backend(DEFAULT_BACKEND)

    def set_attention_slice(self, slice_size: Any) -> None:
        """The switch of diffusers' pipelines for attention in slices, which would do nothing here in silence.

        Raises:
            ValueError: It was switched on.
        """
        if slice_size is not None:
            raise ValueError(f"attention in slices is not among the backends; choose one of {sorted(BACKENDS)} instead")

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """The switch for xformers of diffusers, which would do nothing here in silence.

        Raises:
            ValueError: It was switched on.
        """
        if valid:
            raise ValueError(f"xformers is not among the attention backends; choose one of {sorted(BACKENDS)} instead")
