"""Weights in and out: huggingface_hub's mixin (safetensors only, strict), and the authors' released files.

A network is `class X(nn.Module, Pretrained)` and gets `from_pretrained`, `save_pretrained` and `push_to_hub`; where authors
released weights it has `X.from_official(state_dict, **official_kwargs)`, written with `load_official`.
"""

from __future__ import annotations

import argparse
import inspect
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from paperworks.errors import InputError

WEIGHTS = "model.safetensors"
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""names under which training scripts put the weights beside optimiser state; the first that is there is taken, averaged weights
before the last step's: published accuracies are theirs"""

Rename = Callable[[str], str] | Mapping[str, str]

M = TypeVar("M", bound=nn.Module)


class Pretrained(PyTorchModelHubMixin):
    """Constructor arguments go to config.json, weights to model.safetensors; both are needed to build the network again.

    Arguments that JSON cannot hold (a class, a function) make `save_pretrained` an InputError instead of a broken folder.
    """

    _not_storable: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls, *args, **kwargs)
        names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        given = dict(zip(names, args)) | kwargs
        instance._not_storable = tuple(name for name, value in given.items() if not cls._is_jsonable(value))
        return instance

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._not_storable:
            raise InputError(
                f"{type(self).__name__} was built with {', '.join(self._not_storable)}, which config.json cannot hold; "
                "pass names or numbers, or save its state_dict() with safetensors"
            )
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Any:
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        if Path(model_id).is_dir():
            file = Path(model_id) / WEIGHTS
            if not file.is_file():
                raise InputError(f"{model_id} has no {WEIGHTS}; save_pretrained writes one")
        else:
            try:
                file = Path(
                    hf_hub_download(
                        model_id,
                        WEIGHTS,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        token=token,
                        local_files_only=local_files_only,
                    )
                )
            except EntryNotFoundError:
                raise InputError(f"{model_id} on the hub has no {WEIGHTS}; pickled weights are not loaded") from None
        try:
            load_model(model, file, strict=strict, device=map_location)
        except RuntimeError as error:
            raise InputError(f"{file} does not fit {cls.__name__}: {' '.join(str(error).split())}") from None
        return model.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file or a torch checkpoint (tensors only, code in it is never run).

    Takes the weights out of a training checkpoint (see WRAPPERS) and drops a `module.` prefix left by data-parallel wrappers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is not a checkpoint of plain tensors: {str(error).splitlines()[0]}") from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state dict, neither directly nor under {', '.join(WRAPPERS)}")
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def load_official(model: M, state_dict: Mapping[str, Tensor], rename: Rename | None = None, ignore: Iterable[str] = ()) -> M:
    """Load the authors' weights into `model`, strictly, and return it.

    rename: official key -> our key, as a function, or as regular expressions with replacements applied in order.
    ignore: prefixes of official keys that we do not need (buffers that we compute, training-only parts).
    Raises InputError listing all missing, unexpected and misshapen keys at once.
    """
    prefixes = tuple(ignore)
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if prefixes and key.startswith(prefixes):
            continue
        name = _renamed(key, rename)
        if name in theirs:
            raise InputError(f"{type(model).__name__}: two keys of the file become {name}, the second is {key}")
        theirs[name] = value
    problems = []
    # counters of batch norm's batches are not part of what a network computes, and older files lack them
    missing = [name for name in ours if name not in theirs and not name.endswith("num_batches_tracked")]
    for what, names in (("missing", missing), ("unexpected", [name for name in theirs if name not in ours])):
        if names:
            problems.append(f"{len(names)} {what}: {_list(names)}")
    misshapen = [
        f"{name} {list(value.shape)} instead of {list(ours[name].shape)}"
        for name, value in theirs.items()
        if name in ours and value.shape != ours[name].shape
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} of another shape: {_list(misshapen)}")
    if problems:
        raise InputError(f"weights do not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(theirs, strict=False)
    return model


def _renamed(key: str, rename: Rename | None) -> str:
    if rename is None:
        return key
    if callable(rename):
        return rename(key)
    for pattern, replacement in rename.items():
        key = re.sub(pattern, replacement, key)
    return key


def _list(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
