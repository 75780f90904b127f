"""Names of a classifier's classes, in the order of its scores: from a text file, or ImageNet's as timm has them."""

from __future__ import annotations

from pathlib import Path

from mmllm.errors import ConfigError


def class_names(count: int, file: str | None = None) -> list[str]:
    """The names of `count` classes.

    Args:
        count: how many classes the classifier has.
        file: a text file with the name of a class in each line. If None, the names are those of the ImageNet that has
            so many classes: the first word or words that WordNet has for each. They come with timm.

    Raises:
        ConfigError: if the file cannot be read or has another number of names, or no ImageNet has so many classes.
    """
    if file is not None:
        try:
            names = Path(file).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as problem:
            raise ConfigError(f"names = {file}: cannot be read: {problem!s:.200}") from None
        names = [name.strip() for name in names if name.strip()]
        if len(names) != count:
            raise ConfigError(f"names = {file}: has {len(names)} names, and the classifier has {count} classes")
        return names
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        raise ConfigError(
            f"no ImageNet has {count} classes: give a file with their names, one in each line, as `names`"
        )
    return [description.partition(",")[0].strip() for description in ImageNetInfo(subset).label_descriptions()]
