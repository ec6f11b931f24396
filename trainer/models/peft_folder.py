"""Adapters as peft's own folders: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.config.sections.adapters import Ia3Adapter, LoraAdapter, PromptAdapter
from trainer.config.sections.model import FolderModel, Model
from trainer.errors import ModelError, Refused
from trainer.models.adapters import is_adapter, peft_config, place_of
from trainer.models.heads import HeadKind, HeadSpec
from trainer.models.language_model import LanguageModel
from trainer.models.prompts import Prompt
from trainer.models.targets import outside_the_trunk
from trainer.models.weights import SafetensorsFolder
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import Fragment
from trainer.records.json_file import read_untrusted_json

WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_TASKS: dict[HeadKind | None, str] = {
    None: "CAUSAL_LM",
    "sequence": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "spans": "QUESTION_ANS",
    "seq2seq": "SEQ_2_SEQ_LM",
    "reward": "SEQ_CLS",
}


def stored_name(name: str) -> str:
    """A trained parameter's name in peft's file."""
    bare = name.removesuffix(".weight") if ".lora_magnitude_vector." in name else name
    return f"base_model.model.{re.sub(r'[.]default(?=[.]|$)', '', bare)}"


def stored_tensors(model: AnyModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name in the file, our name, whole shape) of everything that is trained."""
    return [
        (stored_name(n), n, tuple(getattr(p, "ds_shape", p.shape)))
        for n, p in model.named_parameters()
        if p.requires_grad
    ]


def adapter_of(section: Model, head: HeadSpec | None) -> FolderModel:
    """The section of a run whose adapter peft can load over its base. Raises: Refused."""
    if not isinstance(section.adapter, LoraAdapter | Ia3Adapter | PromptAdapter):
        what = f"model/adapter={section.adapter.kind} is none that peft has a folder for"
        raise Refused(f"{what}; lora, dora, ia3, prompt, p_tuning and prefix are")
    if not isinstance(section, FolderModel) or section.weights != "pretrained":
        what = "this run's frozen model is no pretrained folder to load an adapter over"
        raise Refused(f"{what}; export the whole model, without --adapter")
    if section.vocab_size:
        what = f"model.vocab_size={section.vocab_size} added entries that {section.path} has not"
        raise Refused(f"{what}; export the whole model, without --adapter")
    if head is not None and head.kind not in _TASKS:
        what = f"a {head.kind} head has parameters of no module, which peft cannot keep"
        raise Refused(f"{what}; export the whole model, without --adapter")
    return section


def write_adapter_config(
    model: AnyModel, section: FolderModel, folder: Path, *, head: HeadSpec | None
) -> None:
    places = {place_of(name) for name, _ in model.named_parameters() if is_adapter(name)}
    config = peft_config(model, section, names=sorted(places))
    config.task_type = _TASKS[head.kind if head else None]
    config.base_model_name_or_path = section.path
    if not isinstance(section.adapter, PromptAdapter):
        config.modules_to_save = _whole_modules(model) or None
    config.inference_mode = True
    config.save_pretrained(folder)


@torch.no_grad()
def write_prompt(model: LanguageModel, folder: Path, *, dtype: torch.dtype) -> Path:
    """Virtual tokens as peft keeps them: what its network made of them, without the network."""
    assert isinstance(model.prompt, Prompt)
    [values] = model.prompt.embeddings().to(dtype)
    file = folder / WEIGHTS
    save_file({"prompt_embeddings": values.contiguous()}, file, metadata={"format": "pt"})
    file.chmod(0o600)
    return file


class PeftFolder:
    """A FragmentSource: what peft trained, by our names."""

    def __init__(self, path: Path, model: AnyModel, adapter: LoraAdapter | Ia3Adapter) -> None:
        """Raises: ModelError if the folder holds another adapter than the settings say."""
        _check_config(path, adapter)
        every = stored_tensors(model)
        self._names = {name: stored for stored, name, _ in every}
        layout = [(stored, shape) for stored, _, shape in every]
        self._stored = SafetensorsFolder(path, layout, single=WEIGHTS)

    def has(self, name: str) -> bool:
        return name in self._names

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if the file cannot be read."""
        self._stored.read(replace(fragment, name=self._names[fragment.name]), out)


def _check_config(path: Path, adapter: LoraAdapter | Ia3Adapter) -> None:
    try:
        values = read_untrusted_json(path / _CONFIG, limit_bytes=1 << 20)
    except FileNotFoundError:
        what = f"{path} is no adapter of peft's: it has no {_CONFIG}"
        raise ModelError(f"{what}; model.adapter.start=null") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}/{_CONFIG} cannot be read: {e}") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path}/{_CONFIG} is not a JSON object")
    for key, wanted, setting in _expected(adapter):
        if values.get(key) != wanted:
            raise ModelError(
                f"{path}/{_CONFIG} has {key}={values.get(key)!r}, and {setting} asks for {wanted!r}"
            )


def _expected(adapter: LoraAdapter | Ia3Adapter) -> list[tuple[str, Any, str]]:
    """(peft's setting, its value, ours)."""
    kind = "model/adapter"
    if isinstance(adapter, Ia3Adapter):
        return [("peft_type", "IA3", kind)]
    return [
        ("peft_type", "LORA", kind),
        ("use_dora", adapter.kind == "dora", kind),
        ("r", adapter.rank, "model.adapter.rank"),
        ("lora_alpha", adapter.alpha, "model.adapter.alpha"),
        ("use_rslora", adapter.rslora, "model.adapter.rslora"),
    ]


def _whole_modules(model: AnyModel) -> list[str]:
    """Names by which peft finds what is trained whole: a head as one, or the module itself."""
    outside, pooler = set(outside_the_trunk(model)), f"{model.hf.base_model_prefix}.pooler"
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or is_adapter(name):
            continue
        if name.startswith(f"{pooler}."):
            found.append(pooler)
        else:
            found.append(name.partition(".")[0] if name in outside else name.rpartition(".")[0])
    return list(dict.fromkeys(found))
