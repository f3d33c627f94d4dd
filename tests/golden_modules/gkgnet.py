"""Golden cases of GKGNet: the modules of every part."""

from tests.golden_modules import gkgnet_data, gkgnet_graph, gkgnet_model

MODULES = {**gkgnet_data.MODULES, **gkgnet_graph.MODULES, **gkgnet_model.MODULES}
