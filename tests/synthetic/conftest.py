"""A folder of named pictures."""

from own_pictures import pictures_folder

__all__ = ["pictures_folder"]
