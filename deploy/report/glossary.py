"""The words of a report, for who meets them for the first time."""

from __future__ import annotations

from deploy.report.blocks import Section, Table

_WORDS = (
    ("client", "Who owns examples and trains on them: a device, or a simulated one."),
    ("server", "What asks clients to train, adds up their updates, and never sees their examples."),
    ("round", "Some clients train a copy of the model each; the server averages what comes back."),
    ("stage", "Rounds of one kind: pretraining, training, fine-tuning of a part, export to files."),
    (
        "update",
        (
            "What a client sends back: how its training changed the model. It counts when it is "
            "aggregated, that is, part of the server's average."
        ),
    ),
    (
        "refused, failed, late",
        (
            "Not usable (NaN, a wrong shape, too large); the training broke off; "
            "it came after the deadline."
        ),
    ),
    (
        "discarded, surplus",
        "Good, but its round began anew; not needed, for enough others had answered.",
    ),
    ("injected fault", "A failure that the config has simulated clients suffer on purpose."),
    ("worst tenth", "The tenth of the clients on whose examples the model is worst: their mean."),
    (
        "loss",
        (
            "How far answers are from right, as training counts it. Less is better; losses of "
            "different kinds cannot be compared."
        ),
    ),
    ("accuracy", "The share of examples that the model answers rightly, from 0 to 1."),
    (
        "IoU, Dice, mean IoU",
        (
            "How told and true masks overlap. IoU and Dice: what is looked for, in each image, and "
            "of these the mean. Mean IoU: all pixels at once, the mean over what they can be; "
            "the background, which is easy, counts in it too."
        ),
    ),
    ("partition, skew", "How examples are dealt to clients, and how unlike their labels are."),
    ("confusion matrix", "How often what truly has one label is taken for another one."),
    (
        "quantized, int8, fp32",
        "With numbers of 8 bits in the place of 32: smaller, a little worse.",
    ),
    ("ONNX, TFLite / LiteRT", "Formats of model files, and the programs that run them on devices."),
    (
        "check, gate",
        (
            "An exported file is run beside the trained model; it fails where its score "
            "falls, or its answers differ, by more than the config allows."
        ),
    ),
    ("block", "Clients that a simulation trains together, with one message for all of them."),
    (
        "aggregate, evaluate, checkpoint",
        (
            "To average updates, to measure the new model, to keep it "
            "on disk so that the run can go on from there."
        ),
    ),
)


def glossary() -> Section:
    """Returns the section that says what a report's words mean."""
    table = Table("The words of this report", ("word", "meaning"), _WORDS, folded=True)
    return Section("words", "What do the words mean?", (table,))
