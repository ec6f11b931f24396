"""The token with which a decoder begins every target, of the model section of a run's settings.

It decides what is stored of examples, and so it is asked where stores are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.json_file import read_untrusted_json

# Of the families of encoder-decoders: where config.json names it, and what stands for it otherwise.
_OTHERWISE = {"t5": ("pad_token_id", 0), "bart": ("eos_token_id", 2)}


def decoder_start(model: Mapping[str, Any]) -> int | None:
    """`model`: plain values. None for models that are no encoder-decoders, and for folders that
    cannot be read, which whoever plans refuses.
    """
    if model.get("kind") == "encoder_decoder":
        return int(model["decoder_start_token_id"])
    if model.get("kind") != "folder":
        return None
    try:
        config = read_untrusted_json(Path(str(model["path"])) / "config.json", limit_bytes=1 << 20)
        name, default = _OTHERWISE[config["model_type"]]
        start = config.get("decoder_start_token_id")
        found = config.get(name) if start is None else start
        return default if found is None else int(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
