"""Golden cases of CFPT: the modules of every part."""

from tests.golden_modules import cfpt_data, cfpt_heads, cfpt_neck

PARTS = (cfpt_data, cfpt_heads, cfpt_neck)
MODULES = {name: build for part in PARTS for name, build in part.MODULES.items()}
COUNTS = {name: count for part in PARTS for name, count in getattr(part, "COUNTS", {}).items()}
