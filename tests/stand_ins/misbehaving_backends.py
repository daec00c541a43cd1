"""A decoder child whose backend decodes with PyAV, and does wrong as its name says: `python -m misbehaving_backends hang`.

To be started in the place of recaption.decoding.worker (`recaption.video_io.process.WORKER`).
"""

from __future__ import annotations

import io
import os
import time

import av
import numpy as np

from recaption.decoding import worker
from recaption.decoding.backends.interface import RefusalError


class HonestBackend:
    """The frames that were asked for."""

    version = "1"

    def frames(self, segment):
        wanted = set(segment.wanted)
        with av.open(io.BytesIO(segment.payload)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    yield frame.to_ndarray(format="rgb24")


class HangingBackend(HonestBackend):
    """Never returns from the second file on: its first frame comes."""

    def frames(self, segment):
        yield next(super().frames(segment))
        while True:
            time.sleep(1)


class CrashingBackend(HonestBackend):
    """Ends the process, after a frame."""

    def frames(self, segment):
        yield next(super().frames(segment))
        os.abort()


class GreedyBackend(HonestBackend):
    """Takes memory without end."""

    def frames(self, segment):
        taken = []
        while True:
            taken.append(np.ones(8 << 20, np.uint8))
            yield from ()


class FailingBackend(HonestBackend):
    """Raises what nobody expects."""

    def frames(self, segment):
        raise KeyError("frame")


class RefusingBackend(HonestBackend):
    """Finds damage behind its last frame."""

    def frames(self, segment):
        yield from (255 - pixels for pixels in super().frames(segment))
        raise RefusalError("damage", "error while decoding MB")


class ShortBackend(HonestBackend):
    """Leaves the last frame out."""

    def frames(self, segment):
        frames = list(super().frames(segment))
        yield from frames[:-1]


class SmallBackend(HonestBackend):
    """Gives frames of another size than the stream has."""

    def frames(self, segment):
        yield from (pixels[2:] for pixels in super().frames(segment))


BACKENDS = {
    "honest": HonestBackend,
    "hang": HangingBackend,
    "crash": CrashingBackend,
    "greedy": GreedyBackend,
    "fail": FailingBackend,
    "refuse": RefusingBackend,
    "short": ShortBackend,
    "small": SmallBackend,
}


def load(name: str) -> HonestBackend:
    if name == "missing":
        raise ImportError("No module named 'missing'")
    return BACKENDS[name]()


if __name__ == "__main__":
    worker.load_backend = load
    worker.main()
