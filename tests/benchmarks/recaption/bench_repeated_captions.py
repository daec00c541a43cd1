"""Cost per text of finding repeated captions, for unique texts, one text shared by many clips, and a template.

bench_repeated_captions.py [--count 20000]
"""

import argparse
import random
import time

from recaption.captions.repeated import find_repeated_texts

WORDS = [f"word{i}" for i in range(3000)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=20_000)
    count = arguments.parse_args().count
    rng = random.Random(0)
    unique = {f"unique-{i}": " ".join(rng.choices(WORDS, k=20)) for i in range(count)}
    shared = unique | {f"same-{i}": "a man in a dark suit talks to the camera" for i in range(count // 40)}
    template = {f"clip-{i}": " ".join([*WORDS[:200], f"end{i}"]) for i in range(count)}
    print(f"{'texts':<40} {'clips':>7} {'us per text':>12} {'found':>7} {'largest group':>17}")
    for name, texts in (
        ("20 random words each", unique),
        ("and one text shared by 1 in 41 clips", shared),
        ("200 common words, 1 unique", template),
    ):
        started = time.process_time()
        found = find_repeated_texts(texts)
        microseconds = (time.process_time() - started) / len(texts) * 1e6
        most = max((one.num_clips for one in found.values()), default=0)
        print(f"{name:<40} {len(texts):>7} {microseconds:>12.0f} {len(found):>7} {most:>17}")


if __name__ == "__main__":
    main()
