"""What can be wrong with a run before it begins."""


class RecipeError(ValueError):
    """A recipe that cannot be taken; the message names the setting, its value and what may be."""
