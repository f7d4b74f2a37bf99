"""Text classification: is a short text negative or positive?"""

from __future__ import annotations

from shared_models.datasets.sentiment import VOCABULARY, WINDOW
from shared_models.inputs import InputSpec
from shared_models.models.text import text_lstm, text_rnn
from shared_models.tasks.classification import classification

_WORDS = InputSpec(shape=(WINDOW,), dtype="int64", tokens=VOCABULARY)

TEXT_RNN = classification("text-rnn", "sentiment", _WORDS, text_rnn)
TEXT_LSTM = classification("text-lstm", "sentiment", _WORDS, text_lstm)
