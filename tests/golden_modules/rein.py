"""Golden cases of Rein: the modules of every part."""

from tests.golden_modules import (
    rein_adapter,
    rein_backbones,
    rein_data,
    rein_head,
    rein_loss,
    rein_recipe,
    rein_system,
)

MODULES = {
    **rein_backbones.MODULES,
    **rein_adapter.MODULES,
    **rein_data.MODULES,
    **rein_head.MODULES,
    **rein_loss.MODULES,
    **rein_recipe.MODULES,
    **rein_system.MODULES,
}
