import json
import math
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mifuse_cli.lalm.answers.parsing import Status, _read, parse_answer, parse_label, visible

CLASSES = ("angry", "happy", "neutral", "sad")

READ = [
    # text, probabilities, flags
    ('{"angry": 70, "happy": 10, "neutral": 15, "sad": 5}', (0.7, 0.1, 0.15, 0.05), {"percent"}),
    ('{"sad": 0.05, "neutral": 0.15, "angry": 0.7, "happy": 0.1}', (0.7, 0.1, 0.15, 0.05), set()),
    ('\ufeff```json\n{"angry": 1, "happy": 0, "neutral": 0, "sad": 0}\n```', (1, 0, 0, 0), set()),
    (
        'The tone suggests this:\n{"angry": 0.5, "happy": 0.5, "neutral": 0, "sad": 0}\nAsk me for more.',
        (0.5, 0.5, 0, 0),
        set(),
    ),
    ('{"angry": "20%", "happy": "30 %", "neutral": "0%", "sad": "50%"}', (0.2, 0.3, 0, 0.5), {"percent"}),
    ('{"Angry": 0.2, "HAPPY ": 0.3, "Neutral": 0, "Sad": 0.5}', (0.2, 0.3, 0, 0.5), set()),
    ('{"Happy": 0.4, "Sad": 0.6}', (0, 0.4, 0, 0.6), {"filled"}),
    ('{"sad": 0.95}', (0, 0, 0, 1), {"filled", "renorm"}),
    # repaired
    ("{'angry': 20, 'happy': 30, 'neutral': 0, 'sad': 50}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ("{“angry”: 20, “happy”: 30, “neutral”: 0, “sad”: 50,}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ("{angry: 20%, happy: 30%, neutral: 0%, sad: 50%}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ('{"angry": 0,2, "happy": 0,3, "neutral": 0, "sad": 0,5}', (0.2, 0.3, 0, 0.5), {"repaired"}),
    (
        '{"angry": 20, "happy": 30, "neutral": 0, "sad": 50',
        (0.2, 0.3, 0, 0.5),
        {"percent", "repaired", "unclosed"},
    ),
    ('{"angry": NaN, "happy": 0, "neutral": 0, "sad": 1.0}', (0, 0, 0, 1), {"filled", "invalid"}),
    ('{"angry": None, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), {"filled", "invalid", "repaired"}),
    # other shapes
    ('{"emotions": {"angry": 0.2, "happy": 0.3, "neutral": 0, "sad": 0.5}}', (0.2, 0.3, 0, 0.5), set()),
    (
        '{"label": "sad", "scores": {"angry": 20, "happy": 30, "neutral": 0, "sad": 50}}',
        (0.2, 0.3, 0, 0.5),
        {"percent"},
    ),
    ('[["angry", 0.2], ["happy", 0.3], ["neutral", 0], ["sad", 0.5]]', (0.2, 0.3, 0, 0.5), set()),
    ('[{"angry": 0.2}, {"happy": 0.3}, {"neutral": 0}, {"sad": 0.5}]', (0.2, 0.3, 0, 0.5), set()),
    (
        '[{"label": "sad", "score": 0.5}, {"label": "joy", "score": 0.3}, {"label": "anger", "score": 0.2}]',
        (0.2, 0.3, 0, 0.5),
        {"filled"},
    ),
    ('{"reason": "a } in a string", "angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    ('[note] {"angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    # other words
    ('{"anger": 10, "Joy": 20, "neutrality": 30, "Sadness": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"Wut": 10, "Freude": 20, "neutral": 30, "Trauer": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"colère": 10, "joie": 20, "neutre": 30, "tristesse": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"enojo": 10, "alegría": 20, "neutro": 30, "tristeza": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"złość": 10, "radość": 20, "neutralny": 30, "smutek": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"愤怒": 10, "高兴": 20, "中性": 30, "悲伤": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    # sums and labels that are not classes
    ('{"angry": 0.3, "happy": 0.3, "neutral": 0.2, "sad": 0.21}', None, set()),
    ('{"angry": 30, "happy": 30, "neutral": 30, "sad": 30}', (0.25,) * 4, {"percent", "renorm"}),
    (
        '{"angry": 48, "happy": 48, "neutral": 0, "sad": 0, "bored": 4}',
        None,
        {"percent", "dropped", "renorm"},
    ),
    ('{"angry": 1, "happy": 0, "neutral": 0, "sad": 0, "confidence": 0.9}', (1, 0, 0, 0), set()),
    # thoughts
    (
        '<think>{"angry": 1}, or not?</think>{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}',
        (0, 0, 0, 1),
        set(),
    ),
    ('maybe {"angry": 1}</think>\n{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    (
        '<reasoning>{"angry": 1}</reasoning><answer>{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}</answer>',
        (0, 0, 0, 1),
        set(),
    ),
    (
        '<|channel|>analysis<|message|>{"angry": 1}<|end|><|start|>assistant<|channel|>final <|constrain|>json'
        '<|message|>{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}',
        (0, 0, 0, 1),
        set(),
    ),
    ('[THINK]{"angry": 1}[/THINK]{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    # no JSON
    ("Angry: 0.7\nHappy: 0.1\nNeutral: 0.15\nSad: 0.05", (0.7, 0.1, 0.15, 0.05), {"lines"}),
    ("- **Angry**: 70%\n- **Happy**: 30%\n- Neutral: 0%\n- Sad: 0%", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("| angry | 70 |\n| happy | 30 |\n| neutral | 0 |\n| sad | 0 |", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("Most likely angry (70%), happy (30%)", (0.7, 0.3, 0, 0), {"filled", "lines", "percent"}),
    ('{"angry": 70 "happy": 30, "neutral": 0, "sad": 0}', (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("Angry 70%\nHappy 30%\nNeutral 0%\nSad 0%", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("70% angry, 30 percent happy, 0% neutral, 0% sad.", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("- 70% Angry\n- 30% Happy\n- 0% Sad", (0.7, 0.3, 0, 0), {"filled", "lines", "percent"}),
    ("2% angry | 96% happy | 2% sad", (0.02, 0.96, 0, 0.02), {"filled", "lines", "percent"}),
    ("Angry: 70% Happy: 30%", (0.7, 0.3, 0, 0), {"filled", "lines", "percent"}),
    ("愤怒：70％，高兴：30％，中性：0％，悲伤：0％", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("غصہ: ۷۰٪، خوشی: ۳۰٪", (0.7, 0.3, 0, 0), {"filled", "lines", "percent"}),
]


@pytest.mark.parametrize(("text", "probs", "flags"), READ)
def test_reads(text, probs, flags):
    answer = parse_answer(text, CLASSES)
    assert answer.status is Status.OK
    assert set(answer.flags) == flags
    assert sum(answer.probs) == pytest.approx(1, abs=1e-9)
    if probs is not None:
        assert answer.probs == pytest.approx(probs, abs=1e-9)


FINAL = '{"angry": 5, "happy": 5, "neutral": 10, "sad": 80}'
DRAFT = '{"angry": 25, "happy": 25, "neutral": 25, "sad": 25}'
LINES = "Angry: 5%\nHappy: 5%\nNeutral: 10%\nSad: 80%"
SHARES = json.loads(FINAL)


@pytest.mark.parametrize(
    "text",
    [
        # after drafts, examples and second thoughts
        f"Format: {DRAFT}\nAnswer: {FINAL}",
        f"{DRAFT} Wait, no: {FINAL} I am sure.",
        f"{DRAFT}{FINAL}",
        f"```json\n{DRAFT}\n```\nOn reflection\n```json\n{FINAL}\n```",
        f'Format {{"angry": .., "happy": ..}}. Answer: {FINAL}',
        f"{DRAFT[:-1]} ... {FINAL}",
        f"{DRAFT} and so, as a list:\n{LINES}",
        f"{LINES.replace('80', '10').replace('Angry: 5', 'Angry: 75')}\nWait, final:\n{LINES}",
        "Angry: 80%, sad: 20%. Wait, actually angry: 5%, happy: 5%, neutral: 10%, sad: 80%",
        f"[a] [b] [c] {{x}} {{y}} [d] [e] [f] [g] {FINAL}",
        json.dumps({"initial": json.loads(DRAFT), "final": SHARES}),
        # what comes after it and is none
        f"{FINAL}\nConfidence in sad: 100%",
        f'{FINAL}\n{{"confidence": 0.9}}',
        f'{FINAL} Let me redo: {{"angry": 5, "hap',
        f"{LINES}\nConfidence in sad: 95%",
        f"<draft>{DRAFT}</draft><answer>{FINAL}</answer> (as against {DRAFT})",
        json.dumps({"final": SHARES, "top": {"sad": 1}}),
        # one level down
        json.dumps({name: {"probability": share} for name, share in SHARES.items()}),
        json.dumps({name: {"reason": "x", "rank": 1, "score": share} for name, share in SHARES.items()}),
        json.dumps({name: [share] for name, share in SHARES.items()}),
        json.dumps({name: {"valence": 3, "p": f"{share}%"} for name, share in SHARES.items()}),
        json.dumps([{"why": "x", "emotion": name, "score": s, "rank": 2} for name, s in SHARES.items()]),
        # lists of labels and of scores
        json.dumps({"labels": list(SHARES), "scores": list(SHARES.values())}),
        json.dumps([list(SHARES), list(SHARES.values())]),
        json.dumps({"r": {"names": list(SHARES), "probs": list(SHARES.values()), "ranks": [3, 3, 2, 1]}}),
        # within a string
        json.dumps(FINAL),
        json.dumps(json.dumps(FINAL)),
        json.dumps({"answer": FINAL}),
        json.dumps({"answer": f"Draft {DRAFT}, final {FINAL}"}),
        json.dumps([{"type": "text", "text": FINAL}]),
        # in tags
        "".join(f"<{name}>{share}</{name}>" for name, share in SHARES.items()),
        "\n".join(f'<emotion name="{name}">{share}%</emotion>' for name, share in SHARES.items()),
        "".join(f"<e label='{name}' score='{share / 100}'/>" for name, share in SHARES.items()),
    ],
)
def test_the_last_complete_distribution_counts_in_whatever_shape(text):
    answer = parse_answer(text, CLASSES)
    assert answer.status is Status.OK, answer
    assert answer.probs == pytest.approx((0.05, 0.05, 0.1, 0.8))


@pytest.mark.parametrize(
    "text",
    [
        # numbers that are no shares
        json.dumps({name: {"valence": 0.25, "arousal": 0.25} for name in CLASSES}),
        json.dumps({"labels": list(CLASSES), "ranks": [0.25] * 4}),
        json.dumps({"labels": list(CLASSES), "scores": [0.5, 0.5]}),
        json.dumps({"labels": list(CLASSES), "a": [0.25] * 4, "b": [0.1, 0.1, 0.1, 0.7]}),
        # of two lists in lines nothing says which one counts
        "Angry: 80%, sad: 20%. Angry: 20%, sad: 80%",
        json.dumps({"angry": {"happy": 0.5, "sad": 0.5}, "sad": "yes"})[:-20],
    ],
)
def test_what_only_looks_like_a_distribution_is_none(text):
    assert parse_answer(text, CLASSES).probs is None


NOT_READ = [
    ("", Status.EMPTY),
    (" \ufeff\n", Status.EMPTY),
    ("<think>Well, the pitch is high", Status.EMPTY),
    ("The emotion is most likely sad.", Status.LABEL_ONLY),
    ('{"emotion": "angry", "confidence": 0.9}', Status.LABEL_ONLY),
    ("**Happy**", Status.LABEL_ONLY),
    ("说话者很生气。", Status.LABEL_ONLY),
    ("I'm sorry, but I can't determine a person's emotional state from this recording.", Status.REFUSED),
    ("As an AI, I do not hear.", Status.REFUSED),
    ("I cannot tell whether the speaker is sad.", Status.REFUSED),
    ("无法判断说话者是否悲伤。", Status.REFUSED),
    ("Non sono in grado di dire se è triste.", Status.REFUSED),
    ("Please provide the audio file.", Status.REFUSED),
    ("Either angry or sad.", Status.UNPARSED),
    ("She does not sound angry.", Status.UNPARSED),
    ("说话者不高兴。", Status.UNPARSED),
    # which of two labels gets the share is not said
    ("angry 2% happy 96% sad 2%", Status.UNPARSED),
    ("2% angry - 96% happy - 2% sad", Status.UNPARSED),
    ('{"angry":', Status.UNPARSED),
    ("<|channel|>analysis<|message|>angry: 100", Status.EMPTY),
    ("A door closes, then silence.", Status.UNPARSED),
    ("[1, 2, 3]", Status.UNPARSED),
    ('{"angry": 60, "angry": 40, "happy": 0, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": 60, "anger": 40, "happy": 0, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": "60%", "happy": 0.4, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": 0.5, "happy": 0.4}', Status.INCOMPLETE),
    ('{"angry": 50, "happy": 30, "neutral": 0, "sad": 0, "bored": 20}', Status.INCOMPLETE),
    ('{"angry": Infinity, "happy": 0.5, "neutral": 0, "sad": 0}', Status.INCOMPLETE),
    ('{"angry": -0.5, "happy": 0.5, "neutral": 0, "sad": 0.4}', Status.INCOMPLETE),
    ('{"angry": 0, "happy": 0, "neutral": 0, "sad": 0}', Status.BAD_SUM),
    ('{"angry": 7, "happy": 2, "neutral": 1, "sad": 0}', Status.BAD_SUM),
    ('{"angry": 100, "happy": 100, "neutral": 0, "sad": 0}', Status.BAD_SUM),
    # cut off within the last number
    ('{"angry": 40, "happy": 5, "neutral": 10, "sad": 4', Status.BAD_SUM),
    ('{"angry": 1e308, "happy": 1e308, "neutral": 1e308, "sad": 1e308}', Status.BAD_SUM),
    ("{" * 70_000, Status.UNPARSED),
]


@pytest.mark.parametrize(("text", "status"), NOT_READ)
def test_gives_no_distribution(text, status):
    answer = parse_answer(text, CLASSES)
    assert answer.status is status
    assert answer.probs is None


def test_total_is_the_sum_before_renormalisation():
    assert parse_answer('{"angry": 30, "happy": 30, "neutral": 0, "sad": 0}', CLASSES).total == 0.6
    assert parse_answer('{"angry": 7, "happy": 2, "neutral": 1, "sad": 0}', CLASSES).total == 10


def test_an_endless_answer_is_not_read():
    answer = parse_answer('{"sad": 1}' + " and so on" * 7000, CLASSES)
    assert (answer.status, answer.flags) == (Status.UNPARSED, ("oversize",))
    thoughts = "<think>" + "hm " * 50_000 + "</think>"
    assert parse_answer(thoughts + '{"sad": 1}', CLASSES).status is Status.OK


def test_exact_class_names_win_over_synonyms():
    answer = parse_answer('{"happy": 20, "joy": 80}', ("joy", "happy"))
    assert answer.probs == (0.8, 0.2)
    assert parse_answer('{"Sad": 20, "sad": 80}', ("sad", "Sad")).probs == (0.8, 0.2)
    # Two classes for one emotion: a third word for it is neither.
    assert parse_answer('{"happiness": 100}', ("joy", "happy")).status is not Status.OK


def test_synonyms_lead_to_the_class_of_the_same_emotion_only():
    assert parse_answer('{"angry": 30, "happy": 70}', ("anger", "joy")).probs == (0.3, 0.7)
    assert parse_answer('{"fear": 50, "angry": 50}', CLASSES).status is Status.INCOMPLETE


LANGUAGES = """
angry: anger, Wut, Aerger, colère, enojado, rabbia, zlosc, 愤怒, 怒り, غصہ
happy: joy, glücklich, joie, alegria, felicità, radość, 高兴, 嬉しい, خوشی
neutral: neutrality, neutre, neutro, neutrale, neutralny, 中性, 中立, غیر جانبدار
sad: sadness, Trauer, tristesse, triste, tristezza, smutny, 悲伤, 悲しみ, اداس
fearful: fear, Angst, peur, miedo, paura, strach, 害怕, 恐怖, خوف
disgusted: disgust, Ekel, dégoût, asco, disgusto, wstręt, 厌恶, 嫌悪, کراہت
surprised: surprise, Überraschung, ueberrascht, sorpresa, sorpreso, zaskoczenie, 惊讶, 驚き, حیرت
bored: boredom, Langeweile, ennui, aburrimiento, noia, nuda, 无聊, 退屈, بوریت
calm: calmness, ruhig, calme, tranquilo, calmo, spokojny, 平静, 落ち着き, پرسکون
"""


@pytest.mark.parametrize("line", LANGUAGES.strip().splitlines())
def test_synonyms_of_many_languages(line):
    classes = tuple(row.partition(":")[0] for row in LANGUAGES.strip().splitlines())
    label, _, words = line.partition(": ")
    for word in words.split(", "):
        answer = parse_answer(json.dumps({word: 100}, ensure_ascii=False), classes)
        assert answer.probs is not None and answer.probs[classes.index(label)] == 1, word
        assert parse_label(f"{word.upper()}.", classes).label == label, word


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Happy", "happy"),
        ("not angry but sad", "sad"),
        ("Neutral. The voice is neither raised nor sad.", "neutral"),
        ('{"emotion": "sad", "reason": "slow, quite unlike a happy voice"}', "sad"),
        ("<think>angry?</think>**very calm**", "very calm"),
        ('{"emotion": "angry"} Wait, no. {"emotion": "sad"} {"confidence": 1}', "sad"),
        ("听起来很生气", "angry"),
    ],
)
def test_a_lone_label_is_named(text, label):
    classes = (*CLASSES, "calm", "very calm")
    answer = parse_label(text, classes)
    assert (answer.status, answer.label, answer.probs) == (Status.LABEL_ONLY, label, None)
    assert parse_answer(text, classes) == answer


def test_hostile_text_takes_no_time():
    pieces = (
        '{"a":',
        "{'a",
        '\\"',
        "{ ",
        "[",
        "```",
        "<think>",
        "a: ",
        "{,\n",
        "| a ",
        "I can not ",
        "9",
        "\ufdfa",
        "not ",
        "<|channel|>",
        "70% a,\n",
        '{"a": "',
        '{\\"a\\": ',
        '"{ ',
        '{"a": 1}',
        '{"sad": {"b": [',
        "<sad>1",
        '<e a="sad" ',
        "<answer>",
        "sad: 1 ",
        "wait sad: 1 ",
    )
    for piece in pieces:
        start = time.process_time()
        parse_answer("{" + piece * (65_000 // len(piece)), CLASSES)
        assert time.process_time() - start < 5, piece


ANY_TEXT = st.one_of(
    st.text(),
    st.text(alphabet=st.characters(codec=None)),
    st.text(alphabet="{}[]\":,.%'“0123456789eE+-naIfylsdrghp \n\\<>/`"),
    st.lists(
        st.sampled_from(
            [*READ[0][0].split(), *READ[8][0].split(), *"{}[]%\n", "NaN", "é", "<think>", "not", "Wut", "50%"]
        )
    ).map(" ".join),
)


@settings(max_examples=400, deadline=None)
@given(ANY_TEXT)
def test_no_text_makes_it_raise(text):
    answer = parse_answer(text, CLASSES)
    assert (answer.status is Status.OK) == (answer.probs is not None)
    assert (answer.status is Status.LABEL_ONLY) == (answer.label in CLASSES)
    if answer.probs is not None:
        assert len(answer.probs) == 4
        assert all(math.isfinite(p) and p >= 0 for p in answer.probs)
        assert math.fsum(answer.probs) == pytest.approx(1, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, st.permutations(range(4)))
def test_the_order_of_the_classes_does_not_matter(text, order):
    answer = parse_answer(text, CLASSES)
    other = parse_answer(text, tuple(CLASSES[k] for k in order))
    assert (other.status, other.flags, other.label) == (answer.status, answer.flags, answer.label)
    assert other.probs == (answer.probs and tuple(answer.probs[k] for k in order))


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_without_numbers_there_is_no_distribution(text):
    # Compatibility forms of letters can be digits.
    text = "".join(c for c in text if not any(d.isnumeric() for d in unicodedata.normalize("NFKC", c)))
    assert parse_answer(text, CLASSES).probs is None


VALUES = st.one_of(
    st.integers(-5, 120),
    st.floats(0, 2),
    st.sampled_from([0, 0.25, 25, -0.0, 1e308, 10**400, math.nan, math.inf, True, None, "25", "25%"]),
)


@settings(max_examples=400, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from([*CLASSES, "Sad", "joy", "bored"]), VALUES), max_size=6),
    full=st.lists(st.sampled_from([0, 0.25, 0.5, 25, 50, 1e-9, 33.3]), min_size=4, max_size=4),
    use_full=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    cut=st.integers(0, 2),
)
@example(pairs=[], full=[0, 25, 1e-9, 25], use_full=True, indent=None, cut=0)
def test_the_short_cut_changes_nothing(pairs, full, use_full, indent, cut):
    items = list(zip(CLASSES[::-1], full, strict=True)) if use_full else pairs
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in items]
    space = "" if indent is None else "\n" + " " * indent
    text = space + "{" + f", {space}".join(lines) + space + "}" + space
    text = text[: len(text) - cut]
    assert repr(parse_answer(text, CLASSES)) == repr(_read(visible(text), CLASSES))


@settings(max_examples=300, deadline=None)
@given(
    weights=st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any),
    order=st.permutations(range(4)),
    form=st.sampled_from(["share", "percent", "sign", "comma", "lines"]),
    style=st.sampled_from(
        [
            "%s",
            "```json\n%s\n```",
            "Here you are: %s Anything else?",
            "<think>angry: 100</think>%s",
            "angry: 100, no.</think>\n\n%s",
            "\ufeff<reasoning>not {1}\n</reasoning>\n%s",
            '{"emotions": %s}',
        ]
    ),
    single=st.booleans(),
    trailing=st.booleans(),
    capital=st.booleans(),
)
def test_a_written_distribution_comes_back(weights, order, form, style, single, trailing, capital):
    probs = [weight / sum(weights) for weight in weights]
    names = [name.title() if capital else name for name in CLASSES]
    scale = 1 if form == "share" else 100
    numbers = [f"{probs[k] * scale:.9f}" for k in order]
    sign = {"sign": " %", "comma": "%"}.get(form, "")
    numbers = [number.replace(".", "," if form == "comma" else ".") + sign for number in numbers]
    if form == "lines":
        written = (
            "".join(f"\n- {names[k]}: {number}" for k, number in zip(order, numbers, strict=True)) + "\n"
        )
        style = style.replace('{"emotions": %s}', "%s")
    else:
        items = [f'"{names[k]}": {number}' for k, number in zip(order, numbers, strict=True)]
        written = "{" + ", ".join(items) + ("," if trailing else "") + "}"
    if single:
        written = written.replace('"', "'")
    answer = parse_answer(style.replace("%s", written), CLASSES)
    assert answer.status is Status.OK
    assert answer.probs == pytest.approx(probs, abs=1e-8)
    assert ("percent" in answer.flags) == (scale == 100)
    assert ("lines" in answer.flags) == (form == "lines")
    assert answer.total == pytest.approx(1)


@pytest.mark.parametrize("parse", [parse_answer, parse_label])
@pytest.mark.parametrize(
    ("text", "classes", "word"),
    [
        (None, CLASSES, "text is NoneType"),
        (b'{"sad": 1}', CLASSES, "text is bytes"),
        ("sad", "sad", "classes are 'sad'"),
        ("sad", None, "classes are None"),
        ("sad", {"sad", "angry"}, "expected several names"),
        ("sad", ("sad", 1), "expected strings"),
        ("sad", ("sad", ["angry"]), "expected strings"),
        ("sad", (), "different names"),
        ("sad", ("sad", "sad"), "different names"),
        ("sad", ("sad", ""), "none of them empty"),
    ],
)
def test_what_is_no_text_or_no_class_list_is_refused(parse, text, classes, word):
    with pytest.raises(ValueError, match=word):
        parse(text, classes)


def test_classes_may_come_in_a_list():
    assert parse_answer('{"sad": 100, "angry": 0}', ["angry", "sad"]).probs == (0.0, 1.0)
