"""Golden cases of Rein: the modules of every part."""

from tests.golden_modules import rein_backbones

MODULES = {**rein_backbones.MODULES}
