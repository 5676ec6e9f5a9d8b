"""The verb that imports published weights."""

from pathlib import Path

import torch
from torch import Tensor

from triptych import catalog
from triptych.api.sources import named_recipe
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.files import is_taken
from triptych.method import Facts, Method
from triptych.model import model_tensors, write_model
from triptych.recipe import BatchSpec, Recipe
from triptych.weights.reading import read_checkpoint
from triptych.weights.sources import Source, find_source


def import_weights(
    name: str,
    checkpoint: str | Path,
    out: str | Path,
    method: str | None = None,
    part: str | None = None,
    tokenizer: str | Path | None = None,
) -> Path:
    """Make a model folder of a published checkpoint, and return it; nothing in the file is run.

    Every tensor of the file must be known, and every tensor of the model filled, but for those that the importer says
    are not published, which are told.

    Args:
        name: Kind of the checkpoint, see ``triptych methods``.
        checkpoint: The file: safetensors, PyTorch, a pickle of arrays, or a TensorFlow checkpoint.
        out: The model's folder, which must not exist.
        method: Another method that is to begin with these weights; the rest of it stays random.
        part: Key of the part of the file that holds the weights, dots between keys; found by itself where None.
        tokenizer: The ``tokenizer.json`` that the model reads text with, or the file of word vectors, where it reads
            such; without it the model reads no text.

    Raises:
        UsageError: If there is no such kind, file, part or method, or ``out`` holds something.
        TriptychError: If the file is damaged or of another kind; it names file and key.
    """
    source, out = find_source(name), Path(out)
    if is_taken(out):
        raise UsageError(f"{out} holds something already; choose another place.")
    if method is not None and method not in source.starts:
        known = ", ".join(source.starts) or "none"
        raise UsageError(f"The weights '{name}' are no start of {method}; methods that can begin with them: {known}.")
    tensors = read_checkpoint(checkpoint, part)
    print(source.licence)
    try:
        recipe = _recipe(source, tensors, method)
        renamed = source.rename(tensors) if method is None else source.starts[method](tensors)
    except UsageError:
        raise
    except TriptychError as error:
        raise TriptychError(f"{checkpoint}: {error}") from error
    recipe, words = _with_words(recipe, tokenizer)
    torch.manual_seed(recipe.seed)
    built: Method = catalog.resolve(recipe.method)(recipe.config)
    left = _fill(built, renamed, source, str(checkpoint), partly=method is not None)
    if words is not None and words.vectors is not None:
        built.take_words(words.vectors)
        print(f"not in the checkpoint, so from {tokenizer}: the vectors of {words.vocabulary} words")
    elif left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        print(f"not in the checkpoint, so random: {', '.join(left[:8])}{more}")
    made = {"imported": name, "checkpoint": Path(checkpoint).name, "licence": source.licence}
    write_model(out, built, recipe, words, tuple(getattr(recipe.config, "classes", ())), made)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    print(f"{recipe.method}, {parameters / 1e6:.2f} M parameters, in {out}")
    return out


def _recipe(source: Source, tensors: dict[str, Tensor], method: str | None) -> Recipe:
    """Return the published recipe, of the sizes of the checkpoint."""
    if method is not None:
        return named_recipe(method, "paper")
    config = source.configure(tensors)
    own = source.recipe(config)
    if own is not None:
        return own
    test = source.look(config)
    if test is None:
        return named_recipe(source.method, "paper").model_copy(update={"config": config})
    return Recipe(method=source.method, config=config, train=test, test=test, batch=BatchSpec(rows=1), steps=1)


def _with_words(recipe: Recipe, file: str | Path | None) -> tuple[Recipe, Tokenizer | None]:
    """Return the recipe with what its tokenizer says, and the tokenizer; without one, the recipe without text."""
    if file is None:
        if recipe.tokenizer is None:
            return recipe, None
        print("without a tokenizer (--tokenizer FILE) the model reads no text")
        return _without_text(recipe), None
    if recipe.tokenizer is None or recipe.tokenizer.file is None:
        return recipe, Tokenizer.load(file)
    words = Tokenizer.train([], recipe.tokenizer.model_copy(update={"file": str(file)}))
    assert words.vectors is not None
    facts = Facts(vocabulary=words.vocabulary, widths={"text": words.vectors.shape[1]})
    completed: Recipe = catalog.resolve(recipe.method).complete(recipe, facts)
    return completed, words


def _without_text(recipe: Recipe) -> Recipe:
    views = tuple(
        {stream: spec for stream, spec in view.items() if spec.transform.kind != "text"} for view in recipe.test.views
    )
    return recipe.model_copy(update={"test": recipe.test.model_copy(update={"views": views})})


def _fill(method: Method, tensors: dict[str, Tensor], source: Source, checkpoint: str, partly: bool) -> list[str]:
    """Put tensors into a method and return the names of those that stay random.

    Raises:
        TriptychError: If one is unknown, missing or of another shape; it names file and tensor.
    """
    state, wanted = method.state_dict(keep_vars=True), model_tensors(method)
    for name, tensor in tensors.items():
        if name not in state:
            raise TriptychError(f"{checkpoint}: there is no tensor '{name}' in {type(method).__name__} of these sizes.")
        if state[name].shape != tensor.shape:
            there, here = tuple(tensor.shape), tuple(state[name].shape)
            raise TriptychError(f"{checkpoint}: the tensor '{name}' has the shape {there}, the model wants {here}.")
    filled = {id(state[name]) for name in tensors}
    left = [name for name in wanted if id(state[name]) not in filled]
    for name in left:
        if not partly and not (source.random and source.random.search(name)):
            raise TriptychError(f"{checkpoint}: nothing in it becomes '{name}'; is it another kind of model?")
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return left
