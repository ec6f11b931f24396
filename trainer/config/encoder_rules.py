"""What fits together in an encoder's shape."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.sections.model import EncoderShape
from trainer.errors import Problem

# The settings that only some families have, with a value to propose.
_SOME_HAVE = {
    "type_vocab_size": (("bert", "roberta"), 2),
    "local_attention": (("modernbert",), 128),
    "global_attention_every": (("modernbert",), 3),
}
_DISTILBERT_EPS = 1e-12  # written into transformers 5.23, not a setting of the family


def encoder_problems(model: EncoderShape) -> Iterator[Problem]:
    for name, (families, proposed) in _SOME_HAVE.items():
        has, given = model.family in families, getattr(model, name)
        if has and given is None:
            yield Problem(f"model.{name}", f"{model.family} needs it", f"model.{name}={proposed}")
        if not has and given is not None:
            what = f"{model.family} has no such setting and would leave it unused"
            yield Problem(f"model.{name}", what, f"model.{name}=null")
    if model.family == "distilbert" and model.norm_eps != _DISTILBERT_EPS:
        what = f"distilbert's is {_DISTILBERT_EPS}, and cannot be set"
        yield Problem("model.norm_eps", what, f"model.norm_eps={_DISTILBERT_EPS}")
    if 0 < model.vocab_size <= model.pad_token_id:
        what = f"{model.pad_token_id} is no entry of an embedding of {model.vocab_size:,}"
        yield Problem("model.pad_token_id", what, "model.vocab_size=0")
    width = model.hidden_size // model.num_attention_heads
    if model.family == "modernbert" and width % 2:
        what = f"rotary positions need heads of an even width, not {width}"
        yield Problem("model.num_attention_heads", what, "")
