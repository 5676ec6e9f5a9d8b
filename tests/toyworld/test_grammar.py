from collections import Counter

from triptych.toyworld.grammar import ABOUT_NOTHING, VERBS, WORDS, write_caption
from triptych.toyworld.world import describe

SCENES = [describe(0, index) for index in range(1200)]
CAPTIONS = [write_caption(scene) for scene in SCENES]


def test_captions_say_what_they_claim_to_say_and_no_more():
    for scene, (text, captioned, says) in zip(SCENES, CAPTIONS, strict=True):
        if captioned != "yes":
            continue
        head = text.split(" until ")[0].split(" while ")[0].split(" in front of ")[0].split()
        for name in ("kind", "colour", "size"):
            said = any(word in WORDS[getattr(scene.main, name)] for word in head)
            assert said == (name in says), text
        assert any(word in VERBS[scene.main.motion] for word in head) == ("motion" in says), text
        assert (" until " in text) == ("change" in says)
        assert not {"a amber", "a orange", "a asterisk", "a emerald"} & {f"a {word}" for word in text.split(" a ")[1:]}
        if "words" in says:
            assert text.endswith(" ".join(word.text for word in scene.talk.heard))


def test_only_captions_to_train_on_are_missing_or_about_nothing():
    counts = Counter((scene.split, captioned) for scene, (_, captioned, _) in zip(SCENES, CAPTIONS, strict=True))
    assert {split for split, captioned in counts if captioned != "yes"} == {"train"}
    assert 60 < counts["train", "missing"] < 120 and 60 < counts["train", "nothing"] < 120
    assert all(
        (text == "") == (c == "missing") and (text in ABOUT_NOTHING) == (c == "nothing") for text, c, _ in CAPTIONS
    )


def test_synonyms_are_all_used():
    used = Counter(word for text, _, _ in CAPTIONS for word in text.split())
    for words in (*WORDS.values(), *VERBS.values()):
        assert all(used[word] > 3 for word in words)
