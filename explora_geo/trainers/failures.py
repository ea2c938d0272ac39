"""What a run says when one of its processes dies."""

_WORKER = (
    'a process that loads data died ({}): it was most likely killed for memory, so lower num_workers or '
    'batch_size of the data, or leave out its cache, and go on with --ckpt_path last.ckpt'
)
_PEER = (
    'another process of this run died or cannot be reached ({}): see what it said, and go on with '
    '--ckpt_path last.ckpt'
)
# How torch's backends say that the other end of a connection is gone.
_GONE = ('connection closed by peer', 'connection reset by peer', 'broken pipe', 'timed out waiting', 'nccl')


def explain(error: RuntimeError) -> str | None:
    """One sentence about a process that died.

    Args:
        error: What torch raised.

    Returns:
        The sentence, or None if the error is another.
    """
    text = ' '.join(str(error).split())
    if 'DataLoader worker' in text:
        return _WORKER.format(text.rstrip('. '))
    if any(words in text.lower() for words in _GONE):
        return _PEER.format(text.rstrip('. '))
    return None
