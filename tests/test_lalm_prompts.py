import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.prompts import DEFAULT_TEMPLATE, label_order, messages
from mifuse_cli.lalm.spec import question_key, spec_hash

CLASSES = ("angry", "happy", "neutral", "sad")


@given(audio=st.text("0123456789abcdef", min_size=4), n_classes=st.integers(1, 12), block=st.integers(0, 50))
def test_every_label_stands_once_in_every_position_of_a_block(audio, n_classes, block):
    rows = [label_order(audio, block * n_classes + i, n_classes) for i in range(n_classes)]
    for row in rows:
        assert sorted(row) == list(range(n_classes))
    for column in zip(*rows, strict=True):
        assert sorted(column) == list(range(n_classes))


def test_label_order_is_the_same_everywhere():
    assert [label_order("ab" * 32, sample, 4) for sample in (0, 1, 4)] == [
        (2, 3, 1, 0),
        (3, 1, 0, 2),
        (2, 0, 3, 1),
    ]


def test_label_order_differs_between_clips_and_blocks():
    clips = {label_order(f"{i:064x}", 0, 4) for i in range(500)}
    blocks = {label_order("00" * 32, 4 * block, 4) for block in range(500)}
    assert len(clips) == len(blocks) == 24


def test_audio_comes_before_the_text_and_labels_in_the_given_order():
    system, user = messages(b"RIFF...", CLASSES, (2, 0, 3, 1))
    audio, text = user["content"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert audio["type"] == "input_audio"
    assert audio["input_audio"]["format"] == "wav"
    assert base64.b64decode(audio["input_audio"]["data"]) == b"RIFF..."
    assert '"neutral", "angry", "sad", "happy"' in text["text"]
    assert "{" not in text["text"]


def test_a_template_may_hold_braces_but_needs_its_field():
    text = messages(b"", CLASSES, (0, 1, 2, 3), template='{labels} as {"label": 0}')[1]["content"][1]["text"]
    assert text == '"angry", "happy", "neutral", "sad" as {"label": 0}'
    for template in ("no field", DEFAULT_TEMPLATE * 2):
        with pytest.raises(UsageError, match="expected one"):
            messages(b"", CLASSES, (0, 1, 2, 3), template=template)


def test_spec_hash_depends_on_content_alone():
    spec = {"model": "m", "temperature": 1.0, "labels": ("a", "b")}
    same = {"labels": ["a", "b"], "temperature": 1, "model": "m"}
    assert spec_hash(spec) == spec_hash(same)
    assert spec_hash(spec) != spec_hash({**spec, "temperature": 0.7})
    assert len(spec_hash(spec)) == 32
    with pytest.raises(ValueError):
        spec_hash({"temperature": float("nan")})


def test_question_key_depends_on_every_part():
    parts = ("aa", "bb", 0, (0, 1, 2))
    keys = {question_key(*parts)}
    for i, other in enumerate(("ab", "ba", 1, (0, 2, 1))):
        keys.add(question_key(*parts[:i], other, *parts[i + 1 :]))
    assert len(keys) == 5
    assert question_key(*parts) == "d4cdbceec553071fba1dd39d6e17fd63"
