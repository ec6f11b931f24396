"""Folders for others: the config transformers reads, and loading one the way a user would."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.batch import CHOSEN, REJECTED
from trainer.config.sections.model import FolderModel, Model
from trainer.errors import ModelError
from trainer.models.build import model_class_of
from trainer.models.encoder import EncoderModel
from trainer.models.encoder_decoder import EncoderDecoderModel, has_own_output
from trainer.models.heads import HeadKind, HeadSpec
from trainer.models.hf_config import family_of, hf_config
from trainer.models.pairs import pairs_of
from trainer.models.reward import RewardModel

_AUTO: dict[HeadKind | None, str] = {
    None: "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "nsp": "AutoModelForPreTraining",
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "spans": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "reward": "AutoModelForSequenceClassification",
}


def save_config(
    section: Model,
    folder: Path,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    end_of_text_id: int | None,
    head: HeadSpec | None = None,
) -> None:
    """Write config.json, and generation_config.json of a model that generates.

    `end_of_text_id`: of a model that generates; an encoder-decoder keeps its folder's for None.
    Raises: as hf_config.
    """
    config = hf_config(section, vocab_size, head=head)
    config.dtype = dtype
    config.architectures = [model_class_of(family_of(section), head)]
    if head is None:
        config.use_cache = True
        config.bos_token_id = config.eos_token_id = config.pad_token_id = end_of_text_id
    generates = head is None or head.kind == "seq2seq"
    if generates and head is not None:
        config.use_cache = True
        if end_of_text_id is not None:
            config.eos_token_id = end_of_text_id
        if has_own_output(section):  # as T5 1.1's says; transformers would write what it made of it
            config.tie_word_embeddings = False
    config.save_pretrained(folder)
    if generates:
        transformers = importlib.import_module("transformers")
        transformers.GenerationConfig.from_model_config(config).save_pretrained(folder)


def causal_lm(section: Model, *, vocab_size: int) -> Any:
    """transformers' own model of that shape, fp32 on the CPU, with values nobody chose yet."""
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_config(
        hf_config(section, vocab_size), attn_implementation=section.attention
    )


def load_base(
    section: FolderModel, *, vocab_size: int, dtype: torch.dtype, head: HeadSpec | None
) -> Any:
    """The frozen folder under the task's head, as a user loads it before an adapter: what the
    folder lacks of the head is new. Raises: ModelError with what transformers said.
    """
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    auto = getattr(transformers, _AUTO[head.kind if head else None])
    config = hf_config(section, vocab_size, head=head)
    try:
        return auto.from_pretrained(
            section.path, config=config, dtype=dtype, ignore_mismatched_sizes=True,
            local_files_only=True,
        )  # fmt: skip
    except Exception as e:  # transformers raises many types
        raise ModelError(f"transformers cannot load {section.path}: {e}") from e


def load_pretrained(folder: Path, *, dtype: torch.dtype, head: HeadSpec | None = None) -> Any:
    """`AutoModelFor....from_pretrained`, which must set every weight and meet no other.

    Raises: ModelError naming what is missing or too much, or what transformers said.
    """
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()  # it would run through our own lines
    auto = getattr(transformers, _AUTO[head.kind if head else None])
    try:
        model, report = auto.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as e:  # transformers raises many types
        raise ModelError(f"transformers cannot load {folder}: {e}") from e
    wrong = {k: sorted(v) for k, v in report.items() if v and k != "error_msgs"}
    if wrong or report.get("error_msgs"):
        raise ModelError(f"transformers does not find in {folder} what it expects: {wrong}")
    model.eval()
    return model


# --- answers example by example -------------------------------------------------------------------


@torch.no_grad()
def our_answers(
    model: EncoderModel | EncoderDecoderModel | RewardModel, fields: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The logits of each example of packed rows: (C,) of a sequence head, else (length, ...).

    Of rewards: a number for each answer, those that are preferred first.
    """
    if isinstance(model, EncoderDecoderModel):
        logits = model(fields, want="logits")
        return [logits[row, at] for row, at in _examples(fields["decoder_documents_RS"])]
    if isinstance(model, RewardModel):
        pairs, real = pairs_of(fields), fields["first_E"] >= 0
        last_A = torch.cat([pairs.last_chosen_E[real], pairs.last_rejected_E[real]])
        return list(model(fields["inputs_RT"], pairs.positions_RT, last_A).unsqueeze(-1))
    kind = model.head_spec.kind
    if kind == "sequence":
        real = fields["first_E"] >= 0
        return list(model(fields, want="sequence")[real])
    if kind == "nsp":
        follows_EC = model(fields, want="sequence")[fields["first_E"] >= 0]
        said = model(fields, want="mlm_logits")
        words = [said[row, at] for row, at in _examples(fields["documents_RT"])]
        return [torch.cat([w.flatten(), f]) for w, f in zip(words, follows_EC, strict=True)]
    if kind == "spans":
        logits = torch.stack(model(fields, want="spans"), dim=-1)
    else:
        logits = model(fields, want="tokens" if kind == "tokens" else "mlm_logits")
    return [logits[row, at] for row, at in _examples(fields["documents_RT"])]


@torch.no_grad()
def their_answers(
    theirs: Any, fields: Mapping[str, torch.Tensor], *, head: HeadSpec
) -> list[torch.Tensor]:
    """The same of `load_pretrained`'s model, given one example at a time as a user would."""
    if head.kind == "reward":
        both = [_examples(_numbers(fields, whose)) for whose in (CHOSEN, REJECTED)]
        places = [place for answers in both for place in answers]
        return [theirs(fields["inputs_RT"][row, at].unsqueeze(0)).logits[0] for row, at in places]
    if head.kind == "seq2seq":
        return list(_said_of_pairs(theirs, fields))
    found = []
    for row, at in _examples(fields["documents_RT"]):
        given = {"input_ids": fields["inputs_RT"][row, at].unsqueeze(0)}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if "segments_RT" in fields and hasattr(theirs.config, "type_vocab_size"):
            given["token_type_ids"] = fields["segments_RT"][row, at].unsqueeze(0)
        said = theirs(**given)
        if head.kind == "spans":
            found.append(torch.stack([said.start_logits[0], said.end_logits[0]], dim=-1))
        elif head.kind == "nsp":
            words, follows = said.prediction_logits[0], said.seq_relationship_logits[0]
            found.append(torch.cat([words.flatten(), follows]))
        else:
            found.append(said.logits[0])
    return found


def _numbers(fields: Mapping[str, torch.Tensor], whose: int) -> torch.Tensor:
    """The number of each pair within its row where one of its answers stands, else 0."""
    return fields["documents_RT"] * (fields["answers_RT"] == whose)


def _said_of_pairs(theirs: Any, fields: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Each target's logits, its source read whole."""
    sources = _examples(fields["documents_RT"])
    targets = _examples(fields["decoder_documents_RS"])
    for (row, read), (_, said) in zip(sources, targets, strict=True):
        yield theirs(
            input_ids=fields["inputs_RT"][row, read].unsqueeze(0),
            decoder_input_ids=fields["decoder_inputs_RS"][row, said].unsqueeze(0),
            use_cache=False,
        ).logits[0]


def _examples(documents_RT: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Row and places of every example, in the order of the rows."""
    for row, documents_T in enumerate(documents_RT):
        for number in range(1, int(documents_T.max()) + 1):
            places = (documents_T == number).nonzero().squeeze(-1)
            yield row, slice(int(places[0]), int(places[-1]) + 1)
