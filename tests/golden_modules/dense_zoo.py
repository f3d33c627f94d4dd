"""Golden cases of dense heads."""

from tests.golden_modules.pad_segmentation import upernet

MODULES = {"UPerHead": upernet}
