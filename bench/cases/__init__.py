"""One module per op, named as the op, with `cases(*, tiny) -> list[Case]`."""
