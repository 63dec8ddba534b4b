"""True classes and speakers of the targets, kept beside the runs: with them the runs can be scored anew."""

from __future__ import annotations

import numpy as np

from mifuse_cli import lineage, provenance
from mifuse_cli.artifacts import Parent, Target
from mifuse_cli.errors import MifuseError
from mifuse_cli.steps.compare.config import CompareConfig
from mifuse_cli.steps.compare.planning import Plan


def write_targets(config: CompareConfig, plan: Plan) -> bool:
    """Write ``OUT/targets/CORPUS.h5`` of every target; returns whether any of them was not there as it is now."""
    changed = False
    for name, corpus in plan.corpora.items():
        out = config.out / "targets" / f"{name}.h5"
        scored = np.setdiff1d(np.arange(len(corpus.clips)), plan.pool[name])
        ids = np.array([clip.utt_id for clip in corpus.clips])[scored]
        known = plan.truth[name][scored]
        text = " ".join(f"{utt_id}={label}" for utt_id, label in zip(ids, known, strict=True))
        parents = [
            Parent("labels", lineage.relative(corpus.labels, out), provenance.text_digest(text)),
            lineage.speakers_parent(corpus.clips, corpus.labels, out),
        ]
        target = Target(
            header=lineage.header(config, plan.classes, parents, target=name),
            utt_id=ids,
            truth=known.astype(np.uint8),
            speaker=np.array(corpus.speakers)[scored] if corpus.speakers else None,
        )
        try:
            same = Target.load(out).digest() == target.digest()
        except MifuseError:
            same = False
        if not same:
            target.save(out)
            changed = True
    return changed
