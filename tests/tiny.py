"""LAVA in a size for tests."""

from triptych.data.text import Tokenizer
from triptych.method import Facts
from triptych.methods.lava import LAVA, small
from triptych.recipe import Recipe, override

CAPTIONS = ("a small red disc", "the large blue star", "a dog barks in the rain", "someone says one two three")


def tiny_lava(*changes: str) -> tuple[Recipe, Tokenizer]:
    """Return a recipe with a model of some 20,000 parameters in the authors' form, and its tokenizer."""
    sizes = ["config.width=16", "config.layers=1", "config.heads=2", "batch.rows=4", "steps=3", "workers=0"]
    form = ["video_stem=[]", "audio_stem=[]", "pool=token", "norm=post", "ratio=1", "mask_padding=false"]
    recipe = override(small(), [*sizes, *(f"config.{change}" for change in form), *changes])
    assert recipe.tokenizer is not None
    tokenizer = Tokenizer.train(CAPTIONS, recipe.tokenizer)
    return LAVA.complete(recipe, Facts(vocabulary=tokenizer.vocabulary)), tokenizer
