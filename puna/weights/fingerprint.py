"""A short name of what is in a checkpoint, made without reading all of it.

Names, kinds and shapes of all tensors, and the first, middle and last bytes of each: another model, another
quantization or a fine-tuned version differs somewhere in them. It is no checksum: a flipped bit elsewhere
goes unseen.
"""

from __future__ import annotations

from hashlib import sha256

from puna.weights.load import Checkpoint

_SAMPLE = 4096  # bytes


def fingerprint(checkpoint: Checkpoint) -> str:
    """Equal for equal checkpoints, 32 hexadecimal digits."""
    digest = sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {tensor.kind} {tuple(tensor.shape)}\n".encode())
        data = tensor.data()
        middle = max(0, data.size // 2 - _SAMPLE // 2)
        for start in (0, middle, max(0, data.size - _SAMPLE)):
            digest.update(data[start : start + _SAMPLE].tobytes())
        del data
        tensor.release()
    return digest.hexdigest()[:32]
