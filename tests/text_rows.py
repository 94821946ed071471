"""Sentences with a label that a small model learns, as rows and as files of JSON lines."""

import json

WORDS = ["a", "the", "film", "is", "was", "not", "very", "good", "bad", "dull", "fine", "and"]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count, start=0):
    """Distinct sentences whose label is a word in them."""
    made = []
    for i in range(start, start + count):
        noise = " ".join(WORDS[(i // 3**k) % 3] for k in range(5))
        made.append({"sentence": f"{noise} {'good' if i % 2 else 'bad'}", "label": i % 2, "idx": i})
    return made
