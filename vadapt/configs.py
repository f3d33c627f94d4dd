"""The recipes that come with vadapt: `vadapt.configs.pad_msip` is the file `configs/pad_msip.py`.

>>> from vadapt.configs import pad_msip, parts
>>> pad_msip.get_config("scenes").model.backbone
'vit_micro'
"""

from __future__ import annotations

from vadapt.beside import folder

FOLDER = folder("configs")
__path__ = [str(FOLDER)]  # makes a package of this module, whose modules are the recipes


def names() -> list[str]:
    """The bare names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
