"""What looking for repeated captions costs per text, and what it finds: own texts, one said of many clips, a template.

bench_repeated_captions.py [--count 20000]
"""

import argparse
import random
import time

from recaption.captions.repeated import find_repeated

WORDS = [f"word{i}" for i in range(3000)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=20_000)
    count = arguments.parse_args().count
    chance = random.Random(0)
    own = {f"own-{i}": " ".join(chance.choices(WORDS, k=20)) for i in range(count)}
    said = own | {f"same-{i}": "a man in a dark suit talks to the camera" for i in range(count // 40)}
    template = {f"clip-{i}": " ".join([*WORDS[:200], f"end{i}"]) for i in range(count)}
    print(f"{'texts':<40} {'clips':>7} {'us per text':>12} {'found':>7} {'of as many clips':>17}")
    for name, texts in (
        ("20 random words each", own),
        ("and one text about 1 in 41 clips", said),
        ("200 words alike, 1 not", template),
    ):
        started = time.process_time()
        found = find_repeated(texts)
        microseconds = (time.process_time() - started) / len(texts) * 1e6
        most = max((one.num_clips for one in found.values()), default=0)
        print(f"{name:<40} {len(texts):>7} {microseconds:>12.0f} {len(found):>7} {most:>17}")


if __name__ == "__main__":
    main()
