"""Owns the little English that captions need: articles, plurals, and a natural wording of Unicode's short names."""

from __future__ import annotations

import re

__all__ = ["noun_phrase", "plain", "plural", "with_article", "words"]


def words(text: str) -> frozenset[str]:
    """The set of a text's words."""
    return frozenset(text.split())


_PLURALS = {"man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "tooth": "teeth"}
# A noun's head is the word before the first of these: "ear of corn", "person wearing turban".
_AFTER_HEAD = words(
    "with without of in on over behind at from showing pointing wearing curving tilted beyond fluttering blowing "
    "holding getting feeding taking playing riding rowing gesturing tipping raising bouncing lifting savoring "
    "screaming splayed hugging wrestling together pointed shrugging facepalming"
)
# Heads in -s that are one thing.
_SINGULAR_S = words(
    "bus trolleybus minibus cactus compass glass octopus lotus hibiscus abacus dress lens cross rhinoceros "
    "hippopotamus mattress princess class boss walrus goddess virus waitress crocus bass"
)
# Heads for stuff, deeds, games and states; they take no article.
_BARE_HEADS = words(
    "wood butter bread bacon salt rice popcorn spaghetti sushi oden sake mate ice cream yarn thread coral garlic "
    "broccoli soap food milk tennis badminton bowling lacrosse hockey pong racing cooking camping construction fog "
    "foggy fire voltage locked unlocked registered prohibited customs plus minus multiply divide infinity copyright "
    "yang dizzy dna om luggage water control claim radioactive cinema wireless away polish exchange salad fuji "
    "smoking littering massage liquid lightning pollution sand kimchi tea coffee beer hygiene fondue mx shrimp "
    "poultry ginger up down clothes people eyes arts letters numbers symbols latin lowercase uppercase pedestrians "
    "bicycles phones eighteen money ZZZ karate moss grass hay cheese toast honey jam confetti paper claus"
)
# Whole names that the rules would word badly.
_WHOLE = {
    "ATM sign": "an ATM sign",
    "Santa Claus": "Santa Claus",
    "Mrs. Claus": "Mrs. Claus",
    "mx claus": "Mx Claus",
    "Statue of Liberty": "the Statue of Liberty",
    "Tokyo tower": "the Tokyo tower",
    "Japanese symbol for beginner": "the Japanese symbol for a beginner",
    "map of Japan": "a map of Japan",
    "milky way": "the milky way",
    "kaaba": "the kaaba",
    "sun": "the sun",
    "sun with face": "the sun with a face",
    "hot springs": "hot springs",
    "mahjong red dragon": "a mahjong red dragon",
    "breast-feeding": "a woman breast-feeding a baby",
    "meat on bone": "a piece of meat on a bone",
    "umbrella on ground": "an umbrella on the ground",
    "ZZZ": "ZZZ",
    "hundred points": "a hundred points",
    "oncoming fist": "an oncoming fist",
    "no one under eighteen": "a sign that says no one under eighteen",
    "no entry": "a no entry sign",
    "no smoking": "a no smoking sign",
    "no littering": "a no littering sign",
    "no bicycles": "a no bicycles sign",
    "no pedestrians": "a no pedestrians sign",
    "no mobile phones": "a no mobile phones sign",
    "potable water": "a potable water sign",
    "non-potable water": "a non-potable water sign",
    "children crossing": "a children crossing sign",
    "place of worship": "a place of worship sign",
    "men's room": "a men's room sign",
    "women's room": "a women's room sign",
    "restroom": "a restroom sign",
    "speaker low volume": "a speaker at low volume",
    "speaker medium volume": "a speaker at medium volume",
    "speaker high volume": "a speaker at high volume",
    "index pointing at the viewer": "an index finger pointing at the viewer",
    "index pointing up": "an index finger pointing up",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "star-struck": "a star-struck face",
    "ginger root": "a ginger root",
    "mate": "a mate drink",
    "heavy equals sign": "a heavy equals sign",
    "person in suit levitating": "a person in a suit levitating",
    "hand with index finger and thumb crossed": "a hand with index finger and thumb crossed",
    "leaf fluttering in wind": "a leaf fluttering in the wind",
    "chart increasing with yen": "an increasing chart with a yen sign",
    "bow and arrow": "a bow and arrow",
    "nut and bolt": "a nut and bolt",
    "star and crescent": "a star and crescent",
    "couch and lamp": "a couch and lamp",
    "hammer and pick": "a hammer and pick",
    "hammer and wrench": "a hammer and wrench",
    "fork and knife": "a fork and knife",
    "fork and knife with plate": "a fork and knife with a plate",
    "exclamation question mark": "an exclamation question mark",
    "woman and man holding hands": "a woman and a man holding hands",
    "cloud with lightning and rain": "a cloud with lightning and rain",
    "palm up hand": "a palm up hand",
    "palm down hand": "a palm down hand",
    "chart decreasing": "a decreasing chart",
    "person in bed": "a person in bed",
    "bust in silhouette": "a bust in silhouette",
    "busts in silhouette": "busts in silhouette",
    "page facing up": "a page facing up",
    "night with stars": "a night with stars",
    "shallow pan of food": "a shallow pan of food",
    "pot of food": "a pot of food",
    "yin yang": "a yin yang",
    "dna": "a DNA strand",
    "face with crossed-out eyes": "a face with crossed-out eyes",
    "hourglass not done": "an hourglass that is not done",
    "hourglass done": "an hourglass that is done",
    "litter in bin sign": "a litter in bin sign",
    "eye in speech bubble": "an eye in a speech bubble",
    "part alternation mark": "a part alternation mark",
    "face without mouth": "a face without a mouth",
    "cricket": "a cricket",
    "ballot box with ballot": "a ballot box with a ballot",
    "left luggage": "a left luggage sign",
    "baggage claim": "a baggage claim sign",
    "customs": "a customs sign",
    "passport control": "a passport control sign",
    "water closet": "a water closet sign",
}
# Nouns that want "a" after one of the words below them: "man in tuxedo" is "a man in a tuxedo".
_COUNTABLE = (
    "tuxedo|veil|turban|crown|skullcap|headscarf|white cane|manual wheelchair|motorized wheelchair|steamy room|"
    "haircut|massage|baby|boat|ball|bath|halo|monocle|thermometer|medical mask|head-bandage|tear|raised eyebrow|"
    "wry smile|open mouth|diagonal mouth|peeking eye|heart|hearing aid|hand over mouth|garden|plate|swirl|"
    "umbrella|cloud|large cloud|small cloud|rain cloud|spoon|straw|popping cork|arrow|ribbon|slash|pen|key|flash|"
    "curl|decorative cover|check|dot|kiss|hole|lowered flag|raised flag|hand|tongue|handle"
)
_BEFORE = "with(?:out)?|in|wearing|getting|feeding|rowing|bouncing|taking|behind|blowing|raising|tipping"
_INNER = re.compile(rf"\b({_BEFORE}) ({_COUNTABLE})$")
_ZODIAC = words("Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces Ophiuchus")
_CLOCK = re.compile(r"^(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)(-thirty| o'clock)$")
_PROPER = words("mount")
# Initialisms whose first letter is spoken with a vowel in front ("an SOS button"); other words go by their spelling.
_SPELT = re.compile(r"^(?:[AEFHILMNORSX]|NG|SOS|FM|X-?ray|x-ray|hour\w*|heir\w*|honest\w*)$")
_CONSONANT_SOUND = re.compile(r"^(?:uni(?![nm])|use|usu|uk|eu|one(?:\b|-)|ufo)", re.IGNORECASE)


def with_article(text: str) -> str:
    """Puts "a" or "an" before words, by the sound that they begin with."""
    first = text.split(" ")[0]
    vowel = bool(_SPELT.match(first)) or (first[:1].lower() in set("aeiou") and not _CONSONANT_SOUND.match(first))
    return f"{'an' if vowel else 'a'} {text}"


def plural(noun: str) -> str:
    """The plural of a noun for people and plain things."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def plain(name: str) -> str:
    """A short name as a person would type it: without quotes and with the words of a bracket in front."""
    name = name.replace('"', "")
    return re.sub(r"^(\S+) button \((.+)\)$", r"\2 \1 button", name)


def _head(name: str) -> str:
    parts = name.split(" ")
    after = next((place for place, word in enumerate(parts) if place and word in _AFTER_HEAD), len(parts))
    return parts[after - 1].lower()


def _is_plural(head: str) -> bool:
    return head in _PLURALS.values() or (
        head.endswith("s") and not head.endswith(("ss", "'s")) and head not in _SINGULAR_S
    )


def noun_phrase(name: str) -> str:
    """Words an emoji's short name as a noun phrase: "red apple" is "a red apple", "socks" stays "socks"."""
    if name in _WHOLE:
        return _WHOLE[name]
    if name in _ZODIAC:
        return f"the {name} zodiac sign"
    if _CLOCK.match(name):
        return f"a clock showing {name}"
    phrase = plain(name)
    phrase = _INNER.sub(lambda match: f"{match[1]} {with_article(match[2])}", phrase)
    if phrase.startswith("sun behind"):
        return f"the {phrase}"
    if re.match(r"(last|first) quarter moon$|(new|full) moon$", phrase):
        return f"the {phrase}" if phrase.split()[0] in ("last", "first") else f"a {phrase}"
    head = _head(name)
    if head in _BARE_HEADS or _is_plural(head) or phrase.split(" ")[0] in _PROPER:
        return phrase
    return with_article(phrase)
