"""The shapes of model there are: each is called in its own way, and named by Hugging Face."""

from __future__ import annotations

from trainer.models.encoder import EncoderModel
from trainer.models.encoder_decoder import EncoderDecoderModel
from trainer.models.language_model import LanguageModel
from trainer.models.reward import RewardModel

AnyModel = LanguageModel | EncoderModel | EncoderDecoderModel | RewardModel
