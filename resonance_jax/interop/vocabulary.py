"""Whether a tokenizer fits a decoder."""


def check_vocabulary(tokens: int | None, embedded: int, name: str) -> None:
    """Raise ValueError when a tokenizer has more tokens than a decoder embeds.

    Args:
        tokens: of the tokenizer; None where it is not known.
        embedded: how many tokens the decoder embeds.
        name: of the decoder, for people.
    """
    if tokens is not None and tokens > embedded:
        raise ValueError(
            f"the tokenizer has {tokens} tokens, but {name} embeds {embedded}; give the model's own with "
            "--tokenizer."
        )
