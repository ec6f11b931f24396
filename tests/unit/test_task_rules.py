"""What a task asks of its settings: each problem in one sentence, with what to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import config
from trainer.errors import ConfigError
from trainer.planning import make_plan, shape_of

EXAMPLES = ("data=examples", "data.sources.examples.paths=[a.csv]", "data.tokenizer.path=tokenizer")
ENCODER = ("model=encoder_debug", *EXAMPLES)

REFUSED = {
    "labels of a task without any": (
        ("task=extract_qa", *ENCODER, "data.labels=[a,b]"),
        ("data.labels", "extract_qa has no labels", "data.labels=null"),
    ),
    "one tag": (
        ("task=tag", *ENCODER, "data.labels=[O]"),
        ("data.labels", "1 labels are no choice", "data.labels=null, to take those of the data"),
    ),
    "a label that says none, which is no label": (
        ("task=relations", *ENCODER, "data.labels=[Other,Cause]", "task.none=Othr"),
        ("task.none", "'Othr' is none of data.labels", "task.none=Other"),
    ),
    "a prompt without its source": (
        ("task=seq2seq", *EXAMPLES, "task.prompt=translate"),
        (
            "task.prompt",
            "it has to hold {source} once, where the text that is read goes",
            "task.prompt='{source}'",
        ),
    ),
    "prompts read both ways without a mask": (
        ("task=seq2seq", *EXAMPLES, "task.prefix_lm=true", "model.attention=flash_attention_2"),
        (
            "model.attention",
            "flash_attention_2 takes no mask, which prompts that are read both ways need",
            "model.attention=sdpa, or task.prefix_lm=false",
        ),
    ),
    "virtual tokens before prompts read both ways": (
        (
            "task=seq2seq", *EXAMPLES, "task.prefix_lm=true", "data.packing=false",
            "model/adapter=prompt",
        ),
        (
            "model.adapter",
            "virtual tokens stand before prompts, and task.prefix_lm reads those both ways alone",
            "model/adapter=lora, or task.prefix_lm=false",
        ),
    ),
    "noise that orpo does not reckon with": (
        ("task=preference", *EXAMPLES, "task.loss=orpo", "task.label_smoothing=0.1"),
        (
            "task.label_smoothing",
            "pairs the wrong way round are reckoned with by dpo alone",
            "task.label_smoothing=0, or task.loss=dpo",
        ),
    ),
    "one class's probability where there is none": (
        ("task=classify", *ENCODER, "task.answers=multi", "task.label_smoothing=0.1"),
        (
            "task.label_smoothing",
            "it spreads the probability of one class, and task.answers is multi",
            "task.label_smoothing=0",
        ),
    ),
    "a tokenizer without a mask": (
        ("task=masked_lm", "model=encoder_debug"),
        (
            "data.tokenizer",
            "a tokenizer that is trained here has no mask token, which masked_lm needs",
            "data/tokenizer=pretrained data.tokenizer.path=FOLDER, of an encoder",
        ),
    ),
    "more than all tokens": (
        (
            "task=masked_lm", "model=encoder_debug", "data/tokenizer=pretrained",
            "data.tokenizer.path=tokenizer", "task.to_random=0.3",
        ),
        (
            "task.to_random",
            "with task.to_mask=0.8 it is more than all of the hidden tokens",
            "task.to_random=0.2",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_a_task_cannot_have(name: str) -> None:
    overrides, said = REFUSED[name]
    with pytest.raises(ConfigError) as seen:
        config(*overrides)
    assert [(p.where, p.what, p.fix) for p in seen.value.problems] == [said]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (
            {"model_type": "mistral", "sliding_window": 8},
            "layers of mistral see no further than 8 tokens (a sliding window), and a prompt is "
            "read whole",
        ),
        (
            {"model_type": "bart", "encoder_layers": 1, "decoder_layers": 1, "d_model": 32}
            | {
                f"{w}_{n}": 4
                for w in ("encoder", "decoder")
                for n in ("attention_heads", "ffn_dim")
            },
            "bart reads its source both ways already, in a stack of its own",
        ),
        ({"model_type": "mistral", "sliding_window": None}, ""),
        ({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": False}, ""),
    ],
)
def test_families_that_cannot_read_a_prompt_both_ways(
    tmp_path: Path, family: dict[str, object], said: str
) -> None:
    shape = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512, "decoder_start_token_id": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape | family))
    folder = ("model=hf_folder", f"model.path={tmp_path}", "model.weights=fresh")
    wanted = config("task=seq2seq", "task.prefix_lm=true", "data.packing=false", *folder, *EXAMPLES)
    if not said:
        shape_of(wanted, vocab_size_of_tokenizer=128)
        return
    with pytest.raises(ConfigError) as seen:
        shape_of(wanted, vocab_size_of_tokenizer=128)
    (problem,) = [p for p in seen.value.problems if p.where == "task.prefix_lm"]
    assert (problem.what, problem.fix) == (said, "task.prefix_lm=false")


def test_markers_that_the_embedding_has_no_room_for(tmp_path: Path) -> None:
    shape = {
        "model_type": "bert", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    folder = ("model=hf_folder", f"model.path={tmp_path}", "model.weights=fresh")
    wanted = config("task=relations", *folder, *EXAMPLES)
    with pytest.raises(ConfigError) as seen:
        make_plan(
            wanted,
            attempt=1,
            run_id="r",
            stores=(),
            device="cpu",
            cores=1,
            vocab_size_of_tokenizer=132,
        )
    (problem,) = seen.value.problems
    assert problem.where == "model.vocab_size"
    assert problem.what.endswith("128 entries; task.markers are new tokens")
    assert problem.fix == "model.vocab_size=192, or task.new_tokens=false"


def test_held_out_files_are_read_as_their_source_is_unless_they_say_otherwise() -> None:
    """Or scores are of titles alone where titles and bodies are trained on."""
    data: Any = config(
        "task=classify",
        *ENCODER,
        "data.sources.examples.paths=[train.txt]",
        "data.sources.examples.format=csv",
        "data.sources.examples.columns={text: [title, body], label: stars}",
        "data.sources.examples.on_bad_line=skip",
        "data.held_out={examples: {paths: [test.jsonl], format: jsonl}}",
    ).data
    held_out = data.held_out["examples"]
    assert held_out.columns == {"text": ("title", "body"), "label": "stars"}
    assert (held_out.format, held_out.on_bad_line) == ("jsonl", "skip")
    assert held_out.paths == ("test.jsonl",)
    again = type(data).model_validate(data.model_dump(mode="json"))
    assert again == data
