"""From arrays to a scored student, without any file: answers, a source head, fusion, adaptation, score."""

import json

import numpy as np

import mifuse_cli as m

CLASSES = ("angry", "happy", "neutral", "sad")
rng = np.random.default_rng(0)

# Features as an encoder might give them: clips scatter widely around the centre of their class.
centres = rng.normal(size=(4, 48))
source_truth, target_truth = rng.integers(4, size=120), rng.integers(4, size=400)
source, target = (centres[k] + 2.5 * rng.normal(size=(len(k), 48)) for k in (source_truth, target_truth))

# Three answers a clip, as an audio-language model writes them; about six of ten name the right class.
said = np.where(rng.random((400, 3)) < 0.5, target_truth[:, None], rng.integers(4, size=(400, 3)))
texts = [[json.dumps({c: 0.7 if c == CLASSES[k] else 0.1 for c in CLASSES}) for k in row] for row in said]
lalm = np.array([[m.parse_answer(text, CLASSES).probs for text in row] for row in texts])

head = m.train_head(source, source_truth, classes=4)
fused = m.fuse_arrays([lalm, head.sample(target, passes=10)], features=target)
student = m.adapt_head(head, target, fused)

rows = {"source": head.predict(target), "LALM": lalm.mean(axis=1), "labels": fused.probs}
for name, probs in (rows | {"student": student.predict(target)}).items():
    score = m.score_predictions(target_truth, probs)
    print(f"{name:8} UA {100 * score.ua:.1f} % [{100 * score.ua_low:.1f}, {100 * score.ua_high:.1f}]")
