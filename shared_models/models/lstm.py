"""Recurrent classifiers: the last hidden state of an LSTM, then a linear head."""

from __future__ import annotations

from torch import Tensor, nn


class SensorLstm(nn.Module):
    """Classifies windows of sensor readings `(n, time, channels)`."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(channels, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(n, classes)`."""
        states, _ = self.encoder(x)
        logits: Tensor = self.head(states[:, -1])
        return logits


class TextEncoder(nn.Module):
    """Embeds tokens `(n, time)` and runs stacked LSTM layers over them."""

    def __init__(self, vocabulary: int, embedding: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, width, num_layers=layers, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the last hidden state `(n, width)`."""
        states: Tensor = self.lstm(self.embedding(tokens))[0]
        return states[:, -1]


class NextCharacterLstm(nn.Module):
    """Predicts the character that follows: embedding 8, two LSTM layers of 256 (McMahan 2017)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = TextEncoder(vocabulary, embedding=8, width=256, layers=2)
        self.head = nn.Linear(256, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits `(n, vocabulary)`."""
        logits: Tensor = self.head(self.encoder(tokens))
        return logits
