import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.lalm.answers.elicitation import LETTERS, MODES
from mifuse_cli.lalm.questions.plan import question_key
from mifuse_cli.lalm.questions.prompts import DEFAULT_TEMPLATE, label_order, messages, read_wording
from mifuse_cli.lalm.questions.question_options import spec_hash

CLASSES = ("angry", "happy", "neutral", "sad")
SAME = (0, 1, 2, 3)


def question(**parts):
    """Text of the question about a clip."""
    return messages(b"", CLASSES, SAME, **parts)[-1]["content"][1]["text"]


def prompt_file(tmp_path, text):
    path = tmp_path / "prompt.yaml"
    path.write_text(text, encoding="utf-8")
    return path


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
    text = question(template='{labels} as {"label": 0, {}}')
    assert text == '"angry", "happy", "neutral", "sad" as {"label": 0, {}}'
    for template in ("no field", DEFAULT_TEMPLATE * 2):
        with pytest.raises(UsageError, match="expected one"):
            question(template=template)
    with pytest.raises(UsageError, match="context"):
        question(context="hello")


def test_the_built_in_question_is_the_one_already_paid_for():
    # Its text is part of the key of every stored answer: changing it would ask and bill all of them again.
    digest = hashlib.sha256(repr(messages(b"RIFF", CLASSES, (2, 0, 3, 1))).encode()).hexdigest()
    assert digest == "e94b0592d1bd4bd57773e731d58ea032519ddd46d69ade3619b8f421dfb890a7"
    wording = read_wording(None, "verbalized")
    assert question(system=wording.system, template=wording.template) == question()


def test_letters_stand_for_the_labels_in_the_order_listed():
    wording = read_wording(None, "logprob")
    text = messages(b"", CLASSES, (2, 0, 3, 1), template=wording.template, elicit="logprob")[1]["content"][1]
    assert 'A: "neutral"\nB: "angry"\nC: "sad"\nD: "happy"\n' in text["text"]
    assert "I" not in LETTERS


def test_parts_of_the_messages_that_may_change():
    user = messages(b"ID3", CLASSES, SAME, system="", audio_format="mp3", extra="Please.")
    assert [message["role"] for message in user] == ["user"]
    assert user[0]["content"][0]["input_audio"] == {"data": "SUQz", "format": "mp3"}
    assert user[0]["content"][1]["text"] == question() + "\nPlease."


@pytest.mark.parametrize("mode", MODES)
def test_a_transcript_stands_before_the_labels(mode):
    plain, wording = read_wording(None, mode), read_wording(None, mode, context=True)
    text = question(template=wording.template, context=" I am {labels},\n{context} ")
    assert '"I am {labels}, {context}"\n' in text
    assert text.index("I am") < text.index("angry")
    # A clip without transcript is asked about like any other.
    assert question(template=wording.template, context=" ") == question(template=plain.template)
    assert (wording.system, wording.refused) == (plain.system, plain.refused)


def test_a_prompt_file_replaces_what_it_names(tmp_path):
    path = prompt_file(tmp_path, 'system: ""\ntemplate: |-\n  {"labels": [{labels}]}\n  Heard: {context}\n')
    wording = read_wording(path, "label", context=True)
    assert wording.system == ""
    assert wording.refused == read_wording(None, "label").refused
    text = question(template=wording.template, context="hello")
    assert text == '{"labels": ["angry", "happy", "neutral", "sad"]}\nHeard: hello'
    path = prompt_file(tmp_path, "refused: Please try.\n")
    assert (
        read_wording(path, "label", context=True).template
        == read_wording(None, "label", context=True).template
    )


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        ("sistem: x", False, "'sistem'.*did you mean 'system'"),
        ("7: x", False, "unknown key 7"),
        ("template: [a]", False, "template is .*expected text"),
        ("template: Which emotion?", False, "0 fields {labels}"),
        ("template: '{labels} {labels}'", False, "2 fields {labels}"),
        ("template: '{labels} {context}'", False, "1 fields {context}, expected 0"),
        ("template: '{labels}'", True, "0 fields {context}, expected 1"),
        ("template: '{labels} {context} {context}'", True, "2 fields {context}"),
        ("just words", False, "mapping"),
        ("", False, "mapping"),
        ("a: [", False, "YAML"),
    ],
)
def test_a_wrong_prompt_file_is_refused_by_name(tmp_path, text, context, message):
    with pytest.raises(UsageError, match=rf"(?s)prompt\.yaml.*{message}"):
        read_wording(prompt_file(tmp_path, text), "verbalized", context=context)


def test_a_prompt_file_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"--prompt .*none\.yaml: No such file"):
        read_wording(tmp_path / "none.yaml", "verbalized")


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
