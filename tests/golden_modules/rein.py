"""Golden cases of Rein: the modules of every part."""

from tests.golden_modules import rein_adapter, rein_backbones

MODULES = {**rein_backbones.MODULES, **rein_adapter.MODULES}
