"""The stages of streams that are made of other streams; the streams themselves are beside this."""

__all__: list[str] = []
