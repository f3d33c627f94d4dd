"""Golden cases of GKGNet: the modules of every part."""

from tests.golden_modules import gkgnet_data

MODULES = {**gkgnet_data.MODULES}
