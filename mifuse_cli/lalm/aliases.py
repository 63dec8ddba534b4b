"""Words by which models name an emotion, and the class that each one means."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

# One row per emotion: the usual class name, then words for it in English, German, French, Spanish, Polish
# and Chinese. Words that are something else in an English sentence (French "content") are left out, and so
# are neighbouring emotions ("calm", "excited", "frustrated"), which only the user may merge.
_WORDS = {
    "angry": "anger, mad, furious, rage, irate, wütend, wut, zorn, zornig, ärger, ärgerlich, verärgert, "
    "colère, en colère, fâché, fâchée, enojo, enojado, enojada, enfado, enfadado, enfadada, ira, "
    "złość, gniew, zły, zła, 生气, 愤怒",
    "happy": "happiness, joy, joyful, joyous, cheerful, freude, fröhlich, glücklich, glück, freudig, "
    "joie, joyeux, joyeuse, heureux, heureuse, alegría, alegre, feliz, felicidad, "
    "radość, radosny, szczęście, szczęśliwy, szczęśliwa, wesoły, 高兴, 快乐, 开心",
    "neutral": "neutrality, neutralität, neutre, neutralité, neutro, neutra, neutralidad, "
    "neutralny, neutralna, neutralność, 中性, 中立",
    "sad": "sadness, sorrow, sorrowful, traurig, traurigkeit, trauer, triste, tristesse, tristeza, "
    "smutek, smutny, smutna, 悲伤, 难过, 伤心",
    "fearful": "fear, afraid, scared, frightened, angst, ängstlich, furcht, peur, apeuré, apeurée, "
    "miedo, asustado, asustada, strach, lęk, przestraszony, 恐惧, 害怕",
    "disgusted": "disgust, ekel, angeekelt, dégoût, dégoûté, dégoûtée, asco, disgusto, asqueado, "
    "obrzydzenie, wstręt, 厌恶",
    "surprised": "surprise, überraschung, überrascht, surpris, sorpresa, sorprendido, sorprendida, "
    "zaskoczenie, zaskoczony, zdziwienie, 惊讶, 吃惊",
}


def fold(name: str) -> str:
    """Name without case, compatibility forms, underscores and outer spaces, for comparison."""
    name = unicodedata.normalize("NFKC", name).casefold()
    # Folding the case can undo the compatibility form.
    return unicodedata.normalize("NFKC", name).replace("_", " ").strip()


_EMOTION = {fold(word): name for name, row in _WORDS.items() for word in (name, *row.split(","))}
# Chinese is written without spaces, so these words are looked for inside a text, not between its spaces.
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


def unspaced_words(text: str) -> list[str]:
    """Chinese words for emotions that occur anywhere in ``text``."""
    return [word for word in _UNSPACED if word in text]
