"""What figures are drawn of in these tests, and what is read back from them."""

SPLITS = ("train", "validation", "test")


def row(epoch):
    values = {
        split: {"losses": [3.0, position + 1 / epoch], "accuracies": [0.1, 0.9 - position / 10]}
        for position, split in enumerate(SPLITS)
    }
    return {"epoch": epoch, "learning_rate": 0.1 / epoch, **values}


MEASURED = {
    **{
        split: {
            "losses": [2.0, 1.0, 0.5 + position],
            "accuracies": [0.2, 0.5, 0.9 - position / 10],
            "output_residuals": [3.0, 1.0 + position],
        }
        for position, split in enumerate(SPLITS)
    },
    "parameter_norms": [5.0, 4.0],
}


def lines(axis):
    return {line.get_label(): line for line in axis.lines}
