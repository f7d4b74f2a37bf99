"""Sequence classification: exercises from a wrist sensor, the next character of a play."""

from __future__ import annotations

from shared_models.datasets.shakespeare import ALPHABET, WINDOW
from shared_models.inputs import InputSpec
from shared_models.models.conv1d import SensorCnn
from shared_models.models.lstm import NextCharacterLstm, SensorLstm
from shared_models.tasks.classification import classification

# Per-channel scale (3 accelerometer, 3 gyroscope axes), rounded from subjects 1-8.
WATCH = InputSpec(
    shape=(100, 6),
    mean=(0.0, 0.38, -0.14, 0.0, 0.0, 0.0),
    std=(0.93, 0.5, 0.55, 1.0, 2.6, 1.1),
)

WATCH_CNN = classification("watch-cnn", "watch", WATCH, lambda: SensorCnn(6, 100, 7))
WATCH_LSTM = classification("watch-lstm", "watch", WATCH, lambda: SensorLstm(6, 64, 7))
WATCH_LSTM_SMALL = classification("watch-lstm-small", "watch", WATCH, lambda: SensorLstm(6, 24, 7))
SHAKESPEARE_LSTM = classification(
    "shakespeare-lstm",
    "shakespeare",
    InputSpec(shape=(WINDOW,), dtype="int64", tokens=len(ALPHABET)),
    lambda: NextCharacterLstm(len(ALPHABET)),
)
