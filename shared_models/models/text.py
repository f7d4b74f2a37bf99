"""Text classifiers: embedded words, one recurrent layer, a linear head on its last state."""

from __future__ import annotations

from torch import Tensor, nn


class WordEncoder(nn.Module):
    """Embeds tokens `(n, time)` and runs one recurrent layer over them."""

    def __init__(self, embedding: nn.Embedding, layer: nn.RNN | nn.LSTM) -> None:
        super().__init__()
        self.embedding = embedding
        # torch's own start, ten times as wide, hides for long what is learnt of a rare word.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.recurrent = layer

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the last hidden state `(n, width)`."""
        states: Tensor = self.recurrent(self.embedding(tokens))[0]
        return states[:, -1]


class TextClassifier(nn.Module):
    """Tells what a text is, from tokens `(n, time)`."""

    def __init__(self, encoder: WordEncoder, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits `(n, classes)`."""
        logits: Tensor = self.head(self.encoder(tokens))
        return logits


def text_rnn(classes: int = 2, vocabulary: int = 10_000) -> TextClassifier:
    """Embedding 256, a simple (Elman) RNN of 128: 2,609,666 parameters for two classes."""
    encoder = WordEncoder(nn.Embedding(vocabulary, 256), nn.RNN(256, 128, batch_first=True))
    return TextClassifier(encoder, 128, classes)


def text_lstm(classes: int = 2, vocabulary: int = 10_000) -> TextClassifier:
    """Embedding 256, an LSTM of 128: 2,757,890 parameters for two classes."""
    encoder = WordEncoder(nn.Embedding(vocabulary, 256), nn.LSTM(256, 128, batch_first=True))
    return TextClassifier(encoder, 128, classes)
