"""Words for emotions in several languages, and the class that each means; words of denial and of refusal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

# One row per emotion: the usual class name, then words for it in English, German, French, Spanish, Italian,
# Polish, Chinese, Japanese and Urdu. Words that are something else in a sentence of another language
# (French "content", Chinese 普通) are left out. Neighbouring emotions ("calm" and "neutral") have rows of
# their own: only the user may merge them.
_WORDS = {
    "angry": "anger, mad, furious, rage, irate, wütend, wut, zorn, zornig, ärger, ärgerlich, verärgert, "
    "colère, en colère, fâché, fâchée, enojo, enojado, enojada, enfado, enfadado, enfadada, ira, "
    "rabbia, arrabbiato, arrabbiata, złość, gniew, zły, zła, zdenerwowany, 生气, 愤怒, 气愤, 恼怒, 生氣, "
    "憤怒, 怒り, 怒って, 激怒, غصہ, غصّہ, غصے, ناراض, ناراضگی",
    "happy": "happiness, joy, joyful, joyous, cheerful, freude, fröhlich, glücklich, glück, freudig, "
    "joie, joyeux, joyeuse, heureux, heureuse, alegría, alegre, feliz, felicidad, gioia, felice, felicità, "
    "radość, radosny, szczęście, szczęśliwy, szczęśliwa, wesoły, 高兴, 快乐, 开心, 高興, 快樂, 開心, "
    "喜び, 嬉しい, うれしい, 幸せ, 楽しい, خوشی, خوش, مسرت",
    "neutral": "neutrality, neutralität, neutre, neutralité, neutro, neutra, neutralidad, neutrale, "
    "neutralità, neutralny, neutralna, neutralność, 中性, 中立, ニュートラル, 無感情, غیر جانبدار, نیوٹرل",
    "sad": "sadness, sorrow, sorrowful, traurig, traurigkeit, trauer, triste, tristesse, tristeza, tristezza, "
    "smutek, smutny, smutna, 悲伤, 难过, 伤心, 悲傷, 難過, 傷心, 悲しみ, 悲しい, 哀しみ, "
    "اداسی, اداس, غم, غمگین, دکھ",
    "fearful": "fear, afraid, scared, frightened, angst, ängstlich, furcht, peur, apeuré, apeurée, "
    "miedo, asustado, asustada, paura, spaventato, spaventata, impaurito, strach, lęk, przestraszony, "
    "恐惧, 害怕, 恐懼, 恐怖, 恐れ, 怖い, خوف, خوفزدہ, ڈر",
    "disgusted": "disgust, ekel, angeekelt, dégoût, dégoûté, dégoûtée, asco, disgusto, asqueado, "
    "disgustato, disgustata, obrzydzenie, wstręt, 厌恶, 反感, 厭惡, 嫌悪, کراہت, گھن, بیزاری",
    "surprised": "surprise, überraschung, überrascht, surpris, sorpresa, sorprendido, sorprendida, sorpreso, "
    "zaskoczenie, zaskoczony, zaskoczona, zdziwienie, 惊讶, 吃惊, 驚訝, 吃驚, 驚き, びっくり, "
    "حیرت, حیران, حیرانی, تعجب",
    "bored": "boredom, langeweile, gelangweilt, ennui, ennuyé, ennuyée, aburrimiento, aburrido, aburrida, "
    "noia, annoiato, annoiata, nuda, znudzenie, znudzony, znudzona, 无聊, 厌倦, 無聊, 退屈, بوریت, بور",
    "calm": "calmness, ruhe, ruhig, gelassen, gelassenheit, calme, calma, calmado, calmada, tranquilo, "
    "tranquila, calmo, tranquillo, tranquilla, spokój, spokojny, spokojna, 平静, 冷静, 平靜, 冷靜, "
    "落ち着き, 穏やか, سکون, پرسکون",
    "contempt": "contemptuous, verachtung, mépris, desprecio, disprezzo, pogarda, 轻蔑, 軽蔑, حقارت",
    "excited": "excitement",
    "frustrated": "frustration",
}
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})


def fold(name: str) -> str:
    """Name without case, compatibility forms, underscores and outer spaces, for comparison."""
    name = unicodedata.normalize("NFKC", name).casefold()
    # Folding the case can undo the compatibility form.
    return unicodedata.normalize("NFKC", name).replace("_", " ").strip()


def _spellings(word: str) -> Iterator[str]:
    """The folded word, and how it is written on a keyboard without its accents."""
    word = fold(word)
    yield word
    if word[0] < "\u0250":
        yield word.translate(_UMLAUTS)
        letters = unicodedata.normalize("NFD", word.replace("ł", "l"))
        yield "".join(letter for letter in letters if not unicodedata.combining(letter))


_EMOTION = {
    spelling: name
    for name, row in _WORDS.items()
    for word in (name, *row.split(","))
    for spelling in _spellings(word)
}
# Chinese and Japanese have no spaces, so these words are looked for inside a text, not between its spaces.
_UNSPACED = tuple(word for word in _EMOTION if word[0] >= "\u3000")


@lru_cache(maxsize=32)
def resolver(classes: tuple[str, ...]) -> Callable[[str], str | None]:
    """Function from a name to the class that it means, or None.

    The exact class name comes first, then the class with the same folded name, then the one class that
    names the same emotion; with two such classes ("happy" and "joy") other words for it mean neither.
    """
    folded: dict[str, str | None] = {}
    emotions: dict[str, str | None] = {}
    for name in classes:
        key = fold(name)
        folded[key] = None if key in folded else name
        if key in _EMOTION:
            emotions[_EMOTION[key]] = None if _EMOTION[key] in emotions else name

    def resolve(name: str) -> str | None:
        if name in classes:
            return name
        key = fold(name)
        if key in folded:
            return folded[key]
        return emotions.get(_EMOTION.get(key, ""))

    return resolve


_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_DENIAL = re.compile(
    r"(?:\b(?:no|not|never|neither|nor|without|nicht|kein\w{0,2}|ohne|pas|non|sans|sin|senza|nie|bez)\b|n['’]t\b)"
    r"(?:[\s-]+(?!but\b|rather\b|sondern\b|mais\b|sino\b|ma\b|lecz\b|ale\b)\w+){0,3}"
    r"|[不没沒]\w{0,4}",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:can ?not|can['’]t|could ?n['’]t|could not|(?:am|['’]m) (?:unable|not able) to|won['’]t|will not) "
    r"(?:\w+ )?(?:determine|identify|infer|assess|analy[sz]e|assist|help|provide|process|listen|hear|detect|"
    r"comply|classify|tell|judge|recogni[sz]e|evaluate|access|fulfil+|answer|play|do that)\b"
    r"|\b(?:unable|not able|not possible) to (?:determine|identify|infer|assess|analy[sz]e|process|listen|hear"
    r"|help|judge|tell|access)\b"
    r"|\bdo(?: not|n['’]t) have (?:access|the ability|the capability)\b|\bi (?:must|have to) decline\b"
    r"|\b(?:did|do)(?: not|n['’]t) (?:receive|see|hear) (?:any |an |the )?(?:audio|recording|sound|file)\b"
    r"|\bplease (?:provide|upload|attach|share) (?:the |an |your )?(?:audio|recording|sound|file)\b"
    r"|\bas an ai\b"
    r"|\bno (?:audio|recording|sound)(?: file)? (?:was |is )?(?:provided|attached|found|received)\b"
    r"|\bich kann (?:das |die |den |dabei |leider )*nicht\b|\bje (?:ne peux|suis incapable)\b|\bno puedo\b"
    r"|\bnon (?:posso|sono in grado)\b|\bnie mogę\b|\bnie jestem w stanie\b"
    r"|无法|無法|不能|できません|分かりません|わかりません|نہیں کر سکت|معذرت",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether the text says that the question cannot or will not be answered."""
    return _REFUSAL.search(text) is not None


def named(text: str, classes: tuple[str, ...]) -> set[str]:
    """Classes that a text mentions without denying them ("not sad" mentions none)."""
    resolve = resolver(classes)
    text = _DENIAL.sub(" ", text)
    words = _WORD.findall(text)
    if not text.isascii():
        words += [word for word in _UNSPACED if word in text]
    # Class names of several words are found by their text.
    spaced = f" {_spaced(text)} "
    return {label for word in words if (label := resolve(word))} | {
        name for name in classes if f" {_spaced(name) or name} " in spaced
    }


def _spaced(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", fold(text)))
